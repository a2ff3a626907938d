"""Bone marrow lesions of a segmented knee, one by one and by place (MOAKS)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError, cKDTree
from scipy.spatial.distance import pdist

from nnunetv2_anomaly.measurements.bones import ALL, Bone, Found, Options, Structures
from nnunetv2_anomaly.measurements.frame import Mask
from nnunetv2_anomaly.measurements.lesions import at_least
from nnunetv2_anomaly.measurements.regions import FEMUR, PLACES, SHAFT, moaks_grade

#: shares of a place's bone at which MOAKS' grade of its lesions becomes 2 and 3: 1 below 33 %, 2 to 66 %, 3 beyond
SIZE_GRADES = (0.33, 0.66)
#: quantity of a bone or place -> its unit; only places have a grade
_UNITS = {"lesion_count": "1", "lesion_volume": "mm3", "lesion_percent": "%", "moaks_size_grade": "1"}
#: between the name of a lesion label and the bone that it was found in
IN = " in "


def add_lesions(
    found: Found, labels: NDArray, bones: Sequence[Bone], structures: Structures, voxel_mm3: float, options: Options
) -> None:
    """Add a row per lesion of at least ``min_lesion_mm3``, and the sums of bones and places.

    Args: as ``measure_knee``. labels: (Z, Y, X). voxel_mm3: volume of a voxel.
    """
    # A lesion label that names no bone may be in any.
    has_label = {of.bone for of in structures.lesions.values()}
    has_label |= set(structures.bones) if None in has_label else set()
    trees: list[cKDTree] = []
    for bone in bones:
        if bone.name not in has_label:
            continue
        kept = np.zeros(len(bone.indices), bool)
        number_of = np.zeros(len(bone.indices), int)
        for number, own in _components(labels, bone, voxel_mm3, options.min_lesion_mm3):
            row, tree = _lesion_row(bone, own, number, labels, structures, voxel_mm3)
            kept |= own
            number_of[own] = number
            trees.append(tree)
            found.lesions.append(row)
            found.lesion_indices.append(bone.indices[own])
        _add_lesion_sums(found, bone, kept, number_of, voxel_mm3)
    lesions = list(zip(found.lesions, trees, strict=True))
    for row, tree in lesions:
        others = [other for of, other in lesions if of["bone"] != row["bone"]]
        nearest = min((float(tree.query(other.data)[0].min()) for other in others), default=math.inf)
        row["kissing"] = nearest <= options.kissing_mm


def _components(labels: NDArray, bone: Bone, voxel_mm3: float, least_mm3: float) -> Iterator[tuple[int, Mask]]:
    """The bone's lesions, the largest first: number from 1, and which of the bone's voxels they are."""
    if not bone.is_lesion.any():
        return
    own = bone.indices[bone.is_lesion]
    low, high = own.min(axis=0), own.max(axis=0) + 1
    volume = np.zeros(high - low, np.uint16)
    places = tuple((own - low).T)
    volume[places] = labels[tuple(own.T)]
    numbers = np.zeros(len(bone.indices), np.uint32)
    # Two labels that touch are two lesions.
    numbers[bone.is_lesion] = cc3d.connected_components(volume, connectivity=26)[places]
    sizes = np.bincount(numbers)
    for number, size_of in enumerate(np.argsort(-sizes[1:], kind="stable") + 1, start=1):
        if at_least(np.float64(sizes[size_of] * voxel_mm3), least_mm3):
            yield number, numbers == size_of


def _lesion_row(
    bone: Bone, own: NDArray[np.bool_], number: int, labels: NDArray, structures: Structures, voxel_mm3: float
) -> tuple[dict[str, Any], cKDTree]:
    indices, space = bone.indices[own], bone.space
    points = space.points(indices)
    tree = cKDTree(points)
    coarse = int(np.argmax(space.spacing_mm))
    slices = np.bincount(indices[:, coarse] - indices[:, coarse].min())
    in_plane = voxel_mm3 / float(space.spacing_mm[coarse])
    names = {value: name.partition(IN)[0] for name, of in structures.lesions.items() for value in of.values}
    row: dict[str, Any] = {
        "bone": bone.name,
        "lesion": number,
        "label": names[int(labels[tuple(indices[0])])],
        "volume_mm3": len(indices) * voxel_mm3,
        "largest_area_mm2": float(slices.max()) * in_plane,
        "largest_diameter_mm": _diameter(points),
        **dict(zip(("lateral_mm", "anterior_mm", "superior_mm"), points.mean(axis=0).tolist(), strict=True)),
    }
    row |= {"interface_distance_mm": math.nan, "subchondral": None}
    if len(bone.interface.points_mm):
        distance = float(bone.interface_tree.query(points)[0].min())
        diagonal = float(np.linalg.norm(space.spacing_mm))
        row |= {"interface_distance_mm": distance, "subchondral": distance <= diagonal}
    for region, there in bone.regions.items():
        if region in PLACES[bone.kind or FEMUR] or region == SHAFT:
            row[f"share_{region}"] = float(there[own].mean())
    return row, tree


def _diameter(points: NDArray[np.floating]) -> float:
    """Largest distance of two voxels' middles."""
    if len(points) > 50:
        with suppress(QhullError):  # of a lesion in one plane or line
            points = points[ConvexHull(points).vertices]
    return float(pdist(points).max()) if len(points) > 1 else 0.0


def _add_lesion_sums(found: Found, bone: Bone, kept: Mask, number_of: NDArray, voxel_mm3: float) -> None:
    """Sums of a bone and of its places; a lesion that crosses is counted in each."""
    in_regions = {ALL: np.ones(len(kept), bool), **bone.regions}
    for region, own in in_regions.items():
        voxels, size = int((kept & own).sum()), int(own.sum())
        share = voxels / size if size else math.nan
        values = [len(np.unique(number_of[kept & own])), voxels * voxel_mm3, 100 * share]
        if region in PLACES.get(bone.kind or "", ()):
            values.append(moaks_grade(share, SIZE_GRADES) if size else math.nan)
        for (quantity, unit), value in zip(_UNITS.items(), values, strict=False):
            found.add(bone.name, region, quantity, value, unit, "" if size else "no bone in this place")
    if bone.landmarks is None:
        flag_lesions(found, bone.name, PLACES.get(bone.kind or "", ()), bone.flag)


def flag_lesions(found: Found, bone: str, names: Sequence[str], flag: str) -> None:
    """Rows of lesions that could not be taken."""
    for region, (quantity, unit) in itertools.product(names, _UNITS.items()):
        if (region, quantity) != (ALL, "moaks_size_grade"):
            found.add(bone, region, quantity, math.nan, unit, flag)
