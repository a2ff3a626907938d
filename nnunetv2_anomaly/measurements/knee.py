"""What one segmented knee says: volumes, lesions by place, cartilage by subregion; labels alone, no reference."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError, cKDTree
from scipy.spatial.distance import pdist

from nnunetv2_anomaly.label_roles import LabelRoles, is_of_bone
from nnunetv2_anomaly.measurements import regions
from nnunetv2_anomaly.measurements.frame import Space
from nnunetv2_anomaly.measurements.lesions import at_least
from nnunetv2_anomaly.measurements.meshes import surface_of
from nnunetv2_anomaly.measurements.regions import (
    FEMUR,
    LATERAL,
    MEDIAL,
    PATELLA,
    PLACES,
    SHAFT,
    SUBREGIONS,
    TIBIA,
    Conventions,
    Interface,
    LandmarkError,
)
from nnunetv2_anomaly.measurements.thickness import measure_plate

#: in a label's name -> which bone it is
_KINDS = {FEMUR: re.compile(r"femur|femoral"), TIBIA: re.compile(r"tibia"), PATELLA: re.compile(r"patell")}
#: share of a place's bone below which a lesion has the grade (MOAKS): 1 below 33 %, 2 to 66 %, 3 beyond
_GRADES = (0.33, 0.66)
#: and of a region's area that is bare, below which cartilage loss has the grade 1 and 2
_AREA_GRADES = (0.1, 0.75)
#: quantity of a plate or subregion -> its unit
_THICKNESS_UNITS = {
    "tAB": "cm2", "cAB": "cm2", "dAB": "%", "ThCtAB": "mm", "ThCcAB": "mm", "ThCSD": "mm", "moaks_area_grade": "1",
}  # fmt: skip
ALL = "all"
#: between the name of a lesion label and the bone that it was found in
_IN = " in "


@dataclass(frozen=True)
class Structure:
    """A label: its values, of a region without those of lesions in it, and the bone that it belongs to."""

    values: tuple[int, ...]
    bone: str | None = None


@dataclass(frozen=True)
class Structures:
    """Labels of a knee by what they are: name -> structure."""

    bones: Mapping[str, Structure]
    lesions: Mapping[str, Structure]
    cartilages: Mapping[str, Structure]
    effusions: Mapping[str, Structure]
    others: Mapping[str, Structure]

    @classmethod
    def of(cls, labels: Mapping[str, Sequence[int]], roles: LabelRoles) -> Structures:
        """Structures of a data set. Args: labels: name -> values of every label; a region has several."""
        in_lesions = {value for name in roles.lesions for value in labels.get(name, ())}

        def some(
            names: Iterable[str], bone_of: Mapping[str, str | None] = MappingProxyType({})
        ) -> dict[str, Structure]:
            return {name: Structure(tuple(labels[name]), bone_of.get(name)) for name in names if name in labels}

        bones = {
            name: Structure(tuple(value for value in of.values if value not in in_lesions))
            for name, of in some(roles.bones).items()
        }
        lesions = some((n for n, bone in roles.lesions.items() if bone or is_of_bone(n)), roles.lesions)
        cartilages, effusions = some(roles.cartilages, roles.cartilages), some(roles.effusions)
        named = {*bones, *lesions, *cartilages, *effusions}
        return cls(bones, lesions, cartilages, effusions, some(name for name in labels if name not in named))

    def kind(self, bone: str) -> str | None:
        """Femur, tibia or patella, by the bone's name; None for another one."""
        return next((kind for kind, pattern in _KINDS.items() if pattern.search(bone.lower())), None)

    def with_lesions(self, bone: str) -> list[int]:
        """Values of a bone and of the lesions in it."""
        lesions = (value for of in self.lesions.values() if of.bone == bone for value in of.values)
        return [*self.bones[bone].values, *lesions]

    def cartilage_name(self, bone: str, plate: str) -> str:
        """The label of a plate of cartilage, of several that of its side."""
        own = [name for name, of in self.cartilages.items() if of.bone == bone]
        side = MEDIAL if plate.startswith("M") else LATERAL
        return next((name for name in own if side in name.lower()), own[0])

    def cartilage_of(self, bone: str, side: str | None = None) -> set[int]:
        """Values of a bone's cartilage, or of that of one side where its labels have one in their names."""
        own = {name: of.values for name, of in self.cartilages.items() if of.bone == bone}
        return {value for name, values in own.items() if side is None or side in name.lower() for value in values}


