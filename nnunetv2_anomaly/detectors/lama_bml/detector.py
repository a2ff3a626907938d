"""Bones inpainted from what surrounds them, and what differs from that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor

from nnunetv2_anomaly.detectors.base import Contract
from nnunetv2_anomaly.detectors.bone_finder import BoneFinder
from nnunetv2_anomaly.detectors.intensity import RescalingDetector
from nnunetv2_anomaly.detectors.lama_bml.detection import lesion_score
from nnunetv2_anomaly.detectors.lama_bml.networks import Generator, GeneratorShape
from nnunetv2_anomaly.errors import UserError


class LaMaDetector(RescalingDetector):
    """x - G(x) in bones, of whole slices; the anomaly map compares both after an equalisation each.

    Bones are given, or found by a bone model inside. What the generator fills is all bones of a slice at once.
    """

    contract = Contract(family="lama_bml", error_channels=None, dimensions=(2,), window="whole")
    takes_bones = True
    clips = True

    def __init__(
        self, num_channels: int, shape: GeneratorShape, polarity: str, bone_finder: BoneFinder | None = None
    ) -> None:
        """Build the generator. Args: polarity: of ``level.POLARITIES``."""
        super().__init__(num_channels)
        self.generator = Generator(num_channels, shape)
        self.polarity = polarity
        self.bone_finder = bone_finder
        self.needs_bones = bone_finder is None

    @property
    def bone_model(self) -> BoneFinder | None:
        """The bone model inside, None where there is none."""
        return self.bone_finder

    @classmethod
    def build(
        cls, configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]
    ) -> LaMaDetector:
        """The untrained generator; with the planned network as a bone model where ``bone_model`` is set."""
        names = ("features", "downsamplings", "blocks", "global_share")
        shape = GeneratorShape(**{name: settings[f"lama_{name}"] for name in names})
        finder = None
        if settings["bone_model"] is not None:
            finder = BoneFinder.build(configuration_manager, num_channels, settings.get("num_labels", 2))
        return cls(num_channels, shape, settings["polarity"], finder)

    def difference(self, image: Tensor) -> Tensor:
        """x - G(x) in bones, 0 elsewhere: (B, C, Y, X) -> the same shape, float32, in units of the rescaled image.

        Raises: UserError if there is no bone model inside.
        """
        return self._plain_maps(image)[0]

    def error(self, image: Tensor, difference: Tensor) -> Tensor:
        """What of the difference is of the polarity, both images equalised: (B, C, Y, X), in [0, 1]."""
        return self._plain_maps(image)[1]

    def _plain_maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if self.bone_finder is None:
            advice = "give them with --bones, or set 'bone_model' to a model folder before it is trained"
            raise UserError(f"a detector of the family lama_bml needs bones, and no bone model is in it; {advice}")
        return self.maps_in(image, self.bone_finder(image))

    @torch.no_grad()
    def maps_in(self, image: Tensor, bones: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps in known bones, (B, Y, X): 0 outside; slices without bone have maps of 0."""
        rescaled = self.rescale(image)
        difference, error = torch.zeros_like(rescaled), torch.zeros_like(rescaled)
        for index, hole in enumerate(bones > 0):
            if not hole.any():
                continue
            one = rescaled[index : index + 1]
            filled = self.generator.inpaint(one, hole[None, None].to(one))[0]
            difference[index] = one[0] - filled
            before, after, bone = (of.cpu().numpy() for of in (one[0], filled, hole))
            for channel, pair in enumerate(zip(before, after, strict=True)):
                error[index, channel] = torch.from_numpy(lesion_score(*pair, bone, self.polarity)).to(error)
        return difference, error
