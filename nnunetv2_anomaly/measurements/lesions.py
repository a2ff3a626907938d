"""Whether the lesions of a bone are detected, and how far volumes agree (method paper, Section 5.3 and Appendix C).

Detection is bone-wise: a bone is a positive case where the reference has a lesion in it. What counts as a lesion
depends on a threshold: lesions smaller than a size are gone from both maps; beyond the sizes, the prediction's voxels
must also have a softmax output that is high enough. Sensitivity and specificity over the thresholds give the ROC.
Lesion-wise detection and the agreement of volumes are ours.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import trapezoid

from nnunetv2_anomaly.evaluation.results import PROBABILITY, SIZE

#: lesions smaller than this, in mm3, are gone from both maps (method paper, Appendix C)
SIZES_MM3 = tuple(step / 2 for step in range(13))

#: beyond the largest size, the lowest softmax output of the prediction's lesion voxels (method paper, Appendix C)
PROBABILITIES = tuple(step / 10 for step in range(5, 11))

#: from this DSC on a bone's lesions are detected (method paper, Section 5.3)
MIN_DSC = 0.05

#: values of the column ``outcome``
TP, FN, TN, FP = "TP", "FN", "TN", "FP"

#: values of the column ``map``
REFERENCE, PREDICTION = "reference", "prediction"

#: value of the column ``bone`` where all bones count together
ALL = "all"

#: columns of ``counts``
COUNT_COLUMNS = (
    "model", "bone", "rule", "threshold", TP, FN, TN, FP, "positives", "negatives", "sensitivity", "specificity",
    "accuracy", "mean_dsc",
)  # fmt: skip

#: columns of ``summary``
SUMMARY_COLUMNS = (
    "model", "bone", "positives", "negatives", "sensitivity", "specificity", "accuracy", "mean_dsc", "auc", "dacc",
    "dacc_rule", "dacc_threshold", "ddsc", "ddsc_rule", "ddsc_threshold",
)  # fmt: skip

#: columns of ``volume_agreement``
AGREEMENT_COLUMNS = (
    "model", "bone", "n", "pearson_r", "pearson_p", "bias_mm3", "sd_mm3", "lower_mm3", "upper_mm3",
)  # fmt: skip

#: columns of ``lesion_wise``
LESION_WISE_COLUMNS = (
    "model", "bone", "from_mm3", "to_mm3", "reference", "found", "sensitivity", "predicted", "true", "precision",
)  # fmt: skip

# Headers hold spacings in single precision: a volume that is smaller than a limit by less than this share equals it.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Detection:
    """What ``detect`` found in one bone.

    Attributes:
        points: one per rule and threshold, in the order of the thresholds: rule, threshold, reference_mm3,
            prediction_mm3, dsc and outcome, as the columns of ``Evaluation.bones``.
        lesions: one per connected component of either map, the reference's first: map, volume_mm3, overlap and found,
            as the columns of ``Evaluation.lesions``.
    """

    points: list[dict[str, Any]]
    lesions: list[dict[str, Any]]


@dataclass(frozen=True)
class _Components:
    """Connected components: their numbers voxel by voxel, from 1, and the voxels of each number (0 of number 0)."""

    numbers: NDArray[np.integer]
    voxels: NDArray[np.int64]


@dataclass(frozen=True)
class _Shared:
    """Pairs of a reference's and a prediction's component that overlap, and the number of voxels they share."""

    reference: NDArray[np.int64]
    prediction: NDArray[np.int64]
    voxels: NDArray[np.int64]


def detect(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    *,
    probability: NDArray[np.floating] | None = None,
    sizes_mm3: Sequence[float] = SIZES_MM3,
    probabilities: Sequence[float] = PROBABILITIES,
) -> Detection:
    """Outcome of one bone at every threshold, and its lesions one by one (method paper, Section 5.3, Appendix C).

    A lesion is a connected component; voxels that touch at a corner are connected. At a size threshold the lesions
    smaller than it are gone from both maps; one of exactly that volume stays. At a probability threshold the
    prediction's voxels with a lower ``probability`` are gone, and then, from both maps, the lesions smaller than the
    largest of the sizes. Of what is left: a reference with a lesion makes TP where DSC >= ``MIN_DSC``, else FN; a
    reference without one makes TN where the prediction has none either, else FP. DSC is NaN where neither has one. The
    lesions one by one are those of the maps as they are.

    Args:
        reference, prediction: (Z, Y, X) or (Y, X), bool: the voxels of one bone's lesion label.
        spacing_mm: distance of voxels along each axis, in the arrays' axis order.
        probability: of the arrays' shape, floating point in [0, 1]: softmax output of that label, unitless. Without it
            there are no points of that rule.
        sizes_mm3: thresholds in mm3 (mm2 in 2D), from 0.
        probabilities: thresholds in [0, 1], unitless.

    Returns: points and lesions; volumes in mm3 (mm2 in 2D), overlap and DSC in [0, 1], unitless.

    Raises: ValueError for masks that are not bool, different shapes, another number of axes or spacings, a probability
        that is not finite or not in [0, 1], thresholds out of their range, or no sizes.
    """
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    spacing = tuple(float(s) for s in spacing_mm)
    sizes, lowest = [float(size) for size in sizes_mm3], [float(threshold) for threshold in probabilities]
    _check(reference, prediction, spacing, sizes, lowest)
    if probability is not None:
        probability = np.asarray(probability)
        _check_probability(probability, reference.shape)
    voxel_mm3 = math.prod(spacing)

    box = _joint_box(reference, prediction)
    reference, prediction = reference[box], prediction[box]
    of_reference, of_prediction = _components(reference), _components(prediction)
    shared = _shared(of_reference, of_prediction)
    points = [
        {"rule": SIZE, "threshold": size} | _point(of_reference, of_prediction, shared, size, voxel_mm3)
        for size in sizes
    ]
    if probability is not None:
        for threshold in lowest:
            left = _components(prediction & (probability[box] >= threshold))
            points.append(
                {"rule": PROBABILITY, "threshold": threshold}
                | _point(of_reference, left, _shared(of_reference, left), max(sizes), voxel_mm3)
            )
    lesions = _lesions(REFERENCE, of_reference, shared.reference, shared.voxels, voxel_mm3)
    lesions += _lesions(PREDICTION, of_prediction, shared.prediction, shared.voxels, voxel_mm3)
    return Detection(points, lesions)


def _check(
    reference: NDArray, prediction: NDArray, spacing: Sequence[float], sizes: Sequence[float], lowest: Sequence[float]
) -> None:
    if reference.dtype != bool or prediction.dtype != bool:
        raise ValueError(f"the masks are {reference.dtype} and {prediction.dtype}; expected bool")
    if reference.shape != prediction.shape or reference.ndim not in (2, 3):
        raise ValueError(f"shapes {reference.shape} and {prediction.shape}; expected one, with two or three axes")
    if len(spacing) != reference.ndim or not all(0 < s < math.inf for s in spacing):
        raise ValueError(f"spacing_mm is {spacing}; expected {reference.ndim} positive numbers")
    if not sizes or not all(0 <= size < math.inf for size in sizes):
        raise ValueError(f"sizes_mm3 are {sizes}; expected at least one, all finite and from 0")
    if not all(0 <= threshold <= 1 for threshold in lowest):
        raise ValueError(f"probabilities are {lowest}; expected numbers from 0 to 1")


def _check_probability(probability: NDArray, shape: tuple[int, ...]) -> None:
    if probability.shape != shape:
        raise ValueError(f"the probability's shape is {probability.shape}; expected the masks' {shape}")
    if not np.issubdtype(probability.dtype, np.floating):
        raise ValueError(f"the probability is {probability.dtype}; expected floating point, the label's softmax output")
    if not probability.size:
        return
    low, high = float(probability.min()), float(probability.max())
    if math.isnan(low):  # the minimum of anything with NaN
        raise ValueError("the probability has NaN; expected numbers from 0 to 1 everywhere")
    if low < 0 or high > 1:
        raise ValueError(f"the probability runs from {low} to {high}; expected 0 to 1: softmax output, not logits")


def _joint_box(reference: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Smallest box with all of both masks; empty where both are."""
    occupied = reference | prediction
    box: list[slice] = []
    for axis in range(occupied.ndim):
        found = np.flatnonzero(occupied.any(axis=tuple(other for other in range(occupied.ndim) if other != axis)))
        box.append(slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0))
        occupied = occupied[(slice(None),) * axis + (box[-1],)]
    return tuple(box)


