"""The device that a command line names."""

from __future__ import annotations

import multiprocessing

import torch

from nnunetv2_anomaly.errors import UserError


def check_device(name: str) -> None:
    """Check that the device of ``-device cuda|cpu|mps`` exists. Raises: UserError if it does not."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("-device cuda was asked for (the default), but torch sees no CUDA GPU; give -device cpu or mps")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("-device mps was asked for, but torch sees no Apple GPU; give -device cpu")


def chosen_device(name: str) -> torch.device:
    """The torch device of ``-device cuda|cpu|mps``, with the thread count that nnU-Net's own commands set.

    Raises: UserError if it does not exist.
    """
    check_device(name)
    if name == "cpu":
        torch.set_num_threads(multiprocessing.cpu_count())
    return torch.device(name)
