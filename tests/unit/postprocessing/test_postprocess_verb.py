import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from skimage import io

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.labels import LABELS

BONE, CARTILAGE, LESION = 1, 2, 7
#: of array axes
SPACING_MM = (2.0, 1.0, 0.5)


def knee() -> np.ndarray:
    """(Z, Y, X): a block of bone of 4 x 6 x 6 voxels in a corner, and a long way beside it."""
    voxels = np.zeros((6, 8, 70), np.uint8)
    voxels[:4, :6, :6] = BONE
    return voxels


#: the paper's limit
FIFTY = ("--max_distance_voxels", "50")


def with_a_fragment(gap: int) -> np.ndarray:
    """A cartilage voxel that is so far from the rest of it."""
    voxels = knee()
    voxels[0, 6, :6] = CARTILAGE
    voxels[0, 6, 5 + gap] = CARTILAGE
    return voxels


def write(path: Path, voxels: np.ndarray, orientation="RAS") -> Path:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING_MM[::-1])
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    image.SetOrigin((1.5, 2.5, 3.5))
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path), True)
    return path


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS"))


def describe(folder: Path, labels=LABELS, file_ending=".nii.gz", **more) -> None:
    folder.mkdir(exist_ok=True)
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": file_ending, **more}
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def predictions(tmp_path) -> Path:
    """What nnUNetv2_predict leaves, without a case."""
    folder = tmp_path / "predictions"
    describe(folder)
    (folder / "plans.json").write_text('{"image_reader_writer": "SimpleITKIO"}')
    return folder


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "cleaned"


@pytest.fixture
def postprocess(predictions, output):
    """Function that runs the verb on both folders, in this process, with more words and the paper's limit."""

    def run(*words: str, i=predictions, o=output) -> int:
        if not any(word.startswith("--max_distance") for word in words):
            words = (*words, *FIFTY)
        return main(["postprocess", "-i", str(i), "-o", str(o), "-np", "1", *words])

    return run


def rows(output: Path) -> pd.DataFrame:
    return pd.read_csv(output / "removed.csv").set_index(["case", "label"])


# What is cleaned


@pytest.mark.parametrize(("gap", "stays"), [(49, True), (51, False)])
def test_fragment_goes_beyond_fifty_voxels(postprocess, predictions, output, gap, stays):
    write(predictions / "a.nii.gz", with_a_fragment(gap))
    assert postprocess() == 0
    assert read(output / "a.nii.gz")[0, 6, 5 + gap] == (CARTILAGE if stays else 0)


def test_case_with_a_name_like_a_formula_is_none_in_the_table(postprocess, predictions, output):
    write(predictions / "=1+1.nii.gz", with_a_fragment(51))
    assert postprocess() == 0
    assert set(rows(output).index.get_level_values("case")) == {"'=1+1"}


def test_what_goes_is_told_case_by_case_and_label_by_label(postprocess, predictions, output, capsys):
    voxels = with_a_fragment(55)
    voxels[1, 2, 1:4] = LESION  # 3 mm3 within the bone
    voxels[5, 7, 20:22] = LESION  # 2 mm3 in the open
    voxels[3, 0, 40:47] = LESION  # 7 mm3
    write(predictions / "a.nii.gz", voxels)
    write(predictions / "b.nii.gz", knee())
    assert postprocess() == 0
    table = rows(output)
    assert list(table.index[table["removed_components"] > 0]) == [("a", "femoral_cartilage"), ("a", "femoral_lesion")]
    cartilage, lesion, bone = (table.loc["a", f"femoral_{part}"] for part in ("cartilage", "lesion", "bone"))
    assert (cartilage["value"], cartilage["components"], cartilage["removed_components"]) == (2, 2, 1)
    assert (cartilage["removed_voxels"], cartilage["removed_mm3"]) == (1, 1.0)
    assert (cartilage["smallest_removed_distance"], cartilage["distance_unit"]) == (55, "voxels")
    assert (lesion["components"], lesion["removed_components"], lesion["removed_voxels"]) == (3, 2, 5)
    assert lesion["removed_mm3"] == 5.0
    assert lesion["became"] == "0 1"
    assert np.isnan(lesion["smallest_removed_distance"])
    assert (bone["components"], bone["removed_components"]) == (1, 0)
    assert "2 cases cleaned, 1 changed;" in capsys.readouterr().out
    cleaned = read(output / "a.nii.gz")
    assert cleaned[1, 2, 1:4].tolist() == [BONE] * 3
    assert (cleaned == LESION).sum() == 7


