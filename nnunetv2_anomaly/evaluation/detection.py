"""Detection of lesions over the cases, and how far their volumes agree (method paper, Section 5.3 and Appendix C).

Sensitivity and specificity of a model over ``measurements.lesions``' thresholds give its ROC. Lesion-wise detection and
the agreement of volumes are ours.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

from nnunetv2_anomaly.measurements.agreement import limits_of_agreement
from nnunetv2_anomaly.measurements.lesions import FN, FP, PREDICTION, REFERENCE, SIZE, TN, TP, at_least

#: value of the column ``bone`` where all bones count together
ALL = "all"

_RATES = ("positives", "negatives", "sensitivity", "specificity", "accuracy", "mean_dsc")
_AT_BEST = ("dacc", "dacc_rule", "dacc_threshold", "ddsc", "ddsc_rule", "ddsc_threshold")
#: columns of ``counts``
COUNT_COLUMNS = ("model", "bone", "rule", "threshold", TP, FN, TN, FP, *_RATES)

#: columns of ``summary``
SUMMARY_COLUMNS = ("model", "bone", *_RATES, "auc", *_AT_BEST)

#: columns of ``volume_agreement``
AGREEMENT_COLUMNS = ("model", "bone", "n", "pearson_r", "pearson_p", "bias_mm3", "sd_mm3", "lower_mm3", "upper_mm3")

#: columns of ``lesion_wise``
LESION_WISE_COLUMNS = (
    "model", "bone", "from_mm3", "to_mm3", "reference", "found", "sensitivity", "predicted", "true", "precision",
)  # fmt: skip


def counts(bones: pd.DataFrame) -> pd.DataFrame:
    """Outcomes at every threshold, and the rates they give (method paper, Section 5.3).

    sensitivity = TP / positives with positives = TP + FN, specificity = TN / negatives with negatives = TN + FP,
    accuracy = (TP + TN) / all. mean_dsc is the mean DSC over the positives; one that is missed counts with its own DSC,
    which mostly is 0. As a size threshold empties references too, positives may become fewer with it.

    Args: bones: ``Evaluation.bones``.
    Returns: ``COUNT_COLUMNS``, unitless but for thresholds in mm3; a row per model, bone, rule and threshold, in the
        order in which they are first met; after a model's bones all of them together, as bone ``ALL``. A rate without
        cases is NaN.
    """
    rows = []
    for model, bone, own in _bones_of_models(bones):
        for key, at in own.groupby(["rule", "threshold"], sort=False):
            tp, fn, tn, fp = (int((at["outcome"] == outcome).sum()) for outcome in (TP, FN, TN, FP))
            rates = _ratio(tp, tp + fn), _ratio(tn, tn + fp), _ratio(tp + tn, len(at))
            mean_dsc = float(at.loc[at["outcome"].isin([TP, FN]), "dsc"].astype(float).mean())
            rows.append((model, bone, *key, tp, fn, tn, fp, tp + fn, tn + fp, *rates, mean_dsc))
    return pd.DataFrame(rows, columns=list(COUNT_COLUMNS))


def roc(points: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ROC that the thresholds of one model and bone give (method paper, Section 5.3).

    How points are joined is ours: every threshold is a point (1 - specificity, sensitivity), (0, 0) and (1, 1) are
    added, they are sorted by false positive rate and then by sensitivity, and joined by straight lines. No point is
    dropped for being below its neighbours. Thresholds without a positive or without a negative case are no point.

    Returns: false positive rate and sensitivity, (n + 2,) each, in [0, 1], unitless; empty without any point.
    """
    sensitivity = points["sensitivity"].to_numpy(dtype=float)
    false_positive_rate = 1 - points["specificity"].to_numpy(dtype=float)
    defined = ~np.isnan(sensitivity) & ~np.isnan(false_positive_rate)
    if not defined.any():
        return np.zeros(0), np.zeros(0)
    along = np.concatenate([[0.0], false_positive_rate[defined], [1.0]])
    up = np.concatenate([[0.0], sensitivity[defined], [1.0]])
    order = np.lexsort((up, along))
    return along[order], up[order]


def bones_with_curve(counts_table: pd.DataFrame) -> list[str]:
    """The bones of which at least one model has an ROC: those with and without a lesion, in the table's order."""
    defined = counts_table[["sensitivity", "specificity"]].notna().all(axis=1)
    return list(counts_table.loc[defined, "bone"].unique())


def distinct(table: pd.DataFrame) -> pd.DataFrame:
    """A table with a column ``bone``, without bone ``ALL`` where it would repeat the only one."""
    return table[table["bone"] != ALL] if table["bone"].nunique() == 2 else table


def auc(false_positive_rate: NDArray[np.float64], sensitivity: NDArray[np.float64]) -> float:
    """Area under a curve of ``roc``, (n,) each, by trapezoids, in [0, 1], unitless; NaN where it has no points.

    Raises: ValueError if the two shapes differ.
    """
    return metrics.auc(false_positive_rate, sensitivity) if len(sensitivity) else math.nan


