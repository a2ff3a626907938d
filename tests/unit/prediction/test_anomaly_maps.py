"""Which files of a folder are the images of which case; whole runs are in tests/trainers."""

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage import io

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.prediction import anomaly_maps
from nnunetv2_anomaly.prediction.anomaly_maps import list_cases

GREY, COLOUR = np.zeros((5, 6), np.uint8), np.zeros((5, 6, 3), np.uint8)


def pictures(folder, **files):
    """Writes CASE_CHANNEL=pixels."""
    for name, pixels in files.items():
        io.imsave(folder / f"{name}.png", pixels, check_contrast=False)


def names(cases):
    return {case: [name.rpartition("/")[2] for name in files] for case, files in cases.items()}


def test_a_file_per_channel_is_not_read(tmp_path, monkeypatch):
    pictures(tmp_path, a_0000=GREY, a_0001=GREY, b_0000=GREY, b_0001=GREY)
    monkeypatch.setattr(anomaly_maps, "_read", lambda *arguments: pytest.fail("it was read"))
    cases = list_cases(tmp_path, ".png", 2, NaturalImage2DIO())
    assert names(cases) == {"a": ["a_0000.png", "a_0001.png"], "b": ["b_0000.png", "b_0001.png"]}


def test_channels_of_a_colour_image_count_one_by_one(tmp_path):
    pictures(tmp_path, a_0000=COLOUR)
    assert names(list_cases(tmp_path, ".png", 3, NaturalImage2DIO())) == {"a": ["a_0000.png"]}
    pictures(tmp_path, a_0001=COLOUR)
    assert names(list_cases(tmp_path, ".png", 6, NaturalImage2DIO())) == {"a": ["a_0000.png", "a_0001.png"]}


def test_channels_of_a_volume_with_a_fourth_axis_count_one_by_one(tmp_path):
    volume = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.float32))
    sitk.WriteImage(sitk.JoinSeries([volume, volume]), str(tmp_path / "a_0000.nii.gz"))
    assert names(list_cases(tmp_path, ".nii.gz", 2, SimpleITKIO())) == {"a": ["a_0000.nii.gz"]}


@pytest.mark.parametrize(
    ("files", "expected", "told"),
    [
        ({"a_0000": COLOUR, "b_0000": GREY}, 3, r"case b in .* has 1 channel\(s\); expected 3"),
        ({"a_0000": COLOUR}, 2, r"case a in .* has 3 channel\(s\); expected 2"),
        ({"a_0000": GREY, "a_0001": GREY}, 1, r"case a in .* has 2 channel\(s\); expected 1"),
    ],
)
def test_another_number_of_channels_is_told(tmp_path, files, expected, told):
    pictures(tmp_path, **files)
    with pytest.raises(UserError, match=told):
        list_cases(tmp_path, ".png", expected, NaturalImage2DIO())


def test_pictures_that_cannot_be_read_together_are_told(tmp_path):
    pictures(tmp_path, a_0000=COLOUR, a_0001=GREY)  # nnU-Net's reader wants one kind of files
    with pytest.raises(UserError, match=r"a_0000\.png, a_0001\.png cannot be read as one image \(see above\)"):
        list_cases(tmp_path, ".png", 4, NaturalImage2DIO())


def test_picture_that_cannot_be_read_is_told(tmp_path):
    pictures(tmp_path, a_0000=COLOUR)
    (tmp_path / "a_0000.png").write_bytes((tmp_path / "a_0000.png").read_bytes()[:30])
    with pytest.raises(UserError, match=r"a_0000\.png cannot be read as one image"):
        list_cases(tmp_path, ".png", 3, NaturalImage2DIO())


def test_a_channel_that_is_not_there_is_told(tmp_path):
    pictures(tmp_path, a_0001=GREY)
    with pytest.raises(UserError, match=r"case a in .* has the files a_0001\.png; expected a_0000\.png"):
        list_cases(tmp_path, ".png", 1, NaturalImage2DIO())


def test_files_without_a_channel_number_are_told(tmp_path):
    pictures(tmp_path, a_0000=GREY, overview=GREY)
    with pytest.raises(UserError, match=r"without a channel number: overview\.png; expected names like case_0000\.png"):
        list_cases(tmp_path, ".png", 1, NaturalImage2DIO())


def test_folder_without_images_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no image in .* ends with _0000\.png"):
        list_cases(tmp_path, ".png", 1, NaturalImage2DIO())
    with pytest.raises(UserError, match="does not exist"):
        list_cases(tmp_path / "missing", ".png", 1, NaturalImage2DIO())
