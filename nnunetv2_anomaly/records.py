"""What was found of one case, kept beside the output, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.files import write_text


def fingerprint(files: Iterable[Path], options: Mapping[str, Any]) -> str:
    """Changes when one of the files, an option or this package's version does.

    Args:
        files: by path, size and time of the last change; one that is missing counts as such.
        options: whatever can be written as JSON.
    Returns: hexadecimal digits.
    """
    states = []
    for file in files:
        status = file.stat() if file.is_file() else None
        states.append([str(file.resolve()), status and status.st_size, status and status.st_mtime_ns])
    text = json.dumps([__version__, states, options], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def load_record(file: Path, expected_fingerprint: str) -> dict[str, Any] | None:
    """What was kept under this fingerprint; None if there is nothing, or of another one."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return record["found"] if record["fingerprint"] == expected_fingerprint else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is made anew


def save_record(file: Path, of_fingerprint: str, found: Mapping[str, Any]) -> None:
    """Keep what was found of a case; the folder is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"fingerprint": of_fingerprint, "found": found}))
