"""Whether the header of a NIfTI file says one thing of its geometry: one judge for all readers.

Where a header contradicts itself, SimpleITK and nibabel settle it without a word, and not alike. SimpleITK alone reads
files of other kinds.
"""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from numpy.typing import NDArray

from nnunetv2_anomaly.images.grids import TOLERANCE_MM, apart_mm

NIFTI_ENDINGS = (".nii.gz", ".nii")

#: fields of a NIfTI header that hold its pose, in both of its forms
_POSE_FIELDS = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


def header_fault(path: Path) -> str | None:
    """What one reader of a NIfTI file takes otherwise than another, in words; None if its header says one thing.

    Raises: what nibabel raises for a file that it cannot read.
    """
    if not path.name.lower().endswith(NIFTI_ENDINGS):
        return None
    image: Any = nibabel.load(path)
    header, axes = image.header, min(3, len(image.shape))
    if header.sizeof_hdr != 348:
        return "is a NIfTI-2 file, which nnU-Net's own reader, ITK, cannot read; expected NIfTI-1"
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
        head = file.read(120)
    steps = np.frombuffer(head[80:92], f"{header.endianness}f4")[:axes]  # nibabel has made its own positive
    slope, inter = np.frombuffer(head[112:120], f"{header.endianness}f4")
    if slope == 0 and np.isfinite(inter) and inter != 0:  # nibabel takes it for no scaling, ITK adds scl_inter
        return f"has scl_slope 0 and scl_inter {inter:g}; expected 1 and 0 where nothing is scaled"
    if np.issubdtype(image.get_data_dtype(), np.complexfloating):
        return "holds complex numbers; expected real ones, such as their magnitude"
    if unit := {1: "metre", 3: "micrometre"}.get(int(header["xyzt_units"]) % 8):
        return f"gives its lengths in the unit {unit}; expected mm"
    if not (steps > 0).all():
        return f"has a spacing of {' x '.join(f'{step:g}' for step in steps)} mm; expected numbers above 0"
    poses = []
    for pose_of in (header.get_qform, header.get_sform):
        with suppress(ValueError):  # of a quaternion a little too long, which ITK shortens
            pose, code = pose_of(coded=True)
            poses += [pose] if code else []
    if not all(np.isfinite(pose).all() for pose in poses):
        return "has a pose with infinite numbers or NaN; expected finite ones"
    size = (*image.shape[:3], 1, 1)[:3]
    if len(poses) == 2 and (apart := apart_mm(poses[0], poses[1], size)) > TOLERANCE_MM:
        return f"has two poses, qform and sform, that lie {apart:.2f} mm apart; expected one"
    for pose in poses:  # ITK takes the header's spacing, nibabel that of the pose
        own = np.linalg.norm(pose[:3, :axes], axis=0)
        if (np.abs(own - steps) * np.array(size[:axes])).max() > TOLERANCE_MM:
            both = (" x ".join(f"{step:.6g}" for step in numbers) for numbers in (steps, own))
            return f"has a spacing of {' mm in its field pixdim and of '.join(both)} mm in its pose; expected one"
    return None


def shear_mm(image: sitk.Image | sitk.ImageFileReader) -> float:
    """How far the corner of an image lies from where it were if the axes stood at right angles, in mm."""
    axes = image.GetDimension()
    direction = np.reshape(image.GetDirection(), (axes, axes))
    left, _, right = np.linalg.svd(direction)
    steps = np.diag(image.GetSpacing())
    pose, other = (np.c_[matrix @ steps, np.zeros(axes)] for matrix in (direction, left @ right))
    return apart_mm(pose, other, image.GetSize())


def save_nifti_like(voxels: NDArray, source: Path, path: Path, affine: NDArray[np.float64] | None = None) -> None:
    """Write voxels as NIfTI with the pose of another file in the forms (qform, sform, unit) that it has there.

    Args: voxels: (X, Y, Z) or (X, Y). source: NIfTI file of the same voxels. affine: (4, 4), of the voxels' axes where
        these may be others than that file's.
    """
    like: Any = nibabel.load(source)
    if affine is not None:
        voxels = apply_orientation(voxels, ornt_transform(io_orientation(affine), io_orientation(like.affine)))
    dtype = like.get_data_dtype()
    image = type(like)(voxels.reshape(like.shape).astype(dtype), None, dtype=dtype)
    for field in _POSE_FIELDS:
        image.header[field] = like.header[field]
    image.to_filename(path)
