"""Files written whole or not at all, and files that a user may have broken."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2_anomaly.errors import UserError

#: How ``written_beside`` calls what it writes. No more than that is left out: a file may be called part_one.
_HALF_WRITTEN = re.compile(r"part_\d+_")

#: what a full disk, a used-up quota, a read-only disk and missing permission are called
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to, with its ending; at the end what was written there takes ``path``'s place.

    Where anything fails, what was at ``path`` stays and what was begun is removed.
    """
    temporary = path.with_name(f"part_{os.getpid()}_{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_half_written(name: str) -> bool:
    """Whether a file of that name is what a run that was killed was writing."""
    return _HALF_WRITTEN.match(name) is not None


@contextmanager
def written_into(output: Path) -> Iterator[None]:
    """Turn a failure to write into an output folder into a UserError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{output} cannot be written to ({reason}); give another folder with -o.") from error


def nothing_can_be_written(error: OSError) -> bool:
    """Whether an error is that of a full disk, a read-only folder or missing permission, and not of a missing file."""
    # Errors of our own about a file that came out too short may carry no number.
    return error.errno is None or error.errno in _CANNOT_WRITE


def why_not_writable(folder: Path) -> str | None:
    """The reason why no file can be written into a folder, which need not exist yet; None if one can.

    Asked by writing one: permissions alone tell nothing about read-only and full disks.
    """
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        probe = folder / f"part_{os.getpid()}_probe"
        try:
            probe.write_bytes(b"0")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None


def take_output_folder(output: Path, marker: str, what: str) -> None:
    """Make an output folder, or take that of an earlier run, without what this one was writing when it was killed.

    Args:
        output: the folder.
        marker: file in it that tells that such a run wrote it.
        what: such a run's result, for the sentence.
    Raises: UserError if it holds anything else, or cannot be written to.
    """
    with written_into(output):
        output.mkdir(parents=True, exist_ok=True)
        half = [entry for entry in output.rglob("part_*") if is_half_written(entry.name) and entry.is_file()]
        if not (output / marker).is_file() and set(output.iterdir()) - set(half):
            raise UserError(f"{output} is not empty and holds no {what}; give another folder with -o.")
        for entry in half:
            entry.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, line ends as they are."""
    with written_beside(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """A file of nnU-Net's that holds a dictionary.

    Raises: UserError if it is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or make it again with nnU-Net") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary; restore it, or make it again with nnU-Net")
    return content