def test_nearest_of_what_went_is_told(postprocess, predictions, output):
    voxels = with_a_fragment(52)
    voxels[0, 6, 61] = CARTILAGE
    write(predictions / "a.nii.gz", voxels)
    assert postprocess() == 0
    cartilage = rows(output).loc["a", "femoral_cartilage"]
    assert (cartilage["removed_components"], cartilage["smallest_removed_distance"]) == (2, 52)


def test_every_label_of_every_case_has_a_row(postprocess, predictions, output):
    write(predictions / "a.nii.gz", knee())
    write(predictions / "b.nii.gz", np.zeros((3, 4, 5), np.uint8))
    assert postprocess() == 0
    table = rows(output)
    assert list(table.index) == [(case, name) for case in "ab" for name in list(LABELS)[1:]]
    assert table["components"].tolist() == [1] + 17 * [0]
    assert (table["removed_voxels"] == 0).all()


def test_empty_segmentation_counts_as_a_case(postprocess, predictions, output, capsys):
    source = write(predictions / "a.nii.gz", np.zeros((3, 4, 5), np.uint8))
    assert postprocess() == 0
    assert "1 case cleaned, 0 changed;" in capsys.readouterr().out
    assert (output / "a.nii.gz").read_bytes() == source.read_bytes()


def test_untouched_case_is_byte_for_byte_the_same(postprocess, predictions, output):
    image = sitk.GetImageFromArray(with_a_fragment(30).astype(np.float32))
    image.SetMetaData("descrip", "as it was")
    sitk.WriteImage(image, str(predictions / "a.nii.gz"), True)
    assert postprocess() == 0
    assert (output / "a.nii.gz").read_bytes() == (predictions / "a.nii.gz").read_bytes()


