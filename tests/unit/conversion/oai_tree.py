"""Small folders laid out like the Osteoarthritis Initiative's (OAI), with synthetic knees in them.

DICOM files are written with pydicom, which the package itself does not use: a fault of its reader cannot hide behind
the same fault here. Everything said about a person in a header is listed in ``PERSONAL_DATA``, none of which may come
up in an output.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage

from nnunetv2_anomaly.simulation.dess import dess_like_image
from nnunetv2_anomaly.simulation.phantom import draw_phantom, phantom_image

PATIENT_NAME = "Doeberg^Janetta"
BIRTH_DATE = "19431107"
ACCESSION_NUMBER = "ACC7731905"
#: what stands in the headers and must not stand in any output
PERSONAL_DATA: tuple[str, ...] = (PATIENT_NAME, "Doeberg", "Janetta", BIRTH_DATE, ACCESSION_NUMBER)

#: first number of the package folders of a visit: 36m/5.E.1/<subject>/<date>/<barcode>
PACKAGE_NUMBER: dict[str, int] = {
    "00m": 0,
    "12m": 1,
    "18m": 2,
    "24m": 3,
    "30m": 4,
    "36m": 5,
    "48m": 6,
    "72m": 8,
    "96m": 10,
}

#: rows run to posterior, columns to inferior, slices along the normal of both, to the patient's right
_SAGITTAL, _CORONAL, _AXIAL = "PIR", "LIP", "LPS"


@dataclasses.dataclass(frozen=True)
class Knee:
    """A synthetic knee. Cached and shared between tests: copy an image before changing it."""

    image: sitk.Image  # int16, 0 to 1000, x to the right, y to anterior, z to superior, obliquely
    labels: sitk.Image  # uint8, values of nnunetv2_anomaly.labels.LABELS, same grid
    side: str  # "right" or "left"


@functools.lru_cache(maxsize=32)
def make_knee(
    seed: int,
    *,
    side: str = "right",
    size: tuple[int, int, int] = (40, 48, 48),
    spacing_mm: tuple[float, float, float] = (2.8, 2.9, 2.9),
    with_lesions: bool = True,
    angle_degrees: float | None = None,
) -> Knee:
    """A phantom and its DESS-like image, off the scanner's centre as knees are.

    Args:
        size, spacing_mm: SimpleITK order: x across the sagittal slices, y in their rows, z in their columns.
        with_lesions: every bone has some; without, none has.
        angle_degrees: of the slices about the patient's long axis; drawn between -12 and 12 if None. With 8 the
            direction is that of many real masks, [-0.99, 0.139, 0, -0.139, -0.99, 0, 0, 0, 1].
    """
    parameters = draw_phantom(np.random.default_rng(seed), side=side, lesion_share=1.0 if with_lesions else 0.0)
    if angle_degrees is not None:
        parameters = dataclasses.replace(parameters, oblique_degrees=float(angle_degrees))
    labels = phantom_image(parameters, size=size, spacing_mm=spacing_mm)
    rng = np.random.default_rng((seed, 1))
    sideways = -80.0 if side == "right" else 80.0
    shift = np.array([sideways, 10.0, 0.0]) + rng.uniform(-10, 10, 3)
    labels.SetOrigin((np.array(labels.GetOrigin()) + shift).tolist())
    made = dess_like_image(sitk.GetArrayFromImage(labels), spacing_mm[::-1], rng).image
    image = sitk.GetImageFromArray(np.rint(made * 1000).astype(np.int16))
    image.CopyInformation(labels)
    return Knee(image, labels, side)


def write_series(
    folder: Path,
    image: sitk.Image,
    *,
    description: str = "SAG_3D_DESS_RIGHT",
    descending: bool = False,
    orientation: str = _SAGITTAL,
    series_uid: str | None = None,
    patient_id: str = "9001104",
    patient_name: str = PATIENT_NAME,
    birth_date: str = BIRTH_DATE,
    accession_number: str = ACCESSION_NUMBER,
    echo_time: float = 4.7,
    echo_number: int = 1,
    instance_offset: int = 0,
    first_name: int = 1,
    explicit_vr: bool = True,
    decimals: int = 8,
    rescale: tuple[float, float] | None = None,
    tags: Mapping[str, object] | None = None,
    change: Callable[[pydicom.Dataset, int], None] | None = None,
) -> list[Path]:
    """Write a 3D image as the slices of one DICOM series, files 001, 002, ... without an ending.

    Args:
        image: any orientation and integer type (int16 and uint16 are stored as they are).
        descending: the first file is the last slice along the slices' normal, instead of the first.
        orientation: the axes of the slices: rows, columns, normal. "PIR" (sagittal) has rows to posterior, columns
            to inferior, that is about 0\\1\\0\\0\\0\\-1 as ImageOrientationPatient, and a normal to the right.
        series_uid: made from folder and description if None: another folder, another series.
        instance_offset: InstanceNumber counts from this + 1 in the order of the file names.
        first_name: number in the first file's name.
        explicit_vr: explicit or implicit value representations, both little endian.
        decimals: of positions, directions and spacings in the header.
        rescale: (slope, intercept) to write; the stored voxels stay those of the image.
        tags: further keywords and values for every slice; None as value removes a tag.
        change: called with every data set and its slice number along the normal (0, 1, ...) before it is written.

    Returns: the files, in the order of their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image = sitk.DICOMOrient(image, orientation)
    voxels = sitk.GetArrayViewFromImage(image)
    if voxels.dtype not in (np.int16, np.uint16):
        voxels = voxels.astype(np.int16)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    uid = series_uid or uid_of(str(folder), description)
    count = voxels.shape[0]
    files = []
    for number in range(count):
        index = count - 1 - number if descending else number
        file = folder / f"{first_name + number:03d}"
        header = _header(voxels[index], signed=voxels.dtype == np.int16)
        header.SeriesInstanceUID = uid
        header.SOPInstanceUID = uid_of(uid, str(file), str(echo_number))
        header.StudyInstanceUID = uid_of(patient_id, "study")
        header.FrameOfReferenceUID = uid_of(patient_id, "frame of reference")
        header.SeriesDescription = description
        header.PatientID, header.PatientName, header.PatientBirthDate = patient_id, patient_name, birth_date
        header.AccessionNumber = accession_number
        header.Laterality = "L" if description.endswith("LEFT") else "R"
        header.EchoTime, header.EchoNumbers = echo_time, echo_number
        header.InstanceNumber = instance_offset + number + 1
        row_mm, column_mm, slice_mm = (_decimal(value, decimals) for value in image.GetSpacing())
        header.PixelSpacing = [column_mm, row_mm]  # distance of rows first
        header.SliceThickness = slice_mm
        header.ImageOrientationPatient = [_decimal(v, decimals) for v in (*direction[:, 0], *direction[:, 1])]
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        header.ImagePositionPatient = [_decimal(value, decimals) for value in position]
        header.SliceLocation = _decimal(float(np.dot(position, direction[:, 2])), decimals)
        if rescale is not None:
            header.RescaleSlope, header.RescaleIntercept = rescale
        for keyword, value in (tags or {}).items():
            if value is None:
                header.pop(keyword, None)
            else:
                setattr(header, keyword, value)
        if change is not None:
            change(header, index)
        _save(header, file, explicit_vr=explicit_vr)
        files.append(file)
    return files


