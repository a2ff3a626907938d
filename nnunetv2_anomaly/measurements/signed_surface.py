"""How far a label's surface lies outside that of another map, and average distances of voxels and of boundaries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from nnunetv2_anomaly.measurements.frame import Mask, Space
from nnunetv2_anomaly.measurements.meshes import signed_distances, surface_of
from nnunetv2_anomaly.measurements.surface import common_spacing

#: of a label, in this order
SIGNED_METRICS = (
    "signed_surface_distance_mean_mm", "signed_surface_distance_sd_mm", "absolute_surface_distance_mean_mm",
    "ahd_voxel_mm", "ahd_voxel_voxels", "assd_mm", "assd_voxels",
)  # fmt: skip


def signed_surface(reference: Mask, prediction: Mask, spacing_mm: Sequence[float]) -> dict[str, float]:
    """``SIGNED_METRICS`` of one label.

    Signed distances are those of the vertices of the prediction's surface from the reference's, above 0 where the
    prediction reaches outside: their mean, standard deviation, and the mean of their absolute values. ahd_voxel is the
    mean of both directions' mean distance of a voxel of one set from the nearest of the other, 0 for those in it; assd
    is the same of the sets' boundary voxels alone (whose face neighbours are not all in the set).

    Args: reference, prediction: (Z, Y, X). spacing_mm: distance of voxels along each axis, in the same order.
    Returns: mm, and for names that end with it voxels, as if all spacings were 1; NaN where one of the masks is empty.
    Raises: ValueError for different shapes, or another number of spacings.
    """
    spacing = np.array(common_spacing(reference, prediction, spacing_mm))
    if not (reference.any() and prediction.any()):
        return dict.fromkeys(SIGNED_METRICS, math.nan)
    (box,) = ndimage.find_objects((reference | prediction).view(np.uint8))
    masks = [mask[box] for mask in (reference, prediction)]
    space = Space(np.zeros(3), np.diag(spacing))
    surfaces = [surface_of(mask, space) for mask in masks]
    assert surfaces[0] is not None
    assert surfaces[1] is not None
    signed = signed_distances(surfaces[1], surfaces[0])
    values = [float(signed.mean()), float(signed.std()), float(np.abs(signed).mean())]
    in_mm, in_voxels = (_average_distances(masks, scale) for scale in (spacing, np.ones(3)))
    values += [of for pair in zip(in_mm, in_voxels, strict=True) for of in pair]
    return dict(zip(SIGNED_METRICS, values, strict=True))


def _average_distances(masks: Sequence[Mask], spacing: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of both directions' mean distances: of all voxels of the sets, and of their boundaries."""
    voxels = [
        float(ndimage.distance_transform_edt(~other, sampling=spacing)[mask].mean())
        for mask, other in (masks, masks[::-1])
    ]
    edges = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing for mask in masks]
    boundaries = [float(KDTree(other).query(own)[0].mean()) for own, other in (edges, edges[::-1])]
    return sum(voxels) / 2, sum(boundaries) / 2
