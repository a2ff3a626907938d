"""The bones of a segmented knee: their labels, voxels, interfaces with cartilage, and what divides them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from nnunetv2_anomaly.label_roles import LabelRoles, is_of_bone
from nnunetv2_anomaly.measurements import regions
from nnunetv2_anomaly.measurements.frame import Motion, Space
from nnunetv2_anomaly.measurements.regions import (
    FEMUR,
    LATERAL,
    MEDIAL,
    PATELLA,
    PLACES,
    SHAFT,
    TIBIA,
    Conventions,
    Interface,
    LandmarkError,
)

#: in a label's name -> which bone it is
_KINDS = {FEMUR: re.compile(r"femur|femoral"), TIBIA: re.compile(r"tibia"), PATELLA: re.compile(r"patell")}
#: the region of a whole structure
ALL = "all"
#: code of a place that is too deep to be graded
_SHAFT_CODE = 255


#: what can be measured -> the quantities that belong to it
QUANTITIES: Mapping[str, tuple[str, ...]] = {
    "volumes": ("volume", "effusion_volume"),
    "lesions": ("lesion_count", "lesion_volume", "lesion_percent", "moaks_size_grade"),
    "cartilage": ("VC",),
    "thickness": ("tAB", "cAB", "dAB", "ThCtAB", "ThCcAB", "ThCSD", "moaks_area_grade"),
}


@dataclass(frozen=True)
class Options:
    """Settings that change the numbers."""

    side: str | None = None  # of all cases; None: each one's own
    min_lesion_mm3: float = 0.0  # smaller lesions are no lesions
    kissing_mm: float = 10.0  # lesions of two bones that are no farther apart are kissing
    quantities: tuple[str, ...] = ("volumes", "lesions", "cartilage")  # of QUANTITIES; thickness needs vtk
    conventions: Conventions = field(default_factory=Conventions)

    @property
    def thickness(self) -> bool:
        """Whether surfaces are made."""
        return "thickness" in self.quantities


@dataclass(frozen=True)
class Structure:
    """A label: its values, of a region without those of lesions in it, and the bone that it belongs to."""

    values: tuple[int, ...]
    bone: str | None = None
    lesion_values: tuple[int, ...] = ()  # of a region that holds lesions


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

        def some(bone_of: Mapping[str, str | None]) -> dict[str, Structure]:
            return {name: Structure(tuple(labels[name]), bone) for name, bone in bone_of.items() if name in labels}

        bones = {}
        for name in filter(labels.__contains__, roles.bones):
            own = [[value for value in labels[name] if (value in in_lesions) == is_in] for is_in in (False, True)]
            bones[name] = Structure(tuple(own[0]), lesion_values=tuple(own[1]))
        lesions = some({n: bone for n, bone in roles.lesions.items() if bone or is_of_bone(n)})
        # Of a label that names no bone, what labels with a bone have is theirs.
        housed = {value for of in lesions.values() if of.bone in bones for value in of.values}
        lesions = {
            name: of if of.bone in bones else Structure(tuple(v for v in of.values if v not in housed), of.bone)
            for name, of in lesions.items()
        }
        lesions = {name: of for name, of in lesions.items() if of.values}
        cartilages, effusions = some(roles.cartilages), some(dict.fromkeys(roles.effusions))
        named = {*bones, *lesions, *cartilages, *effusions}
        others = some(dict.fromkeys(name for name in labels if name not in named))
        return cls(bones, lesions, cartilages, effusions, others)

    def kind(self, bone: str) -> str | None:
        """Femur, tibia or patella, by the bone's name; None for another one."""
        return next((kind for kind, pattern in _KINDS.items() if pattern.search(bone.lower())), None)

    def with_lesions(self, bone: str) -> list[int]:
        """Values of a bone and of the lesions in it."""
        lesions = {value for of in self.lesions.values() if of.bone == bone for value in of.values}
        return [*self.bones[bone].values, *sorted(lesions | set(self.bones[bone].lesion_values))]

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
    #: what pictures and comparisons show: the bones, the voxels of each lesion, and cartilage where it was measured
    bones: dict[str, Bone] = field(default_factory=dict)
    lesion_indices: list[NDArray[np.intp]] = field(default_factory=list)  # (N, 3) each, in the order of ``lesions``
    cartilages: dict[str, Any] = field(default_factory=dict)  # bone -> cartilage.CartilageMap
    shape: tuple[int, ...] = ()  # of the image, whose indices the bones have

    def add(self, structure: str, region: str, quantity: str, value: float, unit: str, flag: str = "") -> None:
        """Add one value; NaN needs a flag, which says why."""
        assert flag or not math.isnan(value), (structure, region, quantity)
        row = {"structure": structure, "region": region, "quantity": quantity, "value": value}
        self.rows.append({**row, "unit": unit, "flag": flag})


@dataclass(frozen=True)
class Earlier:
    """A bone as it was at an earlier visit."""

    landmarks: Any  # of its kind
    motion: Motion  # from the later visit to it


