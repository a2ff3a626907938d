"""Trainers of the comparison that are not for users: nnU-Net's own with a budget, and the method with parts changed.

nnU-Net finds them through ``benchmarks/trainer_shim`` in nnUNet_extTrainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.error import squared
from nnunetv2_anomaly.detectors.inpainting.networks import AnomalyDetector
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.networks.blocks import full_precision
from nnunetv2_anomaly.segmenters.base import AnomalyAwareNetwork, error_channel
from nnunetv2_anomaly.trainers.anomaly_aware import AnomalyAwareTrainer
from nnunetv2_anomaly.trainers.segmentation import SegmentationTrainer
from nnunetv2_anomaly.training.safe_loading import load_file

#: section of a configuration in plans.json: which map the channel and the focal weight are made of
SECTION = "ablation"


def shuffled(error: Tensor) -> Tensor:
    """The same values at other voxels, (B, C, ...): same histogram, no information on location.

    Each batch draws its order from its own values, so that a prediction is reproducible.
    """
    flat = error.flatten(start_dim=2)
    generator = torch.Generator().manual_seed(int(1e4 * float(error.square().sum())) % 2**31)
    order = torch.randperm(flat.shape[-1], generator=generator).to(error.device)
    return flat[..., order].view_as(error)


#: name -> what stands for x - A(x), (B, C, ...) with intensities in [0, 1]
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda difference: difference,
    "brighter": lambda difference: difference.clamp(min=0),
    "darker": lambda difference: difference.clamp(max=0),
    "shuffled": shuffled,
    "none": torch.zeros_like,
}


def check_choices(section: Mapping[str, Any]) -> None:
    """Check a section ``ablation``.

    Raises: UserError for unknown keys or values.
    """
    maps = {section.get("channel", "whole"), section.get("weight", "whole")}
    unknown = set(section) - {"channel", "weight", "mask_known"}
    if unknown or not maps <= set(MAPS) or not isinstance(section.get("mask_known", False), bool):
        raise UserError(
            f"the changed parts of a model are {dict(section)}; expected 'channel' and 'weight' with one of "
            f"{', '.join(MAPS)}, and 'mask_known' with true or false"
        )


class BudgetedNNUNetTrainer(SegmentationTrainer):
    """nnU-Net's own trainer: its network, loss, optimiser, augmentation, mirroring.

    What is added is that the number of iterations, the seed and the mirroring can be set in plans.json, as for ours.
    """

    mirror_axes = None
    _build_loss = nnUNetTrainer._build_loss


class AblationNetwork(AnomalyAwareNetwork):
    """The anomaly-aware network with other maps in place of the difference x - A(x)."""

    def __init__(
        self,
        detector: AnomalyDetector,
        segmenter: nn.Module,
        error_channel: str,
        num_maps: int,
        *,
        channel: str,
        weight: str,
        mask_known: bool,
    ) -> None:
        """Build it.

        Args:
            detector: A; or with ``mask_known`` G in A's place.
            segmenter, error_channel, num_maps: as in AnomalyAwareNetwork.
            channel, weight: names in ``MAPS``, of what the error channel and the focal weight are made of.
            mask_known: the last input channel is the hole mask, and what it covers is erased.
        """
        super().__init__(detector, segmenter, error_channel, num_maps)
        self.channel, self.weight, self.mask_known = channel, weight, mask_known

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """As in AnomalyAwareNetwork; with ``mask_known`` image is (B, C + 1, *patch_size)."""
        image, hole = (image[:, :-1], image[:, -1:] > 0.5) if self.mask_known else (image, None)
        with torch.no_grad():
            rescaled = self.detector.rescale(image)
            visible = rescaled if hole is None else rescaled * ~hole
            # C sees the whole image in either case.
            reconstruction = self.detector.reconstructor(visible, self.detector.compressor(rescaled))
            with full_precision(rescaled):
                difference = rescaled - reconstruction.float()
                self.latest_error_image = squared(MAPS[self.weight](difference))
                seen = MAPS[self.channel](difference)
                channel = error_channel(seen, squared(seen), self.error_channel_coefficients)
        return self.segmenter(torch.cat((image, channel.to(image.dtype)), dim=1))


class AblationTrainer(AnomalyAwareTrainer):
    """AnomalyAwareTrainer with the maps that the section ``ablation`` of the configuration names.

    ``{"channel": NAME, "weight": NAME, "mask_known": true}``; what is left out is as in the method. With "mask_known"
    the data set's last channel is the hole mask, and G of the pre-stage takes A's place: the upper bound of a detector.
    """

    @staticmethod
    def choices(configuration: Mapping[str, Any]) -> dict[str, Any]:
        """The section, with what is left out filled in.

        Raises: UserError for what is unknown.
        """
        given = configuration.get(SECTION, {})
        check_choices(given)
        return {"channel": "whole", "weight": "whole", "mask_known": False, **given}

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """As in AnomalyAwareTrainer, without a channel for the hole mask."""
        choices = cls.choices(configuration_manager.configuration)
        num_image_channels = num_input_channels - int(choices["mask_known"])
        plans = (plans_manager, configuration_manager)
        whole = super().build_network_architecture(
            *plans, num_image_channels, num_output_channels, enable_deep_supervision
        )
        channel = cls.settings(configuration_manager)["error_channel"]
        return AblationNetwork(whole.detector, whole.segmenter, channel, num_image_channels, **choices)

    def install_detector(self):
        """As in AnomalyAwareTrainer; with "mask_known" G takes A's place."""
        trained = super().install_detector()
        if self.module.mask_known:
            weights = load_file(trained.path, "train the pre-stage again")["network_weights"]
            prefix = "inpainter."
            inpainter = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
            self.module.detector.reconstructor.load_state_dict(inpainter)
        return trained
