"""Whether models differ: over all of them at once as in the paper, and case by case (method paper, Section 5).

Tukey's honestly significant difference, the paper's test, takes the models' values for independent samples. They are
not: models are evaluated on the same cases, and cases differ more than models do. The paired test, which is ours, uses
that, and finds smaller differences.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

#: metrics that are tested where nothing else is asked for
METRICS = ("dsc", "asd_mm", "hd_mm", "hd95_mm")

#: a difference is significant below it (method paper, Section 5)
SIGNIFICANCE = 0.05

_PAIR = ("processing", "label", "metric", "model_a", "model_b")
_MEANS = ("mean_a", "mean_b", "difference")
#: columns of ``tukey`` and of ``paired``
TUKEY_COLUMNS = (*_PAIR, "n_a", "n_b", *_MEANS, "lower", "upper", "p", "significant")
PAIRED_COLUMNS = (*_PAIR, "n", *_MEANS, "p", "p_holm", "significant")


def tukey(cases: pd.DataFrame, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Tukey's honestly significant difference of all pairs of models (method paper, Section 5).

    For every processing, label and metric the models' values are the groups of one test, Tukey and Kramer's where
    groups differ in size. NaN values are left out. A model with fewer than two values is left out of the test, and its
    pairs have no p; no pair has one where all values equal their group's mean. Metrics are columns of the cases.

    Returns: ``TUKEY_COLUMNS``; a row per processing, label, metric and pair of models, each in the order in which they
        are first met. n, mean: of the values that are defined. difference = mean_a - mean_b with its simultaneous 95 %
        confidence interval from lower to upper; means, difference and interval in the metric's unit, p unitless.
        significant: p < ``SIGNIFICANCE``; False where p is NaN. Empty with one model.
    """
    rows = []
    for key, values in _models_by_case(cases, metrics):
        groups = {model: column[~np.isnan(column)] for model, column in values.items()}
        tested = [model for model, group in groups.items() if len(group) > 1]
        differs = len(tested) > 1 and any(np.ptp(groups[model]) > 0 for model in tested)
        if differs:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                # The integral behind p warns where p is 0 or 1 but for rounding.
                warnings.simplefilter("ignore")
                result = stats.tukey_hsd(*(groups[model] for model in tested))
                margins = _margins([groups[model] for model in tested])
        for a, b in itertools.combinations(groups, 2):
            mean_a, mean_b = _mean(groups[a]), _mean(groups[b])
            lower = upper = p = math.nan
            if differs and a in tested and b in tested:
                at = tested.index(a), tested.index(b)
                p = float(result.pvalue[at])
                lower, upper = (mean_a - mean_b + sign * float(margins[at]) for sign in (-1, 1))
            sizes, means = (len(groups[a]), len(groups[b])), (mean_a, mean_b, mean_a - mean_b)
            rows.append((*key, a, b, *sizes, *means, lower, upper, p, p < SIGNIFICANCE))
    return pd.DataFrame(rows, columns=list(TUKEY_COLUMNS))


