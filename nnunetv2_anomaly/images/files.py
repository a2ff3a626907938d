"""Image files, read and written whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import written_beside

#: endings of the image files that this package reads; MetaImage headers (.mhd) name the file of their voxels
FILE_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")

_NIFTI_ENDINGS = (".nii.gz", ".nii")


def image_stem(path: Path) -> str:
    """File name without its image ending. Raises: ValueError if it has none of ``FILE_ENDINGS``."""
    for ending in FILE_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    raise ValueError(f"{path.name} ends in none of {FILE_ENDINGS}")


@contextmanager
def read_failures_as_user_errors(
    path: Path, what: str = "an image", advice: str = "check that it (.mhd: and its .raw) is complete, or get it again"
) -> Iterator[None]:
    """Turn a missing file, and whatever a library raises while it reads one, into a UserError.

    Args: what: it should be, for the sentence. advice: what the user can do.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; expected {what}")
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read as {what} ({last_line(error)}); {advice}") from error


def read_image(path: Path, dimensions: Collection[int] = (3,)) -> sitk.Image:
    """Read an image of one value a voxel, in its own pose and type, without its metadata dictionary.

    Args: dimensions: how many axes it may have.
    Raises: UserError if it is missing, unreadable, cut short, or not such an image.
    """
    with read_failures_as_user_errors(path):
        check_whole(path)
        image = _reader(path).Execute()
    components = image.GetNumberOfComponentsPerPixel()
    kind = f"{image.GetDimension()} dimensions and {components} value(s) a voxel, {image.GetPixelIDTypeAsString()}"
    if image.GetDimension() not in dimensions or components != 1 or "complex" in kind:
        raise UserError(f"{path} has {kind}; expected {' or '.join(f'{n}D' for n in dimensions)}, one real number")
    # Headers may hold what identifies a person; only voxels and pose are kept.
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image


def read_header(path: Path) -> sitk.ImageFileReader:
    """Size, pose and type of an image file, without its voxels. Raises: UserError if it is missing or unreadable."""
    with read_failures_as_user_errors(path):
        reader = _reader(path)
        reader.ReadImageInformation()
    return reader


def _reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    if path.name.lower().endswith((".mhd", ".mha")):
        reader.SetImageIO("MetaImageIO")  # ITK recognises these endings in small letters alone
    return reader


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image, compressed, beside its place, and rename it once it is whole.

    Raises: OSError if the disk is full or the folder cannot be written to; nothing is left behind then.
    """
    with image_written_beside(path) as temporary:
        sitk.WriteImage(image, str(temporary), True)


@contextmanager
def image_written_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary name next to ``path``; at the end that file takes ``path``'s place, if it is whole.

    Raises: OSError if ITK reports that it could not be written, or a NIfTI file came out too short: neither ITK nor the
        NIfTI library notices a full disk there.
    """
    with written_beside(path) as temporary:
        try:
            yield temporary
            check_whole(temporary)
        except (RuntimeError, UserError) as error:
            short = "the file came out too short, so the disk is likely full"
            reason = short if isinstance(error, UserError) else last_line(error)
            raise OSError(f"{path} could not be written: {reason}") from error


def check_whole(path: Path) -> None:
    """Check that a NIfTI file holds all the voxels its header promises, and that they are finite numbers.

    ITK takes 0 for what is missing or not finite; of other kinds of files it reports both itself.

    Raises: UserError if it is cut short or damaged, or holds infinite voxels or NaN.
    """
    if not path.name.lower().endswith(_NIFTI_ENDINGS):
        return
    try:
        image: Any = nibabel.load(path)
        voxels = image.dataobj
        expected = voxels.offset + int(np.prod(voxels.shape, dtype=np.int64)) * voxels.dtype.itemsize
        if _unpacked_bytes(path, expected) < expected:
            raise EOFError
        finite = not np.issubdtype(voxels.dtype, np.floating) or np.isfinite(np.asanyarray(voxels)).all()
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise UserError(f"{path} is cut short or damaged; copy or download it again") from error
    if not finite:
        raise UserError(f"{path} holds infinite voxels or NaN; get or convert the image again")


def _unpacked_bytes(path: Path, expected: int) -> int:
    """Length of a file's content; that of a .gz is read from its last four bytes where these tell what is expected."""
    if not path.name.lower().endswith(".gz"):
        return path.stat().st_size
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        if int.from_bytes(file.read(4), "little") == expected % 2**32:
            return expected
    with gzip.open(path) as file:  # cut short, or of several members: each ends in its own length
        return sum(len(block) for block in iter(lambda: file.read(1 << 24), b""))


def label_source_sha256(path: Path) -> str:
    """SHA-256 of an image file, with its voxels where these are in a file of their own (.mhd)."""
    if path.name.lower().endswith(".mhd"):
        named = re.search(r"^ElementDataFile *= *(.*\S)", path.read_text(encoding="latin-1"), re.MULTILINE)
        if named and (path.parent / named[1]).is_file():
            return hashlib.sha256((sha256_of(path) + sha256_of(path.parent / named[1])).encode()).hexdigest()
    return sha256_of(path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def last_line(error: Exception) -> str:
    """The last line of an error, without the address of the object in ITK that raised it."""
    return re.sub(r"^.*\(0x[0-9a-f]+\): ", "", (str(error).strip() or type(error).__name__).splitlines()[-1].strip())
