"""Losses of the main network and of the discriminator (Dey et al., Section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMOOTH = 1.0


def disjoint_loss(fence: Tensor, wild: Tensor) -> Tensor:
    """Soft Dice of both cuts, over the batch as one, which is to become small: scalar in [0, 1]."""
    both = (fence * wild).sum()
    return (2 * both + _SMOOTH) / (fence.sum() + wild.sum() + _SMOOTH)


def fence_loss(judged: Tensor) -> Tensor:
    """How far the discriminator is from taking fence cuts for reference slices. Args: judged: (B,)."""
    return (judged - 1).abs().mean()


def discriminator_loss(of_reference: Tensor, of_cuts: Tensor) -> Tensor:
    """Reference slices are to have 1, fence cuts -1. Args: judged: (B,) each, of any numbers."""
    return torch.cat(((of_reference - 1).abs(), (of_cuts + 1).abs())).mean()


def weight_penalty(network: nn.Module) -> Tensor:
    """Sum of squares of the 3 x 3 convolutions' weights, which the public code adds 2e-4 times."""
    kernels = [of.weight for of in network.modules() if isinstance(of, nn.Conv2d) and of.kernel_size == (3, 3)]
    return torch.stack([kernel.square().sum() for kernel in kernels]).sum()
