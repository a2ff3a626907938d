"""Reading one DICOM series: voxels and pose as written, and a sentence for everything that is wrong with a folder."""

from __future__ import annotations

import functools
import importlib
import itertools
import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from oai_tree import (
    BIRTH_DATE,
    PATIENT_NAME,
    PERSONAL_DATA,
    make_knee,
    write_akoa_mask,
    write_other_series,
    write_series,
    write_uq_mask,
    write_visit,
    write_zib_mask,
    write_zib_release,
)
from places import SHARED
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from nnunetv2_anomaly.conversion.dicom import read_series, read_series_image, series_description
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.grids import TOLERANCE_MM, Grid, corner_distance_mm, oriented


def small_image(size=(4, 12, 10), spacing_mm=(0.7, 0.3646, 0.3646), dtype=np.int16, seed=0):
    """Noise of the pose of a real mask: x to the right, y to anterior, z to superior, 8 degrees oblique."""
    voxels = np.random.default_rng(seed).integers(1, 1000, size[::-1]).astype(dtype)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing_mm)
    image.SetOrigin((-22.8, 80.7, -80.3))
    sine, cosine = np.sin(np.radians(8)), np.cos(np.radians(8))
    image.SetDirection((-cosine, sine, 0, -sine, -cosine, 0, 0, 0, 1))
    return image


@pytest.fixture
def folder(tmp_path):
    """A folder with a good series of four slices, 001 to 004."""
    write_series(tmp_path / "10498212", small_image())
    return tmp_path / "10498212"


def change(folder, name, **values):
    """Set tags of one file of a series; None removes one."""
    header = pydicom.dcmread(folder / name)
    for keyword, value in values.items():
        if value is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    header.save_as(folder / name)


def refusal(folder):
    """The sentence with which a folder is refused; it names the folder, is one line, and tells nothing personal."""
    with pytest.raises(UserError) as caught:
        read_series_image(read_series(folder))
    sentence = str(caught.value)
    assert folder.name in sentence
    assert "\n" not in sentence
    assert "expected" in sentence
    assert not any(word in sentence for word in PERSONAL_DATA)
    return sentence


# --- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("explicit_vr", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_voxels_and_pose_are_those_written(tmp_path, descending, explicit_vr, seed):
    knee = make_knee(seed, side="right" if seed else "left")
    write_series(tmp_path, knee.image, descending=descending, explicit_vr=explicit_vr)
    series = read_series(tmp_path)
    image = read_series_image(series)
    assert Grid.of(image) == series.grid
    assert series.grid.orientation == "PIR"
    assert corner_distance_mm(series.grid, Grid.of(knee.image)) < 1e-4
    assert image.GetPixelID() == sitk.sitkInt16
    assert image.GetMetaDataKeys() == ()
    assert (sitk.GetArrayFromImage(oriented(image)) == sitk.GetArrayFromImage(knee.image)).all()


def test_files_are_sorted_by_position_not_by_name(tmp_path):
    write_series(tmp_path, small_image(), descending=True)
    series = read_series(tmp_path)
    assert [file.name for file in series.files] == ["004", "003", "002", "001"]


def test_what_the_header_says_of_the_series(folder):
    series = read_series(folder)
    assert (series.folder, series.description) == (folder, "SAG_3D_DESS_RIGHT")
    assert series.series_uid == str(pydicom.dcmread(folder / "001").SeriesInstanceUID)


@pytest.mark.parametrize("echo_time", [None, "", [4.7, 11.9]])
def test_echo_time_may_be_missing_or_combined(tmp_path, echo_time):
    write_series(tmp_path, small_image(), tags={"EchoTime": echo_time})
    assert len(read_series(tmp_path).files) == 4


@pytest.mark.parametrize("orientation", ["PIR", "PIL", "LIP", "LPS", "ASL", "RAI"])
def test_grid_is_that_of_the_series_reader_of_simpleitk(tmp_path, orientation):
    write_series(tmp_path, small_image(), orientation=orientation, descending=True)
    theirs = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    series = read_series(tmp_path)
    for name in ("size", "spacing_mm", "origin_mm", "direction"):
        assert getattr(series.grid, name) == pytest.approx(getattr(Grid.of(theirs), name), abs=1e-9), name
    assert (sitk.GetArrayFromImage(read_series_image(series)) == sitk.GetArrayFromImage(theirs)).all()


