"""Overlap and surface distances of two label maps, exactly, all labels in one pass (method paper, Appendix B).

The boundary of a label is its voxels that a face-connected erosion removes, the image's edge included. d(a, B) is the
distance in mm between the centres of boundary voxel a and the nearest boundary voxel of B. Most boundary voxels have
their partner near by: the offsets up to 2 mm are walked in the order of their length, and the first that meets the same
label's boundary in the other map is the exact minimum. The few that are left, on stray blobs and missing parts, are
looked up in a tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

_NEAR_MM = 2.0

#: of every label, in this order
METRICS = (
    "dsc",
    "iou",
    "sensitivity",
    "precision",
    "asd_mm",
    "hd_mm",
    "hd95_mm",
    "hd95_max_directed_mm",
    "reference_volume_mm3",
    "prediction_volume_mm3",
    "volume_difference_mm3",
)


def surface_metrics(
    reference: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing_mm: Sequence[float]
) -> dict[str, float]:
    """Overlap and surface distances of two masks.

    Args:
        reference, prediction: bool, of one shape, two or three axes.
        spacing_mm: distance of voxels along each axis, in the arrays' axis order.

    Returns: ``METRICS``, as ``evaluate_case`` has them.

    Raises: ValueError as ``evaluate_case``.
    """
    masks = [np.asarray(mask) for mask in (reference, prediction)]
    if any(mask.dtype != bool for mask in masks):
        raise ValueError(f"the masks are {masks[0].dtype} and {masks[1].dtype}; expected bool")
    return evaluate_case(*(mask.view(np.uint8) for mask in masks), spacing_mm, [1])[1]


def evaluate_case(
    reference: NDArray, prediction: NDArray, spacing_mm: Sequence[float], labels: Collection[int]
) -> dict[int, dict[str, float]]:
    """Overlap and surface distances of every label of a case, in one pass.

    For reference A and prediction B: dsc = 2 |A and B| / (|A| + |B|), iou = |A and B| / |A or B|,
    sensitivity = |A and B| / |A|, precision = |A and B| / |B|. asd_mm pools the distances of both directions and takes
    their mean (Eq. B.2), hd_mm their maximum (Eq. B.3), hd95_mm their 95th percentile with linear interpolation;
    hd95_max_directed_mm is the larger of the two directions' percentiles, which others call HD95.
    volume_difference_mm3 = prediction - reference.

    Where a label is in neither map, everything but the volumes is NaN: undefined. Where one map lacks it, overlap is 0,
    distances are NaN, and so is the ratio with the missing one's volume.

    Args:
        reference, prediction: integers, of one shape, two or three axes.
        spacing_mm: distance of voxels along each axis, in the arrays' axis order.
        labels: which labels; background is not meant to be among them.

    Returns: label -> metric -> value; mm, mm3 (mm2 in 2D) or unitless.

    Raises: ValueError for different shapes, another number of axes or spacings, or values that are no label.
    """
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    spacing = tuple(float(s) for s in spacing_mm)
    labels = sorted({int(label) for label in labels})
    if reference.shape != prediction.shape or reference.ndim not in (2, 3):
        raise ValueError(f"shapes {reference.shape} and {prediction.shape}; expected one, with two or three axes")
    if len(spacing) != reference.ndim or not all(0 < s < math.inf for s in spacing):
        raise ValueError(f"spacing_mm is {spacing}; expected {reference.ndim} positive numbers")
    if not all(np.issubdtype(a.dtype, np.integer) for a in (reference, prediction)):
        raise ValueError(f"the maps are {reference.dtype} and {prediction.dtype}; expected integers")
    if not labels or labels[0] < 1:
        raise ValueError(f"labels are {labels}; expected whole numbers from 1")
    if reference.ndim == 2:
        reference, prediction, spacing = reference[None], prediction[None], (1.0, *spacing)
        flat = True
    else:
        flat = False
    maps = _cropped_codes(reference, prediction, labels)
    number = len(labels) + 1
    confusion = np.zeros((number, number), np.int64)
    # Slice by slice, so that the pairs of values need little memory.
    for of_reference, of_prediction in zip(*maps, strict=True):
        pairs = of_reference.astype(np.int32) * number + of_prediction
        confusion += np.bincount(pairs.ravel(), minlength=number * number).reshape(number, number)
    boundaries = [_boundary(codes, flat) for codes in maps]
    forth = _distances(boundaries[0], boundaries[1], spacing)
    back = _distances(boundaries[1], boundaries[0], spacing)
    voxel_mm3 = math.prod(spacing)
    return {
        label: _metrics(confusion, code, forth.get(code), back.get(code), voxel_mm3)
        for code, label in enumerate(labels, start=1)
    }


def _cropped_codes(reference: NDArray, prediction: NDArray, labels: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Both maps in the box of all labels, labels renumbered from 1, all else 0."""
    if len(labels) > 255:
        raise ValueError(f"{len(labels)} labels were given; expected at most 255")
    codes = []
    for volume in (reference, prediction):
        if volume.dtype == np.uint8:
            table = np.zeros(256, np.uint8)
            for code, label in enumerate(labels, 1):
                if label < 256:
                    table[label] = code
            codes.append(
                volume
                if np.array_equal(table[: len(labels) + 1], np.arange(len(labels) + 1))
                and (volume.max(initial=0) <= len(labels))
                else table[volume]
            )
        else:
            code_map = np.zeros(volume.shape, np.uint8)
            for code, label in enumerate(labels, 1):
                code_map[volume == label] = code
            codes.append(code_map)
    occupied = codes[0] | codes[1]
    box = []
    for axis in range(3):
        found = np.flatnonzero(occupied.any(axis=tuple({0, 1, 2} - {axis})))
        box.append(slice(found[0], found[-1] + 1) if found.size else slice(0, 0))
    return [code[tuple(box)] for code in codes]


