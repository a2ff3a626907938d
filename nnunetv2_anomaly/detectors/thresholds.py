"""From an anomaly map to lesions: what exceeds a threshold in bones, and how it is fitted on validation cases.

A fit is a dictionary of plain numbers and words, which travels in the artefact: ``rule``, ``min_mm3``, ``num_cases``
and what the rule needs. By Otsu's rule every slice has a threshold of its own, and what is fitted is the size of the
opening and the closing after it (Qin et al. 2025).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal import find_peaks
from skimage.filters import threshold_otsu

#: how a map becomes lesions: one value for all, fitted or 0.5; Otsu's of each slice's bones; or where the rightmost
#: peak of its histogram is, or begins, in all cases or in each
FITTED, FIXED, OTSU, PEAK, VALLEY = "fitted", "fixed", "otsu", "peak", "valley"
RULES = (FITTED, FIXED, OTSU, PEAK, VALLEY)
DATASET, CASE = "dataset", "case"
#: where lesions may be
IN_BONES, IN_IMAGE = "bones", "image"
_FIXED_VALUE = 0.5
#: radii of opening and closing that are tried, in voxels of the first case's slices
_RADII = (0, 1, 2, 3, 5)
#: numbers of a fit, of which several folds have a mean
NUMBERS = ("value", "min_difference", "opening_mm", "closing_mm")
#: shares of all voxels of bones that lie below the thresholds that are tried
QUANTILES = np.sort(1 - np.logspace(-4.5, -0.3, 43))
#: how it was fitted: by the lesion labels of the cases, or by how many candidates a bone has
LABELS, CANDIDATES = "labels", "candidates"
#: standard deviation by which a histogram is smoothed, bins
_SMOOTH = 2.0
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


def lesions_in(
    scores: NDArray, bones: NDArray, spacing_mm: Sequence[float], fit: Mapping[str, Any], slice_axis: int = 0
) -> NDArray[np.integer]:
    """Lesions of a map by a fit.

    Args: scores, bones: as in ``ScoredCase``. slice_axis: across the slices, which are opened and closed.
    Returns: (X, Y, Z), the bone's number in its lesions, else 0.
    """
    if "opening_mm" not in fit:
        return lesion_candidates(scores, bones, fit["value"], spacing_mm, fit["min_mm3"])
    value = fit.get("value")
    if fit.get("scope") == CASE:
        value = peak_threshold(scores[bones > 0], fit["rule"])
    scores, numbers = np.moveaxis(scores, slice_axis, 0), np.moveaxis(bones, slice_axis, 0)
    spacing = np.delete(spacing_mm, slice_axis).tolist()
    found = np.zeros(numbers.shape, bool)
    for index in np.flatnonzero(numbers.any(axis=(1, 2))):
        if fit["rule"] == OTSU:
            above = above_otsu(scores[index], numbers[index] > 0, fit["min_difference"])
        else:
            above = (scores[index] >= (math.inf if value is None else value)) & (numbers[index] > 0)
        radii = fit["opening_mm"], fit["closing_mm"]
        found[index] = opened_and_closed(above, numbers[index] > 0, *radii, spacing)
    found = np.moveaxis(found, 0, slice_axis)
    return lesion_candidates(found, bones, 0.5, spacing_mm, fit["min_mm3"])


def above_otsu(score: NDArray[np.floating], bone: NDArray[np.bool_], min_difference: float = 0.0) -> NDArray[np.bool_]:
    """What of a slice's bone exceeds Otsu's threshold of its scores; nothing where they do not differ.

    Otsu always divides, so that a slice without a lesion has one, too: ``min_difference`` is a least score for it.

    Args: score, bone: (Y, X).
    """
    inside = score[bone]
    if not inside.size or inside.min() == inside.max():
        return np.zeros(bone.shape, bool)
    return (score > max(float(threshold_otsu(inside)), min_difference)) & bone


def peak_threshold(scores: NDArray[np.floating], rule: str) -> float | None:
    """Where the rightmost peak of a histogram lies (PEAK), or the valley before it (VALLEY) (Dey et al., Section 4).

    256 bins from the least to the largest score, smoothed; a peak stands out by 1 % of the largest and from chance, and
    is 5 bins or more from the next.

    Returns: None where there are not two peaks, and so nothing to separate.
    """
    if not scores.size or scores.min() == scores.max():
        return None
    counts, edges = np.histogram(scores, bins=256)
    smooth = np.pad(ndimage.gaussian_filter1d(counts.astype(float), _SMOOTH), 1)  # a peak may be the last bin
    peaks, found = find_peaks(smooth, prominence=0.01 * smooth.max(), distance=5)
    # Four standard deviations of what counting leaves of chance in so smooth a histogram.
    peaks = peaks[found["prominences"] > 4 * np.sqrt(smooth[peaks] / (2 * math.sqrt(math.pi) * _SMOOTH))]
    if len(peaks) < 2:
        return None
    place = int(peaks[-1])
    if rule == VALLEY:
        place = int(peaks[-2]) + int(np.argmin(smooth[peaks[-2] : peaks[-1] + 1]))
    return float(edges[place - 1] + edges[place]) / 2


def opened_and_closed(
    mask: NDArray[np.bool_],
    bone: NDArray[np.bool_],
    opening_mm: float,
    closing_mm: float,
    spacing_mm: Sequence[float],
) -> NDArray[np.bool_]:
    """A slice's mask opened, then closed by discs, within its bone.

    Args: mask, bone: (Y, X). opening_mm, closing_mm: radii of the discs; below a voxel they leave the step out.
        spacing_mm: (y, x).
    """
    for radius, step in ((opening_mm, ndimage.binary_opening), (closing_mm, ndimage.binary_closing)):
        disc = _disc(radius, spacing_mm)
        if disc.size > 1 and mask.any():
            margin = [(size // 2, size // 2) for size in disc.shape]  # or the edge would eat what touches it
            inside = tuple(slice(before, before + size) for (before, _), size in zip(margin, mask.shape, strict=True))
            mask = step(np.pad(mask, margin), disc)[inside]
    return mask & bone


def _disc(radius_mm: float, spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
    y, x = (np.arange(-int(radius_mm / step + 1e-6), int(radius_mm / step + 1e-6) + 1) * step for step in spacing_mm)
    return np.asarray(y[:, None] ** 2 + x**2 <= radius_mm**2 * (1 + 1e-6))


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


def fit_threshold(
    files: Sequence[Path],
    rule: str,
    candidates_per_bone: float,
    min_mm3: float,
    *,
    min_difference: float = 0.0,
    scope: str = DATASET,
) -> dict[str, Any]:
    """A fit by cases that the detector was not trained on.

    Where they have labelled lesions, it is the one with the largest mean DSC of these cases. Else it is the lowest
    threshold, or the smallest opening, from which on upwards bones have at most ``candidates_per_bone`` candidates in
    the mean: lesions are rare, so that few voxels of most bones are to exceed it.

    Args: files: of ``ScoredCase.save``. rule: of ``RULES``. min_mm3: as ``lesion_candidates`` takes it.
        min_difference: as ``above_otsu`` takes it. scope: whether a peak is that of all cases, or of each case.
    Returns: rule, fitted_by (``LABELS`` or ``CANDIDATES``), min_mm3, num_cases, what the rule needs, and by what it was
        fitted dsc or candidates_per_bone; empty without a bone. Where peaks are not separate, value is None, and there
        are no lesions.
    """

    def cases() -> Iterator[ScoredCase]:
        return (case for case in map(ScoredCase.load, files) if case.bones.any())

    common = {"rule": rule, "min_mm3": min_mm3}
    if rule in (OTSU, PEAK, VALLEY):
        first = next(cases(), None)
        step = 1.0 if first is None else math.sqrt(math.prod(first.spacing_mm[1:]))
        radii = [round(radius * step, 4) for radius in _RADII]
        own: dict[str, Any] = {"min_difference": min_difference}
        if rule != OTSU:
            own = {"scope": scope}
            if scope == DATASET and first is not None:
                own["value"] = peak_threshold(np.concatenate([case.scores[case.bones > 0] for case in cases()]), rule)
        tried = [{**common, **own, "opening_mm": a, "closing_mm": b} for a in radii for b in radii]
    elif rule == FIXED:
        tried = [{**common, "value": _FIXED_VALUE}]
    else:
        thresholds = thresholds_of([case.scores[case.bones > 0] for case in cases()])
        tried = [{**common, "value": float(value)} for value in thresholds]
    return _best(tried, cases(), candidates_per_bone)


def _best(tried: Sequence[dict[str, Any]], cases: Iterable[ScoredCase], candidates_per_bone: float) -> dict[str, Any]:
    """The fit of those that were tried, which have fewer and fewer candidates, that ``fit_threshold`` describes."""
    counts, overlaps, num_bones, num_cases = np.zeros(len(tried)), [], 0, 0
    for case in cases:
        num_cases, num_bones = num_cases + 1, num_bones + len(np.unique(case.bones[case.bones > 0]))
        of_case = []
        for place, fit in enumerate(tried):
            found = lesions_in(case.scores, case.bones, case.spacing_mm, fit)
            counts[place] += int(cc3d.connected_components(found, connectivity=26).max(initial=0))
            both = int((case.lesion & (found > 0)).sum())
            of_case.append(2 * both / max(1, int(case.lesion.sum()) + int((found > 0).sum())))
        if case.lesion.any():
            overlaps.append(of_case)
    if not num_cases:
        return {}
    if overlaps:
        means = np.mean(overlaps, axis=0)
        best = int(np.argmax(means))
        return {**tried[best], "fitted_by": LABELS, "dsc": float(means[best]), "num_cases": num_cases}
    many = np.flatnonzero(counts > candidates_per_bone * num_bones)
    place = min(int(many[-1]) + 1, len(tried) - 1) if len(many) else 0
    found_by = {"fitted_by": CANDIDATES, "candidates_per_bone": float(counts[place] / num_bones)}
    return {**tried[place], **found_by, "num_cases": num_cases}
