"""How well an anomaly map tells lesions from the bone around them, and how a detector's numbers read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

#: a measured error, and those of its baselines, which it must be below
ERROR_AND_BASELINES = ("mse_erased", "mse_constant", "mse_blurred")


def lesion_auc(
    scores: np.ndarray, lesion_mask: np.ndarray, areas: Sequence[np.ndarray], keys: Sequence[str]
) -> dict[str, float | None]:
    """Area under the ROC curve for lesion against other bone, over each of some areas; a tie counts one half.

    Args:
        scores, lesion_mask: (X, Y, Z); larger scores mean more likely a lesion.
        areas: masks of that shape: all bone with its lesions, and the same away from its surface.
        keys: what the numbers are called, one for each area.
    Returns: the numbers, None where there is no lesion or nothing else.
    """
    return {
        key: float(roc_auc_score(lesion_mask[area], scores[area])) if _has_both(lesion_mask[area]) else None
        for key, area in zip(keys, areas, strict=True)
    }


def lesion_average_precision(scores: np.ndarray, lesion_mask: np.ndarray, area: np.ndarray) -> float | None:
    """Average precision of scores for lesion against other bone, over the voxels of an area.

    Args: scores, lesion_mask, area: (X, Y, Z); the area includes the lesions.
    Returns: in [0, 1], unitless; None where there is no lesion or nothing else.
    """
    lesion = lesion_mask[area]
    return float(average_precision_score(lesion, scores[area])) if _has_both(lesion) else None


def describe_quality(quality: Mapping[str, float]) -> tuple[str, bool]:
    """One sentence on a detector's quality, and whether it beats its baselines.

    Args: quality: numbers by name, as an artefact has them.
    """
    parts, beats = [], True
    if ERROR_AND_BASELINES[0] in quality:
        erased, constant, blurred = (quality[name] for name in ERROR_AND_BASELINES)
        baselines = f"of a constant image {constant:.5f}, of a blurred image {blurred:.5f}"
        parts.append(f"MSE inside the erased region on validation patches {erased:.5f}, {baselines}")
        beats = erased < constant and erased < blurred
    if "lesion_auc" in quality:
        found, of_intensity, of_contrast = (quality[f"{of}lesion_auc"] for of in ("", "intensity_", "contrast_"))
        others = f"of the image's intensity {of_intensity:.3f}, of contrast in the labelled bones {of_contrast:.3f}"
        parts.append(f"AUC for lesions against bone {found:.3f}, {others}")
    return "; ".join(parts) or "no quality recorded", beats


def _has_both(mask: np.ndarray) -> bool:
    return bool(mask.any() and not mask.all())