def write_other_series(folder: Path, description: str = "COR_IW_TSE_RIGHT", *, seed: int = 0, **series) -> list[Path]:
    """Write a few small slices of another kind of series, noise of no meaning.

    The description decides what they look like: COR..., AX... or SAG... name the plane, ...MAP... has three echoes of
    every slice, as the T2 maps have, and ...LOCALIZER... one slice of each of the three planes.

    Args: series: as for ``write_series``.
    Returns: the files, in the order of their names.
    """
    voxels = np.random.default_rng(seed).integers(0, 1000, (4, 20, 24)).astype(np.int16)
    planes = {"COR": _CORONAL, "AX": _AXIAL}
    plane = next((planes[word] for word in planes if word in description), _SAGITTAL)
    uid = series.pop("series_uid", uid_of(str(folder), description))
    count = int(series.pop("first_name", 1))
    if "LOCALIZER" in description:
        parts = [(way, voxels[:1], 4.7, 1) for way in (_SAGITTAL, _CORONAL, _AXIAL)]
    elif "MAP" in description:
        parts = [(plane, voxels, 10.0 * echo, echo) for echo in (1, 2, 3)]
    else:
        parts = [(plane, voxels, 30.0, 1)]
    files = []
    for way, part, echo_time, echo_number in parts:
        image = sitk.GetImageFromArray(part)
        image.SetSpacing((0.5, 0.5, 4.0))
        to_patient = sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(way)
        image.SetDirection(to_patient)
        files += write_series(
            folder,
            image,
            **{
                "description": description,
                "orientation": way,
                "series_uid": uid,
                "echo_time": echo_time,
                "echo_number": echo_number,
                "first_name": count + len(files),
                "instance_offset": len(files),
                **series,
            },
        )
    return files