@pytest.mark.parametrize("decimals", [2, 4])
def test_rounded_positions_are_accepted(tmp_path, decimals):
    image = small_image(size=(160, 4, 4), spacing_mm=(0.7037, 0.36, 0.36))
    write_series(
        tmp_path,
        image,
        change=lambda header, _: setattr(
            header, "ImagePositionPatient", [round(float(v), decimals) for v in header.ImagePositionPatient]
        ),
    )
    assert corner_distance_mm(read_series(tmp_path).grid, Grid.of(image)) < TOLERANCE_MM


@pytest.mark.parametrize(
    ("stored", "rescale", "expected", "function"),
    [
        (np.int16, None, sitk.sitkInt16, lambda v: v),
        (np.uint16, None, sitk.sitkUInt16, lambda v: v),
        (np.int16, (1, 0), sitk.sitkInt16, lambda v: v),
        (np.uint16, (1, -1024), sitk.sitkInt16, lambda v: v - 1024),
        (np.int16, (2, -3), sitk.sitkInt16, lambda v: 2 * v - 3),
        (np.int16, (60, 0), sitk.sitkUInt16, lambda v: 60 * v),
        (np.int16, (0.5, 0), sitk.sitkFloat32, lambda v: 0.5 * v),
        (np.int16, (1000, 0), sitk.sitkInt32, lambda v: 1000 * v),
    ],
)
def test_voxels_are_rescaled_and_keep_the_smallest_type(tmp_path, stored, rescale, expected, function):
    image = small_image(dtype=stored)
    write_series(tmp_path, image, rescale=rescale)
    read = read_series_image(read_series(tmp_path))
    assert read.GetPixelID() == expected
    voxels = sitk.GetArrayFromImage(image).astype(float)
    assert (sitk.GetArrayFromImage(oriented(read)) == function(voxels)).all()


@pytest.mark.parametrize(
    ("rescales", "expected"),
    [
        ([(1, 0), (2, 0), (3, -5), (4, 7)], sitk.sitkInt16),
        ([(1, 0), (0.5, 0), (2, 0), (0.25, 10)], sitk.sitkFloat32),
        ([(0.5, 0.25), (1, 0), (1, 0), (1, 0)], sitk.sitkFloat32),
        ([(1, -1024), (1, 0), (1, 0), (60, 0)], sitk.sitkInt32),
        ([None, (2, 0), None, (2, 1)], sitk.sitkInt16),
    ],
)
@pytest.mark.parametrize("descending", [False, True])
def test_each_slice_has_a_rescaling_of_its_own(tmp_path, rescales, expected, descending):
    def scaled(header, index):
        if rescales[index] is not None:
            header.RescaleSlope, header.RescaleIntercept = rescales[index]

    image = small_image(dtype=np.uint16)
    write_series(tmp_path, image, change=scaled, descending=descending)
    read = read_series_image(read_series(tmp_path))
    assert read.GetPixelID() == expected
    stored = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "PIR")).astype(float)
    for plane, found, rescale in zip(stored, sitk.GetArrayFromImage(read), rescales, strict=True):
        slope, intercept = rescale or (1, 0)
        assert (found == slope * plane + intercept).all()


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="the scripts that write these inputs are not at hand")
def test_series_of_the_shared_script_with_a_rescaling_per_slice(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SHARED / "cases")
    image = small_image()
    made = importlib.import_module("dicom_tree").slices(image)
    for index, header in enumerate(made):
        header.RescaleSlope, header.RescaleIntercept = str(1 + index / 2), str(-index)
    importlib.import_module("dicom_tree").save(made, tmp_path / "series")
    read = oriented(read_series_image(read_series(tmp_path / "series")))
    assert read.GetPixelID() == sitk.sitkFloat32
    index = np.arange(4)[::-1]  # the script's slices run to the patient's left
    expected = sitk.GetArrayFromImage(image) * (1 + index / 2) - index
    assert (sitk.GetArrayFromImage(read) == expected).all()


