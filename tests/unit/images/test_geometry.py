from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_anomaly.images.geometry import to_original_grid, write_volume

SPACING_MM = (0.7, 1.1, 2.0)  # x, y, z, as SimpleITK counts
SIZE = (7, 9, 11)  # x, y, z
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


def rotation(degrees, axis):
    """Rotation matrix about one of the three axes."""
    angle = np.deg2rad(degrees)
    matrix = np.eye(3)
    others = [index for index in range(3) if index != axis]
    matrix[np.ix_(others, others)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


#: sagittal slices, as knees are imaged, tilted a little about two axes, and with a flipped axis
SAGITTAL = rotation(12, 0) @ rotation(-8, 2) @ np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]])


def make_plans(reader, spacing, transpose_forward=(0, 1, 2), shape=SIZE[::-1]):
    """Plans that resample to a spacing (in transposed axes) with nnU-Net's default functions."""
    configuration = {
        "data_identifier": "none",
        "architecture": {},
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": list(shape)[-len(spacing) :],
        "spacing": list(spacing),
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**RESAMPLING, "order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": dict(RESAMPLING),
    }
    return PlansManager(
        {
            "plans_name": "nnUNetPlans",
            "image_reader_writer": reader,
            "transpose_forward": list(transpose_forward),
            "transpose_backward": [int(axis) for axis in np.argsort(transpose_forward)],
            "foreground_intensity_properties_per_channel": {"0": {}},
            "configurations": {"one": configuration},
        }
    )


def preprocess(files, plans):
    configuration = plans.get_configuration("one")
    dataset_json = {"labels": {"background": 0, "bone": 1}, "file_ending": ".nii.gz"}
    data, _, properties = DefaultPreprocessor(verbose=False).run_case(
        [str(file) for file in files], None, plans, configuration, dataset_json
    )
    return np.asarray(data, dtype=np.float32), properties, configuration


@pytest.fixture
def oblique_image(tmp_path):
    """A file with tilted axes, whose border of zeros nnU-Net crops away, and its voxels (z, y, x)."""
    voxels = np.zeros(SIZE[::-1], np.float32)
    voxels[2:9, 1:8, 2:6] = np.random.default_rng(0).uniform(1, 2, (7, 7, 4)).astype(np.float32)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING_MM)
    image.SetOrigin((-31.5, 12.25, 107.0))
    image.SetDirection(SAGITTAL.flatten().tolist())
    path = tmp_path / "knee_0000.nii.gz"
    sitk.WriteImage(image, str(path))
    return path, voxels


READERS = ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"]


def spacing_seen_by(path, reader, transpose_forward=(0, 1, 2)):
    _, properties = make_plans(reader, (1, 1, 1)).image_reader_writer_class().read_images([str(path)])
    return [float(properties["spacing"][axis]) for axis in transpose_forward]


