"""Per-case results, stored next to the output so that an interrupted run can resume."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.files import label_source_sha256, write_text


def fingerprint(files: Iterable[Path], options: Mapping[str, Any]) -> str:
    """A hash that changes with the files, the options and this package's version.

    Args: files: known by path and content; they may be missing.
    Returns: SHA-256, hexadecimal digits.
    """
    # Not by size and time: a file that is copied in another's place may keep both.
    states = [[os.path.realpath(file), label_source_sha256(file) if file.is_file() else None] for file in files]
    text = json.dumps([__version__, states, options], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def load_record(file: Path, expected_fingerprint: str) -> dict[str, Any] | None:
    """The stored result with this fingerprint; None if there is none, or the file is damaged."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return record["found"] if record["fingerprint"] == expected_fingerprint else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the case is done again


def save_record(file: Path, of_fingerprint: str, found: Mapping[str, Any]) -> None:
    """Store the result of a case; the folder is made if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"fingerprint": of_fingerprint, "found": found}))
