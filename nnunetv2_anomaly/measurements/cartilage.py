"""Cartilage of a segmented knee by plate and subregion: volumes, areas, thickness (Wirth and Eckstein 2008)."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from nnunetv2_anomaly.measurements import regions
from nnunetv2_anomaly.measurements.bones import Bone, Found, Options, Structures, joint_box
from nnunetv2_anomaly.measurements.frame import Space
from nnunetv2_anomaly.measurements.meshes import surface_of
from nnunetv2_anomaly.measurements.regions import FEMUR, LATERAL, MEDIAL, PATELLA, SUBREGIONS, TIBIA, Conventions
from nnunetv2_anomaly.measurements.thickness import Plate, measure_plate

#: bare shares at which MOAKS' grade of full-thickness loss becomes 2 and 3: 1 below 10 %, 2 to 75 %, 3 beyond
AREA_GRADES = (0.1, 0.75)
#: bone farther from a box around its cartilage has no part in what that covers, mm
_MARGIN_MM = 10.0
#: thickness must be measured on more than this share of the covered area: else its mean is of the thickest part alone
_LEAST_MEASURED = 0.1
#: quantity of a plate or subregion -> its unit
_THICKNESS_UNITS = {
    "tAB": "cm2", "cAB": "cm2", "dAB": "%", "ThCtAB": "mm", "ThCcAB": "mm", "ThCSD": "mm", "moaks_area_grade": "1",
}  # fmt: skip


def _plates(kind: str | None) -> tuple[str, ...]:
    return {FEMUR: ("MF", "LF"), TIBIA: ("MT", "LT"), PATELLA: ("P",)}.get(kind or "", ())


def flag_cartilage(found: Found, bone: str, structures: Structures, with_thickness: bool, flag: str) -> None:
    """Rows of a bone's cartilage that could not be taken."""
    if not structures.cartilage_of(bone):
        return
    quantities = [("VC", "mm3"), *(_THICKNESS_UNITS.items() if with_thickness else ())]
    for plate in _plates(structures.kind(bone)):
        for region, (quantity, unit) in itertools.product((plate, *SUBREGIONS[plate]), quantities):
            found.add(structures.cartilage_name(bone, plate), region, quantity, math.nan, unit, flag)


def subregions_of(
    bone: Bone, points_mm: NDArray, values: NDArray, structures: Structures, conventions: Conventions
) -> NDArray[np.object_]:
    """Name of the cartilage subregion of each point.

    Args: points_mm: (N, 3). values: (N,), labels of the cartilage.
    """
    coordinates = bone.landmarks.frame.coordinates(points_mm)
    if bone.kind == FEMUR:
        return regions.femoral_subregions(coordinates, bone.landmarks, conventions)
    if bone.kind == PATELLA:
        return np.array(["MP", "LP"], object)[regions.patellar_places(coordinates, bone.landmarks) - 1]
    named = {side: structures.cartilage_of(bone.name, side) for side in (MEDIAL, LATERAL)}
    if all(named.values()):
        medial = np.isin(values, list(named[MEDIAL]))
    else:
        inner = bone.landmarks.inner_mm
        medial = coordinates[:, 0] < (inner[MEDIAL] + inner[LATERAL]) / 2
    found = np.empty(len(coordinates), object)
    for side, own in ((MEDIAL, medial), (LATERAL, ~medial)):
        found[own] = regions.tibial_subregions(coordinates[own], side, bone.landmarks)
    return found


@dataclass(frozen=True)
class CartilageMap:
    """Thickness of one bone's cartilage where it was measured, and the bone beneath."""

    bone: Bone
    plate: Plate
    measured: NDArray[np.intp]  # (N,), vertices of the cartilage's surface that have a thickness
    subregion: NDArray[np.object_]  # (N,), of each
    subchondral: NDArray[np.intp]  # (M,), vertices of the bone's surface that cartilage covers or should cover
    subregion_beneath: NDArray[np.object_]  # (M,)

    @property
    def thickness_mm(self) -> NDArray[np.float64]:
        """(N,)."""
        return self.plate.thickness_mm[self.measured]

    @property
    def points_mm(self) -> NDArray[np.float64]:
        """(N, 3)."""
        return self.plate.cartilage.vertices[self.measured]

    def bare_area_near(self, points_mm: NDArray[np.floating]) -> float:
        """Area of bare bone within a voxel's diagonal of voxels, (N, 3) mm; mm2."""
        bare = np.flatnonzero(self.plate.denuded)
        diagonal = float(np.linalg.norm(self.bone.space.spacing_mm))
        if not len(bare):
            return 0.0
        distance, _ = cKDTree(points_mm).query(self.plate.bone.vertices[bare], distance_upper_bound=diagonal)
        return float(self.plate.bone.vertex_areas[bare[np.isfinite(distance)]].sum())