@pytest.mark.parametrize("orientation", ["RAS", "PIR", "LPS"])
def test_pose_of_a_changed_case_is_kept(postprocess, predictions, output, orientation):
    source = write(predictions / "a.nii.gz", with_a_fragment(55), orientation)
    assert postprocess() == 0
    before, after = sitk.ReadImage(str(source)), sitk.ReadImage(str(output / "a.nii.gz"))
    np.testing.assert_allclose(after.GetDirection(), before.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(after.GetOrigin(), before.GetOrigin(), atol=1e-5)
    assert after.GetPixelID() == before.GetPixelID()
    expected = with_a_fragment(55)
    expected[0, 6, 60] = 0
    np.testing.assert_array_equal(read(output / "a.nii.gz"), expected)


def test_the_default_limit_is_35_mm(predictions, output):
    write(predictions / "a.nii.gz", with_a_fragment(55))  # 27.5 mm
    assert main(["postprocess", "-i", str(predictions), "-o", str(output), "-np", "1"]) == 0
    np.testing.assert_array_equal(read(output / "a.nii.gz"), with_a_fragment(55))
    assert json.loads((output / "postprocessing.json").read_text())["settings"]["max_distance_mm"] == 35


def test_limits_that_can_remove_nothing_are_told(postprocess, predictions, capsys):
    write(predictions / "a.nii.gz", with_a_fragment(20))
    assert postprocess("--max_distance_mm", "1000", "--min_lesion_volume_mm3", "0.001") == 0
    told = capsys.readouterr().out
    assert "WARNING: no voxels are farther apart than the largest distance, 1000 mm: nothing can be removed" in told
    assert "WARNING: a single voxel has the smallest volume of a lesion, 0.001 mm3: none can be too small" in told
    assert told.count("(1 case: a)") == 2


def test_limits_in_mm(postprocess, predictions, output):
    voxels = with_a_fragment(20)  # 10 mm
    voxels[0, 7, 67:] = LESION  # 3 mm3
    write(predictions / "a.nii.gz", voxels)
    assert postprocess("--max_distance_mm", "9.9", "--min_lesion_volume_mm3", "3") == 0
    cartilage = rows(output).loc["a", "femoral_cartilage"]
    assert (cartilage["smallest_removed_distance"], cartilage["distance_unit"]) == (10, "mm")
    assert (read(output / "a.nii.gz") == LESION).sum() == 3


def test_chosen_labels_alone_are_cleaned(postprocess, predictions, output):
    voxels = with_a_fragment(55)
    voxels[1, 2, 2] = LESION
    write(predictions / "a.nii.gz", voxels)
    assert postprocess("--anatomy", "femoral_bone", "--lesions", "none") == 0
    np.testing.assert_array_equal(read(output / "a.nii.gz"), voxels)
    other = output.with_name("other")
    assert postprocess("--anatomy", "none", "--lesions", "femoral_lesion=tibial_bone", o=other) == 0
    expected = voxels.copy()
    expected[1, 2, 2] = 0  # it touches no tibial bone
    np.testing.assert_array_equal(read(other / "a.nii.gz"), expected)


def test_cases_side_by_side_are_cleaned_as_one_after_another(postprocess, predictions, output, tmp_path):
    for number, gap in enumerate((10, 49, 51, 60)):
        write(predictions / f"case_{number}.nii.gz", with_a_fragment(gap))
    (predictions / "case_4.nii.gz").write_bytes(b"broken")
    assert postprocess() == 3
    assert postprocess("-np", "2", o=tmp_path / "two") == 3
    assert (tmp_path / "two" / "removed.csv").read_bytes() == (output / "removed.csv").read_bytes()
    for number in range(4):
        name = f"case_{number}.nii.gz"
        np.testing.assert_array_equal(read(tmp_path / "two" / name), read(output / name))


# Softmax outputs


@pytest.mark.parametrize("reader", [SimpleITKIO, SimpleITKIOWithReorient])
@pytest.mark.parametrize("orientation", ["RAS", "PIR"])
def test_uncertain_lesions_go(postprocess, predictions, output, reader, orientation):
    (predictions / "plans.json").write_text(json.dumps({"image_reader_writer": reader.__name__}))
    voxels = knee()
    voxels[1:3, 1:4, 1:5] = LESION  # 24 mm3
    voxels[5, 7, 20:32] = LESION  # 12 mm3
    # As nnU-Net does: the image in the reader's order of axes, and all that is made of it.
    image = write(predictions.parent / "image.nii.gz", voxels, orientation)
    labels, properties = reader().read_images([str(image)])
    labels = labels[0].astype(np.uint8)
    softmax = np.zeros((10, *labels.shape), np.float32)
    np.put_along_axis(softmax, labels[None].astype(np.intp), 0.9, axis=0)
    softmax[BONE][labels == 0] = 0.1
    softmax[0][labels != 0] = 0.1
    # The lesion in the open is uncertain. Where it is in space shows whether both orders of axes are the same.
    alone = np.zeros(knee().shape, bool)
    alone[5, 7, 20:32] = True
    place = sitk.GetImageFromArray(alone.astype(np.uint8))
    place.CopyInformation(sitk.DICOMOrient(sitk.ReadImage(str(image)), "RAS"))
    there = sitk.GetArrayFromImage(sitk.DICOMOrient(place, orientation if reader is SimpleITKIO else "RAS")) == 1
    softmax[LESION][there], softmax[0][there] = 0.6, 0.4
    reader().write_seg(labels, str(predictions / "a.nii.gz"), properties)
    np.savez_compressed(predictions / "a.npz", probabilities=softmax)
    assert postprocess("--lesion_probability", "0.7") == 0
    expected = voxels.copy()
    expected[alone] = 0
    np.testing.assert_array_equal(read(output / "a.nii.gz"), expected)
    lesion = rows(output).loc["a", "femoral_lesion"]
    assert (lesion["uncertain_voxels"], lesion["removed_components"]) == (12, 0)


def test_missing_softmax_is_told_before_anything_is_done(postprocess, predictions, output, capsys):
    for name in ("a", "b"):
        write(predictions / f"{name}.nii.gz", knee())
    np.savez(predictions / "a.npz", probabilities=np.zeros((10, *knee().shape), np.float16))
    assert postprocess("--lesion_probability", "0.5") == 1
    assert "no softmax output (.npz) of b, which --lesion_probability needs" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("softmax", "expected"),
    [
        (np.zeros((10, 3, 4, 5), np.float32), r"its shape is \(3, 4, 5\), the segmentation's \(6, 8, 70\)"),
        (np.full((10, *knee().shape), np.nan, np.float32), "holds NaN or numbers out of"),
        # The first one has all that is in the segmentation, lesions included.
        (np.zeros((8, *knee().shape), np.float32), "softmax output of 8 classes and dataset.json has 10"),
        (np.zeros((11, *knee().shape), np.float32), "softmax output of 11 classes and dataset.json has 10"),
    ],
)
def test_softmax_of_something_else_is_told(postprocess, predictions, capsys, softmax, expected):
    voxels = knee()
    voxels[0, 0, 0] = LESION
    write(predictions / "a.nii.gz", voxels)
    np.savez(predictions / "a.npz", probabilities=softmax)
    assert postprocess("--lesion_probability", "0.5") == 3
    error = capsys.readouterr().err
    assert "1 of 1 case could not be cleaned" in error
    assert pd.Series([error]).str.contains(rf"a\.npz.*{expected}").all()


