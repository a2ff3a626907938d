"""Weights of networks that torchvision knows: a user's file, or torchvision's own, from its cache or downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.error import URLError

import torch

from nnunetv2_anomaly.errors import UserError

_FILE = re.compile(r"file:(.+)")


def named_file(source: str) -> Path | None:
    """The path in ``file:PATH``; None in any other source of weights."""
    match = _FILE.fullmatch(source)
    return Path(match[1]).expanduser() if match else None


def weights_file(source: str, network: str, what: str, setting: str) -> Path:
    """The file that a source names, else ImageNet's weights in torchvision's cache, downloaded where they are missing.

    Args: network: torchvision's name of it, as resnet50. what: is wanted, in words. setting: that holds the source.
    Raises: UserError if the file is missing, or can neither be found nor downloaded.
    """
    if file := named_file(source):
        if not file.is_file():
            raise UserError(f"the weights {file} do not exist; expected {what}, so set '{setting}' to them")
        return file
    from torchvision.models import get_model_weights  # an extra

    weights = get_model_weights(network).IMAGENET1K_V1
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    if not file.is_file():
        try:
            weights.get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            fault = f"{file} does not exist, and {weights.url} cannot be downloaded ({error})"
            advice = f"put it there, or set '{setting}' to file:PATH of a copy"
            raise UserError(f"{fault}; expected {what}, so {advice}") from error
    return file
