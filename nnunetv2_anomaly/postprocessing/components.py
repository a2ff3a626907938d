"""Components of a label that lie far from its largest one (method paper, Appendix C)."""

from __future__ import annotations

from collections.abc import Collection

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree


def remove_distant_components(
    segmentation: NDArray, labels: Collection[int], max_distance_voxels: float = 50
) -> NDArray:
    """Of each label keep the largest component, and the smaller ones that are near it.

    A smaller component goes when it is more than ``max_distance_voxels`` away from the largest, measured between the
    centres of the nearest voxels, in voxels. Never "largest only": degenerate cartilage comes in fragments. Voxels that
    touch at a corner are connected. Of several largest components of one size the one whose first voxel comes first in
    the array counts as the largest.

    Args:
        segmentation: (Z, Y, X), integers, 0 is background; it is not changed.
        labels: which labels to clean; others stay as they are.
        max_distance_voxels: unitless, from 0.

    Returns: a new array of the same shape and type, 0 where something was removed.

    Raises: ValueError if the array has not three axes, or the distance is negative.
    """
    segmentation = np.asarray(segmentation)
    if segmentation.ndim != 3 or max_distance_voxels < 0:
        raise ValueError(f"shape {segmentation.shape}, distance {max_distance_voxels}; expected three axes, 0 or more")
    cleaned = segmentation.copy()
    foreground = np.isin(segmentation, list(labels)) & (segmentation != 0)
    if not foreground.any():
        return cleaned
    box = tuple(
        slice(found[0], found[-1] + 1)
        for found in (np.flatnonzero(foreground.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
    )
    # One pass for all labels: neighbours of different values are never connected.
    components = cc3d.connected_components(np.where(foreground, segmentation, 0)[box].astype(np.uint16))
    sizes = np.bincount(components.ravel())
    first = np.full(len(sizes), components.size)
    numbers, places = np.unique(components, return_index=True)
    first[numbers] = places
    label_of = segmentation[box].ravel()[np.minimum(first, components.size - 1)]
    removed = []
    for label in np.unique(label_of[1:]):
        own = [number for number in range(1, len(sizes)) if label_of[number] == label]
        if len(own) < 2:
            continue
        largest = min(own, key=lambda number: (-sizes[number], first[number]))
        near = cKDTree(np.argwhere(_surface(components == largest)))
        for number in own:
            if number != largest:
                distances, _ = near.query(np.argwhere(components == number), k=1)
                # Squared distances between voxels are whole numbers: exactly 50 is told from more than 50.
                if round(float(distances.min()) ** 2) > max_distance_voxels**2:
                    removed.append(number)
    cleaned[box][np.isin(components, removed)] = 0
    return cleaned


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels with a face neighbour outside the mask: the nearest ones to anything outside are among them."""
    inner = mask.copy()
    for axis in range(3):
        for step in (1, -1):
            shifted = np.zeros_like(mask)
            to = [slice(None)] * 3
            of = [slice(None)] * 3
            to[axis], of[axis] = (slice(1, None), slice(None, -1)) if step == 1 else (slice(None, -1), slice(1, None))
            shifted[tuple(to)] = mask[tuple(of)]
            inner &= shifted
    return mask & ~inner
