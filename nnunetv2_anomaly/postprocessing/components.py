"""Connected components of labels, and which of them a clean-up removes (method paper, Appendix C).

Voxels of one label that touch at a face, an edge or a corner are connected (26 neighbours, 8 in 2D); different labels
never are. One pass over the box around all labels finds all components, another one their boundaries, which the
evaluation needs too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

#: relative tolerance of distances and volumes at a limit: spacings in files are rounded
_ROUNDING = 1e-6

#: voxels compared at once: few enough for the processor's cache
CHUNK = 1 << 18


@dataclass(frozen=True)
class Removal:
    """A component that a clean-up removed."""

    label: int  # its former one
    num_voxels: int
    volume_mm3: float | None  # mm2 in 2D; None if no spacing was given
    distance: float | None  # from the label's largest component, in the limit's unit; None if its size decided
    became: int  # the new value of its voxels, 0 or a bone's label
    centre: tuple[int, ...]  # of mass, rounded to an index in the array's axis order


def remove_distant_components(*arguments: Any, **options: Any) -> NDArray:
    """The array of ``clean_distant_components``, whose arguments and errors these are."""
    return clean_distant_components(*arguments, **options)[0]


def clean_distant_components(
    segmentation: NDArray,
    labels: Collection[int],
    max_distance_voxels: float = 50,
    *,
    max_distance_mm: float | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> tuple[NDArray, list[Removal]]:
    """Of each label keep the largest component and the smaller ones near it; return what was removed, too.

    A smaller component goes when it is farther from the largest than the limit, measured between the centres of their
    nearest voxels; at exactly the limit it stays. Never "largest only": degenerate cartilage comes in fragments. Of
    several largest components of one size the one whose first voxel comes first in the array counts as the largest.

    Args:
        segmentation: integers, two or three axes, 0 is background; it is not changed.
        labels: which labels to clean, from 1; others stay as they are.
        max_distance_voxels: the limit in voxels, whichever way they lie, as in the paper; from 0.
        max_distance_mm: the limit in mm, which holds instead where it is given; needs ``spacing_mm``.
        spacing_mm: distance of voxels along each axis, in the array's axis order; with a limit in voxels it only
            serves the volumes of what was removed.
    Returns: a new array of the same shape and type, 0 where something was removed; and what was, in the order of
        ``labels``, within a label in the order of the first voxels.
    Raises: ValueError for another number of spacings.
    """
    spacing = None if spacing_mm is None else checked_spacing(spacing_mm, segmentation.ndim)
    limit = max_distance_voxels if max_distance_mm is None else max_distance_mm
    components = _Components(segmentation, labels)
    unit = [1.0] * segmentation.ndim if max_distance_mm is None or spacing is None else spacing
    distances = components.distances_from_largest(unit)
    far = [(c, 0, float(distances[c])) for c in components.ordered() if distances[c] > limit * (1 + _ROUNDING)]
    return components.without(far, spacing)


def remove_small_lesions(*arguments: Any, **options: Any) -> NDArray:
    """The array of ``clean_small_lesions``, whose arguments and errors these are."""
    return clean_small_lesions(*arguments, **options)[0]


def clean_small_lesions(
    segmentation: NDArray,
    labels: Collection[int],
    min_volume_mm3: float,
    spacing_mm: Sequence[float],
    *,
    bone_of_lesion: Mapping[int, int] | None = None,
) -> tuple[NDArray, list[Removal]]:
    """Remove the components of lesion labels that are smaller than a volume; return what was removed, too.

    A component of exactly that volume stays.

    Args:
        segmentation, labels, spacing_mm: as ``clean_distant_components`` takes them.
        min_volume_mm3: the smallest volume that stays, mm3 (mm2 in 2D); from 0.
        bone_of_lesion: lesion label -> label of the bone that holds it. A component that has a face neighbour of its
            bone becomes bone; the others, and all of them where this is None, become 0.
    Returns: a new array and what was removed, both as of ``clean_distant_components``.
    Raises: ValueError for another number of spacings.
    """
    spacing = checked_spacing(spacing_mm, segmentation.ndim)
    num_enough = min_volume_mm3 / math.prod(spacing) * (1 - _ROUNDING)
    components = _Components(segmentation, labels)
    bones = bone_of_lesion or {}
    small = [
        (c, bones[label] if label in bones and components.touches(c, bones[label]) else 0, None)
        for c in components.ordered()
        if components.num_voxels[c] < num_enough
        for label in [components.label_of(c)]
    ]
    return components.without(small, spacing)


def count_components(segmentation: NDArray, labels: Collection[int]) -> dict[int, int]:
    """How many connected components each label has.

    Args: segmentation: integers, two or three axes. labels: which labels, from 1.
    Returns: label -> number of its components, 0 where it is absent, in the order of ``labels``.
    """
    components = _Components(segmentation, labels)
    counts = np.bincount(components.codes[1:], minlength=len(components.labels) + 1)
    return {label: int(counts[code]) for code, label in enumerate(components.labels, start=1)}


def checked_spacing(spacing_mm: Sequence[float], axes: int) -> list[float]:
    """The spacing of an array with so many axes, mm. Raises: ValueError for another number, or one not above 0."""
    spacing = [float(s) for s in spacing_mm]
    if len(spacing) != axes or not all(0 < s < math.inf for s in spacing):
        raise ValueError(f"spacing_mm is {spacing}; expected {axes} positive numbers")
    return spacing


def in_one_box(
    volumes: Sequence[NDArray], groups: Sequence[Collection[int]], margin: Sequence[int]
) -> tuple[list[NDArray[np.unsignedinteger]], NDArray[np.intp]]:
    """Groups of values numbered from 1, all else 0, in the box that holds them, with a margin of 0 around it.

    Args: volumes: integers, of one shape, two or three axes. groups: values from 1; none is in two groups.
        margin: voxels on both sides of each axis, from 1.
    Returns: the volumes, of one shape, of the smallest unsigned type; and which index of a volume is their index 0, per
        axis.
    """
    numbered = [_numbered(volume, groups) for volume in volumes]
    occupied, box = functools.reduce(np.bitwise_or, numbered) != 0, []
    for axis in range(occupied.ndim):
        layers = np.flatnonzero(occupied.any(axis=tuple(set(range(occupied.ndim)) - {axis})))
        box.append(slice(layers[0], layers[-1] + 1) if layers.size else slice(0, 0))
    for index, volume in enumerate(numbered):
        cropped = volume[tuple(box)]  # np.pad takes several times as long
        numbered[index] = np.zeros(cropped.shape + 2 * np.asarray(margin), volume.dtype)
        numbered[index][tuple(slice(m, m + n) for m, n in zip(margin, cropped.shape, strict=True))] = cropped
    return numbered, np.array([s.start - m for s, m in zip(box, margin, strict=True)], np.intp)


def _numbered(volume: NDArray, groups: Sequence[Collection[int]]) -> NDArray[np.unsignedinteger]:
    """Which group each voxel's value belongs to."""
    table = np.zeros(
        max((value for group in groups for value in group), default=0) + 2, np.min_scalar_type(len(groups))
    )
    for number, group in enumerate(groups, start=1):
        table[list(group)] = number
    result = np.empty_like(volume, table.dtype, order="C")
    # Slice by slice: on the way values become indices of 64 bits. Those beyond the table are clipped to its two ends,
    # which are in no group.
    for values, numbers in zip(volume, result, strict=True):
        np.take(table, values.astype(np.intp), out=numbers, mode="clip")
    return result


