"""Facts about the detection of lesions over cases: counts, rates, ROC, best thresholds, volumes, sizes."""

import math

import numpy as np
import pandas as pd
import pytest
from places import REAL_MAPS
from scipy import stats

from nnunetv2_anomaly.evaluation.detection import (
    AGREEMENT_COLUMNS,
    COUNT_COLUMNS,
    LESION_WISE_COLUMNS,
    SUMMARY_COLUMNS,
    auc,
    counts,
    lesion_wise,
    roc,
    summary,
    volume_agreement,
)
from nnunetv2_anomaly.evaluation.results import BONE_COLUMNS, LESION_COLUMNS
from nnunetv2_anomaly.measurements.lesions import PROBABILITY, SIZE, detect

pytestmark = pytest.mark.filterwarnings("error")

#: four, of which every bone has a lesion in one and none in another
MASKS = sorted(REAL_MAPS.glob("900[567]*.nii.gz"))

MM = (1.0, 1.0, 1.0)


def strip(*voxels):
    """A row of 60 voxels with these set; a range is one lesion."""
    mask = np.zeros((1, 1, 60), bool)
    for place in voxels:
        mask[0, 0, place] = True
    return mask


def rows(detection, case, model="m", bone="femoral_bone"):
    """Of ``Evaluation.bones`` and ``Evaluation.lesions``."""
    key = {"case": case, "model": model, "fold": 0, "group": "", "bone": bone, "lesion": bone.replace("bone", "lesion")}
    points = pd.DataFrame([key | point for point in detection.points], columns=list(BONE_COLUMNS))
    return points, pd.DataFrame([key | lesion for lesion in detection.lesions], columns=list(LESION_COLUMNS))


def bone_table(points, case, model="m", bone="femoral_bone", volumes=(0.0, 0.0)):
    """Rows of a case, of which (rule, threshold, dsc, outcome) are given."""
    key = {"case": case, "model": model, "fold": 0, "group": "", "bone": bone, "lesion": bone.replace("bone", "lesion")}
    measured = {"reference_mm3": volumes[0], "prediction_mm3": volumes[1]}
    names = ("rule", "threshold", "dsc", "outcome")
    return pd.DataFrame([key | measured | dict(zip(names, point, strict=True)) for point in points])[list(BONE_COLUMNS)]


def test_numbers_of_five_small_cases_by_hand():
    cases = {
        "a": (strip(slice(0, 4)), strip(slice(2, 6))),  # 4 and 4 mm3, 2 shared: DSC 4 / 8
        "b": (strip(slice(0, 2)), strip()),  # 2 mm3, missed
        "c": (strip(), strip(7)),  # 1 mm3, invented
        "d": (strip(), strip(slice(7, 9))),  # 2 mm3, invented
        "e": (strip(), strip()),
    }
    table = pd.concat(
        rows(detect(reference, prediction, MM, sizes_mm3=(0, 2, 3)), case)[0]
        for case, (reference, prediction) in cases.items()
    )
    found = counts(table)
    assert list(found["bone"]) == ["femoral_bone"] * 3 + ["all"] * 3
    #         a   b   c   d   e   sensitivity  specificity  accuracy  mean DSC
    # 0 mm3   TP  FN  FP  FP  TN  1 / 2        1 / 3        2 / 5     (0.5 + 0) / 2
    # 2 mm3   TP  FN  TN  FP  TN  1 / 2        2 / 3        3 / 5     (0.5 + 0) / 2
    # 3 mm3   TP  TN  TN  TN  TN  1 / 1        4 / 4        5 / 5     0.5, as b has no lesion any more
    names = ["TP", "FN", "TN", "FP", "positives", "negatives"]
    for bone in ("femoral_bone", "all"):  # the same, as there is one bone
        own = found[found["bone"] == bone]
        assert own[names].to_numpy().tolist() == [[1, 1, 1, 2, 2, 3], [1, 1, 2, 1, 2, 3], [1, 0, 4, 0, 1, 4]]
        assert own["sensitivity"].tolist() == [1 / 2, 1 / 2, 1]
        assert own["specificity"].tolist() == pytest.approx([1 / 3, 2 / 3, 1])
        assert own["accuracy"].tolist() == [2 / 5, 3 / 5, 1]
        assert own["mean_dsc"].tolist() == [0.25, 0.25, 0.5]
        # (0, 0), (0, 1) of 3 mm3, (1/3, 1/2) of 2 mm3, (2/3, 1/2) of 0 mm3, (1, 1)
        along, up = roc(own)
        assert along == pytest.approx([0, 0, 1 / 3, 2 / 3, 1])
        assert up == pytest.approx([0, 1, 1 / 2, 1 / 2, 1])
        # 1/3 * 3/4 + 1/3 * 1/2 + 1/3 * 3/4
        assert auc(along, up) == pytest.approx(2 / 3)
    row = summary(found).iloc[0]
    assert (row["model"], row["bone"], row["positives"], row["negatives"]) == ("m", "femoral_bone", 2, 3)
    assert row["sensitivity"] == row["accuracy"] + 0.1 == 0.5
    assert row["specificity"] == pytest.approx(1 / 3)
    assert row["auc"] == pytest.approx(2 / 3)
    assert (row["mean_dsc"], row["dacc"], row["ddsc"]) == (0.25, 1, 0.5)
    assert (row["dacc_rule"], row["dacc_threshold"], row["ddsc_rule"], row["ddsc_threshold"]) == (SIZE, 3, SIZE, 3)


