"""How good a reconstruction is, beside what a constant and a blurred image reach without learning anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

#: the blurred image keeps so many cells along each axis of a patch
BLUR_CELLS_PER_PATCH = 8


def blurred(image: Tensor, patch_size: Sequence[int]) -> Tensor:
    """The image through a grid of 8 cells along each axis of a patch: local means, linearly interpolated.

    Args: image: (B, C, ...), any unit; patch_size: in voxels.
    Returns: same shape. It shows what a reconstruction is worth that knows the anatomy only as a blur.
    """
    size = image.shape[2:]
    # The patch of a 2D configuration lies within one slice: no blur across slices.
    patch_size = (1,) * (len(size) - len(patch_size)) + tuple(patch_size)
    cells = [
        max(1, round(BLUR_CELLS_PER_PATCH * voxels / patch)) for voxels, patch in zip(size, patch_size, strict=True)
    ]
    cells = [min(count, voxels) for count, voxels in zip(cells, size, strict=True)]
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    return interpolate(interpolate(image, size=cells, mode="area"), size=size, mode=mode, align_corners=False)


@dataclass
class ErasedRegionQuality:
    """Sums of squared errors inside and outside the erased region; add cases or batches up, then ask for means.

    The constant is the strongest one, the mean intensity inside the erased region of each image and channel.
    """

    inside: float = 0.0
    inside_constant: float = 0.0
    inside_blurred: float = 0.0
    num_inside: float = 0.0
    outside: float = 0.0
    num_outside: float = 0.0

    def __add__(self, other: ErasedRegionQuality) -> ErasedRegionQuality:
        return ErasedRegionQuality(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def summary(self) -> dict[str, float]:
        """MSE of the reconstruction inside and outside the erased region, of the baselines inside; else NaN."""
        return {
            "mse_erased": _ratio(self.inside, self.num_inside),
            "mse_constant": _ratio(self.inside_constant, self.num_inside),
            "mse_blurred": _ratio(self.inside_blurred, self.num_inside),
            "mse_outside": _ratio(self.outside, self.num_outside),
        }


def _ratio(total: float, count: float) -> float:
    return total / count if count else float("nan")


@torch.no_grad()
def erased_region_quality(
    image: Tensor, reconstruction: Tensor, hole_mask: Tensor, patch_size: Sequence[int]
) -> ErasedRegionQuality:
    """Squared errors of a reconstruction and of the two baselines.

    Args:
        image, reconstruction: (B, C, ...), in [0, 1], unitless.
        hole_mask: (B, 1, ...), 1 = erased.
        patch_size: in voxels, for the blurred image.
    """
    image, reconstruction = image.float(), reconstruction.float()
    hole = hole_mask.float().expand_as(image)
    spatial = tuple(range(2, image.ndim))
    constant = (image * hole).sum(spatial, keepdim=True) / hole.sum(spatial, keepdim=True).clamp(min=1)
    squared = torch.square(image - reconstruction)
    return ErasedRegionQuality(
        inside=float((squared * hole).sum()),
        inside_constant=float((torch.square(image - constant) * hole).sum()),
        inside_blurred=float((torch.square(image - blurred(image, patch_size)) * hole).sum()),
        num_inside=float(hole.sum()),
        outside=float((squared * (1 - hole)).sum()),
        num_outside=float((1 - hole).sum()),
    )