@dataclass
class Found:
    """What was measured of a knee."""

    #: structure, region, quantity, value, unit, flag
    rows: list[dict[str, Any]] = field(default_factory=list)
    #: one per lesion: bone, lesion, label, volume_mm3 and so on; shares of places as share_PLACE
    lesions: list[dict[str, Any]] = field(default_factory=list)

    def add(self, structure: str, region: str, quantity: str, value: float, unit: str, flag: str = "") -> None:
        """Add one value; NaN needs a flag, which says why."""
        assert flag or not math.isnan(value), (structure, region, quantity)
        row = {"structure": structure, "region": region, "quantity": quantity, "value": value}
        self.rows.append({**row, "unit": unit, "flag": flag})


@dataclass(frozen=True)
class Bone:
    """One bone, with what divides it."""

    name: str
    kind: str | None
    indices: NDArray[np.intp]  # (N, 3) of its voxels, lesions included
    is_lesion: NDArray[np.bool_]  # (N,)
    interface: Interface
    place: NDArray[np.uint8]  # (N,), 0 where there are no places, from 1 as in ``PLACES``, 255 for the shaft
    landmarks: Any  # of its kind; None where they were not found
    flag: str  # why there are none


_SHAFT_CODE = 255


def measure_knee(
    labels: NDArray[np.integer],
    origin_lps_mm: Sequence[float],
    steps_lps_mm: NDArray[np.float64],
    structures: Structures,
    side: str | None,
    *,
    conventions: Conventions = Conventions(),  # noqa: B008 (frozen)
    min_lesion_mm3: float = 0.0,
    kissing_mm: float = 10.0,
    thickness: bool = False,
) -> Found:
    """Volumes, lesions and cartilage of one knee.

    Args:
        labels: (Z, Y, X), in any orientation.
        origin_lps_mm, steps_lps_mm: pose of the voxels, as ``Space.of`` takes it.
        side: "right" or "left"; None: what is medial or lateral is flagged, unless cartilages are named so.
        min_lesion_mm3: smaller lesions are no lesions.
        kissing_mm: lesions of two bones that are no farther apart are kissing.
        thickness: whether cartilage's thickness and areas are measured, which needs vtk.
    """
    labels, structures = _lesions_to_bones(labels, structures)
    boxes = ndimage.find_objects(labels)
    side = side or _side_of_names(labels, boxes, structures, Space.of(origin_lps_mm, steps_lps_mm, "right"))
    space = Space.of(origin_lps_mm, steps_lps_mm, side or "right")
    voxel_mm3 = float(abs(np.linalg.det(space.steps_mm)))
    found = Found()
    bones = list(_bones(labels, boxes, space, structures, side, conventions))
    for bone in bones:
        _add_bone(found, bone, voxel_mm3)
    for name, of in {**structures.cartilages, **structures.effusions, **structures.others}.items():
        number = _count(labels, boxes, of.values)
        found.add(name, ALL, "volume", number * voxel_mm3, "mm3", "" if number else "absent")
        if name in structures.effusions:
            found.add(name, ALL, "effusion_volume", number * voxel_mm3 / 1000, "mL", "" if number else "absent")
    there = {bone.name for bone in bones}
    for name in (name for name in structures.bones if name not in there):
        found.add(name, ALL, "volume", 0.0, "mm3", "absent")
        if any(of.bone == name for of in structures.lesions.values()):
            _flag_lesions(found, name, (ALL, *PLACES.get(structures.kind(name) or "", ())), "absent")
    for name, of in structures.lesions.items():
        if of.bone not in there and (number := _count(labels, boxes, of.values)):
            found.add(name.partition(_IN)[0], ALL, "volume", number * voxel_mm3, "mm3", "in no bone")
    for bone in bones:
        _add_cartilage(found, labels, boxes, bone, structures, space, voxel_mm3, thickness)
    _add_lesions(found, labels, bones, structures, space, voxel_mm3, min_lesion_mm3, kissing_mm)
    if side is None:
        for row in found.lesions:
            row["lateral_mm"] = math.nan
    return found


