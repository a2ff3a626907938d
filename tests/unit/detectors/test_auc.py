"""Area under the ROC curve: numbers that a pencil can check."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnunetv2_anomaly.detectors.auc import roc_auc


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),  # every pair is a tie
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),  # of four pairs, 0.35 < 0.4 is wrong
        ([1, 2, 2, 3], [0, 0, 1, 1], 0.875),  # three right, one tie
    ],
)
def test_auc_is_the_share_of_pairs_in_the_right_order(scores, positive, expected):
    assert roc_auc(scores, positive) == pytest.approx(expected)


def test_auc_equals_counting_all_pairs_in_any_shape():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, (4, 5, 3)), rng.random((4, 5, 3)) < 0.3
    pairs = scores[positive][:, None] - scores[~positive][None, :]
    assert roc_auc(scores, positive) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


@pytest.mark.parametrize("positive", [[0, 0, 0], [1, 1, 1]])
def test_auc_of_one_class_is_nan(positive):
    assert math.isnan(roc_auc([1.0, 2.0, 3.0], positive))


def test_auc_refuses_shapes_that_differ_and_nan_scores():
    with pytest.raises(ValueError, match="shape"):
        roc_auc([1, 2, 3], [0, 1])
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        roc_auc([1.0, math.nan], [0, 1])
