"""The family of segmenters that nnU-Net plans."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch.nn.modules.conv import _ConvNd


def build_segmenter(*arguments: Any) -> nn.Module:
    """The network that nnU-Net planned, (B, num_input_channels, *patch_size) -> logits, or a list with supervision.

    Args: arguments: as nnU-Net's ``build_network_architecture`` takes them.
    """
    return nnUNetTrainer.build_network_architecture(*arguments)


def see_more_channels(segmenter: nn.Module, num_channels: int) -> None:
    """Widen a network's first convolution for further input channels, in place, by weights of 0.

    It starts as it was: with one seed, what is trained differs from nnU-Net by the method, not by the first weights.
    """
    first = next(module for module in segmenter.modules() if isinstance(module, _ConvNd))
    more = first.weight.new_zeros((first.out_channels, num_channels, *first.kernel_size))
    first.weight = nn.Parameter(torch.cat((first.weight.detach(), more), dim=1))
    first.in_channels += num_channels