def _lesions_to_bones(labels: NDArray[np.integer], structures: Structures) -> tuple[NDArray[np.integer], Structures]:
    """Labels and structures in which every lesion has a bone: one that names none is in the bone that it touches most.

    Each bone's part of such a lesion gets a value of its own; what touches no bone stays as it is.
    """
    homeless = {name: of for name, of in structures.lesions.items() if of.bone not in structures.bones}
    if not homeless or not np.isin(labels, [value for of in homeless.values() for value in of.values]).any():
        return labels, structures
    changed, lesions = labels.astype(np.int32), dict(structures.lesions)
    next_value = int(changed.max()) + 1
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
                lesions[f"{name}{_IN}{bone}"] = Structure((values[bone],), bone)
            changed[around][own] = values[bone]
    return changed, replace(structures, lesions=lesions)


def _side_of_names(
    labels: NDArray[np.integer], boxes: Sequence[Any], structures: Structures, space: Space
) -> str | None:
    """The side of a knee whose cartilages have medial and lateral in their names; ``space`` is as if it were right."""
    for bone in structures.bones:
        middles = []
        for side in (MEDIAL, LATERAL):
            values = list(structures.cartilage_of(bone, side))
            box = _joint_box(boxes, values, labels.shape) if values else None
            if box is None:
                break
            own = np.argwhere(np.isin(labels[box], values)) + np.array([s.start for s in box])
            middles.append(float(space.points(own)[:, 0].mean()))
        if len(middles) == 2:
            return "right" if middles[0] < middles[1] else "left"
    return None


def _count(labels: NDArray, boxes: Sequence[Any], values: Sequence[int]) -> int:
    box = _joint_box(boxes, values, labels.shape)
    return 0 if box is None else int(np.isin(labels[box], values).sum())


# ------------------------------------------------------------------------- bones


def _bones(
    labels: NDArray,
    boxes: Sequence[Any],
    space: Space,
    structures: Structures,
    side: str | None,
    conventions: Conventions,
) -> Iterator[Bone]:
    """The bones that the knee has; the femur first, whose axes the patella takes."""
    order = (FEMUR, TIBIA, PATELLA, None)
    names = sorted(structures.bones, key=lambda name: order.index(structures.kind(name)))
    lateral = None
    for name in names:
        values = structures.with_lesions(name)
        cartilages = structures.cartilage_of(name)
        box = _joint_box(boxes, [*values, *cartilages], labels.shape)
        if box is None:
            continue
        part = labels[box]
        mask = np.isin(part, values)
        if not mask.any():
            continue
        start = np.array([s.start for s in box])
        inner = np.argwhere(mask)
        indices = inner + start
        is_lesion = ~np.isin(part[tuple(inner.T)], structures.bones[name].values)
        local = Space(space.points(start[None])[0], space.steps_mm)
        interface = regions.interface_of(mask, part, cartilages, local)
        interface = Interface(interface.indices + start, interface.points_mm, interface.cartilage)
        kind = structures.kind(name)
        landmarks, flag, place = None, "", np.zeros(len(indices), np.uint8)
        try:
            landmarks = _landmarks(kind, name, interface, indices, space, structures, side, conventions, lateral)
            place = _places(kind, landmarks, indices, interface, space, conventions)
        except LandmarkError as error:
            flag = str(error)
        if kind == FEMUR and landmarks is not None:
            lateral = landmarks.frame.axes[0]
        yield Bone(name, kind, indices, is_lesion, interface, place, landmarks, flag)


