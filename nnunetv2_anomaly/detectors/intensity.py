"""Detectors that see images with most training voxels between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunetv2_anomaly.detectors.base import Detector

#: of ImageNet's images, 0 to 1, red, green and blue
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def as_colours(image: Tensor) -> Tensor:
    """Three channels as they are, of any other number their mean thrice: (B, C, Y, X) -> (B, 3, Y, X)."""
    return image if image.shape[1] == 3 else image.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def as_imagenet(colours: Tensor) -> Tensor:
    """Colours (B, 3, Y, X), 0 to 1, normalised as networks that were trained on ImageNet take them."""
    mean, deviation = (torch.tensor(of, device=colours.device)[:, None, None] for of in (_MEAN, _DEVIATION))
    return (colours - mean) / deviation


class RescalingDetector(Detector):
    """Keeps the range of intensities of its training data, channel by channel, which travels with its weights."""

    #: whether what lies beyond the range is cut off
    clips: bool = False
    intensity_low: Tensor
    intensity_high: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("intensity_low", torch.zeros(num_channels))
        self.register_buffer("intensity_high", torch.ones(num_channels))

    def rescale(self, image: Tensor) -> Tensor:
        """The image with most training voxels between 0 and 1: (B, C, ...) -> same shape, float32."""
        low, high = (of.view(1, -1, *[1] * (image.ndim - 2)) for of in (self.intensity_low, self.intensity_high))
        rescaled = (image.float() - low) / (high - low)
        return rescaled.clamp(0, 1) if self.clips else rescaled

    @torch.no_grad()
    def set_intensity_range(self, low: Tensor, high: Tensor) -> None:
        """Set what becomes 0 and 1, (C,) each, in units of the normalised image."""
        self.intensity_low.copy_(low)
        self.intensity_high.copy_(high)

    def take_intensity_range(self, patches: Sequence[Tensor]) -> None:
        """Take the range that becomes 0 to 1 from training patches, (C, *patch_size) each: 99 % of their voxels."""
        voxels = torch.cat([patch.flatten(1)[:, ::7] for patch in patches], dim=1).float().sort(dim=1).values
        low, high = (voxels[:, round(share * (voxels.shape[1] - 1))] for share in (0.005, 0.995))
        self.set_intensity_range(low, torch.maximum(high, low + 1e-3))
