"""Lesions of one bone: which are detected, at which threshold (method paper, Section 5.3 and Appendix C).

Detection is bone-wise: a bone is a positive case where the reference has a lesion in it. What counts as a lesion
depends on a threshold: lesions below a size are removed from both maps; beyond the largest size, the prediction's
voxels must also reach a softmax output. Lesion-wise detection is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from nnunetv2_anomaly.measurements.frame import Mask
from nnunetv2_anomaly.measurements.surface import common_spacing

#: lesions smaller than this, in mm3, are removed from both maps (method paper, Appendix C)
SIZES_MM3 = tuple(step / 2 for step in range(13))

#: beyond the largest size, the lowest softmax output of the prediction's lesion voxels (method paper, Appendix C)
PROBABILITIES = tuple(step / 10 for step in range(5, 11))

#: from this DSC on a bone's lesions are detected (method paper, Section 5.3)
MIN_DSC = 0.05

#: what a threshold is of: lesions smaller than ``threshold`` mm3 are removed from both maps; or, after the largest of
#: the sizes, voxels of the prediction's lesions whose softmax output is lower than ``threshold``
SIZE, PROBABILITY = "size", "probability"

#: outcomes of a bone at a threshold
TP, FN, TN, FP = "TP", "FN", "TN", "FP"

#: the map that a lesion is in
REFERENCE, PREDICTION = "reference", "prediction"

# Headers hold spacings in single precision: a volume that is below a limit by less than this share equals it.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Detection:
    """Result of ``detect`` for one bone."""

    #: one per rule and threshold, in the order of the thresholds: rule, threshold, reference_mm3, prediction_mm3, dsc
    #: and outcome
    points: list[dict[str, Any]]
    #: one per connected component of either map, the reference's first: map, volume_mm3, overlap (the share of its
    #: voxels that are lesion in the other map, too) and found (whether any is)
    lesions: list[dict[str, Any]]


@dataclass(frozen=True)
class _Components:
    """Connected components: their numbers voxel by voxel, from 1, and the voxels of each number (0 of number 0)."""

    numbers: NDArray[np.integer]
    voxels: NDArray[np.int64]


def detect(
    reference: Mask,
    prediction: Mask,
    spacing_mm: Sequence[float],
    *,
    probability: NDArray[np.floating] | None = None,
    sizes_mm3: Sequence[float] = SIZES_MM3,
) -> Detection:
    """Outcome of one bone at every threshold, and its lesions one by one (method paper, Section 5.3, Appendix C).

    A lesion is a connected component; voxels that touch at a corner are connected. At a size threshold the lesions
    smaller than it are removed from both maps; one of exactly that volume stays. At a probability threshold the
    prediction's voxels with a lower ``probability`` are removed, and then, from both maps, the lesions smaller than the
    largest of the sizes. Of what is left: a reference with a lesion makes TP where DSC >= ``MIN_DSC``, else FN; a
    reference without one makes TN where the prediction has none either, else FP. DSC is NaN where neither has one. The
    lesions one by one are those of the maps as they are.

    Args:
        reference, prediction: (Z, Y, X) or (Y, X), bool: the voxels of one bone's lesion label.
        spacing_mm: distance of voxels along each axis, in the arrays' axis order.
        probability: of the arrays' shape, floating point in [0, 1]: softmax output of that label, unitless. Without it
            there are no points of that rule.
        sizes_mm3: at least one threshold in mm3 (mm2 in 2D), from 0.
    Returns: points and lesions; volumes in mm3 (mm2 in 2D), overlap and DSC in [0, 1], unitless.
    Raises: ValueError for different shapes, or another number of spacings.
    """
    voxel_mm3 = math.prod(common_spacing(reference, prediction, spacing_mm))
    (box,) = ndimage.find_objects((reference | prediction).view(np.uint8), max_label=1)
    box = box or (slice(0, 0),) * reference.ndim
    reference, prediction = reference[box], prediction[box]
    of_reference, of_prediction = _components(reference), _components(prediction)
    shared = _shared(of_reference, of_prediction)
    points = [
        {"rule": SIZE, "threshold": float(size)} | _point(of_reference, of_prediction, shared, size, voxel_mm3)
        for size in sizes_mm3
    ]
    if probability is not None:
        for threshold in PROBABILITIES:
            left = _components(prediction & (probability[box] >= threshold))
            point = _point(of_reference, left, _shared(of_reference, left), max(sizes_mm3), voxel_mm3)
            points.append({"rule": PROBABILITY, "threshold": threshold} | point)
    lesions = [
        {"map": name, "volume_mm3": int(voxels) * voxel_mm3, "overlap": float(share / voxels), "found": bool(share)}
        for name, of, covered in ((REFERENCE, of_reference, shared.sum(1)), (PREDICTION, of_prediction, shared.sum(0)))
        for voxels, share in zip(of.voxels[1:], covered[1:], strict=True)
    ]
    return Detection(points, lesions)


def _components(mask: Mask) -> _Components:
    if not mask.any():
        return _Components(np.zeros(mask.shape, np.uint16), np.zeros(1, np.int64))
    numbers = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=8 if mask.ndim == 2 else 26)
    return _Components(numbers, np.bincount(numbers[mask]))


def _shared(reference: _Components, prediction: _Components) -> sparse.csr_array:
    """The number of voxels that a component of the reference (row) shares with one of the prediction (column)."""
    both = (reference.numbers != 0) & (prediction.numbers != 0)
    pairs = reference.numbers[both], prediction.numbers[both]
    shape = len(reference.voxels), len(prediction.voxels)
    return sparse.coo_array((np.ones(both.sum(), np.int64), pairs), shape).tocsr()


def at_least(volume_mm3: NDArray, limit_mm3: float) -> NDArray[np.bool_]:
    """Whether volumes reach a limit, but for the rounding of spacings in headers; mm3 (mm2 in 2D)."""
    return volume_mm3 >= limit_mm3 * (1 - _ROUNDING)


def _point(
    reference: _Components, prediction: _Components, shared: sparse.csr_array, size_mm3: float, voxel_mm3: float
) -> dict[str, Any]:
    """Volumes, DSC and outcome of the components of at least ``size_mm3``."""
    in_reference = at_least(reference.voxels * voxel_mm3, size_mm3)
    in_prediction = at_least(prediction.voxels * voxel_mm3, size_mm3)
    of_reference = int(reference.voxels[in_reference].sum())
    of_prediction = int(prediction.voxels[in_prediction].sum())
    both = int(shared[in_reference][:, in_prediction].sum())
    dsc = 2 * both / (of_reference + of_prediction) if of_reference + of_prediction else math.nan
    positive, negative = TP if dsc >= MIN_DSC else FN, FP if of_prediction else TN
    return {
        "reference_mm3": of_reference * voxel_mm3,
        "prediction_mm3": of_prediction * voxel_mm3,
        "dsc": dsc,
        "outcome": positive if of_reference else negative,
    }
