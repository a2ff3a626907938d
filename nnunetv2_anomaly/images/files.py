"""Image files, read and written whole or not at all."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import written_beside

#: endings of the image files that are read anywhere in this package; MetaImage headers (.mhd) name their own .raw
FILE_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")

_NIFTI_ENDINGS = (".nii.gz", ".nii")

#: MetaImage's names of voxel types -> bytes
_ELEMENT_BYTES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}


def image_stem(path: Path) -> str:
    """File name without its image ending.

    Raises: ValueError if it has none of ``FILE_ENDINGS``.
    """
    for ending in FILE_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    raise ValueError(f"{path.name} ends in none of {FILE_ENDINGS}")


def read_image(path: Path, dimensions: Collection[int] = (3,)) -> sitk.Image:
    """Read an image of one value a voxel, in its own pose and type, without its metadata dictionary.

    Args:
        path: file to read.
        dimensions: how many axes it may have.

    Raises: UserError if it is missing, unreadable, cut short, or not such an image.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; expected an image ({', '.join(FILE_ENDINGS)}).")
    check_whole(path)
    reader = _reader(path)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise UserError(_unreadable(path, error)) from error
    if np.iscomplexobj(sitk.GetArrayViewFromImage(image)):
        raise UserError(f"{path} holds complex numbers; expected real ones.")
    if image.GetDimension() not in dimensions or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(
            f"{path} has {image.GetDimension()} dimensions and {image.GetNumberOfComponentsPerPixel()} value(s) a "
            f"voxel; expected a {' or '.join(f'{n}D' for n in dimensions)} image with one."
        )
    # Headers may hold what identifies a person; only voxels and pose go on.
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image


def read_header(path: Path) -> sitk.ImageFileReader:
    """Size, pose and type of an image file, without its voxels.

    Raises: UserError if it is missing or unreadable.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; expected an image ({', '.join(FILE_ENDINGS)}).")
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(_unreadable(path, error)) from error
    return reader


def _reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    if path.name.lower().endswith((".mhd", ".mha")):
        reader.SetImageIO("MetaImageIO")  # which ITK finds for these endings in small letters alone
    return reader


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image, compressed, beside its place, and rename it once it is whole.

    Raises: OSError if the disk is full or the folder cannot be written to; nothing is left behind then.
    """
    with image_written_beside(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), True)
        except RuntimeError as error:
            raise OSError(f"{path} could not be written: {_last_line(error)}") from error


@contextmanager
def image_written_beside(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; what was written there takes ``path``'s place at the end, if it is whole.

    Raises: OSError if a NIfTI file came out too short. ITK and the NIfTI library do not notice a full disk.
    """
    with written_beside(path) as temporary:
        yield temporary
        if temporary.name.lower().endswith(_NIFTI_ENDINGS):
            try:
                check_whole(temporary)
            except UserError as error:
                told = "the file came out too short, so the disk is likely full"
                raise OSError(errno.ENOSPC, told, str(path)) from error


def check_whole(path: Path) -> None:
    """See that a file holds all the voxels its header promises, and that they are finite numbers.

    ITK fills what is missing of a NIfTI file with zeros, and takes 0 for what is not finite; of a .raw that is missing
    or too short it says that the header is missing. Files of other kinds are left to ITK, which does see it.

    Raises: UserError if it is cut short or damaged, or holds infinite voxels or NaN.
    """
    if path.name.lower().endswith(".mhd"):
        _check_raw(path)
    if not path.name.lower().endswith(_NIFTI_ENDINGS):
        return
    told = f"{path} is cut short or damaged; copy or download it again."
    try:
        voxels = nibabel.load(path).dataobj
        expected = voxels.offset + int(np.prod(voxels.shape, dtype=np.int64)) * voxels.dtype.itemsize
        if path.name.lower().endswith(".gz"):
            # The last four bytes of a gzip file tell the length of what it holds; a file cut short ends in others.
            # What does not fit may still be whole (several members, padding): then it has to be unpacked.
            with path.open("rb") as file:
                file.seek(-4, os.SEEK_END)
                found = int.from_bytes(file.read(4), "little")
            if found != expected % 2**32:
                with gzip.open(path) as file:
                    found = sum(len(block) for block in iter(lambda: file.read(1 << 24), b""))
                if found < expected:
                    raise UserError(told)
        elif path.stat().st_size < expected:
            raise UserError(told)
        if np.issubdtype(voxels.dtype, np.floating) and not np.isfinite(np.asanyarray(voxels)).all():
            raise UserError(f"{path} holds infinite voxels or NaN; get or convert the image again.")
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(told) from error


def _check_raw(header: Path) -> None:
    """The voxels beside a MetaImage header: there, and of the size that it tells.

    Raises: UserError if they are not.
    """
    fields = _header_fields(header)
    voxels = _voxel_file(header, fields)
    if voxels is None:
        return  # within the header, or in several files: left to ITK
    if not voxels.is_file():
        raise UserError(f"{voxels} is missing, which holds the voxels of {header.name}; copy both files.")
    width = _ELEMENT_BYTES.get(fields.get("ElementType", ""))
    if width is None or fields.get("CompressedData", "False") == "True" or "HeaderSize" in fields:
        return
    try:
        count = int(np.prod([int(n) for n in fields["DimSize"].split()], dtype=np.int64))
        count *= int(fields.get("ElementNumberOfChannels", 1))
    except (KeyError, ValueError):
        return  # ITK tells what is wrong with such a header
    if voxels.stat().st_size != count * width:
        raise UserError(
            f"{voxels} has {voxels.stat().st_size} bytes and by {header.name} should have {count * width}; copy or "
            "download both files again."
        )


def label_source_sha256(path: Path) -> str:
    """SHA-256 of an image file, with its voxels where these are in a file of their own."""
    beside = _voxel_file(path, _header_fields(path)) if path.name.lower().endswith(".mhd") else None
    if beside is not None and beside.is_file():
        return hashlib.sha256((sha256_of(path) + sha256_of(beside)).encode()).hexdigest()
    return sha256_of(path)


def _header_fields(header: Path) -> dict[str, str]:
    """Name -> value of a MetaImage header. Raises: UserError if it cannot be read."""
    try:
        lines = header.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise UserError(f"{header} cannot be read ({error.strerror}).") from error
    return {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines) if value.strip()}


def _voxel_file(header: Path, fields: Mapping[str, str]) -> Path | None:
    """The one file that a MetaImage header names for its voxels; None if these are in it, or in several files."""
    name = fields.get("ElementDataFile", "LOCAL")
    return None if name.split()[0] in ("LOCAL", "LIST") or "%" in name else header.parent / name


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path} cannot be read as an image ({_last_line(error)}); check that it is complete, or get it again."


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
