"""How well an anomaly map tells lesions from the bones that hold them, on a knee with known lesions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import cc3d
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

#: lesions by volume, mm3: up to each of these, and larger ones
SIZES_MM3 = (500.0, 2000.0)
#: and by how far their mean lies above their bone's median, in its robust standard deviations
CONTRASTS = (1.0, 3.0)
#: false components a bone that a threshold may leave
FALSE_PER_BONE = 1.0
#: a bone's score is the mean of so many of its largest
_LARGEST = 5


def voxel_scores(scores: NDArray, lesion: NDArray[np.bool_], bones: Mapping[int, NDArray[np.bool_]]) -> dict[str, Any]:
    """Over all voxels of a knee's bones.

    Args: scores: (Z, Y, X), larger where more anomalous. lesion: within bones. bones: label -> mask, lesions included.
    Returns: auc, auc_inside (at least one voxel from the surface of each bone), ap; NaN where there is no lesion.
    """
    every = np.logical_or.reduce(list(bones.values()))
    inside = np.logical_or.reduce([ndimage.binary_erosion(mask, border_value=1) for mask in bones.values()])
    return {
        "auc": _auc(lesion[every], scores[every]),
        "auc_inside": _auc(lesion[inside], scores[inside]),
        "ap": float(average_precision_score(lesion[every], scores[every])) if lesion.any() else math.nan,
    }


def bone_rows(
    scores: NDArray, lesion: NDArray[np.bool_], bones: Mapping[int, NDArray[np.bool_]]
) -> list[dict[str, Any]]:
    """A row per bone: bone, positive (whether it holds a lesion), score (mean of its largest few)."""
    rows = []
    for bone, mask in bones.items():
        largest = np.sort(scores[mask])[-_LARGEST:]
        rows.append({"bone": bone, "positive": bool(lesion[mask].any()), "score": float(largest.mean())})
    return rows


def lesion_rows(
    scores: NDArray,
    image: NDArray,
    lesion: NDArray[np.bool_],
    bones: Mapping[int, NDArray[np.bool_]],
    voxel_mm3: float,
) -> list[dict[str, Any]]:
    """A row per lesion: bone, volume_mm3, contrast (in the bone's spread), auc against all healthy bone of the knee."""
    healthy = np.logical_or.reduce(list(bones.values())) & ~lesion
    rows = []
    for bone, mask in bones.items():
        own = image[mask & ~lesion]
        spread = 1.4826 * float(np.median(np.abs(own - np.median(own)))) if own.size else math.nan
        numbers = cc3d.connected_components((lesion & mask).astype(np.uint8), connectivity=26)
        for number in range(1, int(numbers.max()) + 1):
            there = numbers == number
            truth = np.concatenate([np.ones(there.sum(), bool), np.zeros(healthy.sum(), bool)])
            rows.append(
                {
                    "bone": bone,
                    "volume_mm3": float(there.sum()) * voxel_mm3,
                    "contrast": float(image[there].mean() - np.median(own)) / spread if spread else math.nan,
                    "auc": _auc(truth, np.concatenate([scores[there], scores[healthy]])),
                }
            )
    return rows


def counts_at(
    scores: NDArray,
    lesion: NDArray[np.bool_],
    bones: Mapping[int, NDArray[np.bool_]],
    thresholds: NDArray[np.floating],
) -> pd.DataFrame:
    """Components of what exceeds each threshold within bones: threshold, found, lesions, false_components, bones."""
    every = np.logical_or.reduce(list(bones.values()))
    truth = cc3d.connected_components(lesion.astype(np.uint8), connectivity=26)
    rows = []
    for threshold in thresholds:
        above = (scores > threshold) & every
        numbers = cc3d.connected_components(above.astype(np.uint8), connectivity=26)
        hitting = np.unique(numbers[lesion & above])
        found = np.unique(truth[above & lesion])
        rows.append(
            {"threshold": threshold, "found": len(found), "lesions": int(truth.max()), "bones": len(bones)}
            | {"false_components": int(numbers.max()) - len(hitting)}
        )
    return pd.DataFrame(rows)


def hits(counts: pd.DataFrame) -> pd.DataFrame:
    """Share of a knee's lesions that are found where all knees together have one false component a bone.

    Args: counts: ``counts_at`` of all knees, with a column knee.
    Returns: columns knee, hits; NaN where a knee has no lesion.
    """
    total = counts.groupby("threshold")[["found", "false_components", "bones"]].sum()
    allowed = total[total["false_components"] <= FALSE_PER_BONE * total["bones"]]
    best = allowed["found"].idxmax() if len(allowed) else counts["threshold"].max()
    at = counts[counts["threshold"] == best]
    with np.errstate(invalid="ignore"):
        return pd.DataFrame({"knee": at["knee"], "hits": at["found"].to_numpy() / at["lesions"].replace(0, np.nan)})


def mask_row(
    scores: Mapping[str, NDArray],
    truth: Mapping[str, tuple[NDArray[np.bool_], Mapping[int, NDArray[np.bool_]], float]],
    made: Mapping[str, NDArray[np.bool_]],
) -> dict[str, float]:
    """Dice of all bone voxels of all knees: fitted, of the masks in ``made``, NaN if one lacks; best, over thresholds.

    Args: scores, made: knee -> (Z, Y, X). truth: knee -> lesion within bones, bones, voxel in mm3.
    """
    within = {knee: np.logical_or.reduce(list(bones.values())) for knee, (_, bones, _) in truth.items()}
    lesion = np.concatenate([of[0][within[knee]] for knee, of in truth.items()])
    precision, recall, _ = precision_recall_curve(lesion, np.concatenate([scores[k][within[k]] for k in truth]))
    row = {"fitted": math.nan, "best": float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))}
    if len(made) == len(truth):
        mask = np.concatenate([made[knee][within[knee]] for knee in truth])
        row["fitted"] = float(2 * (lesion & mask).sum() / (lesion.sum() + mask.sum()))
    return row


def bone_auc(rows: pd.DataFrame) -> float:
    """Area under the bone-wise ROC of ``bone_rows`` of all knees."""
    return _auc(rows["positive"].to_numpy(dtype=bool), rows["score"].to_numpy(dtype=float))


def _auc(truth: NDArray[np.bool_], scores: NDArray) -> float:
    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else math.nan