def _boundary(codes: NDArray[np.uint8], flat: bool) -> NDArray[np.uint8]:
    """The codes where a voxel is of its label's boundary, else 0.

    At the box's edge lies another label, or the image's own edge, which counts as one.
    """
    inner = codes != 0
    for axis in range(1 if flat else 0, 3):
        along = np.moveaxis(codes, axis, 0)
        kept = np.moveaxis(inner, axis, 0)
        same = along[1:] == along[:-1]
        kept[1:] &= same
        kept[:-1] &= same
        if len(kept):
            kept[0] = False
            kept[-1] = False
    return np.where(inner, 0, codes).astype(np.uint8)


def _near_offsets(spacing: Sequence[float]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Offsets (n, 3) in voxels no longer than ``_NEAR_MM``, and their lengths in mm, shortest first; 0 among them."""
    reach = [int(_NEAR_MM / s) for s in spacing]
    offsets = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach))), dtype=np.intp)
    lengths = np.sqrt(((offsets * np.array(spacing)) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= _NEAR_MM]
    return offsets[order], lengths[order]


def _distances(
    of: NDArray[np.uint8], to: NDArray[np.uint8], spacing: Sequence[float]
) -> dict[int, NDArray[np.float64]]:
    """By code, the distance in mm of each boundary voxel of one map to the nearest of its label in the other.

    NaN where the other map lacks the label; no entry where the first one does.
    """
    offsets, lengths = _near_offsets(spacing)
    reach = np.abs(offsets).max(axis=0)
    padded = np.pad(to, [(r, r) for r in reach])
    steps = offsets @ np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    # Searched as one long row, which is several times as fast as along three axes.
    places = np.flatnonzero(of.ravel() != 0)
    codes = of.ravel()[places]
    flat_places = np.ravel_multi_index(
        tuple(index + r for index, r in zip(np.unravel_index(places, of.shape), reach, strict=True)), padded.shape
    )
    distances = np.full(len(places), np.nan)
    present = {int(code) for code in np.unique(to[to > 0])}
    left = np.flatnonzero(np.isin(codes, list(present)))
    flat_to = padded.ravel()
    at, wanted = flat_places[left], codes[left]
    for step, length in zip(steps, lengths, strict=True):
        if not left.size:
            break
        met = flat_to[at + step] == wanted
        if met.any():
            distances[left[met]] = length
            missed = ~met
            left, at, wanted = left[missed], at[missed], wanted[missed]
    spacing_mm = np.array(spacing)
    for code in np.unique(wanted):
        tree = cKDTree(np.argwhere(to == code) * spacing_mm)
        own = left[wanted == code]
        points = np.stack(np.unravel_index(places[own], of.shape), axis=1)
        distances[own], _ = tree.query(points * spacing_mm)
    return {int(code): distances[codes == code] for code in np.unique(codes)}


def _metrics(
    confusion: NDArray[np.int64],
    code: int,
    forth: NDArray[np.float64] | None,
    back: NDArray[np.float64] | None,
    voxel_mm3: float,
) -> dict[str, float]:
    both = int(confusion[code, code])
    of_reference, of_prediction = int(confusion[code].sum()), int(confusion[:, code].sum())

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else math.nan

    asd = hd = hd95 = hd95_directed = math.nan
    if of_reference and of_prediction:
        pooled = np.concatenate([forth, back])
        asd, hd = float(pooled.mean()), float(pooled.max())
        hd95 = float(np.percentile(pooled, 95))
        hd95_directed = float(max(np.percentile(forth, 95), np.percentile(back, 95)))
    return {
        "dsc": ratio(2 * both, of_reference + of_prediction),
        "iou": ratio(both, of_reference + of_prediction - both),
        "sensitivity": ratio(both, of_reference),
        "precision": ratio(both, of_prediction),
        "asd_mm": asd,
        "hd_mm": hd,
        "hd95_mm": hd95,
        "hd95_max_directed_mm": hd95_directed,
        "reference_volume_mm3": of_reference * voxel_mm3,
        "prediction_volume_mm3": of_prediction * voxel_mm3,
        "volume_difference_mm3": (of_prediction - of_reference) * voxel_mm3,
    }
