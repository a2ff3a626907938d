"""Headers that say two things of a file's geometry: one sentence, whatever reader comes to it."""

import gzip
import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.files import check_whole, read_header, read_image
from nnunetv2_anomaly.images.headers import save_nifti_like, shear_mm
from nnunetv2_anomaly.images.segmentations import SegmentationFiles
from nnunetv2_anomaly.prediction.cases import CaseFiles, read_case

SPACING = (0.5, 0.75, 2.25)
VOXELS = np.zeros((4, 5, 6), np.uint8)
VOXELS[1:3, 1:4, 2:5] = 1


def written(path, **fields):
    """A file whose header has some fields replaced: of a NIfTI header, or of the text of the others."""
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing(SPACING)
    sitk.WriteImage(image, str(path))
    content = path.read_bytes()
    if path.suffix == ".nii":
        header = nibabel.load(path).header
        header["vox_offset"] = 352  # which nibabel had set to 0
        for field, value in fields.items():
            header[field] = value
        content = header.binaryblock + content[348:]
    for old, new in fields.get("text", {}).items():
        assert old in content
        content = content.replace(old, new, 1)
    path.write_bytes(content)
    return path


#: every way in which this package reads an image file
READERS = {
    "read_image": read_image,
    "read_header": read_header,
    "check_whole": check_whole,
    "by nibabel": lambda path: SegmentationFiles(".nii.gz", "NibabelIO").read(path),
    "by ITK": lambda path: SegmentationFiles(".nii.gz", "SimpleITKIO").read(path),
    "error_images": lambda path: read_case(SimpleITKIO(), CaseFiles(path.name.split("_")[0], (str(path),)), 1),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_every_reader_reports_a_type_of_voxels_that_nobody_knows(tmp_path, read):
    path = tmp_path / "image_0000.nii.gz"
    header = bytearray(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)).to_bytes())
    header[70:72] = (9999).to_bytes(2, "little")
    path.write_bytes(gzip.compress(bytes(header)))
    with pytest.raises(
        UserError, match=r"image_0000\.nii\.gz cannot be read as an? \w+ \(data code 9999 not recognized\)"
    ):
        read(path)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_every_reader_refuses_nifti_2(tmp_path, read):
    path = tmp_path / "image_0000.nii.gz"
    nibabel.save(nibabel.Nifti2Image(np.zeros((2, 3, 4), np.int16), np.eye(4)), path)
    with pytest.raises(UserError, match=r"image_0000\.nii\.gz is a NIfTI-2 file, .*; expected NIfTI-1"):
        read(path)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_every_reader_reports_a_name_that_is_no_text(tmp_path, read):
    path = tmp_path / os.fsdecode(b"kn\xffe_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)), path)
    with pytest.raises(UserError, match=r"kn\\udcffe_0000\.nii\.gz holds bytes that are no text .*, so rename it"):
        read(path)


def complex_numbers(image):
    return nibabel.Nifti1Image(np.ones(image.shape, np.complex64), image.affine)


def metres(image):
    image.header.set_xyzt_units("meter", "sec")
    return image


def two_poses(image):
    pose, other = image.affine.copy(), image.affine.copy()
    other[:3, 3] += (10, -5, 3)
    image.set_sform(other, 2)
    image.set_qform(pose, 1)
    return image


def negative_spacing(image):
    return image


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (complex_numbers, "holds complex numbers"),
        (metres, "lengths in the unit metre; expected mm"),
        (two_poses, r"two poses, qform and sform, that lie 11\.58 mm apart"),
        (negative_spacing, "a spacing of 1 x -0.5 x 1 mm"),
    ],
)
def test_what_readers_settle_without_a_word_is_told(tmp_path, spoil, told, ending):
    path = tmp_path / f"image{ending}"
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.eye(4)), path)
    check_whole(path)
    image = spoil(nibabel.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.eye(4)))
    if spoil is negative_spacing:  # nibabel would mend it
        content = path.read_bytes()
        content = bytearray(gzip.decompress(content) if ending == ".nii.gz" else content)
        content[84:88] = np.float32(-0.5).tobytes()
        path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    else:
        nibabel.save(image, path)
    with pytest.raises(UserError, match=told):
        check_whole(path)


def test_headers_of_other_programs_are_taken(tmp_path):
    """A unit that is none, and a quaternion a little too long beside a sound sform."""
    path = tmp_path / "image.nii"
    image = nibabel.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.eye(4))
    image.set_sform(np.eye(4), 1)
    nibabel.save(image, path)
    content = bytearray(path.read_bytes())
    content[123] = 255
    content[252:254] = np.int16(1).tobytes()
    content[256:268] = np.array((0.70711, 0.70711, 0.001), np.float32).tobytes()
    path.write_bytes(content)
    check_whole(path)
    content[280:284] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match="a pose with infinite numbers or NaN"):
        check_whole(path)


