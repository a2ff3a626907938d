import itertools
import os
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from skimage import io

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.dataset_description import DatasetDescription
from nnunetv2_anomaly.images.grids import OPPOSITE
from nnunetv2_anomaly.images.segmentations import SegmentationFiles, chosen_reader, probability_channels

SHAPE = (4, 5, 6)
#: one per array axis; the file's are in reverse
SPACING_MM = (0.7, 0.5, 0.4)
#: a direction -> the step along it in SimpleITK's world, to left, posterior, superior
STEPS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
ORIENTATIONS = [
    "".join(letters)
    for lines in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*lines)
]  # fmt: skip


def noise(shape=SHAPE, dtype=np.uint8, highest=4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, highest + 1, shape).astype(dtype)


def write(path: Path, voxels: np.ndarray, orientation="RAS", turned_by=0.0) -> Path:
    """A file with these voxels whose axes point as the letters say, all turned by an angle in radians."""
    image = sitk.GetImageFromArray(voxels)
    if voxels.ndim == 3:
        direction = np.array([STEPS[letter] for letter in orientation], float).T
        for axis in (2, 0):
            turn = np.eye(3)
            a, b = [other for other in range(3) if other != axis]
            turn[[a, a, b, b], [a, b, a, b]] = (
                np.cos(turned_by),
                -np.sin(turned_by),
                np.sin(turned_by),
                np.cos(turned_by),
            )
            direction = turn @ direction
        image.SetDirection(direction.ravel().tolist())
    image.SetOrigin((-12.3, 45.6, 7.8)[: voxels.ndim])
    image.SetSpacing(SPACING_MM[::-1][: voxels.ndim])
    sitk.WriteImage(image, str(path), True)
    return path


def write_skewed(path: Path, voxels: np.ndarray) -> Path:
    """A NIfTI file whose axes are not at right angles; voxels (Z, Y, X)."""
    affine = np.diag([0.4, 0.5, 0.7, 1.0])
    affine[0, 1] = 0.2
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), affine), path)
    return path


def described(reader=None, file_ending=".nii.gz") -> DatasetDescription:
    return DatasetDescription(Path("dataset.json"), {"bone": (1,)}, None, file_ending, reader, False)


def raw(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


# Reading


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".nii"])
def test_voxels_and_spacing_of_a_volume(tmp_path, ending):
    segmentation = SegmentationFiles(ending).read(write(tmp_path / f"a{ending}", noise()))
    np.testing.assert_array_equal(segmentation.voxels, noise())
    assert segmentation.voxels.dtype == np.uint8
    np.testing.assert_allclose(segmentation.spacing_mm, SPACING_MM, rtol=1e-6)
    assert segmentation.path == tmp_path / f"a{ending}"


def test_volume_that_nnunet_reads_in_a_format_of_its_own(tmp_path):
    segmentation = SegmentationFiles(".gipl").read(write(tmp_path / "a.gipl", noise()))
    np.testing.assert_array_equal(segmentation.voxels, noise())
    np.testing.assert_allclose(segmentation.spacing_mm, SPACING_MM, rtol=1e-6)