def test_softmax_that_changed_is_read_again(postprocess, predictions, output):
    voxels = knee()
    voxels[1:3, 1:4, 1:5] = LESION
    write(predictions / "a.nii.gz", voxels)
    softmax = np.zeros((10, *voxels.shape), np.float32)
    for probability, left in ((0.9, 24), (0.4, 0)):
        softmax[LESION], softmax[BONE] = probability, 1 - probability
        np.savez(predictions / "a.npz", probabilities=softmax)
        os.utime(predictions / "a.npz", (0, probability))  # of the same size, and on some disks of the same moment
        assert postprocess("--lesion_probability", "0.5") == 0
        assert (read(output / "a.nii.gz") == LESION).sum() == left


# What stands beside


def test_what_is_written_beside(postprocess, predictions, output):
    write(predictions / "a.nii.gz", with_a_fragment(55))
    assert postprocess() == 0
    assert sorted(entry.name for entry in output.iterdir()) == [
        "a.nii.gz", "cases", "dataset.json", "labels_3dslicer.ctbl", "labels_itksnap.txt", "plans.json",
        "postprocessing.json", "removed.csv",
    ]  # fmt: skip
    for name in ("dataset.json", "plans.json"):
        assert (output / name).read_bytes() == (predictions / name).read_bytes()
    assert "7 femoral_lesion 226 26 40 255" in (output / "labels_3dslicer.ctbl").read_text()
    marker = json.loads((output / "postprocessing.json").read_text())
    assert (marker["version"], marker["finished"]) == (__version__, True)
    assert marker["settings"]["min_lesion_volume_mm3"] == 6.0


