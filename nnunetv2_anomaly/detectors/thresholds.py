"""From an anomaly map to lesions: a threshold that is fitted on validation cases, and what exceeds it in bones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

#: shares of all voxels of bones that lie below the thresholds that are tried
QUANTILES = np.sort(1 - np.logspace(-4.5, -0.3, 43))
#: how a threshold was found: by the lesion labels of the cases, or by how many candidates a bone has
LABELS, CANDIDATES = "labels", "candidates"
#: voxels of one case that the quantiles are taken of
_SAMPLES = 200_000


@dataclass(frozen=True)
class ScoredCase:
    """A map and what is known of it, cropped to the bones."""

    scores: NDArray[np.floating]  # (X, Y, Z), larger where more anomalous
    bones: NDArray[np.integer]  # (X, Y, Z), 0 outside, another number for each bone
    lesion: NDArray[np.bool_]  # (X, Y, Z)
    spacing_mm: tuple[float, ...]

    def save(self, file: Path) -> None:
        """Write it, cropped."""
        found = ndimage.find_objects((self.bones > 0).astype(np.uint8))
        box = found[0] if found else (slice(0, 0),) * self.bones.ndim
        np.savez_compressed(
            file,
            scores=self.scores[box].astype(np.float32),
            bones=self.bones[box].astype(np.uint8),
            lesion=self.lesion[box],
            spacing_mm=np.array(self.spacing_mm),
        )

    @classmethod
    def load(cls, file: Path) -> ScoredCase:
        """Read what ``save`` wrote."""
        with np.load(file) as parts:
            spacing = tuple(parts["spacing_mm"].tolist())
            return cls(parts["scores"], parts["bones"], parts["lesion"].astype(bool), spacing)


def lesion_candidates(
    scores: NDArray, bones: NDArray, threshold: float, spacing_mm: Sequence[float], min_mm3: float
) -> NDArray[np.integer]:
    """What exceeds the threshold in bones, without components that are too small.

    Args: scores, bones: as in ``ScoredCase``. min_mm3: of a component, whose voxels may touch at corners.
    Returns: (X, Y, Z), the bone's number in its candidates, else 0.
    """
    found = np.zeros_like(bones)
    least = max(1, math.ceil(min_mm3 / math.prod(spacing_mm) * (1 - 1e-6)))
    for bone in np.unique(bones[bones > 0]):
        own = (scores > threshold) & (bones == bone)
        if least > 1:
            own = cc3d.dust(np.ascontiguousarray(own), threshold=least, connectivity=26)
        found[own.astype(bool)] = bone
    return found


def thresholds_of(scores: Sequence[NDArray]) -> NDArray[np.floating]:
    """Thresholds to try, rising: between neighbouring quantiles, as many voxels may have the largest score.

    Args: scores: of the bones of each case, (n,).
    """
    sampled = [of[:: max(1, len(of) // _SAMPLES)] for of in scores]
    levels = np.unique(np.quantile(np.concatenate(sampled), QUANTILES)) if sampled else np.zeros(0)
    return (levels[:-1] + levels[1:]) / 2 if len(levels) > 1 else levels


def fit_threshold(files: Sequence[Path], candidates_per_bone: float, min_mm3: float) -> dict[str, Any]:
    """The threshold by cases that the detector was not trained on.

    Where they have labelled lesions, it is the one with the largest mean DSC of these cases. Else it is the lowest from
    which on upwards bones have at most ``candidates_per_bone`` candidates in the mean: lesions are rare, so that few
    voxels of most bones are to exceed it.

    Args: files: of ``ScoredCase.save``. min_mm3: as ``lesion_candidates`` takes it.
    Returns: value, rule, min_mm3, num_cases, and by its rule dsc or candidates_per_bone; empty without a bone.
    """

    def cases() -> Iterator[ScoredCase]:
        return (case for case in map(ScoredCase.load, files) if case.bones.any())

    thresholds = thresholds_of([case.scores[case.bones > 0] for case in cases()])
    counts, overlaps, num_bones, num_cases = np.zeros(len(thresholds)), [], 0, 0
    for case in cases():
        num_cases, num_bones = num_cases + 1, num_bones + len(np.unique(case.bones[case.bones > 0]))
        of_case = []
        for place, threshold in enumerate(thresholds):
            found = lesion_candidates(case.scores, case.bones, threshold, case.spacing_mm, min_mm3)
            counts[place] += int(cc3d.connected_components(found, connectivity=26).max(initial=0))
            both = int((case.lesion & (found > 0)).sum())
            of_case.append(2 * both / max(1, int(case.lesion.sum()) + int((found > 0).sum())))
        if case.lesion.any():
            overlaps.append(of_case)
    if not num_cases:
        return {}
    common = {"min_mm3": min_mm3, "num_cases": num_cases}
    if overlaps:
        means = np.mean(overlaps, axis=0)
        best = int(np.argmax(means))
        return {"value": float(thresholds[best]), "rule": LABELS, "dsc": float(means[best]), **common}
    many = np.flatnonzero(counts > candidates_per_bone * num_bones)
    place = min(int(many[-1]) + 1, len(thresholds) - 1) if len(many) else 0
    of_bone = float(counts[place] / num_bones)
    return {"value": float(thresholds[place]), "rule": CANDIDATES, "candidates_per_bone": of_bone, **common}