@pytest.mark.parametrize("orientation", ["RAS", "PIR", "LAS", "LPS", "SRA"])
@pytest.mark.parametrize("turned_by", [0, 0.3])
def test_axes_point_the_same_way_whatever_the_order_of_the_file(tmp_path, orientation, turned_by):
    path = write(tmp_path / "a.nii.gz", noise(), orientation, turned_by)
    segmentation = SegmentationFiles(".nii.gz").read(path)
    expected = sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS")
    np.testing.assert_array_equal(segmentation.voxels, sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(segmentation.spacing_mm, expected.GetSpacing()[::-1])
    assert segmentation.grid.orientation == orientation
    assert segmentation.grid.size == (6, 5, 4)


@pytest.mark.parametrize("reader", [NibabelIOWithReorient, SimpleITKIOWithReorient])
@pytest.mark.parametrize("orientation", ["RAS", "PIR", "LAS"])
def test_reader_that_turns_gives_what_nnunet_sees(tmp_path, reader, orientation):
    path = write(tmp_path / "a.nii.gz", noise(), orientation)
    segmentation = SegmentationFiles(".nii.gz", reader.__name__).read(path)
    voxels, properties = reader().read_seg(str(path))
    np.testing.assert_array_equal(segmentation.voxels, voxels[0])
    np.testing.assert_allclose(segmentation.spacing_mm, properties["spacing"])


def test_picture(tmp_path):
    io.imsave(tmp_path / "a.png", noise((5, 6)), check_contrast=False)
    segmentation = SegmentationFiles(".png").read(tmp_path / "a.png")
    np.testing.assert_array_equal(segmentation.voxels, noise((5, 6)))
    assert segmentation.spacing_mm == (1, 1)
    assert segmentation.grid is None


def test_picture_in_colours_is_refused(tmp_path):
    io.imsave(tmp_path / "a.png", noise((5, 6, 3)), check_contrast=False)
    with pytest.raises(UserError, match=r"a\.png holds 3 values a voxel"):
        SegmentationFiles(".png").read(tmp_path / "a.png")


def test_flat_image(tmp_path):
    segmentation = SegmentationFiles(".nii.gz").read(write(tmp_path / "a.nii.gz", noise((5, 6))))
    np.testing.assert_array_equal(segmentation.voxels, noise((5, 6)))
    np.testing.assert_allclose(segmentation.spacing_mm, (0.5, 0.4), rtol=1e-6)
    assert segmentation.grid is None


def test_volume_of_one_slice_stays_a_volume(tmp_path):
    segmentation = SegmentationFiles(".nii.gz").read(write(tmp_path / "a.nii.gz", noise((1, 5, 6))))
    assert segmentation.voxels.shape == (1, 5, 6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int64, np.uint32])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_whole_numbers_of_any_type(tmp_path, dtype, ending):
    path = write(tmp_path / f"a{ending}", noise(dtype=dtype))
    voxels = SegmentationFiles(ending).read(path).voxels
    np.testing.assert_array_equal(voxels, noise())
    assert voxels.dtype == np.uint8


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_labels_beyond_a_byte(tmp_path, reader):
    path = write(tmp_path / "a.nii.gz", noise(dtype=np.uint16, highest=1000))
    voxels = SegmentationFiles(".nii.gz", reader).read(path).voxels
    np.testing.assert_array_equal(voxels, noise(dtype=np.uint16, highest=1000))
    assert voxels.dtype == np.uint16


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "SimpleITKIOWithReorient"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.5, "1 of its voxels are no whole numbers"), (-1, "1 of its voxels are no whole numbers; .*labels from 0")],
)
def test_numbers_that_are_no_labels(tmp_path, reader, value, expected):
    voxels = noise(dtype=np.float32)
    voxels[1, 2, 3] = value
    with pytest.raises(UserError, match=rf"a\.nii\.gz:? {expected}"):
        SegmentationFiles(".nii.gz", reader).read(write(tmp_path / "a.nii.gz", voxels))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_numbers_that_are_not_finite(tmp_path, ending, value):
    voxels = noise(dtype=np.float32)
    voxels[1, 2, 3] = value
    with pytest.raises(UserError, match=r"infinite voxels or NaN|1 of its voxels are no whole numbers"):
        SegmentationFiles(ending).read(write(tmp_path / f"a{ending}", voxels))


@pytest.mark.parametrize("missing", [20, 60])
@pytest.mark.parametrize(
    ("ending", "reader"),
    [
        (".nii.gz", "SimpleITKIO"),
        (".nii.gz", "NibabelIOWithReorient"),
        (".nii", None),
        (".nrrd", None),
        (".mha", None),
        (".png", None),
    ],
)
def test_file_that_is_cut_short(tmp_path, ending, reader, missing):
    path = tmp_path / f"a{ending}"
    if ending == ".png":
        io.imsave(path, noise((20, 30)), check_contrast=False)
        missing += 12  # its last twelve bytes only say that it ends
    else:
        write(path, noise())
    os.truncate(path, path.stat().st_size - missing)
    told = "is cut short or damaged" if ending.startswith((".nii", ".nrrd", ".mha")) else "cannot be read"
    with pytest.raises(UserError, match=rf"a\{ending} {told}"):
        SegmentationFiles(ending, reader).read(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".png"])
def test_missing_file(tmp_path, ending):
    with pytest.raises(UserError, match="is no file"):
        SegmentationFiles(ending).read(tmp_path / f"a{ending}")


def test_more_axes_than_three_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(noise((2, *SHAPE)), isVector=False), str(tmp_path / "a.nrrd"))
    with pytest.raises(UserError, match="4 dimensions"):
        SegmentationFiles(".nrrd").read(tmp_path / "a.nrrd")


# Which reader