def add_cartilage(
    found: Found,
    labels: NDArray,
    boxes: Sequence[Any],
    bone: Bone,
    structures: Structures,
    voxel_mm3: float,
    options: Options,
) -> None:
    """Add volumes of a bone's cartilage by plate and subregion, and areas and thicknesses where they are asked for.

    Args: labels: (Z, Y, X). boxes: ``find_objects`` of them. voxel_mm3: volume of a voxel.
    """
    if bone.landmarks is None:
        flag_cartilage(found, bone.name, structures, options.thickness, bone.flag)
        return
    cartilages = structures.cartilage_of(bone.name)
    box = joint_box(boxes, list(cartilages), labels.shape)
    if box is None:
        return
    names = {plate: structures.cartilage_name(bone.name, plate) for plate in _plates(bone.kind)}
    part = labels[box]
    mask = np.isin(part, list(cartilages))
    inner, start = np.argwhere(mask), np.array([s.start for s in box])
    values = part[tuple(inner.T)]
    points = bone.space.points(inner + start)
    sizes = Counter(subregions_of(bone, points, values, structures, options.conventions).tolist())
    for plate, name in names.items():
        found.add(name, plate, "VC", sum(sizes[region] for region in SUBREGIONS[plate]) * voxel_mm3, "mm3")
        for region in SUBREGIONS[plate]:
            flag = "" if sizes[region] else "no cartilage here"
            found.add(name, region, "VC", sizes[region] * voxel_mm3, "mm3", flag)

    def subregions_at(places_mm: NDArray) -> NDArray[np.object_]:
        """Name of the subregion of places on or near the cartilage, (N, 3) mm."""
        one_label = bool((values == values[0]).all())
        nearest = values[:1] if one_label else values[cKDTree(points).query(places_mm)[1]]
        return subregions_of(bone, places_mm, nearest, structures, options.conventions)

    if options.thickness:
        found.cartilages[bone.name] = made = _cartilage_map(bone, mask, start, subregions_at)
        for plate, name in names.items():
            for region in (plate, *SUBREGIONS[plate]):
                _add_thickness(found, name, region, made)


def _cartilage_map(
    bone: Bone,
    mask: NDArray[np.bool_],
    start: NDArray[np.intp],
    subregions_at: Callable[[NDArray], NDArray[np.object_]],
) -> CartilageMap:
    """Surfaces of the cartilage and its bone, with thickness and subregions.

    Args: mask: of the cartilage, in a box. start: (3,), of the box. subregions_at: (N, 3) mm -> (N,) names.
    """
    of_cartilage = surface_of(mask, bone.space.part(start))
    of_bone = surface_of(*_beneath(bone, start, mask.shape))
    assert of_cartilage is not None, bone.name
    assert of_bone is not None, bone.name
    in_plane = float(np.sort(bone.space.spacing_mm)[1])
    plate = measure_plate(of_cartilage, of_bone, in_plane)
    measured, subchondral = np.flatnonzero(~np.isnan(plate.thickness_mm)), np.flatnonzero(plate.subchondral)
    return CartilageMap(
        bone,
        plate,
        measured,
        subregions_at(of_cartilage.vertices[measured]),
        subchondral,
        subregions_at(of_bone.vertices[subchondral]),
    )


def _beneath(bone: Bone, start: NDArray[np.intp], shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], Space]:
    """The part of the bone's mask, and its space, that is near enough to the cartilage's box to tell what it covers."""
    mask, space = bone.mask
    margin = np.ceil(_MARGIN_MM / space.spacing_mm).astype(int)
    low = np.maximum(start - bone.start - margin, 0)
    high = start - bone.start + shape + margin
    return mask[tuple(map(slice, low, high))], space.part(low)


def _add_thickness(found: Found, name: str, region: str, of: CartilageMap) -> None:
    """Areas and thicknesses of a plate or subregion (Wirth and Eckstein 2008)."""
    members = SUBREGIONS.get(region, (region,))
    here, there = np.isin(of.subregion_beneath, members), np.isin(of.subregion, members)
    areas, covered = of.plate.bone.vertex_areas[of.subchondral], of.plate.covered[of.subchondral]
    total, bare = float(areas[here].sum()), float(areas[here & ~covered].sum())
    values, flag = dict.fromkeys(_THICKNESS_UNITS, math.nan), "no subchondral bone here"
    if total:
        values |= {"tAB": total / 100, "cAB": (total - bare) / 100, "dAB": 100 * bare / total}
        values["moaks_area_grade"] = regions.moaks_grade(bare / total, AREA_GRADES)
    thickness, weights = of.thickness_mm[there], of.plate.cartilage.vertex_areas[of.measured][there]
    if total and weights.sum() > _LEAST_MEASURED * (total - bare):
        mean = float(np.average(thickness, weights=weights))
        variance = float(np.average((thickness - mean) ** 2, weights=weights))
        values |= {"ThCcAB": mean, "ThCtAB": mean * (1 - bare / total), "ThCSD": math.sqrt(variance)}
    elif bare >= total > 0:
        values["ThCtAB"], flag = 0.0, "denuded"
    elif total:
        flag = "thickness could not be measured on most of it"
    for quantity, value in values.items():
        found.add(name, region, quantity, value, _THICKNESS_UNITS[quantity], flag if math.isnan(value) else "")
