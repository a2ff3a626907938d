"""Label maps and fields of knees on other grids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.grids import Grid, posed
from nnunetv2_anomaly.labels import BONE_OF_LESION, BONES, CARTILAGES, LABELS

#: the most voxels of a simulated knee (the OAI's has 24 million), and how many bytes of memory each takes meanwhile
_MOST_VOXELS = 2**28
_BYTES_PER_VOXEL = 40


def check_size(size: Sequence[int]) -> None:
    """Check that a knee of so many voxels (x, y, z) can be simulated. Raises: UserError if it takes too much memory."""
    if (voxels := math.prod(map(int, size))) > _MOST_VOXELS:
        asked = f"{' x '.join(map(str, size))} voxels take about {voxels * _BYTES_PER_VOXEL / 2**30:.0f} GiB of memory"
        most = f"at most {_MOST_VOXELS:,} voxels, about {_MOST_VOXELS * _BYTES_PER_VOXEL / 2**30:.0f} GiB"
        raise UserError(f"{asked}; expected {most}, so give a smaller --size or a larger --spacing")


def resample_labels(
    image: sitk.Image, size: Sequence[int] | None = None, spacing_mm: Sequence[float] | None = None
) -> sitk.Image:
    """Put a knee's label map on another grid.

    Background, cartilage and bone are nested, and a new voxel takes their median: it is knee where knee fills more than
    half of it, bone where bone does, and cartilage in between, so that a cartilage thinner than a voxel keeps its
    volume. Lesions count as bone first, and are lesion where they fill more than half of their bone's share.

    Args:
        image: 3D label map, any pose, values 0 to 9 of ``nnunetv2_anomaly.labels.LABELS``.
        size, spacing_mm: SimpleITK order (x, y, z). With one of them the physical extent is kept exactly, so that
            the spacing is extent / size; with both, the grid is centred on the map and what lies beyond is 0.
    Returns: 3D image, uint8, with the old direction. Raises: UserError if the new grid has too many voxels.
    """
    old_size, old_spacing = np.array(image.GetSize()), np.array(image.GetSpacing())
    extent = old_size * old_spacing
    new_size = np.array(size) if size is not None else np.maximum(1, np.rint(extent / spacing_mm).astype(int))
    check_size(new_size.tolist())
    both = size is not None and spacing_mm is not None
    new_spacing = np.array(spacing_mm, dtype=float) if both else extent / new_size
    # Corner of the new grid against the corner of the old one, along the image's own axes.
    corner = (extent - new_size * new_spacing) / 2
    weights = list(map(_overlaps, new_size, new_spacing, corner, old_size, old_spacing))[::-1]
    labels = sitk.GetArrayViewFromImage(image)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    first = corner + new_spacing / 2 - old_spacing / 2
    origin = np.array(image.GetOrigin()) + direction @ first
    return posed(_nested_median(labels, weights), Grid.from_arrays(new_size, new_spacing, origin, direction))


def _nested_median(labels: NDArray, weights: Sequence[NDArray[np.float32]]) -> NDArray[np.uint8]:
    shape = tuple(len(weight) for weight in weights)
    nothing = np.zeros(shape, np.float32)
    share = dict.fromkeys(LABELS.values(), nothing)
    share |= {int(value): _filled_share(labels == value, weights) for value in np.unique(labels[labels > 0])}
    bone_share = {bone: share[bone] + share[lesion] for lesion, bone in BONE_OF_LESION.items()}
    bones = sum(bone_share.values())
    knee = bones + sum(share[cartilage] for cartilage in CARTILAGES)
    nearest_bone = np.array(BONES)[np.argmax([bone_share[bone] for bone in BONES], axis=0)]
    for lesion, bone in BONE_OF_LESION.items():
        nearest_bone[(nearest_bone == bone) & (share[lesion] > bone_share[bone] / 2)] = lesion
    cartilage = np.array(CARTILAGES)[np.argmax([share[label] for label in CARTILAGES], axis=0)]
    return np.where(bones > 0.5, nearest_bone, np.where(knee > 0.5, cartilage, 0)).astype(np.uint8)


def _overlaps(count: int, spacing: float, corner: float, old_count: int, old_spacing: float) -> NDArray[np.float32]:
    """(new, old) matrix: which share of each new interval lies in each old one."""
    new_edges = corner + np.arange(count + 1) * spacing
    old_edges = np.arange(old_count + 1) * old_spacing
    upper = np.minimum(new_edges[1:, None], old_edges[None, 1:])
    lower = np.maximum(new_edges[:-1, None], old_edges[None, :-1])
    return (np.clip(upper - lower, 0.0, None) / spacing).astype(np.float32)


def _filled_share(mask: NDArray[np.bool_], weights: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Share of each new voxel that the mask fills, (Z, Y, X) new; one axis after the other, within the mask's box."""
    filled = [np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    box = [slice(places[0], places[-1] + 1) for places in filled]
    share = mask[tuple(box)].astype(np.float32)
    for axis in range(3):
        share = np.moveaxis(np.tensordot(weights[axis][:, box[axis]], share, axes=(1, axis)), 0, axis)
    return share


def resample_linear(
    field: NDArray[np.float32], positions: Sequence[NDArray], target: Sequence[NDArray]
) -> NDArray[np.float32]:
    """Linear interpolation of a field on a regular grid at the points of another, one axis after the other.

    Args: field: (Z, Y, X), any unit. positions: where its voxels lie, three increasing arrays of equal steps, mm, two
        positions at least each. target: where to interpolate, the same; beyond the grid its border value continues.
    Returns: (len(target[0]), len(target[1]), len(target[2])), the field's unit.
    """
    # The axis that shrinks most goes first: fewer values to handle afterwards.
    order = sorted(range(3), key=lambda axis: len(target[axis]) / len(positions[axis]))
    for axis in order:
        step = positions[axis][1] - positions[axis][0]
        index = np.clip((target[axis] - positions[axis][0]) / step, 0, len(positions[axis]) - 1.001)
        lower = index.astype(int)
        weight = (index - lower).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        below, above = np.take(field, lower, axis), np.take(field, lower + 1, axis)
        above -= below
        above *= weight
        above += below
        field = above
    return field
