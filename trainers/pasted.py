"""The detector of pasted anomalies as an nnU-Net trainer: the bones' level, then what stands out, in one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import nn

from nnunetv2_anomaly.detectors.level import bone_numbers, sigma_in_voxels
from nnunetv2_anomaly.detectors.pasted.loss import PastedLoss
from nnunetv2_anomaly.detectors.pasted.networks import PastedNetwork
from nnunetv2_anomaly.detectors.pasted.settings import PASTING
from nnunetv2_anomaly.label_roles import ROLES_KEY, label_roles
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.trainers.phased import PhasedDetectorTrainer
from nnunetv2_anomaly.training.distributed import rank
from nnunetv2_anomaly.training.pasting import PasteAnomalies, pasting_of, with_pasting
from nnunetv2_anomaly.training.patches import save_pasted_examples, training_patches
from nnunetv2_anomaly.training.phases import SHORT_EXPONENT, SHORT_LEARNING_RATE

#: training patches on which intensities and deviations are measured
_PATCHES = 32


class PastedAnomalyTrainer(PhasedDetectorTrainer):
    """Learns the local level of bones, then to find synthetic anomalies that are pasted into them.

    No lesion label is needed, and lesions that are in the training images unlabelled cost little
    (docs/explanation/detectors.md).
    """

    family = "pasted"
    network_class = PastedNetwork
    phase_settings: ClassVar = {"phase 1, level": "level_epochs", "phase 2, pasted": "pasting_epochs"}
    detector_features: int = default("detector_features")
    detector_downsamplings: int = default("detector_downsamplings")
    polarity: str = default("polarity")
    level_mm: float = default("level_mm")
    level_epochs: int = default("level_epochs")
    pasting_epochs: int = default("pasting_epochs")
    detector_pasting: dict[str, Any] = default("detector_pasting")
    #: the transform that pastes in phase 2, and marks what it pasted
    pasting: PasteAnomalies

    def set_up(self) -> None:
        """As in the base, with pasting in training and validation. Raises: UserError if no label is a bone."""
        super().set_up()
        labels, spacing = self.dataset_json["labels"], self.configuration_manager.spacing
        roles = label_roles(labels, self.dataset_json.get(ROLES_KEY))
        options = {**PASTING, **self.detector_pasting}
        self.pasting = pasting_of(options, labels, roles, spacing, setting="detector_pasting", mark=True)
        self.pasting.now.fill_(0.0)  # batches are loaded before the first epoch begins

        def also_pasting(transforms: Callable[..., ComposeTransforms]) -> Callable[..., ComposeTransforms]:
            return lambda *args, **kwargs: with_pasting(transforms(*args, **kwargs), self.pasting)

        self.get_training_transforms = also_pasting(self.get_training_transforms)  # type: ignore[has-type]
        self.get_validation_transforms = also_pasting(self.get_validation_transforms)  # type: ignore[has-type]

    def _build_loss(self) -> nn.Module:
        sigma = sigma_in_voxels(self.level_mm, self.configuration_manager.spacing)
        return PastedLoss(self.pasting.hosts, sigma, self.polarity, self.label_manager.ignore_label)

    def learning_rate_of_phase(self, phase: int, steps: int) -> tuple[float, float]:
        """2e-3 or as set, decaying to 0 within each phase."""
        chosen = self.prestage_learning_rate
        return (SHORT_LEARNING_RATE if chosen is None else chosen), SHORT_EXPONENT

    # -------------------------------------------------------------- training

    def start_from_data(self) -> None:
        """The intensities of training patches."""
        self.module.detector.take_intensity_range([image for image, _ in self._patches()])

    def _patches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        # Loaded one by one, a share of foreground would come to none.
        found = training_patches(self, _PATCHES)
        return [(torch.from_numpy(i).to(self.device), torch.from_numpy(labels)) for i, labels in found]

    def on_train_start(self) -> None:
        """As in the base, and a picture of pasted training patches."""
        super().on_train_start()
        options = ", ".join(f"{name} {of}" for name, of in {**PASTING, **self.detector_pasting}.items())
        epochs = (
            f"Phase 1, the level of bones: {self.level_epochs} epochs, phase 2, pasted: {self.pasting_epochs} epochs"
        )
        self.print_to_log_file(f"{epochs}; {options}")
        if rank() == 0:
            with self.write_failures_as_user_errors():
                save_pasted_examples(self, self.pasting, Path(self.output_folder))

    def enter_phase(self, phase: int) -> None:
        """As in the base, once it is known how far healthy bone deviates from its level."""
        images, labels = zip(*self._patches(), strict=True)
        bones = [(bone_numbers(of, self.pasting.hosts) > 0).to(self.device) for of in labels]
        self.module.detector.set_deviation_scale(images, bones)
        super().enter_phase(phase)

    def on_train_epoch_start(self) -> None:
        """As in the base; anomalies are pasted in phase 2 alone."""
        super().on_train_epoch_start()
        self.pasting.now.fill_(self.pasting.probability if self.module.phase else 0.0)
