"""Plans for nnU-Net whose patch is the whole image, batch 1, as the paper trains (method paper, Section 4.1).

Spacing, normalisation, resampling and reader stay as nnU-Net planned them; the patch becomes the largest training
image, and the network's topology follows from it by nnU-Net's own rule. Plans of whole slices, which detectors of
slices need, may resample these to a size, with a batch for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_anomaly.environment import environment_folder
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import read_json, write_text
from nnunetv2_anomaly.plans.dataset_name import dataset_name
from nnunetv2_anomaly.plans.settings import check_configuration
from nnunetv2_anomaly.registry import WHOLE_IMAGE_PLANS

WHOLE_SLICE_PLANS = "nnUNetWholeSlicePlans"
#: whole slices are padded to a multiple of so many voxels, which every network of slices can halve five times
SLICE_MULTIPLE = 32
#: voxels of a batch of whole slices: as published for LaMa, ten slices of 256 x 256
_BATCH_VOXELS, _LARGEST_BATCH = 10 * 256**2, 64

#: key of plans.json that holds the name of the plans which ours were made from; nnU-Net keeps unknown keys
PLANNED_FROM = "planned_from"

#: nnU-Net's planners (2.8.1): the smallest edge of the bottleneck in voxels, and the most feature maps by dimensions
MIN_BOTTLENECK_EDGE = 4
MAX_FEATURES = {2: 512, 3: 320}

#: files of a preprocessed data set's folder that are no plans
_NO_PLANS = ("dataset", "dataset_fingerprint", "splits_final")


@dataclass(frozen=True)
class WholeImagePlan:
    """What was planned for one data set."""

    file: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str  # 3d_fullres, or 2d
    largest_image: tuple[int, ...]  # per-axis maximum over the training images in voxels, nnU-Net's axis order
    written: bool  # False if the same file was there already


def plan_whole_image(
    dataset: str,
    *,
    source_plans: str = "nnUNetPlans",
    plans_name: str | None = None,
    configuration: str | None = None,
    size: int | None = None,
    overwrite: bool = False,
) -> WholeImagePlan:
    """Write plans with the whole image as patch beside the plans they are made from, which stay as they are.

    Args:
        dataset: number or name, as everywhere in nnU-Net.
        plans_name: of the new plans; None: ``WHOLE_IMAGE_PLANS``, or ``WHOLE_SLICE_PLANS`` where 2d is asked for.
        configuration: 3d_fullres or 2d; None: the first of them that is there.
        size: of slices, voxels along their longer axis, to which they are resampled; None: as nnU-Net planned.
        overwrite: replace other whole-image plans of that name; plans of other makes never are.
    Raises: UserError if what is needed of the data set is missing or unreadable, the plans cannot be made whole-image
        plans, the new name is no name for plans, or other plans have it.
    """
    if size is not None and configuration != "2d":
        raise UserError(f"the size {size} is of whole slices; expected the configuration 2d, so give -c 2d")
    if plans_name is None:
        plans_name = WHOLE_SLICE_PLANS if configuration == "2d" else WHOLE_IMAGE_PLANS
        plans_name = plans_name if size is None else plans_name.replace("Plans", f"{size}Plans")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", plans_name) or "__" in plans_name or plans_name in _NO_PLANS:
        expected = f"letters, digits, hyphens and single underscores, and none of {', '.join(_NO_PLANS)}"
        raise UserError(f"the name of the new plans is {plans_name!r}; expected {expected}")
    if plans_name == source_plans:
        raise UserError(f"the new plans cannot have the name {plans_name} of those they are made from; choose another")
    folder = environment_folder("nnUNet_preprocessed") / dataset_name(dataset)
    source, fingerprint, dataset_json = _read_planned(folder, dataset, source_plans)
    try:
        plans = whole_image_plans(source, fingerprint, plans_name, configuration, size)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        fault = f"{source_plans}.json or dataset_fingerprint.json in {folder} is not as nnU-Net writes it"
        advice = f"run nnUNetv2_plan_and_preprocess -d {dataset} again"
        raise UserError(f"{fault} ({type(error).__name__}: {error}); {advice}") from error
    ((name, planned),) = plans["configurations"].items()
    file = folder / f"{plans_name}.json"
    present = read_json(file) if file.is_file() else None
    if present is not None and present != plans:
        if PLANNED_FROM not in present:
            raise UserError(f"{file} holds plans that are not whole-image plans of ours; choose another --plans_name")
        if not overwrite:
            raise UserError(f"{file} exists and differs; replace it with --overwrite, or choose another --plans_name")
    if present != plans:
        write_text(file, json.dumps(plans, indent=4) + "\n")
    return WholeImagePlan(
        file=file,
        plans=plans,
        dataset_json=dataset_json,
        configuration=name,
        largest_image=largest_image(fingerprint, plans["transpose_forward"], planned["spacing"]),
        written=present != plans,
    )


def whole_image_plans(
    plans: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    plans_name: str,
    wanted: str | None = None,
    size: int | None = None,
) -> dict[str, Any]:
    """The plans with one configuration, 3d_fullres or else 2d, of whole images; ``plans`` is left as it is.

    What the configuration inherited is written out. Cascade and 3d_lowres are left out.

    Args: fingerprint: of dataset_fingerprint.json. wanted, size: as ``plan_whole_image`` takes them.
    Raises: UserError if the plans have no such configuration, or one whose topology cannot be planned again.
    """
    configurations = plans.get("configurations", {})
    wished = ("3d_fullres", "2d") if wanted is None else (wanted,)
    name = next((name for name in wished if name in configurations), None)
    if name is None:
        fault = f"the plans have the configurations {', '.join(configurations) or 'none'}"
        raise UserError(f"{fault}; expected {' or '.join(wished)}, as nnUNetv2_plan_and_preprocess plans them")
    # nnU-Net's own resolution of inheritance, which also brings plans of older versions to today's form.
    configuration = PlansManager(dict(plans)).get_configuration(name).configuration
    check_configuration(configuration)
    for key in ("inherits_from", "previous_stage", "next_stage"):
        configuration.pop(key, None)
    slices = wanted == "2d"
    image = largest_image(fingerprint, plans["transpose_forward"], configuration["spacing"])
    if size is not None:
        scale = size / max(image)
        configuration["spacing"] = [step / scale for step in configuration["spacing"]]
        median = configuration.get("median_image_size_in_voxels", image)
        configuration["median_image_size_in_voxels"] = [voxels * scale for voxels in median]
        image = largest_image(fingerprint, plans["transpose_forward"], configuration["spacing"])
    if slices:
        image = tuple(-(-voxels // SLICE_MULTIPLE) * SLICE_MULTIPLE for voxels in image)
    patch_size, architecture = planned_for(configuration["architecture"], configuration["spacing"], image)
    batch_size = min(max(2, _BATCH_VOXELS // math.prod(patch_size)), _LARGEST_BATCH) if slices else 1
    anomaly = configuration.get("anomaly", {})
    margin = {} if "erase_margin_mm" in anomaly else {"erase_margin_voxels": 50}
    configuration.update(
        data_identifier=f"{plans_name}_{name}",
        batch_size=batch_size,
        batch_dice=False,
        patch_size=patch_size,
        architecture=architecture,
        # The paper's stages 1 and 2: whole images as they are, erased with 50 voxels around the foreground.
        anomaly={"prestage_augmentation": False, **margin, **anomaly},
    )
    named = {"plans_name": plans_name, PLANNED_FROM: plans.get("plans_name")}
    return {**plans, **named, "configurations": {name: configuration}}


def largest_image(
    fingerprint: Mapping[str, Any], transpose_forward: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[int, ...]:
    """Per-axis maximum over all training images, after nnU-Net's cropping, transposition and resampling.

    Args: fingerprint: its shapes (voxels) and spacings (mm) are in the reader's axis order. spacing_mm: of the
        configuration, transposed; with two axes the slices' own axis, the first, is left out.
    Returns: voxels, in the configuration's axis order.
    """
    shapes, spacings = fingerprint["shapes_after_crop"], fingerprint["spacings"]
    if sorted(transpose_forward) != [0, 1, 2] or not shapes or not np.all(np.array([*shapes, *spacings], float) > 0):
        raise ValueError("sizes and spacings above 0, and axes 0, 1, 2 in some order, are not there")
    axes = list(transpose_forward)[-len(spacing_mm) :]
    resampled = [
        compute_new_shape([shape[axis] for axis in axes], [spacing[axis] for axis in axes], list(spacing_mm))
        for shape, spacing in zip(shapes, spacings, strict=True)
    ]
    return tuple(int(max(voxels)) for voxels in zip(*resampled, strict=True))


def planned_for(
    architecture: Mapping[str, Any], spacing_mm: Sequence[float], size: Sequence[int]
) -> tuple[list[int], dict[str, Any]]:
    """Patch and network for images of ``size`` voxels, by the rule of nnU-Net's planners.

    An axis is halved until it would have fewer than 4 voxels, and one of coarser spacing waits until the others have
    come within a factor of 2 of it. Feature maps double from the network's own first number up to its own limit, or
    nnU-Net's where it has not come to one. Other numbers per stage (convolutions, blocks) are cut, or continued with
    the last one. Network class, normalisation and non-linearity stay.

    Args: architecture: the section of the configuration. spacing_mm, size: same axis order.
    Returns: patch size, ``size`` rounded up to a multiple of the strides' product axis by axis; architecture.
    Raises: UserError if the architecture has no strides, kernel sizes and feature maps per stage.
    """
    keywords = dict(architecture["arch_kwargs"])
    if not {"strides", "kernel_sizes", "features_per_stage"} <= keywords.keys():
        fault = f"the network {architecture['network_class_name']} of these plans has no strides, kernel_sizes and"
        advice = "start from plans of nnU-Net's own planners with -p"
        raise UserError(f"{fault} features_per_stage to plan again; {advice}")
    features = keywords["features_per_stage"]
    limits = MIN_BOTTLENECK_EDGE, 999999
    _, strides, kernel_sizes, patch_size, _ = get_pool_and_conv_props(list(spacing_mm), list(size), *limits)
    stages_before, stages = len(features), len(strides)
    reached_limit = max(features) < features[0] * 2 ** (stages_before - 1)
    limit = max(features) if reached_limit else max(MAX_FEATURES[len(spacing_mm)], *features)
    for key, value in keywords.items():
        if key.endswith(("_per_stage", "_per_stage_decoder")) and isinstance(value, (list, tuple)) and value:
            wanted = stages - (stages_before - len(value))
            keywords[key] = [*value, *[value[-1]] * (wanted - len(value))][:wanted]
    keywords.update(
        n_stages=stages,
        features_per_stage=[min(features[0] * 2**stage, limit) for stage in range(stages)],
        strides=[[int(step) for step in stride] for stride in strides],
        kernel_sizes=[[int(edge) for edge in kernel] for kernel in kernel_sizes],
    )
    return [int(voxels) for voxels in patch_size], {**architecture, "arch_kwargs": keywords}


def _read_planned(folder: Path, dataset: str, plans: str) -> tuple[dict[str, Any], ...]:
    known = sorted(file.stem for file in folder.glob("*.json") if file.stem not in _NO_PLANS)
    if plans not in known:
        there = f"has the plans {', '.join(known)}" if known else "has no plans"
        advice = f"run nnUNetv2_plan_and_preprocess -d {dataset} first, or name other plans with -p"
        raise UserError(f"{folder} {there}; expected {plans}, so {advice}")
    return tuple(read_json(folder / f"{name}.json") for name in (plans, "dataset_fingerprint", "dataset"))
