import json
import math

import numpy as np
import pytest

from nnunetv2_anomaly.detectors.quality import lesion_auc
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.prediction.validation import (
    AUC_KEYS,
    SIGNED_AUC_KEYS,
    labels_named,
    mean_of_cases,
    write_summary,
)

LABELS = {"background": 0, "femoral_bone": 1, "cartilage": 2, "Femoral_Lesion": 7, "tibial_lesion": 8, "ignore": 9}
NAN = float("nan")


def case(name, mse=0.1, lesion_auc=None, intensity_auc=None, blurred=0.2):
    areas = dict.fromkeys((*AUC_KEYS, *SIGNED_AUC_KEYS), lesion_auc)
    numbers = {**areas, "mse_erased": mse, "mse_constant": 0.3, "mse_blurred": blurred, "mse_outside": 0.4}
    return {
        "case": name,
        "intensity": {"lesion_auc": intensity_auc, "lesion_auc_interior": intensity_auc},
        "detector": numbers,
        "inpainter": numbers,
    }


def test_labels_are_found_by_name():
    assert labels_named(LABELS, ["cartilage", "tibial_lesion"], "lesion") == [2, 8]
    assert labels_named(LABELS, [], "lesion") == []


def test_region_contributes_all_its_values_once():
    regions = {"background": 0, "all_bone": [1, 3, 5], "femoral_bone": [1], "lesion": 4}
    assert labels_named(regions, ["all_bone", "femoral_bone"], "bone") == [1, 3, 5]


def test_unknown_label_is_told_with_the_known_ones():
    with pytest.raises(UserError, match=r"'lesion_labels' names edema; .* background, femoral_bone, cartilage"):
        labels_named(LABELS, ["tibial_lesion", "edema"], "lesion")


def test_lesions_are_told_from_bone_with_the_sign_that_they_have():
    bone = np.zeros((6, 6, 6), bool)
    bone[1:] = True
    lesion = np.zeros_like(bone)
    lesion[3:5, 3:5, 3:5] = True
    difference = np.where(lesion, 0.3, 0.0)
    difference[1] = -0.5  # the bone's surface, off by more, to the other side
    interior = bone.copy()
    interior[1] = False
    areas = (bone, interior)
    assert lesion_auc(difference, lesion, areas, SIGNED_AUC_KEYS) == dict.fromkeys(SIGNED_AUC_KEYS, 1.0)
    assert lesion_auc(-difference, lesion, areas, SIGNED_AUC_KEYS) == dict.fromkeys(SIGNED_AUC_KEYS, 0.0)
    # Of 172 other voxels of bone the 36 of the surface have a larger square.
    squared = lesion_auc(difference**2, lesion, areas, AUC_KEYS)
    assert squared == {"lesion_auc": pytest.approx(1 - 36 / 172), "lesion_auc_interior": 1.0}
    nowhere = np.zeros_like(lesion)
    assert lesion_auc(difference, nowhere, areas, AUC_KEYS) == dict.fromkeys(AUC_KEYS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 3.0], 2.0), ([1.0, None, NAN, math.inf], 1.0), ([None, NAN], None), ([], None)],
)
def test_mean_is_over_the_cases_that_have_a_number(values, expected):
    assert mean_of_cases(values) == expected


def test_summary_holds_means_and_every_case(tmp_path):
    path = tmp_path / "summary.json"
    cases = [case("a", 0.1, lesion_auc=0.8, intensity_auc=0.6), case("b", 0.3)]
    returned = write_summary(path, cases)
    summary = json.loads(path.read_text())
    assert summary == returned
    assert summary["mean"]["detector"]["mse_erased"] == pytest.approx(0.2)
    assert summary["mean"]["detector"]["lesion_auc"] == summary["mean"]["inpainter"]["lesion_auc"] == 0.8
    assert summary["mean"]["intensity"] == {"lesion_auc": 0.6, "lesion_auc_interior": 0.6}
    assert (summary["mean"]["num_cases"], summary["mean"]["num_cases_with_lesion"]) == (2, 1)
    assert summary["metric_per_case"] == cases


def test_summary_has_null_where_a_number_does_not_exist(tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, [case("a", NAN, blurred=math.inf)])

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    summary = json.loads(path.read_text(), parse_constant=refuse)
    assert summary["metric_per_case"][0]["detector"]["mse_erased"] is None
    assert summary["metric_per_case"][0]["detector"]["mse_blurred"] is None
    assert summary["mean"]["detector"]["mse_erased"] is None
    assert summary["mean"]["intensity"]["lesion_auc"] is None


def test_summary_is_written_beside_and_renamed(tmp_path):
    write_summary(tmp_path / "summary.json", [case("a")])
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
