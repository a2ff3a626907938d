"""Images that nnUNetv2_predict can take are linked, and the others named; whole workflows are in tests/chain."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_anomaly.command_line.main import main

NAME = "Dataset777_TwoChannels"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Images of two channels, sound and not, and the data set's plans."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable / NAME).mkdir(parents=True)
    planned, images = tmp_path / "nnUNet_preprocessed" / NAME, tmp_path / "images"
    dataset = {"channel_names": {"0": "DESS", "1": "T2"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    (planned / "dataset.json").write_text(json.dumps(dataset))
    (planned / "nnUNetPlans.json").write_text(json.dumps({"image_reader_writer": "SimpleITKIO"}))
    images.mkdir()
    for case in ("cut", "infinite", "lacking", "other", "sound_a", "sound_b"):
        for channel in range(2):
            voxels = np.full((4, 5, 6 + (case == "other" and channel)), channel, np.float32)
            if case == "infinite":
                voxels[0, 0, 0] = np.inf
            sitk.WriteImage(sitk.GetImageFromArray(voxels), str(images / f"{case}_{channel:04d}.nii.gz"))
    (images / "lacking_0001.nii.gz").unlink()
    cut = images / "cut_0001.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-20])
    return tmp_path


def check(folders, *more):
    words = ["check_images", "-i", folders / "images", "-o", folders / "links", "-d", "777", "-np", "1", *more]
    return main(list(map(str, words)))


def linked(folders):
    return sorted(path.name for path in (folders / "links").iterdir())


def test_images_that_can_be_read_are_linked_and_the_others_named(folders, capsys):
    assert check(folders) == 3
    said = capsys.readouterr().err
    assert "4 of 6 cases could not be read" in said
    for case, why in {
        "cut": "cut_0001.nii.gz is cut short", "infinite": "holds infinite voxels or NaN",
        "lacking": "has 1 channel(s); expected 2", "other": "all channels with one size and spacing",
    }.items():  # fmt: skip
        assert why in next(line for line in said.splitlines() if line.startswith(f"  {case}: "))
    assert linked(folders) == [f"sound_{case}_{channel:04d}.nii.gz" for case in "ab" for channel in range(2)]
    link = folders / "links" / "sound_a_0000.nii.gz"
    assert link.read_bytes() == (folders / "images" / link.name).read_bytes()


def test_links_of_an_earlier_run_are_taken_away_and_nothing_else(folders):
    check(folders)
    (folders / "links" / "note.txt").touch()
    shutil.rmtree(folders / "images")
    (folders / "images").mkdir()
    for channel in range(2):
        sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 5, 6))), str(folders / f"images/new_{channel:04d}.nii.gz"))
    assert check(folders) == 0
    assert linked(folders) == ["new_0000.nii.gz", "new_0001.nii.gz", "note.txt"]


def test_what_a_format_keeps_beside_an_image_is_linked_with_it(folders):
    shutil.rmtree(folders / "images")
    (folders / "images").mkdir()
    planned = folders / "nnUNet_preprocessed" / NAME / "dataset.json"
    planned.write_text(planned.read_text().replace(".nii.gz", ".mhd"))
    for case in ("knee1", "knee10"):
        for channel in range(2):
            image = sitk.GetImageFromArray(np.ones((4, 5, 6)))
            sitk.WriteImage(image, str(folders / f"images/{case}_{channel:04d}.mhd"))
    (folders / "images" / "knee1.json").write_text("{}")
    assert check(folders, "-num_parts", "2", "-part_id", "0") == 0
    files = [f"knee1_{channel:04d}.{ending}" for channel in range(2) for ending in ("mhd", "raw")]
    assert linked(folders) == ["knee1.json", *files]
    assert sitk.ReadImage(str(folders / "links" / "knee1_0000.mhd")).GetSize() == (6, 5, 4)


def test_a_part_links_its_own_share_and_may_have_none(folders, capsys):
    assert check(folders, "-num_parts", "3", "-part_id", "1") == 3  # infinite and sound_a
    assert linked(folders) == ["sound_a_0000.nii.gz", "sound_a_0001.nii.gz"]
    assert check(folders, "-num_parts", "9", "-part_id", "8") == 0
    assert linked(folders) == []
    assert "0 cases linked" in capsys.readouterr().out


def test_a_data_set_without_plans_is_refused(folders, capsys):
    assert check(folders, "-p", "OtherPlans") == 1
    assert "OtherPlans.json" in capsys.readouterr().err
