"""Lesion masks voxel by voxel, in the bone or in the whole image (Qin et al. 2025, Table 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

METRICS = ("dice", "iou", "sensitivity", "specificity", "accuracy")


def confusion(
    reference: NDArray[np.bool_], prediction: NDArray[np.bool_], domain: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Voxels of a domain: true positive, false positive, false negative, true negative. Args: masks of one shape."""
    reference, prediction = reference[domain], prediction[domain]
    return np.array(
        [
            (reference & prediction).sum(),
            (~reference & prediction).sum(),
            (reference & ~prediction).sum(),
            (~reference & ~prediction).sum(),
        ]
    )


def mask_metrics(counts: NDArray[np.int64]) -> dict[str, float]:
    """``METRICS`` of ``confusion``'s counts, one slice's or the sum of many, in [0, 1]; NaN where one has no voxels."""
    true, false, missed, rest = (int(count) for count in counts)

    def share(part: int, whole: int) -> float:
        return part / whole if whole else math.nan

    values = (
        share(2 * true, 2 * true + false + missed),
        share(true, true + false + missed),
        share(true, true + missed),
        share(rest, rest + false),
        share(true + rest, true + false + missed + rest),
    )
    return dict(zip(METRICS, values, strict=True))


def groups_by_area(areas: Sequence[float], groups: int = 5) -> NDArray[np.intp]:
    """Number of the group of each slice by the area of its lesions, from 0, as equal in number as there can be.

    Slices of one area are in one group only if the numbers allow; fewer slices than groups have groups of their own.

    Args: areas: one per slice, in any unit.
    """
    order = np.argsort(np.asarray(areas), kind="stable")
    found = np.empty(len(order), np.intp)
    for number, own in enumerate(np.array_split(order, min(groups, max(1, len(order))))):
        found[own] = number
    return found
