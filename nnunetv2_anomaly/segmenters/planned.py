"""The family of segmenters that nnU-Net plans."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn


def build_segmenter(*arguments: Any) -> nn.Module:
    """The network that nnU-Net planned, (B, num_input_channels, *patch_size) -> logits, or a list with supervision.

    Args: arguments: as nnU-Net's ``build_network_architecture`` takes them.
    """
    return nnUNetTrainer.build_network_architecture(*arguments)