@pytest.mark.parametrize(("ending", "reader"), [(".xyz", None), (".nii.gz", "NoSuchIO")])
def test_reader_that_nnunet_does_not_have(ending, reader):
    with pytest.raises(UserError, match=r"nnU-Net has no reader .*(\.xyz|NoSuchIO); check dataset\.json"):
        SegmentationFiles(ending, reader)


def test_skewed_file_is_read_through_nibabel(tmp_path):
    path = write_skewed(tmp_path / "a.nii.gz", noise())
    with pytest.raises(UserError, match="axes that are not at right angles"):
        SegmentationFiles(".nii.gz").read(path)
    assert chosen_reader(described(), [write(tmp_path / "b.nii.gz", noise()), path]) == "NibabelIO"
    segmentation = SegmentationFiles(".nii.gz", "NibabelIO").read(path)
    np.testing.assert_array_equal(segmentation.voxels, noise())
    np.testing.assert_allclose(segmentation.affine, nibabel.load(path).affine)


@pytest.mark.parametrize("reader", [None, "SimpleITKIOWithReorient"])
def test_reader_of_other_files_is_that_of_the_data_set(tmp_path, reader):
    path = write(tmp_path / "a.nii.gz", noise(), turned_by=0.3)
    assert chosen_reader(described(reader), [path]) == reader
    assert chosen_reader(described(reader), [write_skewed(tmp_path / "b.nii.gz", noise())]) == (reader or "NibabelIO")
    assert chosen_reader(described(reader), [tmp_path / "missing.nii.gz"]) == reader
    assert chosen_reader(described(reader, ".nrrd"), [write(tmp_path / "c.nrrd", noise())]) == reader


# Comparing


def test_same_geometry_in_another_order_of_axes_is_no_difference(tmp_path):
    files = SegmentationFiles(".nii.gz")
    write(tmp_path / "a.nii.gz", noise(), "RAS")
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "a.nii.gz")), "PIR"), str(tmp_path / "b.nii.gz"))
    first, second = (files.read(tmp_path / name) for name in ("a.nii.gz", "b.nii.gz"))
    assert first.difference(second) == ""
    np.testing.assert_array_equal(first.voxels, second.voxels)


def test_same_geometry_in_another_order_of_axes_through_nibabel(tmp_path):
    files = SegmentationFiles(".nii.gz", "NibabelIOWithReorient")
    write(tmp_path / "a.nii.gz", noise(), "RAS")
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "a.nii.gz")), "LPS"), str(tmp_path / "b.nii.gz"))
    first, second = (files.read(tmp_path / name) for name in ("a.nii.gz", "b.nii.gz"))
    np.testing.assert_array_equal(first.voxels, second.voxels)
    assert first.difference(second) == ""


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_differences_of_geometry_are_told(tmp_path, reader):
    files = SegmentationFiles(".nii.gz", reader)
    first = files.read(write(tmp_path / "a.nii.gz", noise()))
    assert "size" in first.difference(files.read(write(tmp_path / "b.nii.gz", noise((4, 5, 7)))))
    moved = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    moved.SetOrigin((-12.3, 45.6, 8.8))
    sitk.WriteImage(moved, str(tmp_path / "c.nii.gz"))
    assert first.difference(files.read(tmp_path / "c.nii.gz"))
    moved.SetSpacing((0.4, 0.5, 0.8))
    sitk.WriteImage(moved, str(tmp_path / "d.nii.gz"))
    assert "spacing" in first.difference(files.read(tmp_path / "d.nii.gz"))


def test_pictures_differ_in_size_alone(tmp_path):
    files = SegmentationFiles(".png")
    for name, shape in (("a", (5, 6)), ("b", (5, 6)), ("c", (6, 5))):
        io.imsave(tmp_path / f"{name}.png", noise(shape), check_contrast=False)
    first, second, third = (files.read(tmp_path / f"{name}.png") for name in "abc")
    assert first.difference(second) == ""
    assert first.difference(third) == "size 5 x 6 against 6 x 5"


# Writing


