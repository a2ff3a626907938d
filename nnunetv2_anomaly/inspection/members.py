"""The files of a model, in a folder or a zip file, and whether any of them runs code when it is read.

Members of a zip file are read in memory; nothing is unpacked. Names out of the file are shown without characters that
a terminal would act on.
"""

from __future__ import annotations

import functools
import io
import json
import re
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from nnunetv2_anomaly.inspection.findings import Finding
from nnunetv2_anomaly.training import safe_loading

DO_NOT_LOAD = "do not install or load it before its author has said what this is for"
DO_NOT_UNPACK = "do not unpack it with any program"
FETCH_AGAIN = "fetch the file again"
#: weights hardly shrink in a zip file: what grows more than this when unpacked would fill the disk
MAX_RATIO = 100
RATIO_COUNTS_FROM_BYTES = 10_000_000

CHECKPOINT_SUFFIXES = {".pth", ".pt", ".ckpt"}
_PICKLE_SUFFIXES = {".pkl", ".pickle", ".joblib"}
_PROGRAM_SUFFIXES = {".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".cmd", ".ps1", ".js"}
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Member:
    """A file of a model: its place below what was given, and how it is opened."""

    name: str
    open: Callable[[], IO[bytes]]


def zip_members(archive: zipfile.ZipFile) -> tuple[list[Finding], list[Member]]:
    """The files of a zip file that may be read, and faults in its list of members and in their checksums."""
    findings, members, seen = [], [], set()
    for info in archive.infolist():
        clause = _unsafe_clause(info) or ("is there twice" if info.filename.casefold() in seen else None)
        seen.add(info.filename.casefold())
        if clause:
            text = f"{safe_loading.shown(info.orig_filename)} {clause}"
            findings.append(Finding("members", "fault", text, DO_NOT_UNPACK))
        elif not info.is_dir():
            members.append(Member(info.filename, functools.partial(archive.open, info)))
    return findings, members


def _unsafe_clause(info: zipfile.ZipInfo) -> str | None:
    """What is wrong with a member, in words: unpacked by some program, it could land anywhere or fill the disk."""
    parts = re.split(r"[/\\]", info.orig_filename)
    if ".." in parts or not parts[0] or ":" in parts[0] or "\\" in info.orig_filename:
        return "leads out of the folder that it is unpacked to"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.file_size > max(RATIO_COUNTS_FROM_BYTES, MAX_RATIO * info.compress_size):
        return f"would unpack to {info.file_size / max(info.compress_size, 1):.0f} times its size"
    return None


def folder_members(folder: Path) -> tuple[list[Finding], list[Member]]:
    """The files below a folder. Links are not followed: what nnU-Net would load through one is not judged here."""
    findings, members = [], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            text = f"{safe_loading.shown(name)} is a link and was not followed: what it leads to is not judged"
            findings.append(Finding("members", "fault", text, "replace it by the file, and inspect the model again"))
        elif path.is_file():
            members.append(Member(name, functools.partial(io.FileIO, path)))
    return findings, members


def inspect_member(member: Member, label: str) -> tuple[list[Finding], Any]:
    """Whether a file is whole and runs no code when read; and the content of a checkpoint or a JSON file, else None."""
    suffix = PurePosixPath(member.name).suffix.lower()
    topic = "checkpoint" if suffix in CHECKPOINT_SUFFIXES else "members"
    try:
        with member.open() as file:
            return _read(io.BytesIO(file.read()), suffix, label)
    except safe_loading.UnsafeFileError as error:
        return [Finding(topic, "fault", f"{label} {error}", DO_NOT_LOAD)], None
    except Exception as error:  # a damaged or hostile file fails in many ways
        reason = f"{type(error).__name__}: {safe_loading.first_line(error)}"
        text = f"{label} is damaged, or holds what nnU-Net does not store ({reason})"
        return [Finding(topic, "fault", text, f"{FETCH_AGAIN}, and {DO_NOT_LOAD}")], None


def _read(file: io.BytesIO, suffix: str, label: str) -> tuple[list[Finding], Any]:
    """Raises: UnsafeFileError if loading it would run code; another exception if it cannot be read."""
    head = file.getvalue()[:4]
    if suffix in CHECKPOINT_SUFFIXES or (head == _ZIP and is_torch_archive(file)):
        content = safe_loading.load_safely(file)
        text = f"{label}: {len(file.getvalue()) / 1e6:.1f} MB, runs no code when loaded"
        return [Finding("checkpoint", "ok", text)], content
    if suffix == ".json":
        return [], json.load(file)
    if suffix in (".npz", ".npy"):
        arrays = np.load(file, allow_pickle=False)  # refuses objects
        if not isinstance(arrays, np.ndarray):
            sum(array.nbytes for array in arrays.values())  # reads them
    elif suffix in _PICKLE_SUFFIXES or head[:1] == b"\x80":
        names, error = safe_loading.names_in_pickle(file)
        foreign = [name for name in names if not safe_loading.IN_POSTPROCESSING.fullmatch(name)]
        if foreign:
            raise safe_loading.UnsafeFileError(foreign)
        if error:
            raise error
    elif suffix in _PROGRAM_SUFFIXES or head == _ZIP:
        what = "is an archive, and was not looked into" if head == _ZIP else "is program code"
        text = f"{label} {what}; nnU-Net exports no such file"
        return [Finding("members", "warning", text, "read it before you use it, or leave it out")], None
    return [], None


def is_torch_archive(file: IO[bytes]) -> bool:
    """Whether torch.save could have written a zip file."""
    with zipfile.ZipFile(file) as archive:
        found = any(name.lower().endswith("/data.pkl") for name in archive.namelist())
    file.seek(0)
    return found