def four_cases_and_two_bones(model="m"):
    at = [(SIZE, 0.0), (SIZE, 6.0), (PROBABILITY, 0.5), (PROBABILITY, 0.9)]
    given = {
        "p1": ([0.4, 0.9, 0.5, 0.3], ["TP", "TP", "TP", "TP"]),
        "p2": ([0.2, 0.04, 0.3, 0.0], ["TP", "FN", "TP", "FN"]),
        "n1": ([0.0, 0.0, 0.0, math.nan], ["FP", "FP", "FP", "TN"]),
        "n2": ([0.0, math.nan, math.nan, math.nan], ["FP", "TN", "TN", "TN"]),
    }
    tables = [
        bone_table([(*one, d, o) for one, d, o in zip(at, dsc, outcome, strict=True)], case, model)
        for case, (dsc, outcome) in given.items()
    ]
    tables += [bone_table([(*one, math.nan, "TN") for one in at], case, model, "tibial_bone") for case in given]
    return pd.concat(tables, ignore_index=True)


def test_numbers_over_both_rules_by_hand():
    # femoral bone     TP  FN  TN  FP  sensitivity  specificity  accuracy  mean DSC
    # size 0           2   0   0   2   1            0            1/2       (0.4 + 0.2) / 2  = 0.30
    # size 6           1   1   1   1   1/2          1/2          1/2       (0.9 + 0.04) / 2 = 0.47
    # probability 0.5  2   0   1   1   1            1/2          3/4       (0.5 + 0.3) / 2  = 0.40
    # probability 0.9  1   1   2   0   1/2          1            3/4       (0.3 + 0) / 2    = 0.15
    table = counts(four_cases_and_two_bones())
    assert list(table["bone"].unique()) == ["femoral_bone", "tibial_bone", "all"]
    femoral = table[table["bone"] == "femoral_bone"]
    assert femoral["sensitivity"].tolist() == [1, 0.5, 1, 0.5]
    assert femoral["specificity"].tolist() == [0, 0.5, 0.5, 1]
    assert femoral["accuracy"].tolist() == [0.5, 0.5, 0.75, 0.75]
    assert femoral["mean_dsc"].tolist() == pytest.approx([0.3, 0.47, 0.4, 0.15])
    # (0, 0), (0, 1/2), (1/2, 1/2), (1/2, 1), (1, 1), and (1, 1) of size 0 itself: 1/2 * 1/2 + 1/2 * 1
    assert [part.tolist() for part in roc(femoral)] == [[0, 0, 0.5, 0.5, 1, 1], [0, 0.5, 0.5, 1, 1, 1]]
    found = summary(table).set_index("bone")
    assert list(found.index) == ["femoral_bone", "tibial_bone", "all"]
    row = found.loc["femoral_bone"]
    assert row["auc"] == 0.75
    # 3/4 twice: the first of equals
    assert (row["dacc"], row["dacc_rule"], row["dacc_threshold"]) == (0.75, PROBABILITY, 0.5)
    assert (row["ddsc"], row["ddsc_rule"], row["ddsc_threshold"]) == (pytest.approx(0.47), SIZE, 6)
    # all: four true negatives more at every threshold, so 2 + 0 + 4 of 8, 2 + 4, 3 + 4, 3 + 4
    every = table[table["bone"] == "all"]
    assert every["negatives"].tolist() == [6] * 4
    assert every["accuracy"].tolist() == [6 / 8, 6 / 8, 7 / 8, 7 / 8]
    assert every["specificity"].tolist() == pytest.approx([4 / 6, 5 / 6, 5 / 6, 1])
    assert every["mean_dsc"].tolist() == femoral["mean_dsc"].tolist()
    # (0, 0), (0, 1/2), (1/6, 1/2), (1/6, 1), (1/3, 1), (1, 1): 1/6 * 1/2 + 5/6
    assert found.loc["all", "auc"] == pytest.approx(11 / 12)
    assert found.loc["all", "dacc"] == 7 / 8


