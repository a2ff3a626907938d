"""Files written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
