"""Files written whole or not at all, and nnU-Net's JSON files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.errors import UserError

if sys.platform != "win32":
    import fcntl

#: how the names of half-written files and folders begin; nobody else's do, and so nothing else is ever deleted
_PREFIX = "part_of_nnunetv2_anomaly_"
#: digits of this machine: jobs on two of them may have the same number
_MACHINE = f"{uuid.getnode() % 10**6:06d}"
_HALF_WRITTEN = re.compile(rf"{_PREFIX}\d+_")

#: Full disk or quota, read-only disk, no permission, broken disk; and a file where a folder is expected or vice versa.
_CANNOT_WRITE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY,
}  # fmt: skip


@contextmanager
def write_failures_as_user_errors(
    place: Path | str,
    advice: str | Callable[[], str] = "give another folder with -o",
    *,
    kinds: tuple[type[Exception], ...] = (OSError,),
) -> Iterator[None]:
    """Turn a failure to write into a UserError; other errors, as that of a missing file, pass.

    Args:
        advice: what the user can do, or a function that returns it once it is needed.
        kinds: exceptions that report a failure to write; torch and blosc2 report a full disk as a RuntimeError.
    """
    try:
        yield
    except kinds as error:
        # The number of a full disk, missing permission and the like; torch's and blosc2's errors have none.
        number = getattr(error, "errno", None)
        if isinstance(error, UserError) or (number is not None and number not in _CANNOT_WRITE):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        told = advice if isinstance(advice, str) else advice()
        raise UserError(f"{place} cannot be written to ({reason}); {told}") from error


def temporary_beside(path: Path) -> Path:
    """The name under which this process writes what takes ``path``'s place once it is whole; it has the same ending."""
    return path.with_name(f"{_PREFIX}{os.getpid()}{_MACHINE}_{_ending(path)}")


def _ending(path: Path) -> str:
    return path.name.encode()[-100:].decode(errors="ignore")  # longer names are too long for file systems


def remove_half_written(path: Path) -> None:
    """Delete what killed runs left of a file or folder under its temporary names (``temporary_beside``)."""
    for entry in path.parent.glob(f"{_PREFIX}*"):
        if is_half_written(entry.name) and _HALF_WRITTEN.sub("", entry.name) == _ending(path):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary name next to ``path`` with the same ending; at the end that file takes ``path``'s place.

    If anything fails, the temporary file is removed and ``path`` stays as it was.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(file: Path, busy: str) -> Iterator[int]:
    """Keep a second run away from what this one writes.

    Args:
        file: of the lock, made if need be.
        busy: what to say where another process holds it.
    Yields: the lock's file descriptor; a process that inherits it keeps the lock even if this one is killed.
    Raises: UserError if another process holds it.
    """
    with file.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(busy) from error
        yield stream.fileno()


def is_half_written(name: str) -> bool:
    """Whether a file of that name was left by ``written_beside`` in a run that was killed."""
    return _HALF_WRITTEN.match(name) is not None


def why_not_writable(folder: Path) -> str | None:
    """The reason why no file can be written into a folder, which need not exist yet; None if one can.

    Writes a byte to find out: permissions do not show read-only and full disks.
    """
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        probe = temporary_beside(folder / "probe")
        try:
            probe.write_bytes(b"0")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None


def take_output_folder(output: Path, marker: str, what: str, *, shared: bool = False) -> None:
    """Make an output folder, or take that of an earlier run, and delete what a killed run left half written.

    Args: marker: file that marks the folder of such a run. what: such a run's result, for the sentence. shared: with
        other parts that may be at work, so that the folder is marked at once, and nothing is checked or deleted.
    Raises: UserError if the folder holds anything else; OSError if it cannot be written to.
    """
    output.mkdir(parents=True, exist_ok=True)
    if shared:
        if not (output / marker).is_file():
            write_marker(output / marker, {}, finished=False)
        return
    half = [entry for entry in output.rglob(f"{_PREFIX}*") if is_half_written(entry.name) and entry.is_file()]
    if not (output / marker).is_file() and set(output.iterdir()) - set(half):
        raise UserError(f"{output} is not empty and holds no {what}; give another folder with -o")
    for entry in half:
        entry.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, line ends as they are."""
    with written_beside(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_marker(path: Path, content: Mapping[str, Any], *, finished: bool) -> None:
    """Write the file that shows which run an output folder is of, with the version and what the run was given."""
    state = {"version": __version__, "finished": finished, **content}
    write_text(path, json.dumps(state, indent=2, default=str))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a dictionary. Raises: UserError if it is missing or holds something else."""
    try:
        if path.is_fifo():
            raise ValueError("it is a pipe")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no dictionary")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or make it again with nnU-Net") from error
    return content


def label_source_sha256(path: Path) -> str:
    """SHA-256 of an image file, with its voxels where these are in a file of their own (.mhd)."""
    if path.name.lower().endswith(".mhd"):
        named = re.search(r"^ElementDataFile *= *(.*\S)", path.read_text(encoding="latin-1"), re.MULTILINE)
        if named and (path.parent / named[1]).is_file():
            return hashlib.sha256((sha256_of(path) + sha256_of(path.parent / named[1])).encode()).hexdigest()
    return sha256_of(path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
