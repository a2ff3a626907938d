"""Weights that torchvision offers, from its cache or downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from nnunetv2_anomaly.errors import UserError


def torchvision_file(weights: Any, what: str, setting: str) -> Path:
    """The file of some weights in torchvision's cache, downloaded where it is missing.

    Args: weights: a member of one of torchvision's enumerations. what: they are, in words. setting: that names them.
    Raises: UserError if they can neither be found nor downloaded.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    if not file.is_file():
        try:
            weights.get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            fault = f"{file} does not exist, and {weights.url} cannot be downloaded ({error})"
            advice = f"put it there, or set '{setting}' to file:PATH of a copy"
            raise UserError(f"{fault}; expected {what}, so {advice}") from error
    return file
