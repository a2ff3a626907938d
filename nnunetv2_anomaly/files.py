"""Files written whole or not at all, and files that a user may have broken."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2_anomaly.errors import UserError


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
        raise UserError(f"{path} cannot be read ({error}); delete it, or make it again with nnU-Net") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary; delete it, or make it again with nnU-Net")
    return content