def test_bone_without_positives_has_no_sensitivity_and_no_auc():
    found = summary(counts(four_cases_and_two_bones())).set_index("bone").loc["tibial_bone"]
    assert (found["positives"], found["negatives"], found["specificity"], found["accuracy"]) == (0, 4, 1, 1)
    for name in ("sensitivity", "mean_dsc", "auc", "ddsc", "ddsc_threshold"):
        assert math.isnan(found[name])
    assert pd.isna(found["ddsc_rule"])
    assert (found["dacc"], found["dacc_rule"], found["dacc_threshold"]) == (1, SIZE, 0)


def test_bone_without_negatives_has_no_specificity_and_no_auc():
    table = counts(bone_table([(SIZE, 0.0, 0.5, "TP"), (SIZE, 6.0, 0.0, "FN")], "a"))
    assert table["sensitivity"].tolist()[:2] == [1, 0]
    assert table["specificity"].isna().all()
    assert math.isnan(summary(table)["auc"].iloc[0])
    assert [part.size for part in roc(table[:2])] == [0, 0]


def test_thresholds_that_leave_no_positive_case_are_no_point_of_the_roc():
    cases = [
        bone_table([(SIZE, 0.0, 0.5, "TP"), (SIZE, 6.0, math.nan, "TN")], "a"),
        bone_table([(SIZE, 0.0, 0.0, "FP"), (SIZE, 6.0, math.nan, "TN")], "b"),
    ]
    along, up = roc(counts(pd.concat(cases))[:2])
    assert along.tolist() == [0, 1, 1]
    assert up.tolist() == [0, 1, 1]


def test_points_of_one_false_positive_rate_rise():
    cases = [
        bone_table([(SIZE, 0.0, 0.5, "TP"), (SIZE, 2.0, 0.0, "FN"), (SIZE, 4.0, 0.5, "TP")], "a"),
        bone_table([(SIZE, 0.0, 0.5, "TP"), (SIZE, 2.0, 0.0, "FN"), (SIZE, 4.0, 0.0, "FN")], "b"),
        bone_table([(SIZE, 0.0, 0.0, "FP"), (SIZE, 2.0, 0.0, "FP"), (SIZE, 4.0, 0.0, "FP")], "c"),
        bone_table([(SIZE, 0.0, math.nan, "TN"), (SIZE, 2.0, math.nan, "TN"), (SIZE, 4.0, math.nan, "TN")], "d"),
    ]
    along, up = roc(counts(pd.concat(cases))[:3])
    assert along.tolist() == [0, 0.5, 0.5, 0.5, 1]
    assert up.tolist() == [0, 0, 0.5, 1, 1]
    assert auc(along, up) == 0.5  # 0 to the left, 1 to the right


def test_models_and_bones_stay_in_the_order_in_which_they_are_met():
    table = pd.concat([four_cases_and_two_bones("z"), four_cases_and_two_bones("a")])
    order = [(model, bone) for model in "za" for bone in ("femoral_bone", "tibial_bone", "all")]
    assert list(summary(counts(table))[["model", "bone"]].itertuples(index=False, name=None)) == order
    assert list(counts(table)["threshold"][:4]) == [0, 6, 0.5, 0.9]
    assert list(volume_agreement(table)[["model", "bone"]].itertuples(index=False, name=None)) == order
    one = summary(counts(four_cases_and_two_bones("a"))).drop(columns="model")
    for model in "za":
        own = summary(counts(table))
        pd.testing.assert_frame_equal(own[own["model"] == model].drop(columns="model").reset_index(drop=True), one)


