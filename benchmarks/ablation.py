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

from nnunetv2_anomaly.detectors.artefact import find_checkpoint, install_detector, read_artefact
from nnunetv2_anomaly.detectors.base import Detector, detector_class
from nnunetv2_anomaly.detectors.error import squared
from nnunetv2_anomaly.detectors.inpainting.networks import AnomalyDetector
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.networks.blocks import full_precision
from nnunetv2_anomaly.registry import detector_families
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
    unknown = set(section) - {"channel", "weight", "mask_known", "larger_of", "other_folder"}
    other = section.get("larger_of")
    known = isinstance(section.get("mask_known", False), bool) and (other is None or other in detector_families())
    if unknown or not maps <= set(MAPS) or not known:
        raise UserError(
            f"the changed parts of a model are {dict(section)}; expected 'channel' and 'weight' with one of "
            f"{', '.join(MAPS)}, 'mask_known' with true or false, and 'larger_of' with one of "
            f"{', '.join(detector_families())}"
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
        other: Detector | None = None,
    ) -> None:
        """Build it.

        Args:
            detector: A; or with ``mask_known`` G in A's place.
            segmenter, error_channel, num_maps: as in AnomalyAwareNetwork.
            channel, weight: names in ``MAPS``, of what the error channel and the focal weight are made of.
            mask_known: the last input channel is the hole mask, and what it covers is erased.
            other: a detector whose anomaly map counts where it is larger than the error; frozen.
        """
        super().__init__(detector, segmenter, error_channel, num_maps)
        self.channel, self.weight, self.mask_known = channel, weight, mask_known
        self.other = None if other is None else other.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> AblationNetwork:
        """As in AnomalyAwareNetwork, for the other detector, too."""
        super().train(mode)
        if self.other is not None:
            self.other.eval()
        return self

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
                seen = MAPS[self.channel](difference)
                errors = [squared(MAPS[self.weight](difference)), squared(seen)]
                if self.other is not None:
                    _, other = self.other.maps(image)
                    errors = [torch.maximum(error, other) for error in errors]
                self.latest_error_image, shown = errors
                channel = error_channel(seen, shown, self.error_channel_coefficients)
        return self.segmenter(torch.cat((image, channel.to(image.dtype)), dim=1))


class AblationTrainer(AnomalyAwareTrainer):
    """AnomalyAwareTrainer with the maps that the section ``ablation`` of the configuration names.

    ``{"channel": NAME, "weight": NAME, "mask_known": true}``; what is left out is as in the method. With "mask_known"
    the data set's last channel is the hole mask, and G of the pre-stage takes A's place: the upper bound of a detector.
    ``"larger_of": FAMILY`` with its pre-stage in ``"other_folder"`` makes E, voxel by voxel, the larger of the
    published one and that family's anomaly map, which both lie in [0, 1].
    """

    @staticmethod
    def choices(configuration: Mapping[str, Any]) -> dict[str, Any]:
        """The section, with what is left out filled in.

        Raises: UserError for what is unknown.
        """
        given = configuration.get(SECTION, {})
        check_choices(given)
        return {"channel": "whole", "weight": "whole", "mask_known": False, "larger_of": None, **given}

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
        settings = {**cls.settings(configuration_manager), "num_labels": num_output_channels}
        family, _ = choices.pop("larger_of"), choices.pop("other_folder", None)
        other = detector_class(family).build(configuration_manager, num_image_channels, settings) if family else None
        parts = (whole.detector, whole.segmenter, settings["error_channel"], num_image_channels)
        return AblationNetwork(*parts, **choices, other=other)

    def install_detector(self):
        """As in AnomalyAwareTrainer; with "mask_known" G takes A's place, with "larger_of" the other comes, too."""
        trained = super().install_detector()
        if self.module.other is not None:
            folder = self.configuration_manager.configuration[SECTION]["other_folder"]
            other = read_artefact(find_checkpoint(folder, self.fold, "the other pre-stage"))
            install_detector(self.module.other, other)
        if self.module.mask_known:
            weights = load_file(trained.path, "train the pre-stage again")["network_weights"]
            prefix = "inpainter."
            inpainter = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
            self.module.detector.reconstructor.load_state_dict(inpainter)
        return trained
