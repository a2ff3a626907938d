"""One folder, one DICOM series: its slices checked for everything that a volume made of them takes for granted.

The OAI gives every series a folder of its own, one slice a file, names without an ending (001, 002, ...). Copies of it
on people's disks are less tidy: files are lost, cut off by a full disk, copied twice, or put together from two series.
SimpleITK's own series reader builds a volume from most of these, so that what was wrong shows up, if at all, in the
results. Here each of them is a ``UserError`` that names the folder, and the file where there is one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunetv2_anomaly.conversion.sources import packed_in
from nnunetv2_anomaly.errors import UserError, check_name, counted
from nnunetv2_anomaly.images.files import last_line
from nnunetv2_anomaly.images.grids import TOLERANCE_MM, Grid, joined, posed

#: A step between neighbouring slices may differ from the others by this much, or by this share. Positions are decimal
#: text: two of them rounded to 0.01 mm, the coarsest met, make a step wrong by 0.01 mm. The smallest fault of interest,
#: a lost slice, makes it wrong by a whole step.
_STEP_TOLERANCE_MM, _STEP_TOLERANCE_SHARE = 0.015, 0.01

#: Direction cosines of two slices may differ by this much, and a row may lean this much towards a column: they are
#: written with 4 digits at least. At the far end of a field of view of 140 mm it is 0.03 mm.
_COSINE_TOLERANCE = 2e-4

#: endings that slices have in archives other than the OAI; a number is an ending too (IM.0001, 1.2.840.113654)
_SLICE_ENDING = re.compile(r"(\.(dcm|dicom|ima|\d+))?", re.IGNORECASE)

_SERIES_DESCRIPTION, _SERIES_UID = "0008|103e", "0020|000e"
_POSITION, _ORIENTATION, _PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
_PHOTOMETRIC, _BITS_ALLOCATED = "0028|0004", "0028|0100"
_PIXEL_DATA = b"\xe0\x7f\x10\x00"  # as its tag stands in the file

#: the syntaxes that compress the voxels: deflated, JPEG of all kinds, RLE
_COMPRESSED = re.compile(rb"1\.2\.840\.10008\.1\.2\.(1\.99|4\.|5)")


@dataclasses.dataclass(frozen=True)
class DicomSeries:
    """A folder whose files were found to be the slices of one volume."""

    folder: Path
    files: tuple[Path, ...]  # in the order of the volume's z axis, whatever their names
    description: str  # SeriesDescription, "" where the header has none
    series_uid: str
    grid: Grid  # of the volume as stored: x along the rows, y down the columns, z along the normal of both


@dataclasses.dataclass(frozen=True)
class _Slice:
    """What one file's header says; positions and spacings in mm, LPS."""

    file: Path
    description: str
    series_uid: str
    size: tuple[int, int]  # columns, rows
    pixel_spacing: tuple[float, ...]  # distance of rows, distance of columns, as DICOM has it
    position: tuple[float, ...]  # centre of the first voxel
    cosines: tuple[float, ...]  # direction of a row, direction of a column


def series_description(folder: Path) -> str | None:
    """SeriesDescription of the first readable DICOM file in a folder: one header is read, nothing is checked.

    Returns: the description, "" where the header has none; None if the folder holds no file that reads as DICOM.
    Raises: UserError if the folder does not exist.
    """
    return _first_text(folder, _SERIES_DESCRIPTION)


def series_uid(folder: Path) -> str | None:
    """SeriesInstanceUID, found, returned and raised as ``series_description``."""
    return _first_text(folder, _SERIES_UID)


def _first_text(folder: Path, key: str) -> str | None:
    with _no_warnings():
        for file in _candidates(folder):
            with contextlib.suppress(RuntimeError):
                return _text(_header(file), key)
    return None


def read_series(folder: Path) -> DicomSeries:
    """Read the headers of a folder that holds the slices of one DICOM series, and check that they make a volume.

    Hidden files, DICOMDIR and whatever is neither named like a slice nor DICOM are ignored.

    Raises: UserError if there is no DICOM file, one is damaged, or they are not the grey slices of one evenly spaced
        volume, each position once.
    """
    files = list(_candidates(folder))
    if not files:
        expected = "expected the slices of one series (001, 002, ...)"
        raise UserError(f"{folder} holds no DICOM file; {expected}{packed_in(folder, '*')}")
    with _no_warnings():
        slices = [_read_slice(file) for file in files]
    _check_one_volume(folder, slices)
    slices, grid = _stack(folder, slices)
    return DicomSeries(folder, tuple(s.file for s in slices), slices[0].description, slices[0].series_uid, grid)


