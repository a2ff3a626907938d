import numpy as np
import pytest

from nnunetv2_anomaly.detectors.quality import describe_quality, lesion_auc, lesion_average_precision

AREA = np.ones(4, bool)


@pytest.mark.parametrize(
    ("scores", "lesion", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
        ([1.0, 2.0, 3.0, 4.0], [1, 1, 0, 0], 0.0),
        ([1.0, 1.0, 1.0, 1.0], [0, 1, 0, 1], 0.5),
    ],
)
def test_auc_is_the_share_of_pairs_in_the_right_order_and_a_tie_counts_half(scores, lesion, expected):
    assert lesion_auc(np.array(scores), np.array(lesion, bool), [AREA], ["auc"]) == {"auc": pytest.approx(expected)}


@pytest.mark.parametrize("lesion", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_one_class_has_no_auc_and_no_precision(lesion):
    scores, lesion = np.arange(4.0), np.array(lesion, bool)
    assert lesion_auc(scores, lesion, [AREA], ["auc"]) == {"auc": None}
    assert lesion_average_precision(scores, lesion, AREA) is None


def test_average_precision_is_the_mean_of_the_precisions_at_the_lesions_voxels():
    # From the highest score down: lesion (1/1), other, lesion (2/3).
    scores, lesion = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1, 0, 1, 0], bool)
    assert lesion_average_precision(scores, lesion, AREA) == pytest.approx((1 + 2 / 3) / 2)


def test_voxels_outside_the_area_do_not_count():
    scores, lesion = np.array([9.0, 1.0, 2.0, 0.0]), np.array([0, 0, 1, 0], bool)
    assert lesion_average_precision(scores, lesion, np.array([0, 1, 1, 1], bool)) == 1.0


@pytest.mark.parametrize(
    ("mse", "beats"), [(0.01, True), (0.025, False), (0.03, False), (0.05, False), (float("nan"), False)]
)
def test_good_detector_beats_both_the_constant_and_the_blurred_image(mse, beats):
    quality = {"mse_erased": mse, "mse_constant": 0.04, "mse_blurred": 0.025}
    sentence, result = describe_quality(quality)
    assert result is beats
    assert f"patches {mse:.5f}, of a constant image 0.04000, of a blurred image 0.02500" in sentence


def test_detector_that_beats_the_blurred_image_alone_is_not_good():
    assert not describe_quality({"mse_erased": 0.03, "mse_constant": 0.02, "mse_blurred": 0.04})[1]


def test_lesions_are_reported_beside_what_the_intensity_achieves():
    found = {"lesion_auc": 0.7, "lesion_ap": 0.1, "intensity_lesion_auc": 0.85, "contrast_lesion_auc": 0.9}
    sentence, beats = describe_quality(found)
    of_both = "of the image's intensity 0.850, of contrast in the labelled bones 0.900"
    assert sentence == f"AUC for lesions against bone 0.700, {of_both}"
    assert beats


def test_quality_that_was_not_measured_is_said_to_be_missing():
    assert describe_quality({}) == ("no quality recorded", True)
