"""Learning rates of trainings in phases."""

from __future__ import annotations

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

#: of Adam in phases that are shorter than any published: it starts high and decays to 0
SHORT_LEARNING_RATE = 2e-3
SHORT_EXPONENT = 0.9


class PhaseLRScheduler(PolyLRScheduler):
    """nnU-Net's polynomial decay over one phase; ``step`` takes the epoch of the run, fractions allowed."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, initial_lr: float, first_epoch: int, num_epochs: int, exponent: float
    ) -> None:
        self.first_epoch = first_epoch
        super().__init__(optimizer, initial_lr, num_epochs, exponent)

    def step(self, current_step: float | None = None) -> None:
        """Set the learning rate of ``current_step``, in epochs since the run began."""
        # torch's constructor calls step() once, before any epoch.
        super().step(0 if current_step is None else max(current_step - self.first_epoch, 0))