def _joint_box(boxes: Sequence[Any], values: Sequence[int], shape: tuple[int, ...]) -> tuple[slice, ...] | None:
    own = [boxes[value - 1] for value in values if value <= len(boxes) and boxes[value - 1] is not None]
    if not own:
        return None
    return tuple(
        slice(max(0, min(box[axis].start for box in own) - 1), min(n, max(box[axis].stop for box in own) + 1))
        for axis, n in enumerate(shape)
    )


def _landmarks(
    kind: str | None,
    name: str,
    interface: Interface,
    indices: NDArray,
    space: Space,
    structures: Structures,
    side: str | None,
    conventions: Conventions,
    lateral: NDArray | None,
) -> Any:
    """What divides a bone. Raises: LandmarkError with the flag of what is missing."""
    if kind is None:
        raise LandmarkError("not femur, tibia or patella by its name")
    if not structures.cartilage_of(name):
        raise LandmarkError("no label of its cartilage")
    if side is None:
        raise LandmarkError("side unknown")
    spacing = float(space.spacing_mm.max())
    points = space.points(indices)
    if kind == FEMUR:
        return regions.femoral_landmarks(interface, points, spacing)
    if kind == TIBIA:
        named = {of: structures.cartilage_of(name, of) for of in (MEDIAL, LATERAL)}
        return regions.tibial_landmarks(interface, named, conventions)
    return regions.patellar_landmarks(interface, points, lateral, spacing)


def _places(
    kind: str | None, landmarks: Any, indices: NDArray, interface: Interface, space: Space, conventions: Conventions
) -> NDArray[np.uint8]:
    coordinates = landmarks.frame.of_voxels(indices, space)
    if kind == PATELLA:
        return regions.patellar_places(coordinates, landmarks)
    of_kind = regions.femoral_places if kind == FEMUR else regions.tibial_places
    place = of_kind(coordinates, landmarks, conventions)
    own = landmarks.frame.coordinates(interface.points_mm)
    place[regions.is_deep(coordinates, own, conventions.depth_mm)] = _SHAFT_CODE
    return place


def _regions_of(bone: Bone) -> dict[str, NDArray[np.bool_]]:
    """Place, compartment or shaft -> which of the bone's voxels are in it."""
    if bone.landmarks is None or bone.kind is None:
        return {}
    places = {name: bone.place == number for number, name in enumerate(PLACES[bone.kind], start=1)}
    sides = {
        f"{bone.kind}_{side}": np.logical_or.reduce([own for name, own in places.items() if f"_{side}" in name])
        for side in (MEDIAL, LATERAL)
    }
    shaft = {} if bone.kind == PATELLA else {SHAFT: bone.place == _SHAFT_CODE}
    return {**places, **{name: own for name, own in sides.items() if name not in places}, **shaft}


def moaks_size_grade(share: float) -> int:
    """Grade of a lesion by its share of the place's volume, in [0, 1]: 0 none, 1 < 33 %, 2 to 66 %, 3 beyond."""
    return 0 if share <= 0 else 1 + int(share >= _GRADES[0]) + int(share > _GRADES[1])


def _add_bone(found: Found, bone: Bone, voxel_mm3: float) -> None:
    found.add(bone.name, ALL, "volume", len(bone.indices) * voxel_mm3, "mm3")
    for region, own in _regions_of(bone).items():
        found.add(bone.name, region, "volume", int(own.sum()) * voxel_mm3, "mm3")
    if bone.landmarks is None:
        names = PLACES.get(bone.kind or "", ())
        for region in names:
            found.add(bone.name, region, "volume", math.nan, "mm3", bone.flag)


# ----------------------------------------------------------------------- lesions