def test_what_was_cleaned_can_be_cleaned_again(postprocess, predictions, output, tmp_path):
    write(predictions / "a.nii.gz", with_a_fragment(55))
    assert postprocess() == 0
    assert postprocess(i=output, o=tmp_path / "again") == 0
    assert (tmp_path / "again" / "a.nii.gz").read_bytes() == (output / "a.nii.gz").read_bytes()


def test_predictions_are_left_as_they_were(postprocess, predictions):
    write(predictions / "a.nii.gz", with_a_fragment(55))
    before = {entry.name: (entry.read_bytes(), entry.stat().st_mtime_ns) for entry in predictions.iterdir()}
    assert postprocess() == 0
    assert {e.name: (e.read_bytes(), e.stat().st_mtime_ns) for e in predictions.iterdir()} == before


def test_dataset_json_from_elsewhere(postprocess, predictions, output, tmp_path):
    describe(tmp_path / "elsewhere", {"background": 0, "shell": 2, "rest": 1})
    (predictions / "dataset.json").unlink()
    write(predictions / "a.nii.gz", with_a_fragment(55))
    assert postprocess() == 1
    assert postprocess("-djfile", str(tmp_path / "elsewhere" / "dataset.json")) == 0
    assert rows(output).loc[("a", "shell"), "removed_components"] == 1


# Other kinds of data sets


def test_pictures(postprocess, predictions, output):
    describe(predictions, {"background": 0, "bone": 1, "spot": 2}, ".png")
    (predictions / "plans.json").unlink()
    voxels = np.zeros((20, 90), np.uint8)
    voxels[:10, :10], voxels[3, 80], voxels[5, 5] = 1, 1, 2
    io.imsave(predictions / "a.png", voxels, check_contrast=False)
    assert postprocess("--lesions", "spot=bone") == 0
    voxels[3, 80], voxels[5, 5] = 0, 1
    np.testing.assert_array_equal(io.imread(output / "a.png"), voxels)
    table = rows(output)
    assert table.loc[("a", "bone"), "smallest_removed_distance"] == 71
    assert table.loc[("a", "spot"), "removed_mm3"] == 1


def test_regions(postprocess, predictions, output):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3}
    describe(predictions, labels, regions_class_order=[1, 2, 3])
    write(predictions / "a.nii.gz", with_a_fragment(55))
    assert postprocess() == 0
    table = rows(output)
    assert list(table.loc["a"].index) == ["1", "2", "rim"]
    assert table.loc[("a", "2"), "removed_components"] == 1
    assert read(output / "a.nii.gz")[0, 6, 60] == 0


def test_skewed_files(postprocess, predictions, output):
    (predictions / "plans.json").unlink()
    affine = np.diag([0.5, 1.0, 2.0, 1.0])
    affine[0, 1] = 0.3
    nibabel.save(nibabel.Nifti1Image(with_a_fragment(55).transpose(2, 1, 0), affine), predictions / "a.nii.gz")
    assert postprocess() == 0
    cleaned = nibabel.load(output / "a.nii.gz")
    np.testing.assert_allclose(cleaned.affine, affine, atol=1e-6)
    assert cleaned.dataobj[60, 6, 0] == 0


# Once more


def times(output: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_mtime_ns for entry in output.glob("*.nii.gz")}


@pytest.fixture
def done(postprocess, predictions, output):
    """Two cases, cleaned long ago."""
    for name in ("a", "b"):
        write(predictions / f"{name}.nii.gz", with_a_fragment(55))
    assert postprocess() == 0
    for file in output.glob("*.nii.gz"):
        os.utime(file, ns=(0, 10**9))
    return output


def test_finished_cases_are_not_written_again(postprocess, done):
    before, table = times(done), (done / "removed.csv").read_bytes()
    assert postprocess() == 0
    assert times(done) == before
    assert (done / "removed.csv").read_bytes() == table


def test_case_that_changed_is_cleaned_anew(postprocess, predictions, done):
    before = times(done)
    write(predictions / "b.nii.gz", knee())
    assert postprocess() == 0
    assert times(done)["a.nii.gz"] == before["a.nii.gz"]
    np.testing.assert_array_equal(read(done / "b.nii.gz"), knee())
    assert rows(done).loc["b"]["removed_components"].sum() == 0


