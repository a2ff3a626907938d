"""Voxel-wise metrics of masks of 4 x 4, and groups by area."""

import math

import numpy as np
import pytest

from nnunetv2_anomaly.evaluation.mask_metrics import confusion, groups_by_area, mask_metrics


def test_metrics_of_four_by_four_by_hand():
    reference, prediction, bone = (np.zeros((4, 4), bool) for _ in range(3))
    reference[0, :3], prediction[0, 1:], bone[:2] = True, True, True
    counts = confusion(reference, prediction, bone)
    assert counts.tolist() == [2, 1, 1, 4]
    found = mask_metrics(counts)
    assert found == {
        "dice": pytest.approx(4 / 6), "iou": pytest.approx(2 / 4), "sensitivity": pytest.approx(2 / 3),
        "specificity": pytest.approx(4 / 5), "accuracy": pytest.approx(6 / 8),
    }  # fmt: skip
    whole = mask_metrics(confusion(reference, prediction, np.ones((4, 4), bool)))
    assert whole["specificity"] == pytest.approx(12 / 13)
    assert whole["dice"] == found["dice"]


def test_what_has_no_voxels_is_undefined():
    nothing, bone = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    found = mask_metrics(confusion(nothing, nothing, bone))
    assert found["accuracy"] == found["specificity"] == 1
    assert all(math.isnan(found[name]) for name in ("dice", "iou", "sensitivity"))


def test_groups_have_equal_numbers_and_the_smallest_first():
    assert groups_by_area([50, 10, 40, 20, 30, 60, 70, 80, 90, 100]).tolist() == [2, 0, 1, 0, 1, 2, 3, 3, 4, 4]
    assert groups_by_area([5, 5, 5, 5, 5]).tolist() == [0, 1, 2, 3, 4]
    assert groups_by_area([3, 1]).tolist() == [1, 0]
    assert groups_by_area([]).tolist() == []
