import math

import numpy as np
import pandas as pd
import pytest
from places import REAL_MAPS
from scipy import ndimage, stats

from nnunetv2_anomaly.evaluation.results import BONE_COLUMNS, LESION_COLUMNS, PROBABILITY, SIZE
from nnunetv2_anomaly.measurements.lesions import (
    AGREEMENT_COLUMNS,
    COUNT_COLUMNS,
    LESION_WISE_COLUMNS,
    MIN_DSC,
    PROBABILITIES,
    SIZES_MM3,
    SUMMARY_COLUMNS,
    auc,
    counts,
    detect,
    lesion_wise,
    roc,
    summary,
    volume_agreement,
)

pytestmark = pytest.mark.filterwarnings("error")

MASKS = sorted(REAL_MAPS.glob("*.nii.gz"))

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


def blobs(seed, shape, share, sigma=1.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return noise > np.quantile(noise, 1 - share)


def plainly_without(mask, spacing, size):
    """The mask without its lesions smaller than the size, the definition with scipy on the whole volume."""
    numbers, number = ndimage.label(mask, np.ones((3,) * mask.ndim))
    left = mask.copy()
    for lesion in range(1, number + 1):
        if (numbers == lesion).sum() * math.prod(spacing) < size - 1e-5:
            left[numbers == lesion] = False
    return left


def plainly(reference, prediction, spacing, probability=None):
    """Points, label by label and threshold by threshold."""
    wanted = [(SIZE, t, t, prediction) for t in SIZES_MM3]
    if probability is not None:
        wanted += [(PROBABILITY, t, 6.0, prediction & (probability >= t)) for t in PROBABILITIES]
    points = []
    for rule, threshold, size, predicted in wanted:
        a, b = (plainly_without(mask, spacing, size) for mask in (reference, predicted))
        total = a.sum() + b.sum()
        dsc = 2 * (a & b).sum() / total if total else math.nan
        outcome = ("TP" if dsc >= 0.05 else "FN") if a.any() else ("FP" if b.any() else "TN")
        points.append((rule, threshold, a.sum() * math.prod(spacing), b.sum() * math.prod(spacing), dsc, outcome))
    return points


def assert_points(found, expected):
    assert len(found) == len(expected)
    for point, (rule, threshold, reference_mm3, prediction_mm3, dsc, outcome) in zip(found, expected, strict=True):
        where = f"{rule} {threshold}"
        assert (point["rule"], point["threshold"], point["outcome"]) == (rule, threshold, outcome), where
        assert point["reference_mm3"] == pytest.approx(reference_mm3), where
        assert point["prediction_mm3"] == pytest.approx(prediction_mm3), where
        assert point["dsc"] == pytest.approx(dsc, nan_ok=True), where


def test_thresholds_are_the_papers():
    assert SIZES_MM3 == (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6)
    assert PROBABILITIES == (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert MIN_DSC == 0.05


@pytest.mark.parametrize("spacing", [(0.7, 0.3646, 0.3646), (1.0, 0.5, 0.5), (0.05, 2.5, 5.0)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_plain_definition_at_every_threshold(seed, spacing):
    reference = blobs(seed, (24, 30, 36), 0.03)
    prediction = np.roll(reference, (1, -1, 0), (0, 1, 2)) ^ blobs(seed + 50, reference.shape, 0.02, 0.8)
    probability = np.random.default_rng(seed).uniform(0.4, 1, reference.shape).astype(np.float32)
    probability[prediction & blobs(seed + 9, reference.shape, 0.3, 3)] = 1
    found = detect(reference, prediction, spacing, probability=probability)
    assert_points(found.points, plainly(reference, prediction, spacing, probability))
    assert detect(reference, prediction, spacing).points == found.points[: len(SIZES_MM3)]
    assert len({point["prediction_mm3"] for point in found.points}) > 5  # thresholds do something


@pytest.mark.parametrize("share", [0.0005, 0.005])
@pytest.mark.parametrize("seed", range(8))
def test_equals_the_plain_definition_where_lesions_are_few(seed, share):
    shape, spacing = (20, 40, 40), (0.7, 0.3646, 0.3646)
    reference, prediction = blobs(seed, shape, share), blobs(seed + 20 * (seed % 2), shape, share * 1.5)
    probability = np.clip(ndimage.gaussian_filter(prediction.astype(float), 0.4), 0, 1)
    found = detect(reference, prediction, spacing, probability=probability)
    assert_points(found.points, plainly(reference, prediction, spacing, probability))


@pytest.mark.parametrize("seed", range(4))
def test_images_of_two_axes(seed):
    reference, prediction = blobs(seed, (60, 50), 0.05), blobs(seed, (60, 50), 0.08)
    probability = np.random.default_rng(seed).uniform(0, 1, reference.shape)
    found = detect(reference, prediction, (0.5, 0.8), probability=probability)
    assert_points(found.points, plainly(reference, prediction, (0.5, 0.8), probability))


@pytest.mark.parametrize("seed", range(3))
def test_lesions_one_by_one_are_the_components_of_the_maps(seed):
    reference, prediction = blobs(seed, (20, 24, 28), 0.03), blobs(seed, (20, 24, 28), 0.02)
    prediction ^= blobs(seed + 7, prediction.shape, 0.02)
    expected = []
    for name, own, other in (("reference", reference, prediction), ("prediction", prediction, reference)):
        numbers, number = ndimage.label(own, np.ones((3, 3, 3)))
        for lesion in range(1, number + 1):
            share = other[numbers == lesion].mean()
            expected.append((name, (numbers == lesion).sum() * 0.1, share, share > 0))
    found = [tuple(lesion.values()) for lesion in detect(reference, prediction, (1, 0.5, 0.2)).lesions]
    assert len(found) > 10
    for one, other in zip(sorted(found), sorted(expected), strict=True):
        assert (one[0], one[3]) == (other[0], other[3])
        assert one[1:3] == pytest.approx(other[1:3])


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    mask = np.zeros((4, 4, 4), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    (one, other) = detect(mask, mask, MM).lesions
    assert one == {"map": "reference", "volume_mm3": 2.0, "overlap": 1.0, "found": True}
    assert other == one | {"map": "prediction"}
    assert [lesion["volume_mm3"] for lesion in detect(mask[1], mask[2], (1, 1)).lesions] == [1.0, 1.0]
    flat = np.eye(3, dtype=bool)
    assert [lesion["volume_mm3"] for lesion in detect(flat, flat, (1, 1)).lesions] == [3.0, 3.0]


def outcomes(detection):
    return [point["outcome"] for point in detection.points]


def test_no_lesion_anywhere_is_a_true_negative_of_undefined_dsc():
    empty = np.zeros((3, 4, 5), bool)
    found = detect(empty, empty, MM, probability=np.full(empty.shape, 0.5, np.float32))
    assert len(found.points) == 19
    assert set(outcomes(found)) == {"TN"}
    assert found.lesions == []
    for point in found.points:
        assert math.isnan(point["dsc"])
        assert point["reference_mm3"] == point["prediction_mm3"] == 0


def test_no_voxels_at_all_are_no_lesion():
    empty = np.zeros((0, 4, 5), bool)
    found = detect(empty, empty, MM, probability=np.zeros(empty.shape))
    assert set(outcomes(found)) == {"TN"}


def test_only_predicted_lesions_are_false_positives_until_they_are_gone():
    empty, lesion = strip(), strip(slice(3, 6))  # 3 mm3
    found = detect(empty, lesion, MM)
    assert outcomes(found) == ["FP"] * 7 + ["TN"] * 6  # 0 to 3.0 mm3; from 3.5 on
    assert [point["dsc"] for point in found.points[:7]] == [0] * 7
    assert found.lesions == [{"map": "prediction", "volume_mm3": 3.0, "overlap": 0.0, "found": False}]


def test_only_reference_lesions_are_missed_until_they_are_gone():
    empty, lesion = strip(), strip(slice(3, 6))
    found = detect(lesion, empty, MM, probability=np.zeros(lesion.shape))
    assert outcomes(found) == ["FN"] * 7 + ["TN"] * 6 + ["TN"] * 6
    assert [point["dsc"] for point in found.points[:7]] == [0] * 7
    assert found.lesions == [{"map": "reference", "volume_mm3": 3.0, "overlap": 0.0, "found": False}]


@pytest.mark.parametrize(("predicted", "outcome"), [(39, "TP"), (40, "FN")])
def test_five_per_cent_are_enough(predicted, outcome):
    found = detect(strip(0), strip(slice(0, predicted)), MM, sizes_mm3=[0])  # 2 / 40 = 5 %, 2 / 41 is less
    assert outcomes(found) == [outcome]


def test_lesion_of_exactly_the_threshold_stays():
    found = detect(strip(0), strip(0), (1.0, 1.0, 0.5))  # 0.5 mm3
    assert outcomes(found) == ["TP", "TP"] + ["TN"] * 11


@pytest.mark.parametrize("voxels", range(1, 60))
def test_lesion_of_exactly_the_threshold_stays_however_it_is_rounded(voxels):
    spacing = (0.7, 0.3646, 0.3646)
    threshold = 0.3646 * voxels * 0.3646 * 0.7  # in another order than the voxel's volume is
    lesion = strip(slice(0, voxels))
    assert outcomes(detect(lesion, lesion, spacing, sizes_mm3=[threshold])) == ["TP"]
    assert outcomes(detect(lesion, lesion, spacing, sizes_mm3=[0.3646 * (voxels + 1) * 0.3646 * 0.7])) == ["TN"]


def test_spacing_of_single_precision_is_no_smaller_lesion():
    spacing = tuple(float(np.float32(s)) for s in (0.7, 0.5, 0.5))  # 0.69999999 mm, 20 voxels: just below 3.5 mm3
    assert 20 * math.prod(spacing) < 3.5
    found = detect(strip(slice(0, 20)), strip(slice(0, 19)), spacing, sizes_mm3=[3.5])
    assert outcomes(found) == ["FN"]
    assert found.points[0]["reference_mm3"] == pytest.approx(3.5)
    assert found.points[0]["prediction_mm3"] == 0


def test_lesions_that_a_probability_splits_are_measured_apart():
    reference = strip(slice(0, 14))
    prediction = strip(slice(0, 13))
    probability = np.zeros(prediction.shape, np.float32)
    probability[0, 0, :6] = 0.95  # 6 voxels
    probability[0, 0, 6:8] = 0.55  # a bridge of 2
    probability[0, 0, 8:13] = 0.85  # 5 voxels
    points = detect(reference, prediction, MM, probability=probability).points[13:]
    assert [point["threshold"] for point in points] == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    # 0.5: all 13. Without the bridge 6 and 5: the 5 are smaller than 6.0 mm3. At 1.0 nothing is left.
    assert [point["prediction_mm3"] for point in points] == [13, 6, 6, 6, 6, 0]
    assert [point["reference_mm3"] for point in points] == [14] * 6
    assert [point["dsc"] for point in points] == pytest.approx([26 / 27, *[12 / 20] * 4, 0])
    assert [point["outcome"] for point in points] == ["TP"] * 5 + ["FN"]


def test_small_lesions_stay_gone_at_every_probability():
    lesion = strip(slice(0, 5))
    points = detect(lesion, lesion, MM, probability=np.ones(lesion.shape)).points[13:]
    assert [point["outcome"] for point in points] == ["TN"] * 6  # 5 mm3 in both maps


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_voxel_of_exactly_the_probability_stays(kind):
    lesion = strip(slice(0, 6))
    for step, threshold in enumerate(PROBABILITIES):
        probability = np.where(lesion, threshold, 0).astype(kind)
        points = detect(lesion, lesion, MM, probability=probability).points[13:]
        assert [point["outcome"] for point in points] == ["TP"] * (step + 1) + ["FN"] * (5 - step)


@pytest.mark.parametrize(
    ("value", "says"), [(math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "-inf"), (1.01, "1.01"), (-0.1, "-0.1")]
)
def test_probability_that_is_none_is_told(value, says):
    lesion, probability = strip(0), np.zeros((1, 1, 60))
    probability[0, 0, 40] = value  # outside the lesions
    with pytest.raises(ValueError, match=says):
        detect(lesion, lesion, MM, probability=probability)


def test_wrong_inputs_are_told():
    lesion = strip(0)
    with pytest.raises(ValueError, match=r"expected the masks' \(1, 1, 60\)"):
        detect(lesion, lesion, MM, probability=np.zeros((1, 60)))
    with pytest.raises(ValueError, match="expected floating point"):
        detect(lesion, lesion, MM, probability=lesion)
    with pytest.raises(ValueError, match="expected bool"):
        detect(lesion, lesion.astype(int), MM)
    with pytest.raises(ValueError, match="shapes"):
        detect(lesion, lesion[..., 1:], MM)
    with pytest.raises(ValueError, match="two or three axes"):
        detect(lesion[0, 0], lesion[0, 0], (1,))
    with pytest.raises(ValueError, match="3 positive numbers"):
        detect(lesion, lesion, (1, 1))
    with pytest.raises(ValueError, match="3 positive numbers"):
        detect(lesion, lesion, (1, 1, 0))
    for sizes in ([], [-1], [math.nan], [math.inf]):
        with pytest.raises(ValueError, match="sizes_mm3"):
            detect(lesion, lesion, MM, sizes_mm3=sizes)
    with pytest.raises(ValueError, match="probabilities"):
        detect(lesion, lesion, MM, probabilities=[50])


def test_inputs_stay_as_they_are():
    reference, prediction = blobs(0, (8, 9, 10), 0.1), blobs(1, (8, 9, 10), 0.1)
    probability = np.full(reference.shape, 0.7)
    before = [array.copy() for array in (reference, prediction, probability)]
    detect(reference, prediction, MM, probability=probability)
    for array, copy in zip((reference, prediction, probability), before, strict=True):
        np.testing.assert_array_equal(array, copy)


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


def test_case_without_a_threshold_is_told():
    table = four_cases_and_two_bones()
    with pytest.raises(ValueError, match=r"3 rows of 4 bones"):
        counts(table[(table["case"] != "n2") | (table["rule"] == SIZE)])
    with pytest.raises(ValueError, match=r"expected one of each"):
        counts(pd.concat([table, table[:1]]))


def test_table_of_the_paper_needs_the_maps_as_they_are():
    table = counts(four_cases_and_two_bones())
    with pytest.raises(ValueError, match="size threshold 0 is missing"):
        summary(table[table["threshold"] != 0])
    with pytest.raises(ValueError, match="several models or bones"):
        roc(table)
    with pytest.raises(ValueError, match="shapes"):
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


def test_volumes_are_of_the_threshold_that_is_asked_for():
    reference, prediction = strip(slice(0, 4), 10), strip(slice(0, 3), 20, 30)
    table = rows(detect(reference, prediction, MM), "a")[0]
    assert volume_agreement(table)["bias_mm3"].tolist() == [0, 0]  # 5 and 5
    assert volume_agreement(table, 2)["bias_mm3"].tolist() == [-1, -1]  # 4 and 3
    assert volume_agreement(table, 6)["n"].tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"0.7 mm3; expected one of \[.*0.5"):
        volume_agreement(table, 0.7)


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


@pytest.mark.parametrize("edges", [(), (0,), (0, 0), (10, 0), (0, math.nan)])
def test_edges_that_do_not_rise_are_told(edges):
    with pytest.raises(ValueError, match="rising"):
        lesion_wise(pd.DataFrame(columns=list(LESION_COLUMNS)), edges)


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


@pytest.mark.skipif(len(MASKS) < 2, reason="the masks of OAI ZIB-UQ are not at hand")
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