def _components(mask: NDArray[np.bool_]) -> _Components:
    if not mask.any():
        return _Components(np.zeros(mask.shape, np.uint16), np.zeros(1, np.int64))
    numbers = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=8 if mask.ndim == 2 else 26)
    return _Components(numbers, np.bincount(numbers[mask]))


def _shared(reference: _Components, prediction: _Components) -> _Shared:
    both = (reference.numbers != 0) & (prediction.numbers != 0)
    pairs = np.stack([reference.numbers[both], prediction.numbers[both]]).astype(np.int64)
    met, voxels = np.unique(pairs[0] * len(prediction.voxels) + pairs[1], return_counts=True)
    return _Shared(*np.divmod(met, len(prediction.voxels)), voxels)


def _at_least(volume_mm3: NDArray, limit_mm3: float) -> NDArray[np.bool_]:
    return volume_mm3 >= limit_mm3 * (1 - _ROUNDING)


def _point(
    reference: _Components, prediction: _Components, shared: _Shared, size_mm3: float, voxel_mm3: float
) -> dict[str, Any]:
    """Volumes, DSC and outcome of the components of at least ``size_mm3``."""
    in_reference = _at_least(reference.voxels * voxel_mm3, size_mm3)
    in_prediction = _at_least(prediction.voxels * voxel_mm3, size_mm3)
    of_reference = int(reference.voxels[in_reference].sum())
    of_prediction = int(prediction.voxels[in_prediction].sum())
    both = int(shared.voxels[in_reference[shared.reference] & in_prediction[shared.prediction]].sum())
    dsc = 2 * both / (of_reference + of_prediction) if of_reference + of_prediction else math.nan
    positive, negative = TP if dsc >= MIN_DSC else FN, FP if of_prediction else TN
    return {
        "reference_mm3": of_reference * voxel_mm3,
        "prediction_mm3": of_prediction * voxel_mm3,
        "dsc": dsc,
        "outcome": positive if of_reference else negative,
    }