def test_whole_floats_become_integers(tmp_path):
    write_series(tmp_path, small_image() * 2, rescale=(0.5, 0))
    assert read_series_image(read_series(tmp_path)).GetPixelID() == sitk.sitkInt16


@pytest.mark.parametrize("syntax", [RLELossless, DeflatedExplicitVRLittleEndian])
def test_compressed_slices_are_read(folder, syntax):
    for file in folder.iterdir():
        header = pydicom.dcmread(file)
        if syntax is RLELossless:
            header.compress(RLELossless, generate_instance_uid=False)
        else:
            header.file_meta.TransferSyntaxUID = syntax
        header.save_as(file)
    read = oriented(read_series_image(read_series(folder)))
    assert (sitk.GetArrayFromImage(read) == sitk.GetArrayFromImage(small_image())).all()


@pytest.mark.parametrize("name", ["{}.dcm", "{}.IMA", "IM-0001-{}", "1.2.840.113654.2.3.{}"])
def test_slices_may_have_other_names(folder, name):
    for file in sorted(folder.iterdir()):
        file.rename(folder / name.format(file.name))
    assert len(read_series(folder).files) == 4


@pytest.mark.parametrize(
    "name", [".DS_Store", "._001", "Thumbs.db", "DICOMDIR", "index", "index.html", "001.tgz", "notes.txt", "README"]
)
def test_files_beside_the_slices_are_ignored(folder, name):
    (folder / name).write_bytes(b"no DICOM")
    (folder / "sub").mkdir()
    assert len(read_series(folder).files) == 4


def test_hidden_dicom_files_and_dicomdir_are_ignored(folder):
    for name in (".001", "DICOMDIR", "dicomdir"):
        shutil.copy(folder / "001", folder / name)
    assert len(read_series(folder).files) == 4


# --- the description alone -----------------------------------------------------------------------------------------


def test_description_of_any_series(tmp_path):
    for description in ("COR_IW_TSE_RIGHT", "SAG_T2_MAP_LEFT", "PRE_LOCALIZER", "AX_T2"):
        write_other_series(tmp_path / description, description)
        assert series_description(tmp_path / description) == description


def test_description_skips_files_that_cannot_be_read(folder):
    (folder / "000").write_bytes(b"no DICOM")
    (folder / "001").write_bytes((folder / "001").read_bytes()[:900])
    assert series_description(folder) == "SAG_3D_DESS_RIGHT"


def test_description_without_dicom_files_is_none(tmp_path):
    assert series_description(tmp_path) is None
    (tmp_path / "001").write_bytes(b"")
    assert series_description(tmp_path) is None


def test_description_may_be_missing(tmp_path):
    write_series(tmp_path, small_image(), tags={"SeriesDescription": None})
    assert series_description(tmp_path) == ""
    assert read_series(tmp_path).description == ""


def test_description_in_old_encoding_can_be_printed(tmp_path):
    write_series(tmp_path, small_image(), description="SAG_Knie_übersicht", tags={"SpecificCharacterSet": "ISO_IR 100"})
    series_description(tmp_path).encode("utf-8")


def test_description_of_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        series_description(tmp_path / "nowhere")


# --- what is refused -----------------------------------------------------------------------------------------------


def test_missing_folder_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "10498212")


def test_folder_without_dicom_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no slices here")
    assert "holds no DICOM file" in refusal(tmp_path)


def test_slice_that_is_no_dicom_file_is_refused(folder):
    (folder / "003").write_text("<html>404 not found</html>")
    assert "003 is no DICOM file" in refusal(folder)
    (folder / "003").write_bytes(b"")
    assert "003 is no DICOM file" in refusal(folder)


@pytest.mark.parametrize("explicit_vr", [False, True])
def test_slice_cut_off_anywhere_is_refused(tmp_path, explicit_vr, capfd):
    write_series(tmp_path, small_image(), explicit_vr=explicit_vr)
    whole = (tmp_path / "002").read_bytes()
    header = len(whole) - 120 * 2
    # Everywhere in the header; within the voxels by a few bytes, by half, by all but a few.
    for length in (
        *range(0, header, 37),
        *range(header - 14, header + 3),
        len(whole) - 120,
        *range(len(whole) - 5, len(whole)),
    ):
        (tmp_path / "002").write_bytes(whole[:length])
        sentence = refusal(tmp_path)
        assert "002 is " in sentence
        assert ("is cut off or damaged" in sentence) == (length >= 132)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("missing_bytes", [2, 120, 238, 240])
