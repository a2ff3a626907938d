"""The local level of a bone's intensity, and what stands out from it: robust contrast, without anything learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, interpolate, max_pool2d, max_pool3d

from nnunetv2_anomaly.networks.blocks import full_precision

#: what counts beside the voxels near by: the bone as a whole
_PRIOR = 1e-3
#: so many times voxels that stand out are given less weight
_ROUNDS = 2
#: robust deviations from which on a voxel loses weight
_KNEE = 1.5
#: a Gaussian wider than this is taken of a coarser grid, voxels
_WIDEST = 4.0
_MAX_POOL: dict[int, Callable[..., Tensor]] = {2: max_pool2d, 3: max_pool3d}

#: how much a deviation, above 0 where brighter, counts by polarity
POLARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "bright": lambda deviation: deviation.clamp(min=0),
    "dark": lambda deviation: (-deviation).clamp(min=0),
    "both": torch.abs,
}


def local_level(
    image: Tensor, bone: Tensor, sigma_voxels: Sequence[float], polarity: str = "bright"
) -> tuple[Tensor, Tensor]:
    """The robust local mean of one bone, and how much it varies there.

    mu = (g * (w x) + e m) / (g * w + e) with a Gaussian g, weights w that are 1 in the bone eroded by one voxel, its
    mean m and e = 1e-3; the variance alike of (x - mu)^2. Twice again with w exp(-(r / 1.5)^2 / 2), r what of
    (x - mu) / s is of the polarity, so that lesions and vessels do not count.

    Args:
        image: (C, *axes), two or three axes, any unit.
        bone: (*axes), bool; beyond the edges it may go on.
        sigma_voxels: standard deviation of g along each axis.
        polarity: of ``POLARITIES``.
    Returns: mean and standard deviation, both (C, *axes), float32, in the image's unit; without meaning far from the
        bone.
    """
    with full_precision(image):
        x = image.float()
        inside = _eroded(bone)
        inside = (inside if inside.any() else bone)[None].float()
        weight = inside.expand_as(x)
        for _ in range(_ROUNDS + 1):
            level = _local_mean(x, weight, sigma_voxels)
            spread = _local_mean((x - level).square(), weight, sigma_voxels).clamp(min=1e-12).sqrt()
            outstanding = POLARITIES[polarity]((x - level) / spread)
            weight = inside * torch.exp(-(outstanding / _KNEE).square() / 2)
    return level, spread


def level_within(image: Tensor, bones: Tensor, sigma_voxels: Sequence[float], polarity: str) -> Tensor:
    """The image with each bone's voxels replaced by its local level.

    Args:
        image: (B, C, *axes), any unit.
        bones: (B, *axes), whole numbers: 0 outside, another number for each bone.
        sigma_voxels, polarity: as ``local_level`` takes them.
    Returns: (B, C, *axes), float32, in the image's unit.
    """
    found = image.float().clone()
    for sample, of_sample in enumerate(bones):
        for number in torch.unique(of_sample).tolist():
            if number:
                mask = of_sample == number
                box: tuple[Any, ...] = _box(mask)  # what lies beyond has no weight
                place = (sample, slice(None), *box)
                level, _ = local_level(image[place], mask[box], sigma_voxels, polarity)
                found[place] = torch.where(mask[box], level, found[place])
    return found


def contrast_within(
    image: Tensor, labels: Tensor, bones: Sequence[Collection[int]], spacing_mm: Sequence[float], sigma_mm: float = 14.0
) -> Tensor:
    """The image minus the local level of the labelled bones, 0 outside them: what stands out as brighter.

    Args: image: (C, *axes), any unit. labels: (*axes). bones: label values of each. spacing_mm: along each axis.
    Returns: (C, *axes), float32, in the image's unit.
    """
    numbers = bone_numbers(labels, bones)
    level = level_within(image[None], numbers[None], sigma_in_voxels(sigma_mm, spacing_mm), "bright")
    return image.float() - level[0]


def bone_numbers(labels: Tensor, bones: Sequence[Collection[int]]) -> Tensor:
    """The number of the bone that each voxel belongs to, from 1 on; 0 where it is in none.

    Args: labels: any shape, whole numbers. bones: label values of each.
    """
    numbers = torch.zeros_like(labels, dtype=torch.int64)
    for number, values in enumerate(bones, start=1):
        numbers[torch.isin(labels.long(), torch.tensor(list(values), device=labels.device))] = number
    return numbers


def sigma_in_voxels(sigma_mm: float, spacing_mm: Sequence[float]) -> list[float]:
    """A length in voxels of each axis."""
    return [sigma_mm / step for step in spacing_mm]


def _box(mask: Tensor) -> tuple[slice, ...]:
    places = mask.nonzero()
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(places.amin(dim=0), places.amax(dim=0), strict=True))


def _eroded(mask: Tensor) -> Tensor:
    # Padding counts as minus infinity: beyond the edges a bone may go on.
    outside = (~mask)[None, None].float()
    return _MAX_POOL[mask.ndim](outside, kernel_size=3, stride=1, padding=1)[0, 0] == 0


def _local_mean(x: Tensor, weight: Tensor, sigma_voxels: Sequence[float]) -> Tensor:
    axes = tuple(range(1, x.ndim))
    whole = ((weight * x).sum(axes) / weight.sum(axes).clamp(min=1e-9)).view(-1, *[1] * len(axes))
    size = x.shape[1:]
    steps = [max(1, math.ceil(sigma / _WIDEST)) for sigma in sigma_voxels]
    coarse = [math.ceil(n / step) for n, step in zip(size, steps, strict=True)]
    parts = torch.cat((weight * x, weight))
    if tuple(coarse) != tuple(size):
        parts = interpolate(parts[None], size=coarse, mode="area")[0]
    for axis, (sigma, few, many) in enumerate(zip(sigma_voxels, coarse, size, strict=True), start=1):
        parts = _smoothed(parts, axis, sigma * few / many)
    above, below = parts.chunk(2)
    mean = (above + _PRIOR * whole) / (below + _PRIOR)
    if tuple(coarse) == tuple(size):
        return mean
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    return interpolate(mean[None], size=size, mode=mode, align_corners=False)[0]


def _smoothed(x: Tensor, axis: int, sigma: float) -> Tensor:
    reach = min(math.ceil(3 * sigma), x.shape[axis] - 1)
    if not reach:
        return x
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype) / sigma).square())
    lines = x.movedim(axis, -1)
    of_lines = conv1d(lines.reshape(-1, 1, lines.shape[-1]), (kernel / kernel.sum())[None, None], padding=reach)
    return of_lines.reshape(lines.shape).movedim(-1, axis)
