"""Stress tests of the comparison."""

import math

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from benchmarks.focal_weights import tissue_weights
from benchmarks.stress import KINDS, lesion_in_bone, link_images, measure, write_healthy_maps
from benchmarks.stress_tables import stress_difference_table, stress_table, typical_knee, typical_slice

#: distance of voxels, (z, y, x)
SPACING_MM = (3.0, 2.0, 1.0)


@pytest.fixture
def femur():
    """A block of femur, 10 x 10 x 10 voxels."""
    labels = np.zeros((20, 40, 20), np.uint8)
    labels[5:15, 5:15, 5:15] = 1
    return labels


def row_of(prediction, reference, anomalies):
    (row,) = measure(prediction, reference, anomalies, SPACING_MM)
    return row


def test_a_hole_within_a_lesion_is_counted_as_hole_and_not_as_covered(femur):
    anomalies, prediction = np.zeros_like(femur), femur.copy()
    anomalies[8:12, 8:12, 8:20] = 7  # 4 x 4 x 12 voxels, of which 4 x 4 x 7 lie in the bone
    prediction[9:11, 9:11, 9:11] = 0  # 8 voxels, enclosed
    row = row_of(prediction, femur, anomalies)
    assert row["covered"] == pytest.approx(1 - 8 / 112)
    assert row["holes"] == pytest.approx(8 / 1000)
    assert row["dsc"] == pytest.approx(2 * 992 / 1992)
    assert (row["label"], row["parts"], row["far"]) == ("femoral_bone", 0, 0)


def test_what_was_called_lesion_is_bone(femur):
    prediction = femur.copy()
    prediction[8:12, 8:12, 8:12] = 7
    row = row_of(prediction, prediction, np.where(prediction == 7, 7, 0))
    assert (row["covered"], row["dsc"], row["holes"], row["hd_mm"]) == (1, 1, 0, 0)


def test_another_bones_lesion_and_what_lies_beyond_the_bone_take_no_part(femur):
    anomalies = np.zeros_like(femur)
    anomalies[5:15, 5:15, 15:] = 7
    anomalies[5:15, 5:15, 5:10] = 8
    assert math.isnan(row_of(femur, femur, anomalies)["covered"])


def test_a_stray_part_is_told_and_how_far_it_is(femur):
    prediction = femur.copy()
    prediction[5, 38, 5] = 1  # 24 voxels of 2 mm from the bone
    row = row_of(prediction, femur, np.zeros_like(femur))
    assert (row["parts"], row["far"], row["hd_mm"]) == (1, 1, 48)
    prediction[5, 38, 5], prediction[5, 24, 5] = 0, 1
    row = row_of(prediction, femur, np.zeros_like(femur))
    assert (row["parts"], row["far"], row["hd_mm"]) == (1, 0, 20)


def test_a_bone_that_was_not_found_is_as_far_as_the_image_is_large(femur):
    row = row_of(np.zeros_like(femur), femur, np.where(femur, 7, 0))
    assert (row["dsc"], row["covered"], row["parts"]) == (0, 0, 0)
    assert row["hd_mm"] == pytest.approx(math.hypot(60, 80, 20))
    assert math.isnan(row["holes"])


def test_healthy_maps_have_no_lesions_and_all_else(femur, tmp_path):
    femur[8:12, 8:12, 8:12] = 7
    femur[0, 0, 0] = 6
    (tmp_path / "labels").mkdir()
    image = sitk.GetImageFromArray(femur)
    image.SetSpacing((0.3, 0.4, 0.5))
    sitk.WriteImage(image, str(tmp_path / "labels" / "a.nii.gz"))
    write_healthy_maps(tmp_path / "labels", tmp_path / "healthy")
    made = sitk.ReadImage(str(tmp_path / "healthy" / "a.nii.gz"))
    assert made.GetSpacing() == pytest.approx((0.3, 0.4, 0.5))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(made), np.where(femur == 7, 1, femur))


def test_one_folder_has_every_kind_of_some_knees(tmp_path):
    for kind in KINDS:
        (tmp_path / kind / "images").mkdir(parents=True)
        for case in "ab":
            (tmp_path / kind / "images" / f"{case}_0000.nii.gz").write_text(kind + case)
    link_images(tmp_path, ["b"], tmp_path / "images")
    found = {file.name: file.read_text() for file in (tmp_path / "images").iterdir()}
    assert found == {f"b_{kind}_0000.nii.gz": f"{kind}b" for kind in KINDS}