def summary(counts_table: pd.DataFrame) -> pd.DataFrame:
    """Detection in a row per model and bone, as the paper's table of it (method paper, Section 5.3).

    positives to mean_dsc are those without post-processing: size threshold 0. dacc is the best accuracy over all
    thresholds, ddsc the best mean DSC, each with the rule and threshold that gave it: the first one of equals. They are
    chosen on the cases that they describe, so they show what post-processing could give at best.

    Returns: ``SUMMARY_COLUMNS``, in the order of ``counts_table``; unitless but for thresholds in mm3. Where there is
        no positive case at any threshold, ddsc and its threshold are NaN, and its rule is missing.
    """
    rows = []
    for key, own in counts_table.groupby(["model", "bone"], sort=False):
        as_it_is = own[(own["rule"] == SIZE) & (own["threshold"] == 0)].iloc[0]
        row = [*key, *as_it_is[list(_RATES)], auc(*roc(own))]
        for metric in ("accuracy", "mean_dsc"):
            known = own[own[metric].notna()].sort_values(metric, ascending=False, kind="stable")
            row += known[[metric, "rule", "threshold"]].iloc[0].tolist() if len(known) else [math.nan, None, math.nan]
        rows.append(row)
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def volume_agreement(bones: pd.DataFrame) -> pd.DataFrame:
    """How far lesion volumes of prediction and reference agree: correlation, and Bland and Altman's limits.

    A sample is a bone of a case in which at least one map has a lesion, before any is removed; of bone ``ALL``, all of
    them. Difference = prediction - reference, bias and limits as of ``limits_of_agreement``. Pearson's r with its
    two-sided p, NaN with fewer than three samples or where a map's volumes are all equal.

    Returns: ``AGREEMENT_COLUMNS``; mm3 as named, r and p unitless; order as in ``counts``.
    """
    at = bones[(bones["rule"] == SIZE) & (bones["threshold"] == 0)]
    rows = []
    for model, bone, own in _bones_of_models(at):
        reference, prediction = (own[f"{name}_mm3"].to_numpy(dtype=float) for name in (REFERENCE, PREDICTION))
        some = (reference > 0) | (prediction > 0)
        reference, prediction = reference[some], prediction[some]
        limits = limits_of_agreement(prediction - reference)
        rows.append((model, bone, len(reference), *_pearson(reference, prediction), *limits))
    return pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS))


def lesion_wise(lesions: pd.DataFrame, edges_mm3: Sequence[float] = (0, 10, 100, 1000, math.inf)) -> pd.DataFrame:
    """How many lesions are found, one by one and by their size.

    A lesion of the reference is found where any of its voxels is predicted: sensitivity = found / reference. A lesion
    of the prediction is true where any of its voxels is in the reference: precision = true / predicted. Each is binned
    by its own volume, from_mm3 <= volume < to_mm3.

    Args: edges_mm3: of the bins, at least two, rising, in mm3.
    Returns: ``LESION_WISE_COLUMNS``; from_mm3 and to_mm3 in mm3, the rest unitless; a row per model, bone that has any
        lesion, and bin; models and bones in the order in which they are first met, after a model's bones all together
        as bone ``ALL``. A rate without lesions is NaN.
    """
    rows = []
    for model, bone in itertools.product(lesions["model"].unique(), [*lesions["bone"].unique(), ALL]):
        own = lesions[(lesions["model"] == model) & ((lesions["bone"] == bone) | (bone == ALL))]
        for low, high in itertools.pairwise(map(float, edges_mm3)):
            binned = own[at_least(own["volume_mm3"], low) & ~at_least(own["volume_mm3"], high)]
            of_maps = (binned.loc[binned["map"] == name, "found"] for name in (REFERENCE, PREDICTION))
            numbers = [(len(found), int(found.sum()), _ratio(int(found.sum()), len(found))) for found in of_maps]
            rows.append((model, bone, low, high, *itertools.chain(*numbers)))
    return pd.DataFrame(rows, columns=list(LESION_WISE_COLUMNS))


def _bones_of_models(bones: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(model, bone, its rows), bones in the table's order, after each model's bones ``ALL``."""
    for model in bones["model"].unique():
        of_model = bones[bones["model"] == model]
        for bone in bones["bone"].unique():
            own = of_model[of_model["bone"] == bone]
            if len(own):
                yield model, bone, own
        yield model, ALL, of_model


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _pearson(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    if len(first) < 3 or not np.ptp(first) or not np.ptp(second):
        return math.nan, math.nan
    with warnings.catch_warnings():
        # Volumes that are equal but for rounding: r is then what the rounding makes it.
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        result = stats.pearsonr(first, second)
    return float(result.statistic), float(result.pvalue)
