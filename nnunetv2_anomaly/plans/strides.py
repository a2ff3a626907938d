"""From planned strides to network levels: the one place where plans become network arguments."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_anomaly.errors import UserError

Stride = Sequence[int]


def planned_strides(configuration_manager: ConfigurationManager, max_downsamplings: int) -> list[tuple[int, ...]]:
    """The first downsamplings that nnU-Net planned for this patch size and spacing, one stride per axis each.

    nnU-Net pools an axis of coarse spacing less often, and so must networks of ours. A plan with fewer downsamplings
    than asked for gives a network with fewer levels.

    Raises: UserError if nothing is downsampled, or so much that a single voxel is left.
    """
    patch_size = configuration_manager.patch_size
    strides = configuration_manager.configuration["architecture"]["arch_kwargs"].get("strides", ())
    per_axis = [(stride,) * len(patch_size) if isinstance(stride, int) else tuple(stride) for stride in strides]
    downsampling = [stride for stride in per_axis if max(stride) > 1][:max_downsamplings]
    if not downsampling:
        fault = f"the strides {strides} that are planned for the patch size {patch_size} downsample nothing"
        advice = "expected at least one downsampling, so use a larger patch or plans of nnU-Net's own planners"
        raise UserError(f"{fault}; {advice}")
    if prod(downsampled_size(patch_size, downsampling)) < 2:
        fault = f"a patch of {tuple(patch_size)} voxels leaves a single voxel after the strides {downsampling}"
        raise UserError(f"{fault}; use fewer downsamplings or a larger patch")
    return downsampling


def downsampled_size(size: Sequence[int], strides: Sequence[Stride]) -> tuple[int, ...]:
    """Size in voxels of the feature maps that ``strides`` leave of an image of ``size`` voxels, axis by axis."""
    current = tuple(int(voxels) for voxels in size)
    for stride in strides:
        current = tuple(-(-voxels // step) for voxels, step in zip(current, stride, strict=True))
    return current