class Boundary:
    """The boundary voxels of all labels of a map: those with a face neighbour of another value.

    A slice has no neighbours across it: an axis of length 1 is none along which there could be a surface.

    Attributes: shape: of the map with its margin. steps: how far apart neighbours along each axis are in its flat form.
        flat: the map, flat; 0 where no boundary is. places: where the boundary voxels are in ``flat``, in order.
        codes: their values.
    """

    def __init__(self, padded: NDArray[np.unsignedinteger], map_shape: Sequence[int]):
        """Args: padded: a map in memory order, with a margin of 0 of one voxel or more. map_shape: of the whole map."""
        self.shape = padded.shape
        self.steps = np.array(padded.strides) // padded.itemsize
        # Compared as one long row, in pieces that fit the processor's cache: several times as fast as along each axis.
        # The margin keeps the lines apart.
        codes, margin = padded.ravel(), self.steps[0]
        self.flat = np.zeros_like(codes)
        across = self.steps[np.array(map_shape) > 1] if max(map_shape) > 1 else self.steps
        places = [np.zeros(0, np.intp)]  # without any label there is nothing between the margins
        for start in range(margin, codes.size - margin, CHUNK):
            stop = min(start + CHUNK, codes.size - margin)
            own = codes[start:stop]
            differs = np.zeros(own.shape, bool)
            for step in across:
                differs |= own != codes[start - step : stop - step]
                differs |= own != codes[start + step : stop + step]
            found = np.multiply(own, differs, out=self.flat[start:stop])
            places.append(np.flatnonzero(found != 0) + start)
        self.places = np.concatenate(places)
        self.codes = self.flat[self.places]

    def points(self, chosen: NDArray, spacing: ArrayLike) -> NDArray[np.float64]:
        """Positions (n, axes) of some of the boundary voxels, an index of ``places``, in the spacing's unit."""
        return np.stack(np.unravel_index(self.places[chosen], self.shape), axis=1) * np.asarray(spacing)

    def distances(self, chosen: NDArray, points: NDArray[np.float64], spacing: ArrayLike) -> NDArray[np.float64]:
        """The distance of each point (n, axes) to the nearest of some of the boundary voxels, in the spacing's unit."""
        # Without balancing and tight boxes the tree is built sooner, and finds far points in a third of the time.
        tree = cKDTree(self.points(chosen, spacing), leafsize=32, balanced_tree=False, compact_nodes=False)
        return tree.query(points)[0]