def _margins(groups: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(models, models): half of each simultaneous confidence interval of a difference (Tukey and Kramer's).

    Equals ``tukey_hsd(...).confidence_interval``, which computes its quantile again for every label and metric, and
    takes ten times as long for that as for the test.
    """
    sizes = np.array([len(group) for group in groups])
    freedom = int(sizes.sum() - len(groups))
    mean_square = sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom
    return _quantile(len(groups), freedom) * np.sqrt(mean_square / 2 * np.add.outer(1 / sizes, 1 / sizes))


@functools.lru_cache
def _quantile(number: int, freedom: int) -> float:
    return float(stats.studentized_range.ppf(1 - SIGNIFICANCE, number, freedom))


def paired(cases: pd.DataFrame, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Wilcoxon's signed-rank test of all pairs of models on the cases they share (ours; Wilcoxon 1945, Holm 1979).

    For every processing, label and metric, and every pair of models that have cases in common: the two-sided test on
    the cases where both have a value; cases with a difference of 0 do not rank. Without any difference p is 1, without
    any such case NaN. p_holm is Holm's correction over the pairs of one processing, label and metric that have a p.

    Returns: ``PAIRED_COLUMNS``; a row per processing, label, metric and pair of models, each in the order in which they
        are first met. n: cases where both have a value; means, and difference = mean_a - mean_b, over them, in the
        metric's unit, p unitless. significant: p_holm < ``SIGNIFICANCE``; False where it is NaN. Empty with one model.
    """
    rows = []
    for key, values in _models_by_case(cases, metrics):
        own = cases[(cases["processing"] == key[0]) & (cases["label"] == key[1])]
        cases_of = {model: set(own.loc[own["model"] == model, "case"]) for model in values}
        pairs = []
        for a, b in itertools.combinations(values, 2):
            if not cases_of[a] & cases_of[b]:
                continue
            both = ~np.isnan(values[a]) & ~np.isnan(values[b])
            of_a, of_b = values[a][both], values[b][both]
            means = _mean(of_a), _mean(of_b), _mean(of_a - of_b)
            pairs.append((*key, a, b, len(of_a), *means, _wilcoxon(of_a, of_b)))
        for pair, p in zip(pairs, holm([pair[-1] for pair in pairs]), strict=True):
            rows.append((*pair, float(p), bool(p < SIGNIFICANCE)))
    return pd.DataFrame(rows, columns=list(PAIRED_COLUMNS))


def fewest_cases(num_models: int) -> int:
    """Of fewer cases no difference between models can be significant in the paired test, however large.

    Of n cases Wilcoxon's two-sided p is at least 2 / 2^n, and Holm multiplies it by the number of pairs of models.
    """
    return math.floor(math.log2(2 * max(1, math.comb(num_models, 2)) / SIGNIFICANCE)) + 1


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Holm's step-down correction (Holm, Scandinavian Journal of Statistics 1979).

    Of m sorted p-values the i-th, from 0, is multiplied by m - i; none is then smaller than one before it, or larger
    than 1. NaN stays NaN and does not count.

    Returns: (m,), corrected, in the order given, unitless.
    """
    values = np.asarray(p_values, dtype=float)
    corrected = np.full(values.shape, math.nan)
    defined = np.flatnonzero(~np.isnan(values))
    order = defined[np.argsort(values[defined], kind="stable")]
    scaled = values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected


def daggers(table: pd.DataFrame, baseline: str) -> frozenset[tuple[str, str, str, str]]:
    """(processing, label, metric, model) of what differs significantly from the baseline, either way.

    The table is one of ``tukey`` or ``paired``.
    """
    return frozenset(
        (row.processing, row.label, row.metric, row.model_b if row.model_a == baseline else row.model_a)
        for row in table[table["significant"].astype(bool)].itertuples()
        if baseline in (row.model_a, row.model_b)
    )


def _models_by_case(cases: pd.DataFrame, metrics: Sequence[str]) -> Iterator[tuple[Any, dict[str, NDArray]]]:
    """Of every processing, label and metric: these three, and by model its values, a case at the same place in all.

    NaN where a model lacks the case.
    """
    models = list(cases["model"].unique())
    for (processing, label), own in cases.groupby(["processing", "label"], sort=False, observed=True):
        for metric in metrics:
            # Which raises a ValueError for a model that has a case twice.
            values = own.pivot(index="case", columns="model", values=metric).reindex(columns=models).astype(float)
            yield (processing, label, metric), {model: values[model].to_numpy() for model in models}


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _wilcoxon(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if not len(first):
        return math.nan
    if (first == second).all():  # scipy's versions differ: NaN, an error or 1
        return 1.0
    with warnings.catch_warnings():
        # With ties scipy takes an approximation, and some of its versions say so.
        warnings.simplefilter("ignore")
        return float(stats.wilcoxon(first, second).pvalue)