def _lesions(
    name: str, components: _Components, numbers: NDArray[np.int64], shared_voxels: NDArray[np.int64], voxel_mm3: float
) -> list[dict[str, Any]]:
    covered = np.bincount(numbers, weights=shared_voxels, minlength=len(components.voxels))
    return [
        {"map": name, "volume_mm3": int(voxels) * voxel_mm3, "overlap": float(share / voxels), "found": bool(share)}
        for voxels, share in zip(components.voxels[1:], covered[1:], strict=True)
    ]


def counts(bones: pd.DataFrame) -> pd.DataFrame:
    """Outcomes at every threshold, and the rates they give (method paper, Section 5.3).

    sensitivity = TP / positives with positives = TP + FN, specificity = TN / negatives with negatives = TN + FP,
    accuracy = (TP + TN) / all. mean_dsc is the mean DSC over the positives; one that is missed counts with its own DSC,
    which mostly is 0. As a size threshold empties references too, positives may become fewer with it.

    Args:
        bones: ``Evaluation.bones``.

    Returns: ``COUNT_COLUMNS``, unitless but for thresholds in mm3; a row per model, bone, rule and threshold, in the
        order in which they are first met; after a model's bones all of them together, as bone ``ALL``. A rate without
        cases is NaN.

    Raises: ValueError where a bone of a case has a threshold twice, or lacks one that the model's other cases have: the
        thresholds would not be over the same cases.
    """
    rows = []
    for model, bone, own in _bones_of_models(bones):
        bones_of_cases = len(own[["case", "bone", "lesion"]].drop_duplicates())
        for (rule, threshold), at in own.groupby(["rule", "threshold"], sort=False):
            if len(at) != bones_of_cases or at.duplicated(["case", "bone", "lesion"]).any():
                raise ValueError(
                    f"model {model!r}, bone {bone!r}, {rule} {threshold}: {len(at)} rows of {bones_of_cases} bones; "
                    "expected one of each: give every case a probability, or none"
                )
            met = {outcome: int((at["outcome"] == outcome).sum()) for outcome in (TP, FN, TN, FP)}
            positives, negatives = met[TP] + met[FN], met[TN] + met[FP]
            positive = at["outcome"].isin([TP, FN])
            rows.append(
                {"model": model, "bone": bone, "rule": rule, "threshold": threshold, **met}
                | {"positives": positives, "negatives": negatives}
                | {"sensitivity": _ratio(met[TP], positives), "specificity": _ratio(met[TN], negatives)}
                | {"accuracy": _ratio(met[TP] + met[TN], positives + negatives)}
                | {"mean_dsc": float(at.loc[positive, "dsc"].astype(float).mean())}
            )
    return pd.DataFrame(rows, columns=list(COUNT_COLUMNS))