def test_a_curve_of_two_lengths_is_an_error():
    with pytest.raises(ValueError, match="inconsistent"):
        auc(np.zeros(2), np.zeros(3))


def test_volumes_that_agree_by_hand():
    # differences 2, -2, 6; the case without a lesion in either map is no sample
    volumes = [(10.0, 12.0), (20.0, 18.0), (30.0, 36.0), (0.0, 0.0)]
    table = pd.concat(bone_table([(SIZE, 0.0, 0.5, "TP")], case, volumes=v) for case, v in enumerate(volumes))
    for row in volume_agreement(table).to_dict("records"):
        assert row["n"] == 3
        assert row["bias_mm3"] == 2
        assert row["sd_mm3"] == pytest.approx(4)  # sqrt((0 + 16 + 16) / 2)
        assert row["lower_mm3"] == pytest.approx(2 - 7.84)
        assert row["upper_mm3"] == pytest.approx(2 + 7.84)
        # deviations -10, 0, 10 and -10, -4, 14: 240 / sqrt(200 * 312); with one degree of freedom t is Cauchy's
        assert row["pearson_r"] == pytest.approx(240 / math.sqrt(200 * 312))
        assert row["pearson_p"] == pytest.approx(2 / math.pi * math.acos(240 / math.sqrt(200 * 312)))


def test_volumes_of_all_bones_are_one_sample_each():
    random = np.random.default_rng(0)
    volumes = random.uniform(0, 100, (2, 10, 2))
    table = pd.concat(
        bone_table([(SIZE, 0.0, 0.5, "TP")], case, bone=bone, volumes=volumes[i, case])
        for i, bone in enumerate(("femoral_bone", "tibial_bone"))
        for case in range(10)
    )
    found = volume_agreement(table)
    assert found["n"].tolist() == [10, 10, 20]
    for row, (reference, prediction) in zip(
        found.to_dict("records"), [volumes[0].T, volumes[1].T, volumes.reshape(20, 2).T], strict=True
    ):
        r, p = stats.pearsonr(reference, prediction)
        assert (row["pearson_r"], row["pearson_p"]) == pytest.approx((r, p))
        assert row["sd_mm3"] == pytest.approx(np.std(prediction - reference, ddof=1))


@pytest.mark.parametrize(
    ("volumes", "n", "bias", "sd"),
    [
        ([(0, 0)], 0, math.nan, math.nan),
        ([(4, 7)], 1, 3, math.nan),
        ([(4, 7), (5, 10)], 2, 4, math.sqrt(2)),
        ([(5, 7), (5, 8), (5, 9)], 3, 3, 1),  # constant reference
    ],
)
def test_correlation_that_is_undefined_is_nan(volumes, n, bias, sd):
    table = pd.concat(bone_table([(SIZE, 0.0, 0.5, "TP")], case, volumes=v) for case, v in enumerate(volumes))
    row = volume_agreement(table).iloc[0]
    assert row["n"] == n
    assert row["bias_mm3"] == pytest.approx(bias, nan_ok=True)
    assert row["sd_mm3"] == pytest.approx(sd, nan_ok=True)
    assert math.isnan(row["pearson_r"])
    assert math.isnan(row["pearson_p"])


def test_volumes_equal_but_for_rounding_warn_of_nothing():
    volumes = [(1e6, 1.0), (1e6 + 1e-9, 2.0), (1e6, 4.0)]
    table = pd.concat(bone_table([(SIZE, 0.0, 0.5, "TP")], case, volumes=v) for case, v in enumerate(volumes))
    assert volume_agreement(table)["n"].tolist() == [3, 3]


