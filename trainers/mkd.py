"""Knowledge distillation as an nnU-Net trainer: a cloner learns what its teacher says of slices without a lesion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import Tensor

from nnunetv2_anomaly.detectors.mkd.detector import Distillation
from nnunetv2_anomaly.detectors.mkd.teacher import is_random
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.sliding_window import Windows
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.prediction.validation import CaseForValidation, Rivals
from nnunetv2_anomaly.trainers.slices import SliceDetectorTrainer
from nnunetv2_anomaly.training.phases import PhaseLRScheduler

_LEARNING_RATE = 1e-3  # Adam's, constant


class MKDTrainer(SliceDetectorTrainer):
    """Multiresolution knowledge distillation (Salehi et al. 2021), the baseline of Qin et al. (2025)."""

    family = "mkd"
    network_class = Distillation
    mirror_axes = ()
    bias_field: float = 0.0
    teacher_weights: str = default("teacher_weights")
    allow_random_teacher: bool = default("allow_random_teacher")
    teacher_normalisation: str = default("teacher_normalisation")
    lambda_value: float = default("lambda_value")
    score_pools: list[int] = default("score_pools")
    mkd_map: str = default("mkd_map")

    def set_up(self) -> None:
        """As in the base. Raises: UserError for a random teacher, unless the settings allow one."""
        super().set_up()
        if is_random(self.teacher_weights) and not self.allow_random_teacher:
            fault = f"'teacher_weights' is {self.teacher_weights}, and what a random teacher gives is not MKD"
            advice = "give trained weights, or set 'allow_random_teacher' to true to try the mechanics"
            raise UserError(f"{fault}; {advice}")

    def _build_loss(self) -> Callable[[Tensor, Any], Tensor]:
        return _mean_distance

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """Adam over the cloner, at a constant rate."""
        rate = _LEARNING_RATE if self.prestage_learning_rate is None else self.prestage_learning_rate
        optimizer = torch.optim.Adam(self.module.detector.cloner.parameters(), lr=rate)
        return optimizer, PhaseLRScheduler(optimizer, rate, 0, self.num_epochs, exponent=0)

    def on_train_start(self) -> None:
        """As in the base, once the teacher is there. Raises: UserError if its weights are missing or others."""
        if not self.was_initialized:
            self.initialize()
        _ = self.module.detector.teacher
        if not self.module.detector.comparable:
            self.print_to_log_file("WARNING: the teacher is random: not MKD, and not comparable with anything")
        super().on_train_start()

    @classmethod
    def rivals(cls, network: Distillation, case: CaseForValidation, labels: Sequence[int], windows: Windows) -> Rivals:
        """No rival; scores of slices, which maps from 0 to 1 in each slice do not tell."""
        slices = torch.from_numpy(case.image).transpose(0, 1).to(windows.device)
        scores = [network.detector.scores(network.detector.padded(of)) for of in slices.split(1)]
        found = torch.cat(scores)
        return Rivals(
            {}, lambda image, expected: {"slice_score": float(found.mean()), "largest_slice_score": float(found.max())}
        )


def _mean_distance(distances: Tensor, target: Any) -> Tensor:
    return distances.mean()
