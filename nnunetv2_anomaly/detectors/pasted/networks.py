"""The networks: A, which knows a bone's local level without its mask, and D, which finds what stands out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.base import Contract
from nnunetv2_anomaly.detectors.intensity import RescalingDetector
from nnunetv2_anomaly.detectors.pasted.loss import POSITIVE_WEIGHT
from nnunetv2_anomaly.networks.blocks import SummingUNet, full_precision
from nnunetv2_anomaly.plans.strides import Stride, planned_strides

#: what of two probabilities, brighter and darker, counts by polarity
_OF_POLARITY = {"bright": lambda p: p[:, :1], "dark": lambda p: p[:, 1:], "both": lambda p: p.amax(dim=1, keepdim=True)}
#: deviations are clipped to so many of their robust standard deviations in healthy bone
_CLIP = 6.0


class PastedDetector(RescalingDetector):
    """D(x, c) with c = (x - A(x)) / s0: how likely each voxel belongs to an anomaly of a bone.

    A(x) is the bone's local level in bones and x elsewhere: one U-Net, which predicts what has to be taken off.
    Both networks have the shape of the method's U-Nets (method paper, Appendix A).
    """

    contract = Contract(family="pasted", error_channels=1, dimensions=(2, 3), window="planned")
    deviation_scale: Tensor

    def __init__(self, *, num_channels: int, strides: Sequence[Stride], features: int, polarity: str) -> None:
        """Build A and D for images of ``num_channels`` channels; ``polarity`` is of ``level.POLARITIES``."""
        super().__init__(num_channels)
        of_both: dict[str, Any] = {"strides": strides, "features": features}
        self.level = SummingUNet(in_channels=num_channels, out_channels=num_channels, **of_both)
        nn.init.zeros_(self.level.output.get_parameter("weight"))  # it begins as "nothing stands out"
        self.discriminator = SummingUNet(in_channels=2 * num_channels, out_channels=2, **of_both)
        self.polarity = polarity
        self.register_buffer("deviation_scale", torch.ones(num_channels))

    @classmethod
    def build(
        cls, configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]
    ) -> PastedDetector:
        """Both networks untrained, downsampling as nnU-Net planned for this patch size and spacing.

        Raises: UserError if the plans name no patch size or no usable strides.
        """
        return cls(
            num_channels=num_channels,
            strides=planned_strides(configuration_manager, settings["detector_downsamplings"]),
            features=settings["detector_features"],
            polarity=settings["polarity"],
        )

    def deviation(self, rescaled: Tensor) -> Tensor:
        """x - A(x) of a rescaled image: (B, C, *window) -> same shape, float32, above 0 where brighter."""
        with full_precision(rescaled):
            return self.level(rescaled).float()

    def logits(self, rescaled: Tensor, deviation: Tensor) -> Tensor:
        """D's scores of "brighter" and "darker": two of (B, C, *window) -> (B, 2, *window), float32."""
        scaled = (deviation / _per_channel(self.deviation_scale, deviation)).clamp(-_CLIP, _CLIP)
        found: Tensor = self.discriminator(torch.cat((rescaled, scaled), dim=1))
        return found

    def difference(self, image: Tensor) -> Tensor:
        """x - A(x), mean over channels, of a normalised image: (B, C, *window) -> (B, 1, *window), float32."""
        return self.deviation(self.rescale(image)).mean(dim=1, keepdim=True)

    def error(self, image: Tensor, difference: Tensor) -> Tensor:
        """The probability of an anomaly of the polarity, as often as others: (B, C, *window) -> (B, 1, *window).

        D is trained with ``loss.POSITIVE_WEIGHT`` on anomalies, which is taken off again.
        """
        return self._plain_maps(image)[1]

    def _plain_maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        rescaled = self.rescale(image)
        deviation = self.deviation(rescaled)
        probabilities = torch.sigmoid(self.logits(rescaled, deviation) - math.log(POSITIVE_WEIGHT))
        return deviation.mean(dim=1, keepdim=True), _OF_POLARITY[self.polarity](probabilities)

    @torch.no_grad()
    def set_deviation_scale(self, patches: Sequence[Tensor], bones: Sequence[Tensor]) -> None:
        """Take s0, the robust standard deviation of x - A(x), from bones of training patches.

        Args: patches: (C, *patch_size) each, as nnU-Net normalised them. bones: (*patch_size) each, bool.
        """
        found = [self.deviation(self.rescale(p[None]))[0][:, b] for p, b in zip(patches, bones, strict=True)]
        within = torch.cat(found, dim=1)
        if within.shape[1]:
            median = within.median(dim=1, keepdim=True).values
            self.deviation_scale.copy_(1.4826 * (within - median).abs().median(dim=1).values.clamp(min=1e-6))


class PastedOutput(NamedTuple):
    """What the losses compare, float32."""

    rescaled: Tensor  # (B, C, ...)
    deviation: Tensor  # (B, C, ...)
    logits: Tensor | None  # (B, 2, ...): brighter, darker; None in phase 1


class PastedNetwork(nn.Module):
    """The detector as it is trained: A in phase 0, then D behind a frozen A in phase 1."""

    def __init__(self, detector: PastedDetector) -> None:
        super().__init__()
        self.detector = detector
        self.set_phase(0)

    def set_phase(self, phase: int) -> None:
        """Choose what is trained."""
        self.phase = phase
        self.detector.level.requires_grad_(phase == 0)
        self.detector.discriminator.requires_grad_(phase == 1)

    def forward(self, image: Tensor) -> PastedOutput:
        """(B, C, *patch_size), as nnU-Net normalised it, pasted anomalies included."""
        rescaled = self.detector.rescale(image)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.phase == 0):
            deviation = self.detector.deviation(rescaled)
        return PastedOutput(rescaled, deviation, self.detector.logits(rescaled, deviation) if self.phase else None)


def _per_channel(values: Tensor, image: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (image.ndim - 2))