def _add_lesions(
    found: Found,
    labels: NDArray,
    bones: Sequence[Bone],
    structures: Structures,
    space: Space,
    voxel_mm3: float,
    min_lesion_mm3: float,
    kissing_mm: float,
) -> None:
    # A lesion label that names no bone may be in any.
    has_label = {of.bone for of in structures.lesions.values()}
    has_label |= set(structures.bones) if None in has_label else set()
    trees: list[cKDTree] = []
    of_bone: list[str] = []
    for bone in bones:
        if bone.name not in has_label:
            continue
        kept = np.zeros(len(bone.indices), bool)
        number_of = np.zeros(len(bone.indices), int)
        for number, own in _components(labels, bone, voxel_mm3, min_lesion_mm3):
            row, tree = _lesion_row(bone, own, number, labels, structures, space, voxel_mm3)
            kept |= own
            number_of[own] = number
            trees.append(tree)
            of_bone.append(bone.name)
            found.lesions.append(row)
        _add_lesion_sums(found, bone, kept, number_of, voxel_mm3)
    for row, tree, name in zip(found.lesions, trees, of_bone, strict=True):
        others = [other for other, of in zip(trees, of_bone, strict=True) if of != name]
        nearest = min((float(tree.query(other.data)[0].min()) for other in others), default=math.inf)
        row["kissing"] = nearest <= kissing_mm


