"""From planned strides to network levels: the one place where plans become network arguments."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from numbers import Integral
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_anomaly.errors import UserError

Stride = Sequence[int]


def _whole_numbers(values: Any) -> bool:
    """A list of whole numbers from 1."""
    return (
        isinstance(values, (list, tuple))
        and bool(values)
        and all(isinstance(value, Integral) and not isinstance(value, bool) and value >= 1 for value in values)
    )


def planned_strides(configuration_manager: ConfigurationManager, max_downsamplings: int) -> list[tuple[int, ...]]:
    """Strides of G, A and C: the first ones that nnU-Net planned for this patch size and spacing.

    nnU-Net pools an axis of coarse spacing less often, and so must G, A and C. The planned strides are stored in
    plans.json and so are the same in training and prediction. A plan with fewer downsamplings than asked for has
    fewer levels.

    Raises: UserError if the configuration names no patch size or no strides, or none to build networks from.
    """
    configuration = configuration_manager.configuration
    if not configuration.get("patch_size"):
        raise UserError(
            "the configuration in plans.json has no 'patch_size', which the networks of the pre-stage are built for; "
            "run nnUNetv2_plan_experiment, or let your configuration inherit from a planned one"
        )
    strides = configuration.get("architecture", {}).get("arch_kwargs", {}).get("strides")
    if not strides:
        raise UserError(
            "the configuration in plans.json has no 'strides' in architecture/arch_kwargs, which the networks of the "
            "pre-stage follow; run nnUNetv2_plan_experiment, or let your configuration inherit from a planned one"
        )
    if not _whole_numbers(configuration["patch_size"]) or len(configuration["patch_size"]) not in (2, 3):
        raise UserError(
            f"the 'patch_size' in plans.json is {configuration['patch_size']!r}; expected two or three whole numbers "
            f"from 1, so mend it or run nnUNetv2_plan_experiment"
        )
    dimensions = len(configuration["patch_size"])
    stages = strides if isinstance(strides, (list, tuple)) else []
    per_axis = [[stride] * dimensions if isinstance(stride, Integral) else stride for stride in stages]
    fit = all(_whole_numbers(stride) and len(stride) == dimensions for stride in per_axis)
    downsampling = [tuple(stride) for stride in per_axis if fit and max(stride) > 1][:max_downsamplings]
    if not downsampling:
        raise UserError(
            f"the strides {strides} in plans.json do not fit the patch size {configuration['patch_size']}; "
            f"expected at least one downsampling, and whole numbers from 1, one per axis"
        )
    if prod(downsampled_size(configuration["patch_size"], downsampling)) < 2:
        raise UserError(
            f"a patch of {tuple(configuration['patch_size'])} voxels leaves a single voxel after the strides "
            f"{downsampling}; use fewer downsamplings or a larger patch"
        )
    return downsampling


def downsampled_size(size: Sequence[int], strides: Sequence[Stride]) -> tuple[int, ...]:
    """Size in voxels of the feature maps that ``strides`` leave of an image of ``size`` voxels, axis by axis."""
    current = tuple(int(voxels) for voxels in size)
    for stride in strides:
        current = tuple(-(-voxels // step) for voxels, step in zip(current, stride, strict=True))
    return current
