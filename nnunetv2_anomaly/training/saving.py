"""Checkpoints written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nnunetv2_anomaly.files import why_not_writable, write_failures_as_user_errors
from nnunetv2_anomaly.training.safe_loading import load_file


def save_whole(save: Callable[[str], None], path: Path, extra: Mapping[str, Any], advice: Callable[[], str]) -> None:
    """Write a checkpoint beside and rename it, so that a kill while writing leaves the last good file.

    Args: save: writes the checkpoint to a file name. path: where it belongs. extra: entries to add to it. advice: what
        to do where it cannot be written; ends the sentence.
    Raises: UserError if it cannot be written; what was there stays.
    """
    temporary = path.with_name(f"{path.name}.part")

    def unchanged() -> str:
        return f"nothing else was changed; make room or give permission, and {advice()}"

    try:
        with write_failures_as_user_errors(f"the checkpoint {path}", unchanged):
            try:
                save(str(temporary))
                if extra:
                    torch.save({**load_file(temporary, unchanged()), **extra}, temporary)
            except RuntimeError as error:  # of torch's file writer, which does not say that the disk is full
                raise OSError(errno.EIO, why_not_writable(path.parent) or str(error).partition("\n")[0]) from error
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