def test_lesions_by_size_by_hand():
    # femoral: reference 12 mm3 (found by both predicted lesions on it) and 3 mm3 (missed); predicted 10, 1 and 5 mm3
    reference = strip(slice(0, 12), slice(20, 23))
    prediction = strip(slice(0, 10), 11, slice(40, 45))
    femoral = rows(detect(reference, prediction, MM), "a")[1]
    tibial = rows(detect(strip(5), strip(5), MM), "a", bone="tibial_bone")[1]
    found = lesion_wise(pd.concat([femoral, tibial]))
    assert list(found["bone"]) == ["femoral_bone"] * 4 + ["tibial_bone"] * 4 + ["all"] * 4
    assert found["from_mm3"].tolist() == [0, 10, 100, 1000] * 3
    assert found["to_mm3"].tolist() == [10, 100, 1000, math.inf] * 3
    # below 10 mm3, from 10 mm3 on (10 itself is one of these), from 100, from 1000; then the other bone, then all
    assert found["reference"].tolist() == [1, 1, 0, 0, 1, 0, 0, 0, 2, 1, 0, 0]
    assert found["found"].tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0]
    assert found["predicted"].tolist() == [2, 1, 0, 0, 1, 0, 0, 0, 3, 1, 0, 0]
    assert found["true"].tolist() == [1, 1, 0, 0, 1, 0, 0, 0, 2, 1, 0, 0]
    nan = math.nan
    sensitivity = [0, 1, nan, nan, 1, nan, nan, nan, 1 / 2, 1, nan, nan]
    precision = [1 / 2, 1, nan, nan, 1, nan, nan, nan, 2 / 3, 1, nan, nan]
    assert found["sensitivity"].tolist() == pytest.approx(sensitivity, nan_ok=True)
    assert found["precision"].tolist() == pytest.approx(precision, nan_ok=True)
    every = lesion_wise(pd.concat([femoral, tibial]), (0, math.inf))
    assert every[["reference", "found", "predicted", "true"]].to_numpy().tolist() == [
        [2, 1, 3, 2],
        [1, 1, 1, 1],
        [3, 2, 4, 3],
    ]


def test_every_model_has_every_bone_with_a_lesion():
    one = rows(detect(strip(5), strip(5), MM), "a", "first")[1]
    other = rows(detect(strip(), strip(5), MM), "a", "second", "tibial_bone")[1]
    found = lesion_wise(pd.concat([one, other]), (0, math.inf))
    assert list(found[["model", "bone", "reference", "predicted"]].itertuples(index=False, name=None)) == [
        ("first", "femoral_bone", 1, 1),
        ("first", "tibial_bone", 0, 0),
        ("first", "all", 1, 1),
        ("second", "femoral_bone", 0, 0),
        ("second", "tibial_bone", 0, 1),
        ("second", "all", 0, 1),
    ]


def test_empty_tables_give_empty_tables():
    bones, lesions = pd.DataFrame(columns=list(BONE_COLUMNS)), pd.DataFrame(columns=list(LESION_COLUMNS))
    for found, columns in (
        (counts(bones), COUNT_COLUMNS),
        (summary(counts(bones)), SUMMARY_COLUMNS),
        (volume_agreement(bones), AGREEMENT_COLUMNS),
        (lesion_wise(lesions), LESION_WISE_COLUMNS),
    ):
        assert found.empty
        assert tuple(found.columns) == columns
    assert [part.size for part in roc(counts(bones))] == [0, 0]
    assert math.isnan(auc(*roc(counts(bones))))


@pytest.mark.skipif(len(MASKS) < 4, reason="the masks of OAI ZIB-UQ are not at hand")
def test_real_reference_detects_itself_at_every_threshold():
    import SimpleITK as sitk

    bones, lesions = [], []
    for file in MASKS:
        image = sitk.ReadImage(str(file))
        array, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
        for label, bone in ((7, "femoral_bone"), (8, "tibial_bone"), (9, "patellar_bone")):
            mask = array == label
            points, components = rows(detect(mask, mask, spacing), file.name.split("_")[0], bone=bone)
            assert (points["dsc"].isna() if not mask.any() else points["dsc"] == 1).all()
            assert set(points["outcome"]) == {"TP" if mask.any() else "TN"}
            bones.append(points)
            lesions.append(components)
    found = summary(counts(pd.concat(bones, ignore_index=True)))
    print(found[["bone", "positives", "negatives"]].to_string(index=False))
    assert (found[["sensitivity", "specificity", "accuracy", "mean_dsc", "auc", "dacc", "ddsc"]] == 1).all(axis=None)
    assert (found["positives"] + found["negatives"]).tolist() == [len(MASKS)] * 3 + [3 * len(MASKS)]
    by_size = lesion_wise(pd.concat([table for table in lesions if len(table)], ignore_index=True))
    assert (by_size["found"] == by_size["reference"]).all()
    assert (by_size["true"] == by_size["predicted"]).all()
