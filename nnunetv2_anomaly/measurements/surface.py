"""Overlap and surface distances of two label maps, exactly, all labels in one pass (method paper, Appendix B).

The boundary of a label is its voxels that a face-connected erosion removes, the image's edge included. An axis of
length 1 has no such edge: a single slice is measured as the picture it is. d(a, B) is the distance in mm between the
centres of boundary voxel a and the nearest boundary voxel of B. Most boundary voxels have their partner near by: the
offsets around them are walked in the order of their length, and the first that meets the same label's boundary in the
other map is the exact minimum. The few that are left, on stray blobs and missing parts, are looked up in a tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnunetv2_anomaly.measurements.frame import Mask
from nnunetv2_anomaly.postprocessing.components import CHUNK, Boundary, checked_spacing, in_one_box

#: a value of a label map, or several that form a region
Label: TypeAlias = int | tuple[int, ...]

#: about how many voxels are looked at around a boundary voxel before a tree is asked, which takes about as long as
#: they do: a ball of 2.6 mm at 0.36 x 0.36 x 0.7 mm
_NUM_NEAR = 800

#: undefined where a map lacks the label
DISTANCES = ("asd_mm", "hd_mm", "hd95_mm", "hd95_max_directed_mm")

#: of every label, in this order
METRICS = (
    *("dsc", "iou", "sensitivity", "precision", *DISTANCES),
    *("reference_volume_mm3", "prediction_volume_mm3", "volume_difference_mm3"),
)


def surface_metrics(
    reference: Mask, prediction: Mask, spacing_mm: Sequence[float], *, missing_distance_mm: float = math.nan
) -> dict[str, float]:
    """``METRICS`` of two bool masks of one shape, two or three axes; arguments and errors as of ``evaluate_case``."""
    maps = reference.view(np.uint8), prediction.view(np.uint8)
    return evaluate_case(*maps, spacing_mm, [1], missing_distance_mm=missing_distance_mm)[1]


def evaluate_case(
    reference: NDArray,
    prediction: NDArray,
    spacing_mm: Sequence[float],
    labels: Collection[Label],
    *,
    missing_distance_mm: float = math.nan,
) -> dict[Label, dict[str, float]]:
    """Overlap and surface distances of every label of a case.

    For reference A and prediction B: dsc = 2 |A and B| / (|A| + |B|), iou = |A and B| / |A or B|,
    sensitivity = |A and B| / |A|, precision = |A and B| / |B|. asd_mm pools the distances of both directions and takes
    their mean (Eq. B.2), hd_mm their maximum (Eq. B.3), hd95_mm their 95th percentile with linear interpolation;
    hd95_max_directed_mm is the larger of the two directions' percentiles, which others call HD95.
    volume_difference_mm3 = prediction - reference.

    Where a label is in neither map, everything but the volumes is NaN: undefined. Where one map lacks it, overlap is 0,
    the ratio with the missing one's volume is NaN, and distances are ``missing_distance_mm``.

    Args:
        reference, prediction: integers, of one shape, two or three axes.
        spacing_mm: distance of voxels along each axis, in the arrays' axis order.
        labels: which labels, whole numbers from 1; a tuple of them is a region, all their voxels together, as in
            nnU-Net. Regions may overlap: all that do not are measured in one pass.
        missing_distance_mm: what the distances are where exactly one map has the label.
    Returns: label, as it was given -> metric -> value; mm, mm3 (mm2 in 2D) or unitless.
    Raises: ValueError for different shapes, or another number of spacings.
    """
    spacing = common_spacing(reference, prediction, spacing_mm)
    values_of = {label: frozenset(label if isinstance(label, tuple) else (label,)) for label in labels}
    # Axes in the order of memory: nothing here depends on theirs, and lines are read as they lie.
    order = np.argsort([-abs(stride) for stride in reference.strides], kind="stable")
    maps, spacing = [volume.transpose(order) for volume in (reference, prediction)], [spacing[axis] for axis in order]
    found: dict[Label, dict[str, float]] = {}
    for chosen in _disjoint(values_of):
        found |= _one_pass(maps, spacing, chosen, missing_distance_mm)
    return {label: found[label] for label in values_of}


def common_spacing(reference: NDArray, prediction: NDArray, spacing_mm: Sequence[float]) -> list[float]:
    """The spacing of two arrays that are compared, mm. Raises: ValueError for different shapes, or as of one array."""
    if reference.shape != prediction.shape:
        raise ValueError(f"shapes {reference.shape} and {prediction.shape}; expected one")
    return checked_spacing(spacing_mm, reference.ndim)


def _disjoint(values_of: Mapping[Label, frozenset[int]]) -> list[dict[Label, frozenset[int]]]:
    """The labels in groups without overlap, as few as there can be where of two that overlap one holds the other."""
    groups: list[dict[Label, frozenset[int]]] = []
    for label, values in values_of.items():
        free = (group for group in groups if all(map(values.isdisjoint, group.values())))
        if (group := next(free, None)) is None:
            groups.append(group := {})
        group[label] = values
    return groups


def _one_pass(
    maps: Sequence[NDArray],
    spacing: Sequence[float],
    values_of: Mapping[Label, Collection[int]],
    missing_distance_mm: float,
) -> dict[Label, dict[str, float]]:
    """``evaluate_case`` for labels that do not overlap; maps: reference and prediction."""
    offsets, lengths = _near_offsets(spacing)
    margin = np.maximum(np.abs(offsets).max(axis=0), 1)
    coded, _ = in_one_box(maps, list(values_of.values()), margin)
    counts = _count(coded[0], coded[1], len(values_of) + 1)
    in_both = (counts[0] > 0) & (counts[1] > 0)
    # What was searched for boundaries is not needed any more.
    surfaces = [Boundary(coded.pop(0), maps[0].shape) for _ in maps]
    directed = [
        _distances(of, to, in_both, offsets, lengths, spacing)
        for of, to in zip(surfaces, reversed(surfaces), strict=True)
    ]
    return {
        label: _metrics(
            counts[:, code],
            [distances[surface.codes == code] for distances, surface in zip(directed, surfaces, strict=True)],
            math.prod(spacing),
            missing_distance_mm,
        )
        for code, label in enumerate(values_of, start=1)
    }


def _near_offsets(spacing: Sequence[float]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The offsets (n, axes) in voxels that are looked at first, and their lengths in mm, shortest first; 0 is one."""
    ball = _NUM_NEAR * math.prod(spacing)
    radius = math.sqrt(ball / math.pi) if len(spacing) == 2 else (ball * 3 / 4 / math.pi) ** (1 / 3)
    reach = [int(radius / s) for s in spacing]
    offsets = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), -1).reshape(-1, len(reach))
    lengths = np.sqrt(((offsets * np.array(spacing)) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    # However many are taken, none that is shorter is left out: the box of these offsets holds the ball.
    order = order[lengths[order] <= radius][: 2 * _NUM_NEAR]
    return offsets[order], lengths[order]


def _count(reference: NDArray, prediction: NDArray, number: int) -> NDArray[np.int64]:
    """How many voxels (3, number) each code has in the reference, in the prediction, and in both at once."""
    counts = np.zeros((3, number))
    reference, prediction = reference.ravel(), prediction.ravel()
    for start in range(0, reference.size, CHUNK):
        a, b = reference[start : start + CHUNK], prediction[start : start + CHUNK]
        # Runs of equal pairs are counted by their length: far fewer than voxels.
        ends = a[1:] != a[:-1]
        ends |= b[1:] != b[:-1]
        ends = np.append(np.flatnonzero(ends), len(a) - 1)
        lengths = np.diff(ends, prepend=-1)
        a, b = a[ends], b[ends]
        counts += [
            np.bincount(codes, weights, number)
            for codes, weights in ((a, lengths), (b, lengths), (a, lengths * (a == b)))
        ]
    return counts.astype(np.int64)


def _distances(
    of: Boundary, to: Boundary, in_both: Mask, offsets: NDArray, lengths: NDArray, spacing: Sequence[float]
) -> NDArray[np.float64]:
    """The distance in mm of each boundary voxel of a map to its label's nearest in the other; NaN where it lacks it."""
    distances = np.full(len(of.places), np.nan)
    left = np.flatnonzero(in_both[of.codes])
    at, wanted = of.places[left], of.codes[left]
    steps = offsets @ of.steps
    shells = np.flatnonzero(np.diff(lengths, prepend=-1))
    for first, stop in itertools.pairwise([*shells, len(lengths)]):
        if not left.size:
            break
        met = to.flat[at + steps[first]] == wanted
        for step in steps[first + 1 : stop]:
            met |= to.flat[at + step] == wanted
        if met.any():
            distances[left[met]] = lengths[first]
            missed = ~met
            left, at, wanted = left[missed], at[missed], wanted[missed]
    for code in np.unique(wanted):
        own = left[wanted == code]
        distances[own] = to.distances(to.codes == code, of.points(own, spacing), spacing)
    return distances


def _metrics(
    counts: NDArray[np.int64], directed: Sequence[NDArray[np.float64]], voxel_mm3: float, missing_distance_mm: float
) -> dict[str, float]:
    """``METRICS`` of one label, from its voxels in reference, prediction and both, and its distances each way."""
    of_reference, of_prediction, both = (int(count) for count in counts)

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else math.nan

    distances = [missing_distance_mm if of_reference or of_prediction else math.nan] * len(DISTANCES)
    if of_reference and of_prediction:
        pooled = np.concatenate(directed)
        hd95_directed = max(float(np.percentile(way, 95)) for way in directed)
        distances = [float(pooled.mean()), float(pooled.max()), float(np.percentile(pooled, 95)), hd95_directed]
    all_voxels = of_reference + of_prediction
    overlap = (
        ratio(2 * both, all_voxels),
        ratio(both, all_voxels - both),
        ratio(both, of_reference),
        ratio(both, of_prediction),
    )
    volumes = (number * voxel_mm3 for number in (of_reference, of_prediction, of_prediction - of_reference))
    return dict(zip(METRICS, (*overlap, *distances, *volumes), strict=True))