def check_one_voxel_goes(files: SegmentationFiles, source: Path, target: Path) -> None:
    """The voxel of label 9 is at its place in the array that is read, and in the file that is written."""
    before = raw(source)
    segmentation = files.read(source)
    cleaned = segmentation.voxels.copy()
    cleaned[cleaned == 9] = 0
    files.write(cleaned, segmentation, target)
    np.testing.assert_array_equal(raw(target), np.where(before == 9, 0, before))
    one, other = sitk.ReadImage(str(source)), sitk.ReadImage(str(target))
    assert one.GetSize() == other.GetSize()
    np.testing.assert_allclose(one.GetSpacing(), other.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(one.GetOrigin(), other.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(one.GetDirection(), other.GetDirection(), atol=1e-6)
    assert sorted(entry.name for entry in target.parent.iterdir()) == sorted({source.name, target.name})


def with_a_nine(shape=SHAPE, dtype=np.uint8) -> np.ndarray:
    voxels = noise(shape, dtype)
    voxels[(1, 2, 4)[-len(shape) :]] = 9
    return voxels


@pytest.mark.parametrize(
    ("orientation", "turned_by"),
    [(orientation, (0, 0.3, np.pi / 4)[number % 3]) for number, orientation in enumerate(ORIENTATIONS)],
)
def test_voxels_are_written_where_they_were(tmp_path, orientation, turned_by):
    source = write(tmp_path / "a.nrrd", with_a_nine(), orientation, turned_by)
    check_one_voxel_goes(SegmentationFiles(".nrrd"), source, tmp_path / "b.nrrd")


@pytest.mark.parametrize("orientation", ["RAS", "PIR", "LAS", "LPS"])
@pytest.mark.parametrize(
    ("ending", "reader"),
    [
        (".nii.gz", "SimpleITKIO"),
        (".nii.gz", "SimpleITKIOWithReorient"),
        (".nii.gz", "NibabelIO"),
        (".nii.gz", "NibabelIOWithReorient"),
        (".nii", None),
        (".mha", None),
    ],
)
def test_voxels_are_written_where_they_were_through_every_reader(tmp_path, orientation, ending, reader):
    source = write(tmp_path / f"a{ending}", with_a_nine(), orientation, 0.3)
    check_one_voxel_goes(SegmentationFiles(ending, reader), source, tmp_path / f"b{ending}")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_type_of_the_voxels_is_kept(tmp_path, dtype):
    source = write(tmp_path / "a.nii.gz", with_a_nine(dtype=dtype), "PIR")
    check_one_voxel_goes(SegmentationFiles(".nii.gz"), source, tmp_path / "b.nii.gz")
    assert raw(tmp_path / "b.nii.gz").dtype == dtype


def test_flat_image_is_written(tmp_path):
    source = write(tmp_path / "a.nii.gz", with_a_nine((5, 6)))
    check_one_voxel_goes(SegmentationFiles(".nii.gz"), source, tmp_path / "b.nii.gz")


def test_picture_is_written(tmp_path):
    io.imsave(tmp_path / "a.png", noise((5, 6)), check_contrast=False)
    files = SegmentationFiles(".png")
    segmentation = files.read(tmp_path / "a.png")
    files.write(segmentation.voxels // 2, segmentation, tmp_path / "b.png")
    np.testing.assert_array_equal(io.imread(tmp_path / "b.png"), noise((5, 6)) // 2)


def test_skewed_file_keeps_its_axes(tmp_path):
    source = write_skewed(tmp_path / "a.nii.gz", noise())
    files = SegmentationFiles(".nii.gz", "NibabelIO")
    segmentation = files.read(source)
    files.write(segmentation.voxels // 2, segmentation, tmp_path / "b.nii.gz")
    written = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(written.affine, nibabel.load(source).affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(written.dataobj).transpose(2, 1, 0), noise() // 2)


@pytest.mark.parametrize("orientation", ["RAS", "PIR"])
def test_nothing_is_left_of_what_cannot_be_written(tmp_path, orientation):
    files = SegmentationFiles(".nii.gz")
    segmentation = files.read(write(tmp_path / "a.nii.gz", noise(), orientation))
    with pytest.raises(OSError, match=r"could not be written|No such file"):
        files.write(segmentation.voxels, segmentation, tmp_path / "missing" / "b.nii.gz")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.nii.gz"]


# nnU-Net's stacks of TIFF: their spacing is in a file beside them


@pytest.fixture
def stack(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(), photometric="minisblack")
    (tmp_path / "a.json").write_text('{"spacing": [0.7, 0.5, 0.4]}')
    return tmp_path / "a.tif"


@pytest.mark.filterwarnings("ignore:.*stored as RGB:DeprecationWarning")  # about how nnU-Net calls tifffile
def test_stack_keeps_its_spacing(stack):
    files = SegmentationFiles(".tif", "Tiff3DIO")
    segmentation = files.read(stack)
    assert segmentation.spacing_mm == SPACING_MM
    files.write(segmentation.voxels // 2, segmentation, stack.with_name("b.tif"))
    written = files.read(stack.with_name("b.tif"))
    np.testing.assert_array_equal(written.voxels, noise() // 2)
    assert written.spacing_mm == SPACING_MM
    assert sorted(entry.name for entry in stack.parent.iterdir()) == ["a.json", "a.tif", "b.json", "b.tif"]


def test_copy_of_a_stack_keeps_its_spacing(stack):
    files = SegmentationFiles(".tif", "Tiff3DIO")
    files.copy(stack, stack.with_name("b.tif"))
    assert stack.with_name("b.tif").read_bytes() == stack.read_bytes()
    assert files.read(stack.with_name("b.tif")).spacing_mm == SPACING_MM


def test_copy_is_the_file_itself(tmp_path):
    source = write(tmp_path / "a.nii.gz", noise(), "PIR")
    (tmp_path / "a.nii.json").touch()
    SegmentationFiles(".nii.gz").copy(source, tmp_path / "b.nii.gz")
    assert (tmp_path / "b.nii.gz").read_bytes() == source.read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.nii.gz", "a.nii.json", "b.nii.gz"]


# Softmax outputs


def softmax(shape, classes=4) -> np.ndarray:
    logits = np.random.default_rng(1).normal(size=(classes, *shape)) * 3
    return (np.exp(logits) / np.exp(logits).sum(0)).astype(np.float32)


def predict(folder: Path, reader, image: Path, ending=".nii.gz", dtype=np.float32) -> Path:
    """What nnU-Net writes for an image with --save_probabilities."""
    voxels, properties = reader.read_images([str(image)])
    probabilities = softmax(voxels.shape[1:]).astype(dtype)
    prediction = folder / f"prediction{ending}"
    reader.write_seg(probabilities.argmax(0), str(prediction), properties)
    np.savez_compressed(folder / "prediction.npz", probabilities=probabilities)
    return prediction


@pytest.mark.parametrize("reader", [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize("orientation", ["RAS", "PIR", "LPS", "SRA"])
@pytest.mark.parametrize("shape", [SHAPE, (5, 5, 5)])
def test_softmax_lies_where_the_segmentation_does(tmp_path, reader, orientation, shape):
    image = write(tmp_path / "image.nii.gz", noise(shape, np.int16, 500), orientation)
    prediction = predict(tmp_path, reader(), image)
    files = SegmentationFiles(".nii.gz", reader.__name__)
    segmentation = files.read(prediction)
    channels = [files.in_order(c, segmentation) for c in probability_channels(tmp_path / "prediction.npz", 4)]
    np.testing.assert_array_equal(np.argmax(channels, axis=0), segmentation.voxels)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_softmax_of_any_type_is_turned(tmp_path, dtype):
    image = write(tmp_path / "image.nii.gz", noise(), "PIR")
    prediction = predict(tmp_path, SimpleITKIO(), image, dtype=dtype)
    files = SegmentationFiles(".nii.gz")
    segmentation = files.read(prediction)
    channels = [files.in_order(c, segmentation) for c in probability_channels(tmp_path / "prediction.npz", 4)]
    np.testing.assert_array_equal(np.argmax(channels, axis=0), segmentation.voxels)


@pytest.mark.parametrize("ending", [".png", ".nii.gz"])
def test_softmax_of_a_flat_image(tmp_path, ending):
    image = tmp_path / f"image{ending}"
    files = SegmentationFiles(ending)
    if ending == ".png":
        io.imsave(image, noise((5, 6)), check_contrast=False)
    else:
        write(image, noise((5, 6)))
    segmentation = files.read(predict(tmp_path, files.reader_class(), image, ending))
    channels = [files.in_order(c, segmentation) for c in probability_channels(tmp_path / "prediction.npz", 4)]
    np.testing.assert_array_equal(np.argmax(channels, axis=0), segmentation.voxels)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO"])
@pytest.mark.parametrize("shape", [(4, 5, 7), (4, 6, 5), (6, 4, 5)])
def test_softmax_of_another_shape_is_refused(tmp_path, reader, shape):
    files = SegmentationFiles(".nii.gz", reader)
    # Turned to RAS, its array has the shape (5, 6, 4) or (6, 4, 5); as in the file it is (4, 5, 6).
    segmentation = files.read(write(tmp_path / "a.nii.gz", noise(), "PIR"))
    if files.turned and shape == segmentation.voxels.shape:
        return
    with pytest.raises(ValueError, match="its shape is"):
        files.in_order(np.zeros(shape, np.float32), segmentation)


def save_softmax(path: Path, probabilities: np.ndarray, key="probabilities", compressed=True) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **{key: probabilities})
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compressed", [True, False])
def test_channels_come_class_by_class(tmp_path, dtype, order, compressed):
    probabilities = np.array(softmax(SHAPE), dtype=dtype, order=order)
    channels = list(probability_channels(save_softmax(tmp_path / "a.npz", probabilities, compressed=compressed), 4))
    assert len(channels) == 4
    np.testing.assert_array_equal(channels, probabilities)
    assert {channel.dtype for channel in channels} == {probabilities.dtype.newbyteorder("=")}


def test_sums_that_are_rounded_up_are_no_error(tmp_path):
    probabilities = np.full((2, *SHAPE), 1.0005, np.float16)
    assert len(list(probability_channels(save_softmax(tmp_path / "a.npz", probabilities), 2))) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_that_are_no_probabilities(tmp_path, value, order):
    probabilities = np.array(softmax(SHAPE), order=order)
    probabilities[3, 1, 2, 3] = value
    with pytest.raises(UserError, match=r"a\.npz .*it holds NaN or numbers out of \[0, 1\]"):
        list(probability_channels(save_softmax(tmp_path / "a.npz", probabilities), 4))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_softmax_that_is_cut_short(tmp_path, share, compressed):
    path = save_softmax(tmp_path / "a.npz", softmax((10, 12, 14)), compressed=compressed)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(UserError, match=r"a\.npz cannot be read as nnU-Net's softmax output"):
        list(probability_channels(path, 4))


@pytest.mark.parametrize("place", [0, 100, 110, 130, 300, 2000, 3000, -300, -20])
@pytest.mark.parametrize("compressed", [True, False])
def test_softmax_that_is_damaged(tmp_path, place, compressed):
    path = save_softmax(tmp_path / "a.npz", softmax((10, 12, 14)).round(2), compressed=compressed)
    content = bytearray(path.read_bytes())
    damaged = slice(place, place + 4)
    content[damaged] = bytes(255 - value for value in content[damaged])
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz .*predict the case again"):
        list(probability_channels(path, 4))


@pytest.mark.parametrize("order", ["C", "F"])
def test_array_of_another_length_than_it_says(tmp_path, order):
    np.save(tmp_path / "probabilities.npy", np.array(softmax(SHAPE), order=order))
    content = (tmp_path / "probabilities.npy").read_bytes()
    for changed in (content[:-100], content + bytes(100)):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("probabilities.npy", changed)
        with pytest.raises(UserError, match="predict the case again"):
            list(probability_channels(tmp_path / "a.npz", 4))


@pytest.mark.parametrize("num_classes", [3, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_softmax_of_another_number_of_classes(tmp_path, order, num_classes):
    path = save_softmax(tmp_path / "a.npz", np.array(softmax(SHAPE), order=order))
    told = rf"a\.npz holds the softmax output of 4 classes and dataset\.json has {num_classes}, background"
    with pytest.raises(UserError, match=told):
        next(probability_channels(path, num_classes))


def test_other_files_are_no_softmax(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "array.npy", softmax(SHAPE))
    save_softmax(tmp_path / "key.npz", softmax(SHAPE), key="softmax")
    for name in ("text.npz", "array.npy", "key.npz"):
        with pytest.raises(UserError, match=rf"{name} cannot be read as nnU-Net's softmax output"):
            list(probability_channels(tmp_path / name, 4))
    with pytest.raises(UserError, match=r"missing\.npz is no file; expected nnU-Net's softmax output"):
        list(probability_channels(tmp_path / "missing.npz", 4))


@pytest.mark.parametrize("array", [np.zeros(SHAPE, np.float32), np.zeros((2, *SHAPE), np.uint8), np.array(None)])
def test_arrays_that_are_no_softmax(tmp_path, array):
    with pytest.raises(UserError, match=r"not floats of shape \(K, Z, Y, X\)"):
        list(probability_channels(save_softmax(tmp_path / "a.npz", array), 2))


def test_letters_of_the_tests():
    assert len(set(ORIENTATIONS)) == 48
    assert all(np.add(STEPS[letter], STEPS[OPPOSITE[letter]]).tolist() == [0, 0, 0] for letter in STEPS)