def _components(
    labels: NDArray, bone: Bone, voxel_mm3: float, min_lesion_mm3: float
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The bone's lesions, the largest first: number from 1, and which of the bone's voxels they are."""
    if not bone.is_lesion.any():
        return
    low, high = bone.indices.min(axis=0), bone.indices.max(axis=0) + 1
    volume = np.zeros(high - low, np.uint16)
    places = tuple((bone.indices - low).T)
    volume[places] = np.where(bone.is_lesion, labels[tuple(bone.indices.T)], 0)
    numbers = cc3d.connected_components(volume, connectivity=26)[places]  # two labels that touch are two lesions
    sizes = np.bincount(numbers)
    for number, size_of in enumerate(np.argsort(-sizes[1:], kind="stable") + 1, start=1):
        if at_least(np.float64(sizes[size_of] * voxel_mm3), min_lesion_mm3):
            yield number, numbers == size_of


def _lesion_row(
    bone: Bone,
    own: NDArray[np.bool_],
    number: int,
    labels: NDArray,
    structures: Structures,
    space: Space,
    voxel_mm3: float,
) -> tuple[dict[str, Any], cKDTree]:
    indices = bone.indices[own]
    points = space.points(indices)
    tree = cKDTree(points)
    coarse = int(np.argmax(space.spacing_mm))
    slices = np.bincount(indices[:, coarse] - indices[:, coarse].min())
    in_plane = voxel_mm3 / float(space.spacing_mm[coarse])
    names = {value: name.partition(_IN)[0] for name, of in structures.lesions.items() for value in of.values}
    row: dict[str, Any] = {
        "bone": bone.name,
        "lesion": number,
        "label": names[int(labels[tuple(indices[0])])],
        "volume_mm3": len(indices) * voxel_mm3,
        "largest_area_mm2": float(slices.max()) * in_plane,
        "largest_diameter_mm": _diameter(points),
        **dict(zip(("lateral_mm", "anterior_mm", "superior_mm"), points.mean(axis=0).tolist(), strict=True)),
    }
    diagonal = float(np.linalg.norm(space.spacing_mm))
    if len(bone.interface.points_mm):
        distance = float(cKDTree(bone.interface.points_mm).query(points)[0].min())
        row |= {"interface_distance_mm": distance, "subchondral": distance <= diagonal}
    else:
        row |= {"interface_distance_mm": math.nan, "subchondral": None}
    for region, there in _regions_of(bone).items():
        if region in PLACES[bone.kind or FEMUR] or region == SHAFT:
            row[f"share_{region}"] = float(there[own].mean())
    return row, tree


def _diameter(points: NDArray[np.floating]) -> float:
    """Largest distance of two voxels' middles."""
    if len(points) > 50:
        with suppress(QhullError):  # of a lesion in one plane or line
            points = points[ConvexHull(points).vertices]
    return float(pdist(points).max()) if len(points) > 1 else 0.0


def _add_lesion_sums(
    found: Found, bone: Bone, kept: NDArray[np.bool_], number_of: NDArray[np.integer], voxel_mm3: float
) -> None:
    """Sums of a bone and of its places; a lesion that crosses is counted in each."""
    regions_of = {ALL: np.ones(len(kept), bool), **_regions_of(bone)}
    for region, own in regions_of.items():
        voxels, size = int((kept & own).sum()), int(own.sum())
        share = voxels / size if size else math.nan
        flag = "" if size else "no bone in this place"
        found.add(bone.name, region, "lesion_count", len(np.unique(number_of[kept & own])), "1", flag)
        found.add(bone.name, region, "lesion_volume", voxels * voxel_mm3, "mm3", flag)
        found.add(bone.name, region, "lesion_percent", 100 * share, "%", flag)
        if region in PLACES.get(bone.kind or "", ()):
            grade = moaks_size_grade(share) if size else math.nan
            found.add(bone.name, region, "moaks_size_grade", grade, "1", flag)
    if bone.landmarks is None:
        _flag_lesions(found, bone.name, PLACES.get(bone.kind or "", ()), bone.flag)


def _flag_lesions(found: Found, bone: str, names: Sequence[str], flag: str) -> None:
    """Rows of lesions that could not be taken."""
    for region in names:
        for quantity, unit in (("lesion_count", "1"), ("lesion_volume", "mm3"), ("lesion_percent", "%")):
            found.add(bone, region, quantity, math.nan, unit, flag)
        if region != ALL:
            found.add(bone, region, "moaks_size_grade", math.nan, "1", flag)


# --------------------------------------------------------------------- cartilage


def _plates(bone: Bone) -> tuple[str, ...]:
    return {FEMUR: ("MF", "LF"), TIBIA: ("MT", "LT"), PATELLA: ("P",)}.get(bone.kind or "", ())


def subregions_of(bone: Bone, points_mm: NDArray, values: NDArray, structures: Structures) -> NDArray[np.object_]:
    """Name of the cartilage subregion of each point.

    Args: points_mm: (N, 3). values: (N,), labels of the cartilage.
    """
    coordinates = bone.landmarks.frame.coordinates(points_mm)
    conventions = Conventions()
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


def moaks_area_grade(share: float) -> int:
    """Grade of cartilage loss by the share of the region's area that is bare, in [0, 1]."""
    return 0 if share <= 0 else 1 + int(share >= _AREA_GRADES[0]) + int(share > _AREA_GRADES[1])


@dataclass(frozen=True)
class _Cartilage:
    """The cartilage of one bone that has landmarks."""

    names: Mapping[str, str]  # plate -> label
    bone: Bone
    mask: NDArray[np.bool_]  # in the box
    box: tuple[slice, ...]
    points_mm: NDArray[np.floating]  # (N, 3), of its voxels
    values: NDArray[np.integer]  # (N,), their labels

    def subregions_at(self, points_mm: NDArray, structures: Structures) -> NDArray[np.object_]:
        """Name of the subregion of points on or near it, (N, 3) mm."""
        values = (
            self.values[cKDTree(self.points_mm).query(points_mm)[1]] if len(set(self.values.tolist())) > 1 else None
        )
        return subregions_of(self.bone, points_mm, self.values[:1] if values is None else values, structures)


def _add_cartilage(
    found: Found,
    labels: NDArray,
    boxes: Sequence[Any],
    bone: Bone,
    structures: Structures,
    space: Space,
    voxel_mm3: float,
    with_thickness: bool,
) -> None:
    cartilages = structures.cartilage_of(bone.name)
    if not cartilages:
        return
    plates = _plates(bone)
    names = {plate: structures.cartilage_name(bone.name, plate) for plate in plates}
    if bone.landmarks is None:
        quantities = [("VC", "mm3"), *(_THICKNESS_UNITS.items() if with_thickness else ())]
        for plate in plates:
            for region, (quantity, unit) in itertools.product((plate, *SUBREGIONS[plate]), quantities):
                found.add(names[plate], region, quantity, math.nan, unit, bone.flag)
        return
    box = _joint_box(boxes, list(cartilages), labels.shape)
    if box is None:
        return
    part = labels[box]
    mask = np.isin(part, list(cartilages))
    inner = np.argwhere(mask)
    points = space.points(inner + np.array([s.start for s in box]))
    cartilage = _Cartilage(names, bone, mask, box, points, part[tuple(inner.T)])
    of_points = subregions_of(bone, points, cartilage.values, structures)
    unique, counts = np.unique(of_points.astype(str), return_counts=True)
    sizes = dict(zip(unique.tolist(), counts.tolist(), strict=True))
    for plate in plates:
        own = {region: sizes.get(region, 0) for region in SUBREGIONS[plate]}
        found.add(names[plate], plate, "VC", sum(own.values()) * voxel_mm3, "mm3")
        for region, number in own.items():
            found.add(names[plate], region, "VC", number * voxel_mm3, "mm3", "" if number else "no cartilage here")
    if with_thickness:
        _add_thickness(found, cartilage, plates, structures, space, labels.shape)


def _add_thickness(
    found: Found,
    cartilage: _Cartilage,
    plates: Sequence[str],
    structures: Structures,
    space: Space,
    shape: tuple[int, ...],
) -> None:
    """Areas and thicknesses of plates and subregions (Wirth and Eckstein 2008)."""
    bone = cartilage.bone
    starts = np.array([s.start for s in cartilage.box])
    local = Space(space.points(starts[None])[0], space.steps_mm)
    of_cartilage = surface_of(cartilage.mask, local)
    filled = np.zeros(shape, bool)
    filled[tuple(bone.indices.T)] = True
    of_bone = surface_of(filled, space)
    assert of_cartilage is not None, cartilage.names
    assert of_bone is not None, bone.name
    in_plane = float(np.sort(space.spacing_mm)[1])
    plate = measure_plate(of_cartilage, of_bone, in_plane)
    subchondral = np.flatnonzero(plate.subchondral)
    on_bone = cartilage.subregions_at(of_bone.vertices[subchondral], structures)
    areas, covered = of_bone.vertex_areas[subchondral], plate.covered[subchondral]
    measured = np.flatnonzero(~np.isnan(plate.thickness_mm))
    on_cartilage = cartilage.subregions_at(of_cartilage.vertices[measured], structures)
    thickness, weights = plate.thickness_mm[measured], of_cartilage.vertex_areas[measured]
    for name in plates:
        for region in (name, *SUBREGIONS[name]):
            members = SUBREGIONS[name] if region == name else (region,)
            here, there = np.isin(on_bone, members), np.isin(on_cartilage, members)
            total, bare = float(areas[here].sum()), float(areas[here & ~covered].sum())
            values = dict.fromkeys(_THICKNESS_UNITS, math.nan)
            flag = "" if total else "no subchondral bone here"
            if total:
                values |= {"tAB": total / 100, "cAB": (total - bare) / 100, "dAB": 100 * bare / total}
                values["moaks_area_grade"] = moaks_area_grade(bare / total)
            if total and there.any():
                mean = float(np.average(thickness[there], weights=weights[there]))
                variance = float(np.average((thickness[there] - mean) ** 2, weights=weights[there]))
                values |= {"ThCcAB": mean, "ThCtAB": mean * (1 - bare / total), "ThCSD": math.sqrt(variance)}
            elif bare >= total > 0:
                values["ThCtAB"], flag = 0.0, "denuded"
            elif total:
                flag = "no thickness could be measured"
            for quantity, unit in _THICKNESS_UNITS.items():
                value = values[quantity]
                found.add(cartilage.names[name], region, quantity, value, unit, flag if math.isnan(value) else "")
