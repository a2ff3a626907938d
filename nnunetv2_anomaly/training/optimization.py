"""Adam at a constant rate, which published trainings use."""

from __future__ import annotations

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn


def adam_at_constant_rate(
    network: nn.Module, learning_rate: float, num_epochs: int
) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
    """Adam without weight decay over what is trained of a network, and the schedule that nnU-Net wants, constant.

    Args: network: with or without wrappers; parameters that require no gradient are left out.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    return optimizer, PolyLRScheduler(optimizer, learning_rate, num_epochs, 0.0)