def test_the_focal_weight_is_told_for_each_tissue():
    labels, anomalies = np.array([[[0, 1, 1, 2, 0]]]), np.array([[[0, 0, 7, 0, 7]]])
    error = np.array([[[0.01, 0.02, 0.1, 0.2, 0.3]]])
    found = tissue_weights(error, labels, anomalies)
    assert found == pytest.approx({"bones": 2.98, "lesions": 20.8, "cartilages": 20.8, "elsewhere": 1.99})
    assert math.isnan(tissue_weights(error, labels, 0 * anomalies)["lesions"])


@pytest.fixture
def rows():
    """Six knees, two trainings; the other model covers 10 and 20 points more of bright lesions, by training."""
    made = []
    for model, more in (("plain", (0, 0)), ("other", (0.1, 0.2))):
        for knee in range(6):
            for repeat in (0, 1):
                for label in ("femoral_bone", "tibial_bone", "femoral_cartilage"):
                    row = {"set": "bright", "model": model, "repeat": f"seed{repeat}-fold0", "knee": f"k{knee}"}
                    row |= {"label": label, "dsc": 0.9, "hd_mm": 5.0, "far": 0.0, "parts": 1.0}
                    if "bone" in label:
                        row |= {"holes": 0.01, "covered": 0.5 + 0.01 * knee + more[repeat]}
                    made.append(row)
    return pd.DataFrame(made)


def values(table):
    return {row[1].values["model"]: {k: v for cell in row[2:] for k, v in cell.values.items()} for row in table.rows}


def test_the_table_has_means_and_the_range_over_trainings(rows):
    found = values(stress_table(rows))
    assert found["plain"]["covered"] == pytest.approx(52.5)
    assert [found["other"][f"covered{of}"] for of in ("", "_low", "_high")] == pytest.approx([67.5, 62.5, 72.5])
    assert (found["plain"]["bones_dsc"], found["plain"]["parts"], found["plain"]["holes"]) == pytest.approx(
        (90, 100, 1)
    )
    assert found["plain"]["cartilages_hd"] == 5


def test_differences_are_tested_over_knees_and_shown_over_trainings(rows):
    (found,) = values(stress_difference_table(rows)).values()
    assert found["covered"] == pytest.approx(15)
    assert found["covered_p"] == pytest.approx(2 / 2**6)  # six knees, all of one sign
    assert [found["covered_low"], found["covered_high"]] == pytest.approx([10, 20])
    assert (found["bones_dsc"], found["bones_dsc_p"]) == (0, 1)


def test_the_knee_that_is_drawn_has_the_median_gain(rows):
    gains = {"k0": 0.3, "k1": 0.1, "k2": 0.2, "k3": 0.9, "k4": 0.0, "k5": 0.4}
    better = rows["model"] == "other"
    rows.loc[better, "covered"] = 0.5 + rows["knee"].map(gains) + 0.01 * rows["knee"].str[1].astype(int)
    assert typical_knee(rows, "bright", "plain", "other", list(gains)) == "k2"
    assert typical_knee(rows, "bright", "plain", "other", ["k3", "k5", "k0"]) == "k5"


def test_lesions_count_within_the_bone_that_holds_them_alone():
    anomalies, reference = np.array([7, 7, 7, 8, 0, 9]), np.array([1, 7, 3, 3, 1, 0])
    assert lesion_in_bone(anomalies, reference).tolist() == [1, 1, 0, 3, 0, 0]


def test_the_slice_that_is_drawn_is_most_like_the_whole():
    lesion = np.zeros((4, 4, 6), np.uint8)
    lesion[1:3, 1:3, 1:5] = 1  # four voxels in each of four slices, and one in the last
    lesion[1, 1, 5] = 1
    prediction = lesion.copy()
    prediction[1:3, 1:3, 1] = 0
    prediction[1, 1:3, 2] = 0
    prediction[1, 1, 5] = 0
    assert typical_slice(lesion, [prediction]) == 2  # 10 of 17 covered, and half of the second