def test_file_that_declares_too_few_voxels_is_refused(folder, missing_bytes):
    # Consistent in itself: GDCM reads it and fills up with zeros.
    change(folder, "002", PixelData=pydicom.dcmread(folder / "002").PixelData[:-missing_bytes])
    assert "002 holds fewer voxels than its rows and columns want" in refusal(folder)


def test_file_that_declares_too_many_rows_is_refused(folder):
    for file in folder.iterdir():
        change(folder, file.name, Rows=11)
    assert "001 holds fewer voxels" in refusal(folder)


def test_bytes_after_the_voxels_are_no_fault(folder):
    change(folder, "002", PixelData=pydicom.dcmread(folder / "002").PixelData + bytes(64))
    change(folder, "003", DataSetTrailingPadding=bytes(300))
    image = oriented(read_series_image(read_series(folder)))
    assert (sitk.GetArrayFromImage(image) == sitk.GetArrayFromImage(small_image())).all()


def test_file_without_voxels_is_refused(folder):
    change(folder, "002", PixelData=None)
    assert "002 is cut off or damaged, or holds no image" in refusal(folder)


def test_file_cut_off_between_header_and_voxels_is_refused(folder):
    series = read_series(folder)
    (folder / "003").write_bytes((folder / "003").read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read"):
        read_series_image(series)


def test_two_series_in_one_folder_are_refused(folder):
    write_other_series(folder, "COR_IW_TSE_RIGHT", first_name=101, series_uid="1.2.3")
    sentence = refusal(folder)
    assert "holds 2 DICOM series" in sentence
    assert "SAG_3D_DESS_RIGHT in 4 files such as 001" in sentence
    assert "COR_IW_TSE_RIGHT in 4 files such as 101" in sentence


@pytest.mark.parametrize("by", ["time", "number"])
def test_two_echoes_in_one_folder_are_refused(tmp_path, by):
    second = {"echo_time": 11.9} if by == "time" else {"echo_number": 2}
    write_series(tmp_path, small_image(), series_uid="1.2.3")
    write_series(tmp_path, small_image(seed=1), series_uid="1.2.3", first_name=5, **second)
    assert "001 and 005 lie at the same place" in refusal(tmp_path)


def test_map_of_several_echoes_is_refused(tmp_path):
    write_other_series(tmp_path, "SAG_T2_MAP_RIGHT")
    assert "lie at the same place" in refusal(tmp_path)


def test_slice_that_comes_twice_is_refused(folder):
    shutil.copy(folder / "002", folder / "005")
    assert "002 and 005 lie at the same place" in refusal(folder)


def test_magnitude_and_phase_in_one_folder_are_refused(tmp_path):
    write_series(tmp_path, small_image(), series_uid="1.2.3")
    write_series(tmp_path, small_image(seed=1), series_uid="1.2.3", first_name=5)
    assert "lie at the same place" in refusal(tmp_path)


@pytest.mark.parametrize("count", [3, 4, 9])
@pytest.mark.parametrize("descending", [False, True])
def test_missing_slices_are_named(tmp_path, count, descending):
    write_series(tmp_path, small_image(size=(count, 4, 4)), descending=descending)
    (tmp_path / "002").unlink()
    if count == 3:  # nothing is left that could tell
        assert read_series(tmp_path).grid.spacing_mm[2] == pytest.approx(1.4)
        return
    sentence = refusal(tmp_path)
    assert ("003 and 001" if descending else "001 and 003") in sentence
    assert "lie 1.4 mm apart, others 0.7 mm; expected one spacing: slices are missing" in sentence


def test_several_missing_slices_are_named(tmp_path):
    write_series(tmp_path, small_image(size=(12, 4, 4)))
    for name in ("004", "005", "006"):
        (tmp_path / name).unlink()
    assert "003 and 007 lie 2.8 mm apart, others 0.7 mm" in refusal(tmp_path)


def test_mixed_spacing_is_refused(tmp_path):
    def stretch(header, index):
        if index >= 6:
            shift = 0.3 * (index - 5)
            x, y, z = (float(v) for v in header.ImagePositionPatient)
            header.ImagePositionPatient = [round(x - shift, 6), y, z]

    image = small_image(size=(9, 4, 4))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    write_series(tmp_path, image, change=stretch)
    assert "006 and 007 lie 1 mm apart, others 0.7 mm" in refusal(tmp_path)


def test_spacing_that_creeps_is_refused(tmp_path):
    def creep(header, index):
        x, y, z = (float(v) for v in header.ImagePositionPatient)
        header.ImagePositionPatient = [round(x - 0.00003 * index**2, 6), y, z]

    image = small_image(size=(160, 4, 4))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    write_series(tmp_path, image, change=creep)
    assert "off its place; expected an even spacing" in refusal(tmp_path)


def test_slices_shifted_in_their_plane_are_refused(folder):
    x, y, z = (float(v) for v in pydicom.dcmread(folder / "003").ImagePositionPatient)
    change(folder, "003", ImagePositionPatient=[x, y, z + 1])
    assert "003 lies 1.000 mm off its place" in refusal(folder)


def test_single_slice_is_refused(tmp_path):
    write_series(tmp_path, small_image(size=(1, 4, 4)))
    assert "holds one slice (001)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PixelSpacing": [0.5, 0.5]}, "differ in pixel spacing, 0.3646 x 0.3646 against 0.5 x 0.5 mm"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, "differ in direction"),
        ({"Rows": 9}, "differ in size, 12 x 10 against 12 x 9 voxels"),
    ],
)
def test_slices_that_differ_are_refused(folder, tags, words):
    change(folder, "003", **tags)
    sentence = refusal(folder)
    assert words in sentence
    assert "001 and 003" in sentence


