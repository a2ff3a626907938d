"""Image files, read and written whole or not at all."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk

from nnunetv2_anomaly.errors import UserError, check_name, listed
from nnunetv2_anomaly.files import written_beside
from nnunetv2_anomaly.images.grids import TOLERANCE_MM, joined
from nnunetv2_anomaly.images.headers import NIFTI_ENDINGS, header_fault, shear_mm

#: endings of the image files that this package reads; MetaImage headers (.mhd) name the file of their voxels
FILE_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")

#: what is wrong with a file that SimpleITK cannot show as it is, and nibabel can
SHEARED = "has axes that are not at right angles, which SimpleITK does not read; resample it, or have the data set's "
SHEARED += 'dataset.json say "overwrite_image_reader_writer": "NibabelIO", where it is NIfTI'


def image_stem(path: Path) -> str:
    """File name without its image ending. Raises: ValueError if it has none of ``FILE_ENDINGS``."""
    for ending in FILE_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    raise ValueError(f"{path.name} ends in none of {FILE_ENDINGS}")


def only_files(entries: Iterable[Path]) -> list[Path]:
    """The entries of a folder, sorted, once it is known that all of them are files.

    Raises: UserError naming those that are none, such as links to files that were not fetched (git-annex, DataLad).
    """
    entries = sorted(entries)
    others = [str(entry) for entry in entries if not entry.is_file()]
    if others:
        fault = f"{listed(others)}: no file, but a folder, a pipe, or a link to nothing"
        advice = "get what a link stands for (git annex get, datalad get), or move it away"
        raise UserError(f"{fault}; expected image files, so {advice}")
    return entries


@contextmanager
def read_failures_as_user_errors(
    path: Path, what: str = "an image", advice: str = "check that it (.mhd: and its .raw) is complete, or get it again"
) -> Iterator[None]:
    """Turn a missing file, and whatever a library raises while it reads one, into a UserError.

    Args: what: it should be, for the sentence. advice: what the user can do.
    """
    check_name(path)
    if not path.is_file():
        raise UserError(f"{path} is no file; expected {what}")
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "orthonormal" in str(error):  # ITK's word
            raise UserError(f"{path} {SHEARED}") from error
        raise UserError(f"{path} cannot be read as {what} ({last_line(error)}); {advice}") from error


def read_image(path: Path, dimensions: Collection[int] = (3,)) -> sitk.Image:
    """Read an image of one value a voxel, in its own pose and type, without its metadata dictionary.

    Args: dimensions: how many axes it may have.
    Raises: UserError if it is missing, unreadable, cut short, or not such an image.
    """
    with read_failures_as_user_errors(path):
        check_whole(path)
        image = _opened(path).Execute()
        # Headers may hold what identifies a person; only voxels and pose are kept.
        for key in image.GetMetaDataKeys():
            image.EraseMetaData(key)
    components = image.GetNumberOfComponentsPerPixel()
    kind = f"{image.GetDimension()} dimensions and {components} value(s) a voxel, {image.GetPixelIDTypeAsString()}"
    if image.GetDimension() not in dimensions or components != 1 or "complex" in kind:
        raise UserError(f"{path} has {kind}; expected {' or '.join(f'{n}D' for n in dimensions)}, one real number")
    return image


def read_header(path: Path) -> sitk.ImageFileReader:
    """Size, pose and type of an image file, without its voxels. Raises: UserError if it is missing or unreadable."""
    with read_failures_as_user_errors(path):
        _check_header(path)
        return _opened(path)


def is_sheared(path: Path) -> bool:
    """Whether SimpleITK does not read a file because its axes are not at right angles; its header alone is read."""
    try:
        _opened(path)
    except (RuntimeError, ValueError, UserError) as error:
        return "orthonormal" in str(error)
    return False


def _opened(path: Path) -> sitk.ImageFileReader:
    """A reader that knows the header, whose axes are at right angles: ITK checks NIfTI alone, and less closely."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    if path.name.lower().endswith((".mhd", ".mha")):
        reader.SetImageIO("MetaImageIO")  # ITK recognises these endings in small letters alone
    reader.ReadImageInformation()
    if min(reader.GetSpacing()) <= 0:
        raise UserError(f"{path} has a spacing of {joined(reader.GetSpacing())} mm; expected numbers above 0")
    if shear_mm(reader) > TOLERANCE_MM:
        raise ValueError("axes not orthonormal")
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
        NIfTI library notices a full disk there. UserError for MetaImage in two files, which no rename puts in place.
    """
    if path.name.lower().endswith(".mhd"):
        raise UserError(f"{path} is MetaImage in two files; expected an ending of one, so convert the input to .mha")
    with written_beside(path) as temporary:
        try:
            yield temporary
            check_whole(temporary, finite=False)
        except (RuntimeError, UserError) as error:
            short = "the file came out too short, so the disk is likely full"
            reason = short if isinstance(error, UserError) else last_line(error)
            raise OSError(f"{path} could not be written: {reason}") from error


def check_whole(path: Path, *, finite: bool = True) -> None:
    """Check that a file holds all that was written: ITK compares no checksum, and takes 0 for what is missing in NIfTI.

    What is compressed (.nii.gz, .nrrd, MetaImage) is unpacked and compared with its checksum. A NIfTI file must hold
    all the voxels that its header promises.

    Args: finite: whether those must be finite numbers, for which ITK takes 0 as well.
    Raises: UserError if it is missing, cut short or damaged, a NIfTI file that readers take differently or cannot read,
        or holds infinite voxels or NaN.
    """
    with read_failures_as_user_errors(path):
        try:
            unpacked = _unpacked(path)
            _check_header(path)
            sound = not path.name.lower().endswith(NIFTI_ENDINGS) or _has_all_voxels(path, unpacked, finite=finite)
        except UserError:
            raise
        except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
            beside = " or its file of voxels" if path.suffix.lower() == ".mhd" else ""
            advice = "copy or download it again, or wait if it is being written"
            raise UserError(f"{path}{beside} is cut short or damaged; {advice}") from error
    if not sound:
        raise UserError(f"{path} holds infinite voxels or NaN; get or convert the image again")


def _has_all_voxels(path: Path, unpacked: bytes | None, *, finite: bool) -> bool:
    """Whether the voxels of a NIfTI file are finite, if that is asked. Raises: EOFError if there are too few."""
    image: Any = nibabel.load(path)
    voxels = image.dataobj
    if unpacked is not None:  # or nibabel would unpack it again
        voxels = type(image).from_bytes(unpacked).dataobj
    length = path.stat().st_size if unpacked is None else len(unpacked)
    if length < voxels.offset + math.prod(voxels.shape) * voxels.dtype.itemsize:
        raise EOFError
    return not (finite and np.issubdtype(voxels.dtype, np.floating)) or bool(np.isfinite(np.asanyarray(voxels)).all())


def _check_header(path: Path) -> None:
    if fault := header_fault(path):
        raise UserError(f"{path} {fault}; correct it with the program that wrote it")


def _unpacked(path: Path) -> bytes | None:
    """What a file holds in compressed form, unpacked: all of a .gz, the voxels of NRRD and MetaImage; else None.

    Raises: OSError, EOFError or zlib.error if its checksum is another one, or it is cut short.
    """
    name = path.name.lower()
    if name.endswith(".nii.gz"):
        return gzip.decompress(path.read_bytes())
    if name.endswith(".nrrd"):
        header, *rest = re.split(rb"\r?\n\r?\n", path.read_bytes(), maxsplit=1)
        return gzip.decompress(rest[0]) if rest and re.search(rb"^encoding: *gz", header, re.MULTILINE) else None
    if name.endswith((".mha", ".mhd")):
        content = path.read_bytes()
        place = re.search(rb"^ElementDataFile *= *(.*\S)[ \t\r]*(?:\n|$)", content, re.MULTILINE)
        if place and re.search(rb"^CompressedData *= *[Tt1]", content[: place.start()], re.MULTILINE):
            if place[1].lower() == b"local":
                return zlib.decompress(content[place.end() :])
            beside = path.parent / place[1].decode(errors="replace")  # or a list or pattern of files, one a slice
            return zlib.decompress(beside.read_bytes()) if beside.is_file() else None
    return None


def last_line(error: Exception) -> str:
    """The last line of an error, without the address of the object in ITK that raised it."""
    return re.sub(r"^.*\(0x[0-9a-f]+\): ", "", (str(error).strip() or type(error).__name__).splitlines()[-1].strip())
