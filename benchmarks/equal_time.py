"""Trainers with a budget of processor time, so that methods are compared at equal cost on a machine with other work.

With one thread and no workers a second of processor time is a second by the clock of an idle machine.
"""

from __future__ import annotations

from time import process_time

from benchmarks.ablation import BudgetedNNUNetTrainer
from nnunetv2_anomaly.trainers.base import AnomalyTrainerBase
from nnunetv2_anomaly.trainers.mask_rcnn import IMaskRCNNTrainer, MaskRCNNTrainer

#: key of a configuration in plans.json that holds the seconds that its epochs take together
SECONDS = "benchmark_seconds"
#: steps of the first epoch, from which the length of the others follows
_FIRST = 4


class EqualTime(AnomalyTrainerBase):
    """Gives every epoch as many iterations as fit in its share of what is left of the budget."""

    spent: float = 0.0
    steps: int = 0

    def on_epoch_start(self) -> None:
        """As in the base, with the number of iterations that fits."""
        left = self.configuration_manager.configuration[SECONDS] - self.spent
        per_step = self.spent / self.steps if self.steps else None
        share = left / (self.num_epochs - self.current_epoch)
        self.num_iterations_per_epoch = max(1, round(share / per_step)) if per_step else _FIRST
        self.steps += self.num_iterations_per_epoch
        self.began = process_time()
        super().on_epoch_start()

    def on_epoch_end(self) -> None:
        """As in the base."""
        self.spent += process_time() - self.began
        self.print_to_log_file(f"{self.steps} steps in {self.spent:.0f} s of processor time")
        super().on_epoch_end()


class EqualTimeNNUNetTrainer(EqualTime, BudgetedNNUNetTrainer):
    """nnU-Net's own."""


class EqualTimeMaskRCNNTrainer(EqualTime, MaskRCNNTrainer):
    """Plain Mask R-CNN."""


class EqualTimeIMaskRCNNTrainer(EqualTime, IMaskRCNNTrainer):
    """Improved Mask R-CNN."""
