"""Which files of a folder are the images of which case; whole runs are in tests/trainers."""

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage import io

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.prediction.cases import list_cases, read_case

GREY, COLOUR = np.zeros((5, 6), np.uint8), np.zeros((5, 6, 3), np.uint8)


def pictures(folder, **files):
    """Writes CASE_CHANNEL=pixels."""
    for name, pixels in files.items():
        io.imsave(folder / f"{name}.png", pixels, check_contrast=False)


def names(cases):
    return {case.case: [name.rpartition("/")[2] for name in case.files] for case in cases}


def channels(folder, ending, reader):
    """Case -> what its image is read as."""
    expected = {"a": 2, "b": 2} if ending == ".nii.gz" else {"a": 3, "b": 6}
    return {case.case: read_case(reader, case, expected[case.case])[0] for case in list_cases(folder, ending)}


def test_cases_are_the_images_with_their_channels(tmp_path):
    pictures(tmp_path, a_0000=GREY, a_0001=GREY, b_0000=GREY, b_0001=GREY)
    assert names(list_cases(tmp_path, ".png")) == {
        "a": ["a_0000.png", "a_0001.png"],
        "b": ["b_0000.png", "b_0001.png"],
    }


def test_what_a_killed_run_left_half_written_is_no_case(tmp_path):
    pictures(tmp_path, a_0000=GREY, part_of_nnunetv2_anomaly_12_b_0000=GREY, part_of_b_0000=GREY)
    assert names(list_cases(tmp_path, ".png")) == {"a": ["a_0000.png"], "part_of_b": ["part_of_b_0000.png"]}


def test_channels_of_a_colour_image_count_one_by_one(tmp_path):
    pictures(tmp_path, a_0000=COLOUR, b_0000=COLOUR, b_0001=COLOUR)
    read = channels(tmp_path, ".png", NaturalImage2DIO())
    assert {case: voxels.shape for case, voxels in read.items()} == {"a": (3, 1, 5, 6), "b": (6, 1, 5, 6)}


def test_channels_of_a_volume_with_a_fourth_axis_count_one_by_one(tmp_path):
    volume = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.float32))
    sitk.WriteImage(sitk.JoinSeries([volume, volume]), str(tmp_path / "a_0000.nii.gz"))
    assert channels(tmp_path, ".nii.gz", SimpleITKIO())["a"].shape == (2, 4, 5, 6)


@pytest.mark.parametrize(
    ("files", "expected", "told"),
    [
        ({"b_0000": GREY}, 3, r"case b in .* has 1 channel\(s\); expected 3"),
        ({"a_0000": COLOUR}, 2, r"case a in .* has 3 channel\(s\); expected 2"),
        ({"a_0000": GREY, "a_0001": GREY}, 1, r"case a in .* has 2 channel\(s\); expected 1"),
    ],
)
def test_another_number_of_channels_is_told(tmp_path, files, expected, told):
    pictures(tmp_path, **files)
    (case,) = list_cases(tmp_path, ".png")
    with pytest.raises(UserError, match=told):
        read_case(NaturalImage2DIO(), case, expected)


def test_pictures_that_cannot_be_read_together_are_told(tmp_path):
    pictures(tmp_path, a_0000=COLOUR, a_0001=GREY)  # nnU-Net's reader wants one kind of files
    (case,) = list_cases(tmp_path, ".png")
    with pytest.raises(UserError, match=r"a_0000\.png, a_0001\.png cannot be read as one image \(see above\)"):
        read_case(NaturalImage2DIO(), case, 4)


def test_picture_that_cannot_be_read_is_told(tmp_path):
    pictures(tmp_path, a_0000=COLOUR)
    (tmp_path / "a_0000.png").write_bytes((tmp_path / "a_0000.png").read_bytes()[:30])
    (case,) = list_cases(tmp_path, ".png")
    with pytest.raises(UserError, match=r"a_0000\.png cannot be read as one image"):
        read_case(NaturalImage2DIO(), case, 3)


def test_a_channel_that_is_not_there_is_told(tmp_path):
    pictures(tmp_path, a_0001=GREY)
    (case,) = list_cases(tmp_path, ".png")
    with pytest.raises(UserError, match=r"case a in .* has the files a_0001\.png; expected a_0000\.png"):
        read_case(NaturalImage2DIO(), case, 1)


def test_files_without_a_channel_number_are_told(tmp_path):
    pictures(tmp_path, a_0000=GREY, overview=GREY)
    with pytest.raises(UserError, match=r"without a channel number: overview\.png; expected names like case_0000\.png"):
        list_cases(tmp_path, ".png")


def test_folder_without_images_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no image in .* ends with _0000\.png"):
        list_cases(tmp_path, ".png")
    with pytest.raises(UserError, match="does not exist"):
        list_cases(tmp_path / "missing", ".png")
