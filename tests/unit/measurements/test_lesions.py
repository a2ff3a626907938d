import math

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_anomaly.measurements.lesions import MIN_DSC, PROBABILITIES, PROBABILITY, SIZE, SIZES_MM3, detect

pytestmark = pytest.mark.filterwarnings("error")

MM = (1.0, 1.0, 1.0)


def strip(*voxels):
    """A row of 60 voxels with these set; a range is one lesion."""
    mask = np.zeros((1, 1, 60), bool)
    for place in voxels:
        mask[0, 0, place] = True
    return mask


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


def test_wrong_inputs_are_told():
    lesion = strip(0)
    with pytest.raises(ValueError, match="shapes"):
        detect(lesion, lesion[..., 1:], MM)
    with pytest.raises(ValueError, match="3 positive numbers"):
        detect(lesion, lesion, (1, 1))
    with pytest.raises(ValueError, match="3 positive numbers"):
        detect(lesion, lesion, (1, 1, 0))


def test_inputs_stay_as_they_are():
    reference, prediction = blobs(0, (8, 9, 10), 0.1), blobs(1, (8, 9, 10), 0.1)
    probability = np.full(reference.shape, 0.7)
    before = [array.copy() for array in (reference, prediction, probability)]
    detect(reference, prediction, MM, probability=probability)
    for array, copy in zip((reference, prediction, probability), before, strict=True):
        np.testing.assert_array_equal(array, copy)