def test_localizer_is_refused(tmp_path):
    write_other_series(tmp_path, "PRE_LOCALIZER")
    assert "differ in direction" in refusal(tmp_path)


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_slice_without_pose_is_refused(folder, keyword):
    change(folder, "003", **{keyword: None})
    sentence = refusal(folder)
    assert f"003: {keyword} is missing" in sentence


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ImagePositionPatient": [1, 2]}, "ImagePositionPatient is '1.0\\2.0'; expected 3 number(s)"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "two directions of length 1 at right angles"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "two directions of length 1 at right angles"),
        ({"PixelSpacing": [0, 0]}, "expected two positive numbers"),
    ],
)
def test_impossible_pose_is_refused(folder, values, words):
    for file in folder.iterdir():
        change(folder, file.name, **values)
    assert words in refusal(folder)


def test_multi_frame_image_is_refused(folder):
    change(folder, "001", NumberOfFrames=2, PixelData=pydicom.dcmread(folder / "001").PixelData * 2)
    assert "001 is a multi-frame image of 2 slices" in refusal(folder)


@pytest.mark.parametrize("kind", ["RGB", "MONOCHROME1"])
def test_colour_and_inverted_images_are_refused(folder, kind):
    colour = {
        "SamplesPerPixel": 3,
        "PlanarConfiguration": 0,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": bytes(360),
    }
    change(folder, "001", PhotometricInterpretation=kind, **(colour if kind == "RGB" else {}))
    assert f"001 is an image of the kind {kind}" in refusal(folder)


def test_warnings_of_itk_are_silenced_and_come_back(folder, capfd):
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    (folder / "002").unlink()
    refusal(folder)
    assert capfd.readouterr().err == ""
    assert sitk.ProcessObject.GetGlobalWarningDisplay() == before


# --- the generator itself ------------------------------------------------------------------------------------------