def read_series_image(series: DicomSeries) -> sitk.Image:
    """Read the voxels of a series on its grid, each slice rescaled by its own header.

    Integers of 8 or 16 bits keep their type; wider ones and floats that turn out whole become int16 or uint16 if they
    fit, other floats float32.

    Returns: 3D image, intensities without unit, no header entry.
    Raises: UserError if a file cannot be read, or no longer is what its header was.
    """
    columns, rows, _ = series.grid.size
    with _no_warnings():
        try:
            # One by one: ITK's reader of series takes all slices to be of the first one's type.
            planes = [sitk.GetArrayFromImage(_header(file).Execute()).reshape(rows, columns) for file in series.files]
        except (RuntimeError, ValueError) as error:
            fault = f"cannot be read ({last_line(error)}); expected whole DICOM files; get the folder again"
            raise UserError(f"the voxels of the series in {series.folder} {fault}") from error
    return posed(_narrowed(np.stack(planes)), series.grid)


def _candidates(folder: Path) -> Iterator[Path]:
    """The files that are slices or claim to be, by name."""
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist; expected the folder of one DICOM series")
    for file in sorted(folder.iterdir()):
        hidden = file.name.startswith(".") or file.name.upper() == "DICOMDIR"
        named = re.search(r"\d", file.name) and _SLICE_ENDING.fullmatch(file.suffix)
        check_name(file)
        if not hidden and file.is_file() and (named or _says_dicom(file)):
            yield file


