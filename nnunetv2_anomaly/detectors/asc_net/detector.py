"""What a slice's reconstruction from both cuts shows: anomalies stand out in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor

from nnunetv2_anomaly.detectors.asc_net.networks import LEVELS, MainNetwork
from nnunetv2_anomaly.detectors.base import Contract
from nnunetv2_anomaly.detectors.intensity import RescalingDetector

#: what of the reconstruction counts by polarity
_OF_POLARITY = {"bright": lambda of: of, "dark": lambda of: 1 - of, "both": lambda of: (2 * of - 1).abs()}


class ASCNetDetector(RescalingDetector):
    """The anomaly map is the reconstruction, inverted for dark anomalies; the fence cut is what was expected."""

    contract = Contract("asc_net", error_channels=None, dimensions=(2,), window="any", multiple_of=2**LEVELS)
    clips = True

    def __init__(self, num_channels: int, features: int, polarity: str) -> None:
        """Build the main network. Args: polarity: of ``level.POLARITIES``."""
        super().__init__(num_channels)
        self.main = MainNetwork(num_channels, features)
        self.polarity = polarity

    @classmethod
    def build(
        cls, configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]
    ) -> ASCNetDetector:
        """The untrained main network."""
        return cls(num_channels, settings["asc_features"], settings["polarity"])

    def difference(self, image: Tensor) -> Tensor:
        """x - fence cut: (B, C, Y, X) -> the same shape, float32, in units of the rescaled image."""
        return self._plain_maps(image)[0]

    def error(self, image: Tensor, difference: Tensor) -> Tensor:
        """The reconstruction by polarity: (B, C, Y, X), in [0, 1]."""
        return self._plain_maps(image)[1]

    def _plain_maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        rescaled = self.rescale(image)
        cuts = self.main(rescaled)
        return rescaled - cuts.fence.float(), _OF_POLARITY[self.polarity](cuts.reconstruction.float())
