"""Area under the receiver operating characteristic, by ranks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata


def roc_auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a positive element scores higher than a negative one.

    It is the Mann-Whitney statistic U / (n_positive * n_negative), exact, where a tie counts one half.

    Args:
        scores: any shape, unitless; larger means more likely positive.
        positive: same shape as ``scores``; nonzero (true) where the element is positive.

    Returns: area in [0, 1], unitless; NaN where one of the two classes has no element.

    Raises: ValueError if the shapes differ or a score is NaN, which has no rank.
    """
    scores, positive = np.asarray(scores), np.asarray(positive).astype(bool)
    if scores.shape != positive.shape:
        raise ValueError(f"scores have the shape {scores.shape}, positive has {positive.shape}; they must be the same")
    scores, positive = scores.ravel(), positive.ravel()
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} of {scores.size} scores are NaN and cannot be ranked")
    num_positive = int(positive.sum())
    num_negative = positive.size - num_positive
    if num_positive == 0 or num_negative == 0:
        return math.nan
    rank_sum = float(rankdata(scores)[positive].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)
