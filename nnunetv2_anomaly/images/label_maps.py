"""Label maps from files, checked against the labels that they may hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.images.files import read_image


def read_label_map(path: Path, labels: Mapping[str, int]) -> sitk.Image:
    """Read a label map and check its values.

    Args: labels: name -> value of every label that may occur, background included; values 0 to 255.
    Returns: 3D image, uint8, in the file's own pose.
    Raises: UserError if the file cannot be read, is not 3D, is of a floating-point type, or holds another value.
    """
    image = read_image(path)
    voxels = sitk.GetArrayViewFromImage(image)
    if not np.issubdtype(voxels.dtype, np.integer):
        broken = np.count_nonzero(voxels != np.rint(voxels))
        told = f"{broken} of its voxels are no whole numbers" if broken else "all of its voxels are whole numbers"
        kind = f"{image.GetPixelIDTypeAsString()} values ({told})"
        raise UserError(f"{path} holds {kind}; expected an integer type: take one that was not interpolated")
    unknown = [f"{value} ({n} voxels)" for value, n in count_values(voxels).items() if value not in labels.values()]
    if unknown:
        known = ", ".join(f"{value} {name}" for name, value in labels.items())
        raise UserError(f"{path} holds unknown labels: {listed(unknown)}; expected {known}; check its release")
    return sitk.Cast(image, sitk.sitkUInt8)


def relabelled(labels: NDArray[np.uint8], new_values: Mapping[int, int]) -> NDArray[np.uint8]:
    """Labels of any shape with some values turned into others. Args: new_values: old value -> new value."""
    table = np.arange(256, dtype=np.uint8)
    table[list(new_values)] = list(new_values.values())
    return table[labels]


def count_values(voxels: NDArray) -> dict[int, int]:
    """Number of voxels, of an integer type, of each value, in the values' order."""
    if voxels.dtype.itemsize <= 2 and np.issubdtype(voxels.dtype, np.unsignedinteger):
        # Several times as fast as sorting them, and slice by slice in little memory.
        length = np.iinfo(voxels.dtype).max + 1
        counts = sum((np.bincount(part.ravel(), minlength=length) for part in voxels), start=np.zeros(length, np.intp))
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(voxels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