#: a NRRD header's older form, which gives distances alone
WITHOUT_SPACE = {
    b"space directions: (0.5,0,0) (0,0.75,0) (0,0,2.25)": b"spacings: 0.5 -0.75 2.25",
    b"space: left-posterior-superior\n": b"",
    b"space origin: (0,0,0)\n": b"",
}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.mha", {b"ElementSpacing = 0.5": b"ElementSpacing = -0.5"}, "a spacing of -0.5 x 0.75 x 2.25 mm"),
        ("a.mha", {b"ElementSpacing = 0.5": b"ElementSize = -0.5"}, "a spacing of -0.5 x 0.75 x 2.25 mm"),
        ("a.nrrd", WITHOUT_SPACE, "a spacing of 0.5 x -0.75 x 2.25 mm"),
    ],
)
def test_spacings_of_0_and_below_are_refused_in_headers_that_are_text(tmp_path, name, text, told):
    path = written(tmp_path / name, text=text)
    for read in (read_image, read_header):
        with pytest.raises(UserError, match=told):
            read(path)


def test_spacing_beside_a_pose_of_another(tmp_path):
    """SimpleITK would take 0.7 mm of the field, nibabel 0.5, 0.75 and 2.25 mm of the pose."""
    path = written(tmp_path / "a.nii", qform_code=0, pixdim=[1, 0.7, 0.7, 0.7, 0, 0, 0, 0])
    told = r"spacing of 0\.7 x 0\.7 x 0\.7 mm in its field pixdim and of 0\.5 x 0\.75 x 2\.25 mm in its pose"
    for read in (read_image, SegmentationFiles(".nii").read, SegmentationFiles(".nii", "NibabelIO").read):
        with pytest.raises(UserError, match=told):
            read(path)


@pytest.mark.parametrize(("name", "shear"), [("a.mha", 0.3), ("a.mha", 1e-5), ("a.nrrd", 0.3)])
def test_axes_that_are_not_at_right_angles(tmp_path, name, shear):
    text = {b"TransformMatrix = 1 0 0 0": f"TransformMatrix = 1 {shear} 0 0".encode()}
    if name.endswith("nrrd"):
        text = {b"(0.5,0,0)": f"(0.5,{0.5 * shear},0)".encode()}
    path = written(tmp_path / name, text=text)
    assert shear_mm(sitk.ReadImage(str(path))) == pytest.approx(shear / 2 * np.hypot(5 * 0.5, 4 * 0.75), rel=0.1)
    if shear == 1e-5:
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(path)), VOXELS)
    else:
        with pytest.raises(UserError, match="axes that are not at right angles"):
            read_image(path)


FORMS = ({"sform_code": 0}, {"qform_code": 0}, {"qform_code": 2, "sform_code": 4}, {"qform_code": 0, "sform_code": 0},
         {"xyzt_units": 0})  # fmt: skip


@pytest.mark.parametrize("reader", [None, "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("fields", FORMS)
def test_what_is_written_keeps_the_forms_of_a_pose(tmp_path, reader, fields):
    source = written(tmp_path / "a.nii", **fields)
    files = SegmentationFiles(".nii", reader)
    like = files.read(source)
    files.write(2 * like.voxels, like, tmp_path / "b.nii")
    before, after = (nibabel.load(tmp_path / name) for name in ("a.nii", "b.nii"))
    np.testing.assert_array_equal(np.asarray(after.dataobj), 2 * np.asarray(before.dataobj))
    assert after.get_data_dtype() == before.get_data_dtype()
    for field in ("qform_code", "sform_code", "pixdim", "xyzt_units", "srow_x", "srow_y", "quatern_d", "qoffset_x"):
        np.testing.assert_array_equal(after.header[field], before.header[field], err_msg=field)


@pytest.mark.parametrize("dtype", [np.int8, np.uint32, np.int64, np.uint64, np.float64])
@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 4, 5, 6)])
def test_what_is_written_keeps_type_and_shape(tmp_path, dtype, shape):
    source = tmp_path / "a.nii.gz"
    nibabel.save(
        nibabel.Nifti1Image(VOXELS.reshape(shape).T.astype(dtype), np.diag([*SPACING, 1]), dtype=dtype), source
    )
    save_nifti_like(2 * VOXELS.T, source, tmp_path / "b.nii.gz")
    before, after = nibabel.load(source), nibabel.load(tmp_path / "b.nii.gz")
    assert (after.shape, after.get_data_dtype()) == (before.shape, before.get_data_dtype())
    np.testing.assert_array_equal(np.asarray(after.dataobj), 2 * np.asarray(before.dataobj))


def test_a_scale_of_nothing_with_a_shift_is_refused(tmp_path):
    """SimpleITK would add 5 to every voxel, nibabel nothing."""
    path = tmp_path / "a.nii"
    content = bytearray(written(path).read_bytes())
    content[112:120] = np.array([0, 5], np.float32).tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match="has scl_slope 0 and scl_inter 5; expected 1 and 0"):
        read_image(path)
