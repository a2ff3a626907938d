"""What one segmented knee says: volumes, lesions by place, cartilage by subregion; labels alone, no reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_anomaly.measurements.bones import (
    ALL,
    Bone,
    Earlier,
    Found,
    Options,
    Structure,
    Structures,
    bones_of,
    count_voxels,
    joint_box,
)
from nnunetv2_anomaly.measurements.cartilage import add_cartilage, flag_cartilage
from nnunetv2_anomaly.measurements.frame import Space
from nnunetv2_anomaly.measurements.marrow_lesions import IN, add_lesions, flag_lesions
from nnunetv2_anomaly.measurements.regions import LATERAL, MEDIAL, PLACES


def measure_knee(
    labels: NDArray[np.integer],
    origin_lps_mm: Sequence[float],
    steps_lps_mm: NDArray[np.float64],
    structures: Structures,
    side: str | None,
    options: Options = Options(),  # noqa: B008 (frozen)
    earlier: Mapping[str, Earlier] = MappingProxyType({}),
) -> Found:
    """Volumes, lesions and cartilage of one knee.

    Args:
        labels: (Z, Y, X), in any orientation.
        origin_lps_mm, steps_lps_mm: pose of the voxels, as ``Space.of`` takes it.
        side: "right" or "left"; None: what is medial or lateral is flagged, unless cartilages are named so.
        earlier: bone -> what it was at an earlier visit, whose places and subregions are then taken.
    """
    labels, structures = _lesions_to_bones(labels, structures)
    boxes = ndimage.find_objects(labels)
    side = side or _side_of_names(labels, boxes, structures, Space.of(origin_lps_mm, steps_lps_mm, "right"))
    space = Space.of(origin_lps_mm, steps_lps_mm, side or "right")
    voxel_mm3 = float(abs(np.linalg.det(space.steps_mm)))
    found = Found(shape=labels.shape)
    bones = list(bones_of(labels, boxes, space, structures, side, options.conventions, earlier))
    found.bones = {bone.name: bone for bone in bones}
    for bone in bones:
        _add_bone(found, bone, voxel_mm3)
    for name, of in {**structures.cartilages, **structures.effusions, **structures.others}.items():
        number = count_voxels(labels, boxes, of.values)
        found.add(name, ALL, "volume", number * voxel_mm3, "mm3", "" if number else "absent")
        if name in structures.effusions:
            found.add(name, ALL, "effusion_volume", number * voxel_mm3 / 1000, "mL", "" if number else "absent")
    there = {bone.name for bone in bones}
    for name in (name for name in structures.bones if name not in there):
        found.add(name, ALL, "volume", 0.0, "mm3", "absent")
        if any(of.bone == name for of in structures.lesions.values()):
            flag_lesions(found, name, (ALL, *PLACES.get(structures.kind(name) or "", ())), "absent")
        flag_cartilage(found, name, structures, options.thickness, "its bone is absent")
    for name, of in structures.lesions.items():
        if of.bone not in there and (number := count_voxels(labels, boxes, of.values)):
            found.add(name.partition(IN)[0], ALL, "volume", number * voxel_mm3, "mm3", "in no bone")
    for bone in bones:
        add_cartilage(found, labels, boxes, bone, structures, voxel_mm3, options)
    add_lesions(found, labels, bones, structures, voxel_mm3, options)
    for row, indices in zip(found.lesions, found.lesion_indices, strict=True):
        if side is None:
            row["lateral_mm"] = math.nan
        if (cartilage := found.cartilages.get(row["bone"])) is not None:
            row["bare_overlap_mm2"] = cartilage.bare_area_near(cartilage.bone.space.points(indices))
    return found


def _lesions_to_bones(labels: NDArray[np.integer], structures: Structures) -> tuple[NDArray[np.integer], Structures]:
    """Labels and structures in which every lesion has a bone: one that names none is in the bone that it touches most.

    Each bone's part of such a lesion gets a value of its own; what touches no bone stays as it is.
    """
    homeless = {name: of for name, of in structures.lesions.items() if of.bone not in structures.bones}
    if not homeless or not np.isin(labels, [value for of in homeless.values() for value in of.values]).any():
        return labels, structures
    changed, lesions = labels.astype(np.int32), dict(structures.lesions)
    known = {*structures.bones.values(), *structures.lesions.values()}
    next_value = max(int(changed.max()), *(value for of in known for value in (*of.values, *of.lesion_values))) + 1
    for name, of in homeless.items():
        numbers = cc3d.connected_components(np.isin(labels, of.values).astype(np.uint8), connectivity=26)
        values: dict[str, int] = {}
        for number, box in enumerate(ndimage.find_objects(numbers), start=1):
            around = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
            own = numbers[around] == number
            touched = labels[around][ndimage.binary_dilation(own, np.ones((3,) * own.ndim)) & ~own]
            counts = {bone: int(np.isin(touched, in_bone.values).sum()) for bone, in_bone in structures.bones.items()}
            bone = max(counts, key=lambda of: counts[of], default=None)
            if bone is None or not counts[bone]:
                continue
            if bone not in values:
                values[bone], next_value = next_value, next_value + 1
                lesions[f"{name}{IN}{bone}"] = Structure((values[bone],), bone)
            changed[around][own] = values[bone]
    return changed, replace(structures, lesions=lesions)


def _side_of_names(labels: NDArray, boxes: Sequence[Any], structures: Structures, space: Space) -> str | None:
    """The side of a knee whose cartilages have medial and lateral in their names; ``space`` is as if it were right."""
    for bone in structures.bones:
        middles = []
        for side in (MEDIAL, LATERAL):
            values = list(structures.cartilage_of(bone, side))
            box = joint_box(boxes, values, labels.shape) if values else None
            if box is None:
                break
            own = np.argwhere(np.isin(labels[box], values)) + np.array([s.start for s in box])
            middles.append(float(space.points(own)[:, 0].mean()))
        if len(middles) == 2:
            return "right" if middles[0] < middles[1] else "left"
    return None


def _add_bone(found: Found, bone: Bone, voxel_mm3: float) -> None:
    found.add(bone.name, ALL, "volume", len(bone.indices) * voxel_mm3, "mm3")
    for region, own in bone.regions.items():
        found.add(bone.name, region, "volume", int(own.sum()) * voxel_mm3, "mm3")
    if bone.landmarks is None:
        names = PLACES.get(bone.kind or "", ())
        for region in names:
            found.add(bone.name, region, "volume", math.nan, "mm3", bone.flag)