@pytest.mark.parametrize("transpose_forward", [(0, 1, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("reader", READERS)
def test_written_volume_has_the_voxels_and_the_geometry_of_the_image(
    oblique_image, tmp_path, reader, transpose_forward
):
    path, voxels = oblique_image
    plans = make_plans(reader, spacing_seen_by(path, reader, transpose_forward), transpose_forward)
    data, properties, configuration = preprocess([path], plans)
    assert data.size == 7 * 7 * 4  # nnU-Net did crop
    restored = to_original_grid(data, properties, plans, configuration)
    assert restored.dtype == np.float32
    target = tmp_path / "knee_error.nii.gz"
    write_volume(restored[0], properties, target)
    original, written = sitk.ReadImage(str(path)), sitk.ReadImage(str(target))
    assert written.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_allclose(sitk.GetArrayFromImage(written), voxels, atol=1e-6)
    np.testing.assert_allclose(written.GetSpacing(), original.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(written.GetOrigin(), original.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(written.GetDirection(), original.GetDirection(), atol=1e-5)
    np.testing.assert_allclose(nibabel.load(target).affine, nibabel.load(path).affine, atol=1e-4)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("part_")] == []


@pytest.mark.parametrize("reader", READERS)
def test_volume_of_another_spacing_is_resampled_to_the_images_own_size(oblique_image, reader):
    path, _ = oblique_image
    plans = make_plans(reader, (1.5, 1.5, 1.5))
    data, properties, configuration = preprocess([path], plans)
    ones = np.ones_like(data)
    restored = to_original_grid(ones, properties, plans, configuration)
    raw, _ = plans.image_reader_writer_class().read_images([str(path)])
    assert restored.shape == raw.shape
    np.testing.assert_allclose(restored[raw > 0], 1, atol=1e-5)
    box = np.ix_(*(np.flatnonzero(raw[0].any(tuple({0, 1, 2} - {axis}))) for axis in range(3)))
    outside = np.ones(raw[0].shape, bool)
    outside[box] = False
    assert (restored[0][outside] == 0).all()  # cropped away


def test_every_channel_is_restored(oblique_image):
    path, _ = oblique_image
    plans = make_plans("SimpleITKIO", spacing_seen_by(path, "SimpleITKIO"))
    data, properties, configuration = preprocess([path], plans)
    both = to_original_grid(np.concatenate((data, -2 * data)), properties, plans, configuration)
    assert both.shape == (2, *SIZE[::-1])
    np.testing.assert_allclose(both[1], -2 * both[0], atol=1e-6)


def test_2d_configuration_does_not_resample_between_slices(oblique_image):
    path, _ = oblique_image
    plans = make_plans("SimpleITKIO", (1.5, 1.5))
    data, properties, configuration = preprocess([path], plans)
    assert data.shape[1] == 7
    data = np.broadcast_to(np.arange(7, dtype=np.float32)[None, :, None, None], data.shape).copy()
    restored = to_original_grid(data, properties, plans, configuration)
    np.testing.assert_allclose(restored[0, 2:9, 4, 3], np.arange(7), atol=1e-5)


def test_two_dimensional_image_is_written_as_one(tmp_path):
    pixels = np.random.default_rng(0).uniform(1, 2, (6, 8)).astype(np.float32)
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing((0.5, 0.8))
    image.SetOrigin((3.0, -4.0))
    path = tmp_path / "slice_0000.nii.gz"
    sitk.WriteImage(image, str(path))
    plans = make_plans("SimpleITKIO", (0.8, 0.5), shape=(1, 6, 8))
    data, properties, configuration = preprocess([path], plans)
    restored = to_original_grid(data, properties, plans, configuration)
    write_volume(restored[0], properties, tmp_path / "slice_error.nii.gz")
    written = sitk.ReadImage(str(tmp_path / "slice_error.nii.gz"))
    assert written.GetDimension() == 2
    np.testing.assert_allclose(sitk.GetArrayFromImage(written), pixels, atol=1e-6)
    np.testing.assert_allclose(written.GetSpacing(), (0.5, 0.8), atol=1e-6)
    np.testing.assert_allclose(written.GetOrigin(), (3.0, -4.0), atol=1e-6)


def test_channel_of_a_file_with_several_is_written_without_their_axis(oblique_image, tmp_path):
    path, voxels = oblique_image
    image = sitk.ReadImage(str(path))
    both = tmp_path / "both_0000.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([image, 2 * image]), str(both))
    data, properties = SimpleITKIO().read_images([str(both)])
    write_volume(data[1], properties, tmp_path / "both_error_0001.nii.gz")
    written = sitk.ReadImage(str(tmp_path / "both_error_0001.nii.gz"))
    np.testing.assert_allclose(sitk.GetArrayFromImage(written), 2 * voxels, atol=1e-6)
    np.testing.assert_allclose(written.GetSpacing(), image.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(written.GetOrigin(), image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-5)


def test_image_without_a_geometry_gets_its_spacing_alone(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / "photo_0000.png"))
    data, properties = NaturalImage2DIO().read_images([str(tmp_path / "photo_0000.png")])
    write_volume(data[0], properties, tmp_path / "photo_error.nii.gz")
    written = sitk.ReadImage(str(tmp_path / "photo_error.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written).squeeze(), pixels)
    assert written.GetSpacing()[:2] == (1.0, 1.0)


def test_failure_while_writing_leaves_the_last_good_file(tmp_path, monkeypatch):
    target = tmp_path / "knee_error.nii.gz"
    properties = {"spacing": [1.0, 1.0, 1.0]}
    write_volume(np.ones((2, 3, 4), np.float32), properties, target)
    before = target.read_bytes()

    def fail(image, name, *options):
        with open(name, "wb") as file:
            file.write(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr("nnunetv2_anomaly.images.files.sitk", SimpleNamespace(**{**vars(sitk), "WriteImage": fail}))
    with pytest.raises(OSError, match="disk full"):
        write_volume(np.zeros((2, 3, 4), np.float32), properties, target)
    assert target.read_bytes() == before
