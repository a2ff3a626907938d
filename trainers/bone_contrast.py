"""The control of all detectors as an nnU-Net trainer: a segmentation, and contrast in the bones that it finds."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_anomaly.detectors.bone_contrast.detector import BoneModel
from nnunetv2_anomaly.errors import UnsupportedError, UserError
from nnunetv2_anomaly.label_roles import ROLES_KEY
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.trainers.detector import DetectorTrainer


class BoneContrastTrainer(DetectorTrainer):
    """Trains nnU-Net's planned network on the labels, with nnU-Net's own loss; the contrast itself learns nothing."""

    family = "bone_contrast"
    network_class = BoneModel
    num_epochs: int = default("num_epochs")
    polarity: str = default("polarity")
    level_mm: float = default("level_mm")

    def set_up(self) -> None:
        """As in the base.

        Raises: UnsupportedError for regions, of which no voxel has one label; UserError without bones.
        """
        super().set_up()
        self.save_every = 50  # as nnU-Net: the network is as large as its own
        if self.label_manager.has_regions:
            fault = "BoneContrastTrainer does not support region-based labels: each voxel has to be in one bone"
            raise UnsupportedError(f"{fault}; give dataset.json plain labels")
        if not self.bones_with_lesions():
            known = ", ".join(self.dataset_json["labels"])
            fault = f"no label is a bone ({known}), in which BoneContrastTrainer takes its contrast"
            raise UserError(f"{fault}; say which are as '{ROLES_KEY}' in dataset.json, or as the setting 'bone_labels'")

    def _build_loss(self) -> nn.Module:
        return nnUNetTrainer._build_loss(self)

    def start_from_data(self) -> None:
        """Which labels are bones."""
        self.module.detector.bones.set_bones(self.bones_with_lesions())
