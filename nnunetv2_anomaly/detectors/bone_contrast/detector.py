"""Robust local contrast in bones, behind a segmentation that finds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.base import Contract, Detector
from nnunetv2_anomaly.detectors.error import squared
from nnunetv2_anomaly.detectors.level import POLARITIES, bone_numbers, level_within, sigma_in_voxels

#: a deviation of so many standard deviations of nnU-Net's normalised image has the anomaly map's largest value, 1
_LARGEST = 6.0


class BoneContrast(Detector):
    """x minus the local level of the bone that the voxel is in; 0 outside bones.

    The bone model is the network that nnU-Net planned, trained by nnU-Net's own loss on all labels of the data set;
    lesions count to their bone.
    """

    contract = Contract(family="bone_contrast", error_channels=1, dimensions=(2, 3), window="planned")
    learns_bones_alone = True
    bone_of_label: Tensor

    def __init__(self, bone_model: nn.Module, num_labels: int, sigma_voxels: Sequence[float], polarity: str) -> None:
        """Put a segmentation network in front; as long as ``set_bones`` was not called, each label is a bone."""
        super().__init__()
        self.bone_model = bone_model
        self.sigma_voxels, self.polarity = sigma_voxels, polarity
        self.register_buffer("bone_of_label", torch.arange(num_labels))

    @classmethod
    def build(
        cls, configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]
    ) -> BoneContrast:
        """The planned network, untrained.

        Args: settings: with ``num_labels``, background included, of the data set; without it there is one bone.
        """
        num_labels = settings.get("num_labels", 2)
        architecture = (
            configuration_manager.network_arch_class_name,
            configuration_manager.network_arch_init_kwargs,
            configuration_manager.network_arch_init_kwargs_req_import,
        )
        bone_model = get_network_from_plans(*architecture, num_channels, num_labels, deep_supervision=False)
        sigma = sigma_in_voxels(settings["level_mm"], configuration_manager.spacing)
        return cls(bone_model, num_labels, sigma, settings["polarity"])

    @torch.no_grad()
    def set_bones(self, bones: Sequence[Collection[int]]) -> None:
        """Say which labels are bones. Args: bones: label values of each."""
        labels = torch.arange(len(self.bone_of_label), device=self.bone_of_label.device)
        self.bone_of_label.copy_(bone_numbers(labels, bones))

    def difference(self, image: Tensor) -> Tensor:
        """Mean over channels, in nnU-Net's normalised units: (B, C, *window) -> (B, 1, *window), float32."""
        return self.difference_in(image, self.bone_of_label[self.bone_model(image).argmax(dim=1)])

    def difference_in(self, image: Tensor, bones: Tensor) -> Tensor:
        """The same in known bones, (B, *axes): 0 outside, another number for each."""
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
        logits: Tensor = self.detector.bone_model(image)
        return logits