class _Components:
    """All components of some labels of an array, numbered from 1.

    Attributes: labels: each once. codes: the place of each component's label in ``labels``, counted from 1.
    """

    def __init__(self, segmentation: NDArray, labels: Collection[int]):
        self.segmentation, self.labels = segmentation, list(dict.fromkeys(labels))
        groups = [[label] for label in self.labels]
        (self._padded,), self._origin = in_one_box([segmentation], groups, [1] * segmentation.ndim)
        # Neighbours of different values are never connected; numbers follow the order of the first voxels.
        self._numbers = cc3d.connected_components(self._padded, connectivity=26 if segmentation.ndim == 3 else 8)
        self.codes = np.zeros(int(self._numbers.max(initial=0)) + 1, np.intp)
        flat = self._numbers.ravel()
        starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1  # of runs, far fewer than voxels
        self.codes[flat[starts]] = self._padded.ravel()[starts]

    @functools.cached_property
    def _found(self) -> Mapping[str, Any]:
        return cc3d.statistics(self._numbers)

    @property
    def num_voxels(self) -> NDArray[np.integer]:
        """Of each component; number 0 has no meaning."""
        return self._found["voxel_counts"]

    def label_of(self, component: int) -> int:
        """The label of a component."""
        return self.labels[self.codes[component] - 1]

    def ordered(self) -> list[int]:
        """All components, label by label, within a label in the order of their first voxels."""
        return (np.argsort(self.codes[1:], kind="stable") + 1).tolist()

    def distances_from_largest(self, unit: Sequence[float]) -> NDArray[np.float64]:
        """How far each component is from its label's largest one, that one's own distance being 0."""
        distances = np.zeros(len(self.codes))
        several = np.flatnonzero(np.bincount(self.codes[1:]) > 1)
        if not several.size:
            return distances
        boundary = Boundary(self._padded, self.segmentation.shape)
        of_voxel = self._numbers.ravel()[boundary.places]
        for code in several:
            components = np.flatnonzero(self.codes == code)
            largest = components[np.argmax(self.num_voxels[components])]
            others = np.flatnonzero((boundary.codes == code) & (of_voxel != largest))
            found = boundary.distances(of_voxel == largest, boundary.points(others, unit), unit)
            distances[components] = np.inf
            np.minimum.at(distances, of_voxel[others], found)
            distances[largest] = 0
        return distances

    def touches(self, component: int, value: int) -> bool:
        """Whether a component has a face neighbour of a value."""
        box = [slice(s.start - 1, s.stop + 1) for s in self._found["bounding_boxes"][component]]  # within the margin
        around = ndimage.binary_dilation(self._numbers[tuple(box)] == component)
        inside = np.argwhere(around) + self._origin + [s.start for s in box]
        inside = inside[((inside >= 0) & (inside < self.segmentation.shape)).all(axis=1)]
        return bool((self.segmentation[tuple(inside.T)] == value).any())

    def without(
        self, removed: Sequence[tuple[int, int, float | None]], spacing: Sequence[float] | None
    ) -> tuple[NDArray, list[Removal]]:
        """The array without some components, given as (component, new value, distance); and their removals."""
        cleaned, removals = self.segmentation.copy(), []
        for component, became, distance in removed:
            box, size = self._found["bounding_boxes"][component], int(self.num_voxels[component])
            of_array = tuple(slice(s.start + o, s.stop + o) for s, o in zip(box, self._origin, strict=True))
            cleaned[of_array][self._numbers[box] == component] = became
            volume_mm3 = None if spacing is None else size * math.prod(spacing)
            centre = tuple(round(float(at)) for at in self._found["centroids"][component] + self._origin)
            removals.append(Removal(int(self.label_of(component)), size, volume_mm3, distance, int(became), centre))
        return cleaned, removals