@pytest.mark.parametrize("lost", ["b.nii.gz", "cases/b.json"])
def test_case_that_is_missing_is_cleaned_again(postprocess, done, lost):
    before = times(done)
    (done / lost).unlink()
    assert postprocess() == 0
    assert (done / "cases" / "b.json").is_file()
    assert times(done)["a.nii.gz"] == before["a.nii.gz"]
    assert times(done)["b.nii.gz"] > before["b.nii.gz"]


def test_damaged_record_counts_as_none(postprocess, done):
    (done / "cases" / "b.json").write_text('{"fingerprint": "')
    table = (done / "removed.csv").read_bytes()
    assert postprocess() == 0
    assert (done / "removed.csv").read_bytes() == table


def test_case_that_is_new_is_added(postprocess, predictions, done):
    write(predictions / "c.nii.gz", with_a_fragment(55))
    before = times(done)
    assert postprocess() == 0
    assert times(done).keys() == {"a.nii.gz", "b.nii.gz", "c.nii.gz"}
    assert {name: time for name, time in times(done).items() if name in before} == before


def test_more_labels_than_before_are_told(postprocess, predictions, output):
    write(predictions / "a.nii.gz", knee())
    words = ("--anatomy", "femoral_bone", "--lesions", "none")
    assert postprocess(*words) == 0
    describe(predictions, {**LABELS, "meniscus": 10})
    assert postprocess(*words) == 0
    assert ("a", "meniscus") in rows(output).index


def test_other_settings_are_refused_and_what_is_there_stays(postprocess, done, capsys):
    before, marker = times(done), (done / "postprocessing.json").read_bytes()
    assert (
        json.loads(marker)["settings"]["max_distance_mm"] is None
    )  # the limit is recorded in the unit it was given in
    assert postprocess("--max_distance_voxels", "60") == 1
    assert "was cleaned with other settings (max_distance_voxels: 50.0); give" in capsys.readouterr().err
    assert times(done) == before
    assert (done / "postprocessing.json").read_bytes() == marker


def test_other_settings_with_overwrite(postprocess, done):
    assert postprocess("--max_distance_voxels", "60", "--overwrite") == 0
    assert (read(done / "a.nii.gz") == CARTILAGE).sum() == 7
    assert postprocess("--max_distance_voxels", "60") == 0
    assert postprocess() == 1


def test_overwrite_without_a_change_does_nothing_again(postprocess, done):
    before = times(done)
    assert postprocess("--overwrite") == 0
    assert times(done) == before


def test_case_whose_prediction_is_gone_is_told(postprocess, predictions, done, capsys):
    (predictions / "b.nii.gz").unlink()
    before = (done / "postprocessing.json").read_bytes()
    assert postprocess("--max_distance_voxels", "60", "--overwrite") == 1
    assert "holds cases that" in capsys.readouterr().err
    assert (done / "postprocessing.json").read_bytes() == before


KILLED = """
import os, signal, sys
from nnunetv2_anomaly.command_line.main import main
replace = os.replace
def replace_or_die(source, target):
    if os.path.basename(target) == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = replace_or_die
main(sys.argv[2:])
"""


