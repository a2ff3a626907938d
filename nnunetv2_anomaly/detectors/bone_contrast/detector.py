"""Robust local contrast in bones, behind a segmentation that finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.base import Contract, Detector
from nnunetv2_anomaly.detectors.bone_finder import BoneFinder
from nnunetv2_anomaly.detectors.error import squared
from nnunetv2_anomaly.detectors.level import POLARITIES, level_within, sigma_in_voxels

#: a deviation of so many standard deviations of nnU-Net's normalised image has the anomaly map's largest value, 1
_LARGEST = 6.0


class BoneContrast(Detector):
    """x minus the local level of the bone that the voxel is in; 0 outside bones.

    The bone model is the network that nnU-Net planned, trained by nnU-Net's own loss on all labels of the data set;
    lesions count to their bone.
    """

    contract = Contract(family="bone_contrast", error_channels=1, dimensions=(2, 3), window="planned")
    takes_bones = learns_bones_alone = True

    def __init__(self, bones: BoneFinder, sigma_voxels: Sequence[float], polarity: str) -> None:
        """Put a segmentation network in front."""
        super().__init__()
        self.bones = bones
        self.sigma_voxels, self.polarity = sigma_voxels, polarity

    @classmethod
    def build(
        cls, configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]
    ) -> BoneContrast:
        """The planned network, untrained.

        Args: settings: with ``num_labels``, background included, of the data set; without it there is one bone.
        """
        bones = BoneFinder.build(configuration_manager, num_channels, settings.get("num_labels", 2))
        sigma = sigma_in_voxels(settings["level_mm"], configuration_manager.spacing)
        return cls(bones, sigma, settings["polarity"])

    def difference(self, image: Tensor) -> Tensor:
        """Mean over channels, in nnU-Net's normalised units: (B, C, *window) -> (B, 1, *window), float32."""
        return self._contrast(image, self.bones(image))

    def maps_in(self, image: Tensor, bones: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps in known bones, (B, *axes): 0 outside, another number for each."""
        difference = self._contrast(image, bones)
        return difference, self.error(image, difference)

    def _contrast(self, image: Tensor, bones: Tensor) -> Tensor:
        level = level_within(image, bones, self.sigma_voxels, self.polarity)
        return (image.float() - level).mean(dim=1, keepdim=True)

    def error(self, image: Tensor, difference: Tensor) -> Tensor:
        """The square of what is of the polarity, in [0, 1]: (B, 1, *window) each."""
        return squared((POLARITIES[self.polarity](difference) / _LARGEST).clamp(max=1.0))


class BoneModel(nn.Module):
    """The detector as it is trained: its segmentation network alone."""

    def __init__(self, detector: BoneContrast) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *patch_size), as nnU-Net normalised it -> logits (B, labels, *patch_size)."""
        logits: Tensor = self.detector.bones.network(image)
        return logits