@dataclass(frozen=True)
class Bone:
    """One bone, with what divides it."""

    name: str
    kind: str | None
    space: Space  # of the indices
    indices: NDArray[np.intp]  # (N, 3) of its voxels, lesions included
    start: NDArray[np.intp]  # (3,), of a box around them
    shape: tuple[int, ...]  # of the box
    is_lesion: NDArray[np.bool_]  # (N,)
    interface: Interface
    place: NDArray[np.uint8]  # (N,), 0 where there are no places, from 1 as in ``PLACES``, 255 for the shaft
    landmarks: Any  # of its kind; None where they were not found
    flag: str  # why there are none

    @cached_property
    def mask(self) -> tuple[NDArray[np.bool_], Space]:
        """Its voxels, lesions included, in their box, (Z, Y, X), and where that lies."""
        filled = np.zeros(self.shape, bool)
        filled[tuple((self.indices - self.start).T)] = True
        return filled, self.space.part(self.start)

    @cached_property
    def regions(self) -> dict[str, NDArray[np.bool_]]:
        """Place, compartment or shaft -> which of the bone's voxels are in it."""
        if self.landmarks is None or self.kind is None:
            return {}
        places = {name: self.place == number for number, name in enumerate(PLACES[self.kind], start=1)}
        sides = {
            f"{self.kind}_{side}": np.logical_or.reduce([own for name, own in places.items() if f"_{side}" in name])
            for side in (MEDIAL, LATERAL)
        }
        shaft = {} if self.kind == PATELLA else {SHAFT: self.place == _SHAFT_CODE}
        return {**places, **{name: own for name, own in sides.items() if name not in places}, **shaft}

    def touches_border(self, shape: tuple[int, ...]) -> bool:
        """Whether an image of a shape ends at the bone, which then may reach further."""
        return bool((self.indices == 0).any() or (self.indices == np.array(shape) - 1).any())

    @cached_property
    def interface_tree(self) -> cKDTree:
        """Of the places of its interface with cartilage."""
        return cKDTree(self.interface.points_mm)


def bones_of(
    labels: NDArray,
    boxes: Sequence[Any],
    space: Space,
    structures: Structures,
    side: str | None,
    conventions: Conventions,
    earlier: Mapping[str, Earlier] = MappingProxyType({}),
) -> Iterator[Bone]:
    """The bones that the knee has; the femur first, whose axes the patella takes.

    Args: earlier: bones that are divided as at an earlier visit, by name.
    """
    order = (FEMUR, TIBIA, PATELLA, None)
    names = sorted(structures.bones, key=lambda name: order.index(structures.kind(name)))
    lateral = None
    for name in names:
        values = structures.with_lesions(name)
        cartilages = structures.cartilage_of(name)
        if joint_box(boxes, values, labels.shape) is None:
            continue
        box = joint_box(boxes, [*values, *cartilages], labels.shape) or ()
        part = labels[box]
        mask = np.isin(part, values)
        start = np.array([s.start for s in box])
        inner = np.argwhere(mask)
        indices = inner + start
        is_lesion = ~np.isin(part[tuple(inner.T)], structures.bones[name].values)
        own_space = space.moved(earlier[name].motion) if name in earlier else space
        # Bone that touches cartilage lies in the box of that, with a voxel around it.
        near = joint_box(boxes, list(cartilages), labels.shape) or box
        inside = tuple(slice(max(0, n.start - s), max(0, n.stop - s)) for n, s in zip(near, start, strict=True))
        first = start + [s.start for s in inside]
        interface = regions.interface_of(mask[inside], part[inside], cartilages, own_space.part(first))
        interface = Interface(interface.indices + first, interface.points_mm, interface.cartilage)
        kind = structures.kind(name)
        landmarks = earlier[name].landmarks if name in earlier else None
        flag, place = "", np.zeros(len(indices), np.uint8)
        try:
            if landmarks is None:
                landmarks = _landmarks(kind, name, interface, indices, space, structures, side, conventions, lateral)
            place = _places(kind, landmarks, indices, interface, own_space, conventions)
        except LandmarkError as error:
            flag = str(error)
        if kind == FEMUR and landmarks is not None:
            lateral = landmarks.frame.axes[0]
        yield Bone(name, kind, own_space, indices, start, mask.shape, is_lesion, interface, place, landmarks, flag)


def joint_box(boxes: Sequence[Any], values: Sequence[int], shape: tuple[int, ...]) -> tuple[slice, ...] | None:
    """The box of some labels and a voxel around it, from ``find_objects`` of all; None where there is none of them."""
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
    if not len(interface.points_mm):
        raise LandmarkError("no interface of bone and cartilage")
    coordinates = landmarks.frame.of_voxels(indices, space)
    if kind == PATELLA:
        return regions.patellar_places(coordinates, landmarks)
    of_kind = regions.femoral_places if kind == FEMUR else regions.tibial_places
    place = of_kind(coordinates, landmarks, conventions)
    own = landmarks.frame.coordinates(interface.points_mm)
    place[regions.is_deep(coordinates, own, conventions.depth_mm)] = _SHAFT_CODE
    return place


def count_voxels(labels: NDArray, boxes: Sequence[Any], values: Sequence[int]) -> int:
    """How many voxels have one of the values. Args: boxes: ``find_objects`` of the labels."""
    box = joint_box(boxes, values, labels.shape)
    return 0 if box is None else int(np.isin(labels[box], values).sum())