def write_zib_mask(
    path: Path, labels: sitk.Image, *, order: Sequence[int] = (0, 1, 2), flips: Sequence[int] = ()
) -> Path:
    """Write <name>.mhd and .raw as OAI ZIB's masks are: without the true pose (offset 0, identity as direction).

    With ``labels_zyx = sitk.GetArrayFromImage(labels)``, what ``sitk.GetArrayFromImage(sitk.ReadImage(path))`` gives
    is ``np.flip(labels_zyx, flips).transpose(order)``. The real masks have the sagittal index last, that is order
    (0, 1, 2) for labels with x to the right, and at least flips (0,), superior and inferior exchanged.

    Args:
        path: ends in .mhd.
        order: axis k of the array written is axis order[k] of labels_zyx; the spacings follow.
        flips: axes of labels_zyx, before the transposition.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = np.flip(sitk.GetArrayFromImage(labels), tuple(flips)).transpose(tuple(order))
    mask = sitk.GetImageFromArray(np.ascontiguousarray(written).astype(np.uint8))
    spacing_zyx = labels.GetSpacing()[::-1]
    mask.SetSpacing([spacing_zyx[axis] for axis in order][::-1])
    sitk.WriteImage(mask, str(path), False)
    return path


def write_zib_release(
    folder: Path,
    subjects: Mapping[str, tuple[Knee, str]],
    *,
    order: Sequence[int] = (0, 1, 2),
    flips: Sequence[int] = (0,),
    line_ending: str = "\n",
    trailing_comma: bool = False,
    bom: bool = False,
) -> Path:
    """Write OAI ZIB's segmentation folder: the list of series and one mask without pose per subject.

    Args:
        subjects: subject -> (knee, path of its DESS series below the OAI baseline folder, such as
            "0.E.1/9001104/20050825/10498212").
        order, flips: as for ``write_zib_mask``, the same for all.
        line_ending, trailing_comma, bom: how the list is written: copies of it differ.

    Returns: folder / "segmentation".
    """
    release = folder / "segmentation"
    (release / "doc").mkdir(parents=True, exist_ok=True)
    comma = "," if trailing_comma else ""
    text = "".join(f"{subject}: {series}{comma}{line_ending}" for subject, (_, series) in subjects.items())
    listing = release / "doc" / "oai_mri_paths.txt"
    listing.write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
    for subject, (knee, _) in subjects.items():
        mask = release / "segmentation_masks" / f"{subject}.segmentation_masks.mhd"
        write_zib_mask(mask, knee.labels, order=order, flips=flips)
    return release


def write_visit(
    oai_root: Path,
    visit: str,
    subject: str,
    knee: Knee,
    *,
    barcode: str = "10498212",
    date: str = "20050825",
    with_other_series: bool = True,
    package: str | None = None,
    **series,
) -> Path:
    """Write one subject's examination: <oai>/<visit>/<package>/<subject>/<date>/<barcode>/, one folder a series.

    Args:
        visit: key of ``PACKAGE_NUMBER``.
        barcode: folder of the DESS series; the other series get the numbers before and after it.
        with_other_series: four series of other kinds are written beside it, among them a localizer.
        package: "<number>.E.1" with the visit's own number if None.
        series: as for ``write_series``; the description follows the knee's side unless given.

    Returns: the folder of the DESS series.
    """
    examination = oai_root / visit / (package or f"{PACKAGE_NUMBER[visit]}.E.1") / subject / date
    side = knee.side.upper()
    settings = {
        "description": f"SAG_3D_DESS_{side}",
        "patient_id": subject,
        "series_uid": uid_of(visit, subject, date, barcode),
        **series,
    }
    folder = examination / barcode
    write_series(folder, knee.image, **settings)
    if with_other_series:
        others = {-2: "PRE_LOCALIZER", -1: f"COR_IW_TSE_{side}", 1: f"AX_T2_{side}", 2: f"SAG_T2_MAP_{side}"}
        for offset, description in others.items():
            write_other_series(examination / str(int(barcode) + offset), description, patient_id=subject)
    return folder


def write_uq_mask(folder: Path, subject: str, labels: sitk.Image) -> Path:
    """Write a mask as OAI ZIB-UQ publishes it: NIfTI, uint16, true pose."""
    return _write_nifti(
        folder / f"{subject}_WB01_Femur+Tibia+Patella(Bone)_Femur+Tibia+Patella(Cartilage).nii.gz", labels
    )


def write_akoa_mask(folder: Path, subject: str, month: int, labels: sitk.Image) -> Path:
    """Write a mask as OAI AKOA publishes it: NIfTI, uint16, true pose, the month of the visit in its name."""
    name = f"{subject}_{month:02d}m_WB01_Femur+Tibia+Patella(Bone)_Femur+Tibia+Patella(Cartilage).nii.gz"
    return _write_nifti(folder / name, labels)


def uid_of(*words: str) -> str:
    """A DICOM UID that is always the same for the same words."""
    return "2.25." + str(int.from_bytes(hashlib.sha256("/".join(words).encode()).digest()[:12], "big"))


def _write_nifti(path: Path, labels: sitk.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.Cast(labels, sitk.sitkUInt16), str(path), True)
    return path


def _header(voxels: np.ndarray, *, signed: bool) -> pydicom.Dataset:
    """What every slice says alike, and its voxels, (rows, columns), int16 or uint16."""
    header = pydicom.Dataset()
    header.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    header.SOPClassUID = MRImageStorage
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = "20050825"
    header.Modality = "MR"
    header.Manufacturer, header.ManufacturerModelName = "SIEMENS", "Trio"
    header.InstitutionName = "MR Imaging Centre"
    header.PatientSex, header.PatientAge = "F", "061Y"
    header.BodyPartExamined = "KNEE"
    header.ScanningSequence, header.SequenceVariant, header.MRAcquisitionType = "GR", "SS", "3D"
    header.RepetitionTime, header.FlipAngle, header.MagneticFieldStrength = 16.3, 25, 3
    header.PatientPosition = "FFS"
    header.StudyID, header.SeriesNumber, header.AcquisitionNumber = "1", 5, 1
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = voxels.shape
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation = int(signed)
    header.SmallestImagePixelValue, header.LargestImagePixelValue = int(voxels.min()), int(voxels.max())
    # A private block, as every scanner writes them.
    header.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", b"SV10" + bytes(2000))
    header.PixelData = np.ascontiguousarray(voxels).tobytes()
    header["PixelData"].VR = "OW"
    return header


def _save(header: pydicom.Dataset, file: Path, *, explicit_vr: bool) -> None:
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if explicit_vr else ImplicitVRLittleEndian
    header.save_as(file, enforce_file_format=True)


def _decimal(value: float, decimals: int) -> str:
    """A number as DICOM's decimal string, which has room for 16 characters."""
    text = f"{value:.{decimals}f}"[:16]
    return text.rstrip("0").rstrip(".") if "." in text else text