def test_generated_headers_are_like_the_real_ones(tmp_path):
    knee = make_knee(3, angle_degrees=8.0)
    files = write_series(tmp_path, knee.image)
    header = pydicom.dcmread(files[0])
    assert [file.name for file in files[:2]] == ["001", "002"]
    assert [round(float(v), 2) for v in header.ImageOrientationPatient] == [-0.14, 0.99, 0, 0, 0, -1]
    assert (header.Modality, header.SeriesDescription) == ("MR", "SAG_3D_DESS_RIGHT")
    assert (header.PatientName, header.PatientBirthDate) == (PATIENT_NAME, BIRTH_DATE)
    # Rows from superior to inferior, columns from anterior to posterior, the first slice the leftmost.
    voxels = sitk.GetArrayFromImage(knee.image)
    assert (header.pixel_array == voxels[::-1, ::-1, 0]).all()
    assert knee.image.GetDirection() == pytest.approx((-0.99, 0.139, 0, -0.139, -0.99, 0, 0, 0, 1), abs=1e-3)


def test_generated_knees_hold_what_they_should():
    for side, sign in (("right", -1), ("left", 1)):
        knee = make_knee(5, side=side)
        assert Grid.of(knee.image) == Grid.of(knee.labels)
        assert np.unique(sitk.GetArrayFromImage(knee.labels)).tolist() == list(range(10))
        assert sign * knee.image.TransformIndexToPhysicalPoint((20, 24, 24))[0] > 50
    healthy = sitk.GetArrayFromImage(make_knee(5, with_lesions=False).labels)
    assert np.unique(healthy).tolist() == list(range(7))
    assert make_knee(5) is make_knee(5)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_generated_mask_without_pose_is_turned_as_documented(tmp_path, order, flips):
    labels = make_knee(5, size=(10, 12, 14), spacing_mm=(11.0, 12.0, 10.0)).labels
    mask = sitk.ReadImage(str(write_zib_mask(tmp_path / "1.mhd", labels, order=order, flips=flips)))
    array = np.flip(sitk.GetArrayFromImage(labels), flips).transpose(order)
    assert (sitk.GetArrayFromImage(mask) == array).all()
    assert mask.GetSpacing()[::-1] == tuple(labels.GetSpacing()[::-1][axis] for axis in order)
    assert mask.GetOrigin() == (0, 0, 0)
    assert mask.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert (tmp_path / "1.raw").stat().st_size == 10 * 12 * 14


def test_generated_release_and_visits_lie_where_the_real_ones_do(tmp_path):
    knee = make_knee(5, side="left")
    series = "0.E.1/9001104/20050825/10498212"
    folder = write_visit(tmp_path / "oai", "00m", "9001104", knee)
    assert folder == tmp_path / "oai" / "00m" / series
    assert write_visit(tmp_path / "oai", "96m", "9001104", knee).parts[-5:-3] == ("96m", "10.E.1")
    descriptions = {each.name: series_description(each) for each in folder.parent.iterdir()}
    assert descriptions.pop("10498212") == "SAG_3D_DESS_LEFT"
    assert len(descriptions) == 4
    assert not any("DESS" in description for description in descriptions.values())
    release = write_zib_release(
        tmp_path / "zib", {"9001104": (knee, series)}, line_ending="\r\n", trailing_comma=True, bom=True
    )
    listing = (release / "doc" / "oai_mri_paths.txt").read_bytes()
    assert listing == b"\xef\xbb\xbf9001104: 0.E.1/9001104/20050825/10498212,\r\n"
    assert (release / "segmentation_masks" / "9001104.segmentation_masks.mhd").is_file()
    assert not any(word in str(file) for file in tmp_path.rglob("*") for word in PERSONAL_DATA)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_uq_mask, "9001104_WB01_Femur+Tibia+Patella(Bone)_Femur+Tibia+Patella(Cartilage).nii.gz"),
        (
            functools.partial(write_akoa_mask, month=0),
            "9001104_00m_WB01_Femur+Tibia+Patella(Bone)_Femur+Tibia+Patella(Cartilage).nii.gz",
        ),
    ],
)
def test_generated_masks_with_pose_keep_it(tmp_path, write, name):
    labels = make_knee(5).labels
    path = write(tmp_path, "9001104", labels=labels)
    assert path.name == name
    mask = sitk.ReadImage(str(path))
    assert mask.GetPixelID() == sitk.sitkUInt16
    assert corner_distance_mm(Grid.of(mask), Grid.of(labels)) < 1e-3
    assert (sitk.GetArrayFromImage(mask) == sitk.GetArrayFromImage(labels)).all()
