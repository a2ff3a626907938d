"""Label maps from files, checked against the labels that they may hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunetv2_anomaly.errors import UserError, counted, listed
from nnunetv2_anomaly.images.files import read_header, read_image
from nnunetv2_anomaly.images.headers import NIFTI_ENDINGS


def read_label_map(path: Path, labels: Mapping[str, int]) -> sitk.Image:
    """Read a label map: 3D, uint8, in the file's own pose.

    Args: labels: name -> value of every label that may occur, background included; values 0 to 255.
    Raises: UserError if the file cannot be read, is not 3D, or holds another value.
    """
    image = read_image(path)
    voxels = sitk.GetArrayViewFromImage(image)
    if np.issubdtype(voxels.dtype, np.floating):
        voxels = whole_numbers(voxels, path)
    unknown = [f"{value} ({n} voxels)" for value, n in count_values(voxels).items() if value not in labels.values()]
    if unknown:
        known = ", ".join(f"{value} {name}" for name, value in labels.items())
        raise UserError(f"{path} holds unknown labels: {listed(unknown)}; expected {known}; check its release")
    return sitk.Cast(image, sitk.sitkUInt8)


def whole_numbers(voxels: NDArray, path: Path) -> NDArray[np.integer]:
    """Voxels of a segmentation as integers of the smallest type that holds them; floats may be whole numbers.

    Raises: UserError if others are among them; it says how the file's header scales them.
    """
    broken = voxels < 0
    if np.issubdtype(voxels.dtype, np.floating):
        broken |= (voxels != np.rint(voxels)) | ~np.isfinite(voxels)
    if number := np.count_nonzero(broken):
        fault = f"{number} of its voxels are no whole numbers; expected a segmentation, labels from 0"
        raise UserError(f"{path}: {fault}; {_scaling(path) or 'take one that was not interpolated'}")
    return np.ascontiguousarray(voxels, dtype=np.min_scalar_type(int(voxels.max(initial=0))))


def _scaling(path: Path) -> str:
    """How a NIfTI header scales the stored numbers, and what to do; empty where it does not."""
    if not path.name.lower().endswith(NIFTI_ENDINGS):
        return ""
    image: Any = nibabel.load(path)
    slope, inter = np.float32(image.dataobj.slope), np.float32(image.dataobj.inter)
    stored = f"its header scales what is stored by scl_slope {slope!s} and scl_inter {inter!s}"
    return "" if (slope, inter) == (1, 0) else f"{stored}: set them to 1 and 0 if what is stored are the labels"


def note_of_floats(files: Iterable[Path]) -> list[str]:
    """A sentence about the label maps that hold floating-point numbers, by their headers; none if there are none."""
    found = []
    for file in files:
        with suppress(UserError):  # said when its voxels are read
            if read_header(file).GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64):
                found.append(str(file))
    taken = "with floating-point numbers, taken as far as all of these are whole"
    return [f"{counted(len(found), 'label map')} {taken}: {listed(found)}."] if found else []


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