def _says_dicom(file: Path) -> bool:
    """Whether the file has DICOM's mark."""
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """ITK's warnings go to stderr; what they are about is checked here, and raised as an error."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _header(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    # Named, because the others would be asked first for every file, and some of them guess.
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return reader


def _text(reader: sitk.ImageFileReader, key: str) -> str:
    if not reader.HasMetaDataKey(key):
        return ""
    # Bytes that are no UTF-8 (Latin-1 in old headers) come as lone surrogates, which could not be printed.
    text = reader.GetMetaData(key).encode("utf-8", "replace").decode()
    return re.sub(r"[\0-\x20]+", " ", text).strip()


def _read_slice(file: Path) -> _Slice:
    try:
        reader = _header(file)
    except RuntimeError as error:
        fault = "is no DICOM file; expected slices of one series only; remove it"
        if _says_dicom(file):
            fault = "is cut off or damaged, or holds no image; expected a whole DICOM slice; get it again"
        raise UserError(f"{file} {fault}") from error
    columns, rows, *more = reader.GetSize()
    frames, photometric = math.prod(more), _text(reader, _PHOTOMETRIC)
    if frames != 1 or reader.GetNumberOfComponents() != 1 or photometric != "MONOCHROME2":
        kind = f"a multi-frame image of {frames} slices" if frames != 1 else f"an image of the kind {photometric}"
        raise UserError(f"{file} is {kind}; expected one slice of grey values (MONOCHROME2); convert or remove it")
    if _lacks_voxels(file, columns * rows * int(_text(reader, _BITS_ALLOCATED)) // 8):
        raise UserError(f"{file} holds fewer voxels than its rows and columns want; expected all; get it again")
    return _Slice(
        file=file,
        description=_text(reader, _SERIES_DESCRIPTION),
        series_uid=_text(reader, _SERIES_UID),
        size=(columns, rows),
        pixel_spacing=_numbers(reader, file, _PIXEL_SPACING, "PixelSpacing", 2),
        position=_numbers(reader, file, _POSITION, "ImagePositionPatient", 3),
        cosines=_numbers(reader, file, _ORIENTATION, "ImageOrientationPatient", 6),
    )


def _lacks_voxels(file: Path, expected_bytes: int) -> bool:
    """Whether a file ends before its voxels do, which GDCM replaces with zeros; never for compressed ones."""
    content = file.read_bytes()
    start = content.find(_PIXEL_DATA)
    header_bytes = 12 if content[start + 4 : start + 6] in (b"OW", b"OB") else 8
    return len(content) - start - header_bytes < expected_bytes and not _COMPRESSED.search(content[:1024])


def _numbers(reader: sitk.ImageFileReader, file: Path, key: str, name: str, count: int) -> tuple[float, ...]:
    text = _text(reader, key)
    try:
        numbers = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        given = f"is '{text}'" if text else "is missing"
        raise UserError(f"{file}: {name} {given}; expected {count} number(s), as every MR slice has; get it again")
    return numbers


def _check_one_volume(folder: Path, slices: list[_Slice]) -> None:
    """Raises: UserError that names the series, or the first difference other than that of position."""
    series: dict[str, list[_Slice]] = {}
    for slice_ in slices:
        series.setdefault(slice_.series_uid, []).append(slice_)
    first = slices[0]
    if len(series) > 1:
        kinds = ((of[0].description or "one", len(of), of[0].file.name) for of in series.values())
        found = ", ".join(f"{kind} in {counted(number, 'file')} such as {name}" for kind, number, name in kinds)
        raise UserError(f"{folder} holds {len(series)} DICOM series ({found}); expected one per folder; sort them")
    if len(slices) == 1:
        fault = f"holds one slice ({first.file.name}); expected all slices of a series"
        raise UserError(f"{folder} {fault}; get the folder again")
    for other in slices[1:]:
        if difference := _difference(first, other):
            fault = f"{first.file.name} and {other.file.name} differ in {difference}"
            raise UserError(f"{folder}: {fault}; expected one volume; sort the files")


def _difference(first: _Slice, other: _Slice) -> str | None:
    if other.size != first.size:
        return f"size, {joined(first.size)} against {joined(other.size)} voxels"
    if not np.allclose(other.pixel_spacing, first.pixel_spacing, rtol=1e-4, atol=0):
        return f"pixel spacing, {joined(first.pixel_spacing)} against {joined(other.pixel_spacing)} mm"
    if not np.allclose(other.cosines, first.cosines, rtol=0, atol=_COSINE_TOLERANCE):
        return f"direction, {joined(first.cosines)} against {joined(other.cosines)}"
    return None


def _stack(folder: Path, slices: list[_Slice]) -> tuple[list[_Slice], Grid]:
    """Sort slices along their normal and check that they lie on it at even steps."""
    first = slices[0]
    row, column = np.array(first.cosines).reshape(2, 3)
    of_length_1 = np.allclose(np.linalg.norm([row, column], axis=1), 1, atol=10 * _COSINE_TOLERANCE)
    if min(first.pixel_spacing) <= 0 or not of_length_1 or abs(row @ column) > _COSINE_TOLERANCE:
        given = f"PixelSpacing is {joined(first.pixel_spacing)} and ImageOrientationPatient {joined(first.cosines)}"
        expected = "two positive numbers, and two directions of length 1 at right angles"
        raise UserError(f"{first.file}: {given}; expected {expected}; get the file again")
    # As GDCM does it: the normal from both, then the column from the two others, so that all are at right angles.
    row = row / np.linalg.norm(row)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    column = np.cross(normal, row)

    slices = sorted(slices, key=lambda s: float(np.dot(s.position, normal)))
    positions = np.array([s.position for s in slices])
    along = positions @ normal
    _check_steps(folder, slices, np.diff(along))
    step_mm = float(along[-1] - along[0]) / (len(slices) - 1)
    off_mm = np.linalg.norm(positions - positions[0] - step_mm * np.outer(np.arange(len(slices)), normal), axis=1)
    if off_mm.max() > TOLERANCE_MM:
        fault = f"{slices[int(off_mm.argmax())].file.name} lies {off_mm.max():.3f} mm off its place"
        raise UserError(f"{folder}: {fault}; expected an even spacing, {step_mm:.4g} mm, along one line; get it again")
    spacing_mm, directions = (*first.pixel_spacing[::-1], step_mm), np.column_stack([row, column, normal])
    return slices, Grid.from_arrays((*first.size, len(slices)), spacing_mm, positions[0], directions)


def _check_steps(folder: Path, slices: list[_Slice], steps: NDArray[np.float64]) -> None:
    """Check the distances (slices - 1,) in mm of sorted slices. Raises: UserError that names the first uneven pair."""
    # The usual step is one that occurs, also where there are two of them and one is a gap.
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])
    uneven = np.abs(steps - usual) > max(_STEP_TOLERANCE_MM, _STEP_TOLERANCE_SHARE * usual)
    if steps.min() <= _STEP_TOLERANCE_MM:
        index, fault = int(steps.argmin()), "lie at the same place; expected every position once"
    elif uneven.any():
        index = int(uneven.argmax())
        fault = (
            f"lie {steps[index]:.4g} mm apart, others {usual:.4g} mm; expected one spacing: slices are missing or odd"
        )
    else:
        return
    pair = f"{slices[index].file.name} and {slices[index + 1].file.name}"
    raise UserError(f"{folder}: {pair} {fault}; remove what is not of the series, or get the folder again")


def _narrowed(voxels: NDArray) -> NDArray:
    """Voxels of the smallest type, as ``read_series_image`` says."""
    if voxels.dtype.itemsize <= 2:
        return voxels
    # Slice by slice: the comparison's temporary arrays stay small.
    if voxels.dtype.kind in "iu" or all((np.rint(plane) == plane).all() for plane in voxels):
        lowest, highest = voxels.min(), voxels.max()
        for dtype in (np.int16, np.uint16, *((np.int32, np.uint32) if voxels.dtype.kind in "iu" else ())):
            if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
                return voxels.astype(dtype)
    with np.errstate(over="ignore"):  # infinite voxels are told of where a case is checked
        return voxels.astype(np.float32)