def roc(points: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ROC that the thresholds of one model and bone give (method paper, Section 5.3).

    The paper says that the thresholds give the curve, not how its points are joined; this is ours: every threshold is
    a point (1 - specificity, sensitivity), (0, 0) and (1, 1) are added, the points are sorted by false positive rate
    and then by sensitivity, and neighbours are joined by straight lines. No point is dropped for being below its
    neighbours. Thresholds without a positive or without a negative case are no point.

    Args:
        points: the rows of ``counts`` of one model and bone.

    Returns: false positive rate and sensitivity, (n + 2,) each, in [0, 1], unitless; empty without any point.

    Raises: ValueError for more than one model or bone.
    """
    if len(points[["model", "bone"]].drop_duplicates()) > 1:
        raise ValueError("the points are of several models or bones; expected the rows of one model and bone")
    sensitivity = points["sensitivity"].to_numpy(dtype=float)
    false_positive_rate = 1 - points["specificity"].to_numpy(dtype=float)
    defined = ~np.isnan(sensitivity) & ~np.isnan(false_positive_rate)
    if not defined.any():
        return np.zeros(0), np.zeros(0)
    along = np.concatenate([[0.0], false_positive_rate[defined], [1.0]])
    up = np.concatenate([[0.0], sensitivity[defined], [1.0]])
    order = np.lexsort((up, along))
    return along[order], up[order]


def auc(false_positive_rate: NDArray[np.float64], sensitivity: NDArray[np.float64]) -> float:
    """Area under a curve of ``roc`` by trapezoids, in [0, 1], unitless; NaN where the curve has no points.

    Args:
        false_positive_rate, sensitivity: (n,) each, unitless, sorted as ``roc`` has them.

    Returns: the area.

    Raises: ValueError if the two shapes differ.
    """
    if np.shape(false_positive_rate) != np.shape(sensitivity):
        raise ValueError(f"shapes {np.shape(false_positive_rate)} and {np.shape(sensitivity)}; expected one")
    return float(trapezoid(sensitivity, false_positive_rate)) if len(sensitivity) else math.nan


def summary(counts_table: pd.DataFrame) -> pd.DataFrame:
    """Detection in a row per model and bone, as the paper's table of it (method paper, Section 5.3).

    positives to mean_dsc are those without post-processing: size threshold 0. dacc is the best accuracy over all
    thresholds, ddsc the best mean DSC, each with the rule and threshold that gave it: the first one of equals. They are
    chosen on the cases that they describe, so they tell what post-processing could give at best.

    Args:
        counts_table: of ``counts``.

    Returns: ``SUMMARY_COLUMNS``, in the order of ``counts_table``; unitless but for thresholds in mm3. Where there is
        no positive case at any threshold, ddsc and its threshold are NaN, and its rule is missing.

    Raises: ValueError if a model and bone lack size threshold 0.
    """
    rows = []
    for (model, bone), own in counts_table.groupby(["model", "bone"], sort=False):
        as_it_is = own[(own["rule"] == SIZE) & (own["threshold"] == 0)]
        if len(as_it_is) != 1:
            raise ValueError(f"model {model!r}, bone {bone!r}: size threshold 0 is missing; expected one row of it")
        before = ["positives", "negatives", "sensitivity", "specificity", "accuracy", "mean_dsc"]
        row = {"model": model, "bone": bone} | {name: as_it_is[name].iloc[0] for name in before}
        row["auc"] = auc(*roc(own))
        for name, metric in (("dacc", "accuracy"), ("ddsc", "mean_dsc")):
            values = own[metric].to_numpy(dtype=float)
            if np.isnan(values).all():
                best, rule, threshold = math.nan, None, math.nan
            else:
                place = int(np.nanargmax(values))
                best, rule, threshold = values[place], own["rule"].iloc[place], own["threshold"].iloc[place]
            row |= {name: best, f"{name}_rule": rule, f"{name}_threshold": threshold}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def volume_agreement(bones: pd.DataFrame, threshold_mm3: float = 0.0) -> pd.DataFrame:
    """How far lesion volumes of prediction and reference agree: correlation, and Bland and Altman's limits.

    A sample is a bone of a case in which at least one map has a lesion; of bone ``ALL``, all of them. Difference =
    prediction - reference, bias its mean, sd its standard deviation (n - 1), limits = bias -+ 1.96 sd (Bland and
    Altman, Lancet 1986). Pearson's r with its two-sided p.

    Args:
        bones: ``Evaluation.bones``.
        threshold_mm3: the size threshold, in mm3, after which the volumes are taken.

    Returns: ``AGREEMENT_COLUMNS``; mm3 as named, r and p unitless; order as in ``counts``. r and p are NaN with fewer
        than three samples or where a map's volumes are all equal, the bias without samples, sd and limits with fewer
        than two.

    Raises: ValueError if there are bones, but none at that threshold.
    """
    at = bones[(bones["rule"] == SIZE) & np.isclose(bones["threshold"].to_numpy(dtype=float), threshold_mm3)]
    if len(bones) and not len(at):
        known = sorted(bones.loc[bones["rule"] == SIZE, "threshold"].unique())
        raise ValueError(f"no bone was measured at {threshold_mm3} mm3; expected one of {known}")
    rows = []
    for model, bone, own in _bones_of_models(at):
        reference, prediction = (own[f"{name}_mm3"].to_numpy(dtype=float) for name in (REFERENCE, PREDICTION))
        some = (reference > 0) | (prediction > 0)
        reference, prediction = reference[some], prediction[some]
        difference = prediction - reference
        r, p = _pearson(reference, prediction)
        bias = float(difference.mean()) if len(difference) else math.nan
        sd = float(difference.std(ddof=1)) if len(difference) > 1 else math.nan
        rows.append(
            {"model": model, "bone": bone, "n": len(difference), "pearson_r": r, "pearson_p": p, "bias_mm3": bias}
            | {"sd_mm3": sd, "lower_mm3": bias - 1.96 * sd, "upper_mm3": bias + 1.96 * sd}
        )
    return pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS))


def lesion_wise(lesions: pd.DataFrame, edges_mm3: Sequence[float] = (0, 10, 100, 1000, math.inf)) -> pd.DataFrame:
    """How many lesions are found, one by one and by their size.

    A lesion of the reference is found where any of its voxels is predicted: sensitivity = found / reference. A lesion
    of the prediction is true where any of its voxels is in the reference: precision = true / predicted. Each is binned
    by its own volume, from_mm3 <= volume < to_mm3.

    Args:
        lesions: ``Evaluation.lesions``.
        edges_mm3: of the bins, rising, in mm3.

    Returns: ``LESION_WISE_COLUMNS``; from_mm3 and to_mm3 in mm3, the rest unitless; a row per model, bone that has any
        lesion, and bin; models and bones in the order in which they are first met, after a model's bones all together
        as bone ``ALL``. A rate without lesions is NaN.

    Raises: ValueError for fewer than two edges or edges that do not rise.
    """
    edges = [float(edge) for edge in edges_mm3]
    if len(edges) < 2 or not all(low < high for low, high in itertools.pairwise(edges)):
        raise ValueError(f"edges_mm3 are {edges}; expected at least two, rising")
    volumes = lesions["volume_mm3"].to_numpy(dtype=float)
    found = lesions["found"].to_numpy(dtype=bool)
    is_of = {name: (lesions["map"] == name).to_numpy(dtype=bool) for name in (REFERENCE, PREDICTION)}
    rows = []
    for model in lesions["model"].unique():
        for bone in [*lesions["bone"].unique(), ALL]:
            own = (lesions["model"] == model).to_numpy(dtype=bool)
            if bone != ALL:
                own = own & (lesions["bone"] == bone).to_numpy(dtype=bool)
            for low, high in itertools.pairwise(edges):
                binned = own & _at_least(volumes, low) & ~_at_least(volumes, high)
                of_reference, of_prediction = binned & is_of[REFERENCE], binned & is_of[PREDICTION]
                number, predicted = int(of_reference.sum()), int(of_prediction.sum())
                met, true = int(found[of_reference].sum()), int(found[of_prediction].sum())
                rows.append(
                    {"model": model, "bone": bone, "from_mm3": low, "to_mm3": high}
                    | {"reference": number, "found": met, "sensitivity": _ratio(met, number)}
                    | {"predicted": predicted, "true": true, "precision": _ratio(true, predicted)}
                )
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