def test_run_that_was_killed_at_once_goes_on(predictions, output, postprocess):
    write(predictions / "a.nii.gz", knee())
    words = [
        sys.executable,
        "-c",
        KILLED,
        "postprocessing.json",
        "postprocess",
        "-i",
        predictions,
        "-o",
        output,
        *FIFTY,
    ]
    assert subprocess.run(words, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert [entry.name.startswith("part_") for entry in output.iterdir()] == [True]
    assert postprocess() == 0
    assert not list(output.rglob("part_*"))


@pytest.mark.parametrize("moment", ["case_2.nii.gz", "case_2.json", "removed.csv"])
def test_run_that_was_killed_goes_on(predictions, output, postprocess, moment):
    """In the moment when this file was written and not yet renamed."""
    for number in range(4):
        write(predictions / f"case_{number}.nii.gz", with_a_fragment(55))
    words = [sys.executable, "-c", KILLED, moment, "postprocess", "-i", predictions, "-o", output, "-np", "1", *FIFTY]
    assert subprocess.run(words, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert len(list(output.rglob(f"part_*_{moment}"))) == 1
    assert json.loads((output / "postprocessing.json").read_text())["finished"] is False
    before = {file.stem: times(output)[f"{file.stem}.nii.gz"] for file in output.glob("cases/case_*.json")}
    assert len(before) == (4 if moment == "removed.csv" else 2)
    assert postprocess() == 0
    assert sorted(times(output)) == [f"case_{number}.nii.gz" for number in range(4)]
    assert {case: times(output)[f"{case}.nii.gz"] for case in before} == before
    assert rows(output)["removed_voxels"].sum() == 4
    assert not list(output.rglob("part_*"))


def test_run_that_was_interrupted_goes_on(predictions, output, postprocess):
    for number in range(30):
        write(predictions / f"case_{number}.nii.gz", np.tile(with_a_fragment(55), (20, 20, 1)))
    code = "import sys; from nnunetv2_anomaly.command_line.main import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "postprocess", "-i", predictions, "-o", output, "-np", "2", *FIFTY]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(output.glob("cases/case_*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert told.endswith("nnUNetv2_anomaly: interrupted; run the same command again to continue\n")
    # Python itself reports an interrupt that reaches a destructor, as of a library that is being imported.
    told = re.sub(r"Exception ignored in.*?KeyboardInterrupt: *\n", "", told, flags=re.DOTALL)
    assert "Traceback" not in told
    before = {f"{file.stem}.nii.gz": times(output)[f"{file.stem}.nii.gz"] for file in output.glob("cases/case_*.json")}
    assert 0 < len(before) < 30
    assert postprocess() == 0
    assert before.items() <= times(output).items()
    assert len(times(output)) == 30


# What cannot be done


def test_broken_file_among_good_ones(postprocess, predictions, output, capsys):
    for name in ("a", "b", "c"):
        write(predictions / f"{name}.nii.gz", with_a_fragment(55))
    os.truncate(predictions / "b.nii.gz", (predictions / "b.nii.gz").stat().st_size // 2)
    assert postprocess() == 3
    error = capsys.readouterr().err
    assert "1 of 3 cases could not be cleaned" in error
    assert str(predictions / "b.nii.gz") in error
    assert times(output).keys() == {"a.nii.gz", "c.nii.gz"}
    assert set(rows(output).reset_index()["case"]) == {"a", "c"}
    assert json.loads((output / "postprocessing.json").read_text())["finished"] is False
    before = times(output)
    write(predictions / "b.nii.gz", with_a_fragment(55))
    assert postprocess() == 0
    assert {name: times(output)[name] for name in before} == before
    assert set(rows(output).reset_index()["case"]) == {"a", "b", "c"}


@pytest.mark.parametrize("value", [10, 200])
def test_unknown_label_is_told(postprocess, predictions, capsys, value):
    voxels = knee()
    voxels[0, 0, 0] = value
    write(predictions / "a.nii.gz", voxels)
    assert postprocess() == 3
    error = capsys.readouterr().err
    assert f"holds unknown labels: {value} (1 voxels); expected 1 " in error
    assert "; check dataset.json (-djfile)" in error


def test_ignore_label_is_unknown_in_predictions(postprocess, predictions, capsys):
    describe(predictions, {"background": 0, "bone": 1, "cartilage": 2, "ignore": 3})
    voxels = knee()
    voxels[0, 0, 0] = 3
    write(predictions / "a.nii.gz", voxels)
    assert postprocess() == 3
    assert "unknown labels: 3 (1 voxels); expected 1 bone, 2 cartilage;" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--anatomy", "femur"], "femur is no label of"),
        (["--lesions", "femoral_lesion=femur"], "femur is no label of"),
        (["--max_distance_voxels", "-1"], "--max_distance_voxels is -1.0"),
        (["-np", "0"], "-np is 0; expected 1 or more"),
    ],
)
def test_wrong_options_are_told_before_anything_is_done(postprocess, predictions, output, capsys, words, expected):
    write(predictions / "a.nii.gz", knee())
    assert postprocess(*words) == 1
    assert expected in capsys.readouterr().err
    assert not output.exists()


def test_missing_folder_of_predictions(postprocess, tmp_path, capsys):
    assert postprocess(i=tmp_path / "missing") == 1
    assert "is no folder; expected one with predictions" in capsys.readouterr().err


def test_folder_without_predictions(postprocess, output, capsys):
    assert postprocess() == 1
    assert "expected segmentations that end in .nii.gz" in capsys.readouterr().err
    assert not output.exists()


def test_folder_without_dataset_json(postprocess, predictions, capsys):
    (predictions / "dataset.json").unlink()
    assert postprocess() == 1
    assert "there is no dataset.json" in capsys.readouterr().err


@pytest.mark.parametrize("spelled", ["predictions", "predictions/../predictions", "link"])
def test_output_may_not_be_the_input(postprocess, predictions, tmp_path, capsys, spelled):
    write(predictions / "a.nii.gz", with_a_fragment(55))
    (tmp_path / "link").symlink_to(predictions)
    before = (predictions / "a.nii.gz").read_bytes()
    assert postprocess(o=tmp_path / spelled) == 1
    assert "-i and -o are both" in capsys.readouterr().err
    assert (predictions / "a.nii.gz").read_bytes() == before


def test_folder_with_something_else_is_left_alone(postprocess, predictions, output, capsys):
    write(predictions / "a.nii.gz", knee())
    output.mkdir()
    (output / "a.nii.gz").write_text("mine")
    for words in ([], ["--overwrite"]):
        assert postprocess(*words) == 1
        assert "is not empty and holds no clean-up" in capsys.readouterr().err
    assert [(e.name, e.read_text()) for e in output.iterdir()] == [("a.nii.gz", "mine")]


def test_output_that_is_a_file(postprocess, predictions, output, capsys):
    write(predictions / "a.nii.gz", knee())
    output.write_text("mine")
    assert postprocess() == 1
    assert "cannot be written to" in capsys.readouterr().err
    assert output.read_text() == "mine"


def test_output_that_cannot_be_written_to(postprocess, predictions, output, capsys):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    write(predictions / "a.nii.gz", knee())
    output.mkdir(mode=0o500)
    assert postprocess() == 1
    assert f"{output} cannot be written to" in capsys.readouterr().err


def test_case_that_cannot_be_written_is_told(postprocess, predictions, output, capsys):
    for name in ("a", "b"):
        write(predictions / f"{name}.nii.gz", with_a_fragment(55))
    output.mkdir()
    (output / "b.nii.gz").mkdir()
    (output / "b.nii.gz" / "file").touch()
    (output / "postprocessing.json").write_text("{}")
    assert postprocess("--overwrite") == 3
    assert f"{output / 'b.nii.gz'} cannot be written to" in capsys.readouterr().err
    assert (output / "a.nii.gz").is_file()
    assert not list(output.glob("part_*"))


def test_table_that_cannot_be_written_is_told(postprocess, predictions, output, capsys):
    write(predictions / "a.nii.gz", knee())
    output.mkdir()
    (output / "removed.csv").mkdir()
    (output / "postprocessing.json").write_text("{}")
    assert postprocess("--overwrite") == 1
    assert f"{output} cannot be written to" in capsys.readouterr().err
