"""What is lateral and what medial in the shape of femur and tibia, measured in frames that the bones give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: What each asymmetry measures in a right knee, in the unit of its function below: rounded means of 20 real knees
#: (OAI ZIB-UQ). They are the unit in which the asymmetries are averaged, nothing else was fitted.
TYPICAL_OF_RIGHT: dict[str, float] = {
    "trochlea_lateral_mm": 11.0,
    "trochlea_higher_mm": 2.7,
    "femoral_shaft_lateral_mm": 5.0,
    "tibial_tuberosity_lateral_mm": 6.5,
    "tibial_plateau_shorter_mm": 0.95,
    "tibial_cartilage_rounder": 0.3,
}

#: Width of the femoral condyles and of the tibial plateau of an adult; in the 20 knees 65 to 87 mm.
_WIDTH_MM = (55.0, 105.0)
#: Fewer sampled voxels than this are noise, or a volume too small to measure in.
LEAST_POINTS = 100


def femoral_asymmetries(bone: NDArray[np.float64], cartilage: NDArray[np.float64], width_mm: float) -> dict[str, float]:
    """Asymmetries of the femur between its right and its left half.

    The frame: x along the broadest extent of the condyles seen from above, tilted so that both condyles end at one
    height; origin at the lowest point, the hindmost point and the middle of the condyles.

    - trochlea_lateral_mm: mean x of the cartilage on the anterior half; the lateral facet is the broader one.
    - trochlea_higher_mm: mean height of that cartilage on the right, less that on the left.
    - femoral_shaft_lateral_mm: mean x of the bone 40 to 60 mm up, where the shaft stands oblique on the condyles.

    Args: bone, cartilage: (N, 3), (z, y, x) in mm. width_mm: breadth of a voxel (``_beyond``).
    Returns: those that can be measured, positive in a right knee; none where size or sense is not a knee's.
    """
    if min(len(bone), len(cartilage)) < LEAST_POINTS:
        return {}
    points = np.concatenate([bone, cartilage])
    for _ in range(3):
        low = _beyond(np.percentile(points[:, 0], 0.5) + 25 - points[:, 0], width_mm)
        if low.sum() < LEAST_POINTS:
            return {}
        points = _turn(points, 1, _direction_of_breadth(points, low))
        points[:, 2] -= np.mean(_ends(points[:, 2], low, width_mm))
        halves = [low * _beyond(sign * points[:, 2], width_mm) for sign in (1, -1)]
        if min(half.sum() for half in halves) < LEAST_POINTS:
            return {}
        lowest = [_lowest(points[:, 0], half, 0.03, width_mm) for half in halves]
        right, left = (weights @ points / weights.sum() for weights in lowest)
        points = _turn(points, 0, math.atan2(right[0] - left[0], right[2] - left[2]))
    points[:, 0] -= np.percentile(points[:, 0], 0.5)
    low = _beyond(25 - points[:, 0], width_mm)
    ends = _ends(points[:, 2], low, width_mm)
    points -= (0.0, np.mean(_ends(points[:, 1], low, width_mm)), np.mean(ends))
    if not _WIDTH_MM[0] <= ends[1] - ends[0] <= _WIDTH_MM[1]:
        return {}
    bone, cartilage = points[: len(bone)], points[len(bone) :]
    found = {}
    trochlea = _beyond(cartilage[:, 1], width_mm) * _beyond(cartilage[:, 0] - 10, width_mm)
    halves = [trochlea * _beyond(sign * cartilage[:, 2], width_mm) for sign in (1, -1)]
    if min(half.sum() for half in halves) >= LEAST_POINTS // 2:
        heights = [_mean(cartilage[:, 0], half) for half in halves]
        found["trochlea_lateral_mm"] = _mean(cartilage[:, 2], trochlea)
        found["trochlea_higher_mm"] = heights[0] - heights[1]
    shaft = _beyond(bone[:, 0] - 40, width_mm) * _beyond(60 - bone[:, 0], width_mm)
    if shaft.sum() >= LEAST_POINTS and bone[:, 0].max() > 50:
        found["femoral_shaft_lateral_mm"] = _mean(bone[:, 2], shaft)
    return found


def tibial_asymmetries(bone: NDArray[np.float64], cartilage: NDArray[np.float64], width_mm: float) -> dict[str, float]:
    """Asymmetries of the tibia between its right and its left half.

    The frame: x along the broadest extent of the plateau seen from above, tilted so that both plateaus end at one
    height; origin at the height of the eminence and in the middle of the plateau.

    - tibial_tuberosity_lateral_mm: mean x of the foremost twentieth of the bone 25 to 45 mm down, less that of all.
    - tibial_plateau_shorter_mm: standard deviation along y of the bone 4 to 16 mm down, left less right.
    - tibial_cartilage_rounder: logarithm of the cartilage's length by breadth (standard deviations along y and x),
      left less right, unitless: the lateral one is round, the medial one long.

    Args, Returns: as ``femoral_asymmetries``.
    """
    if len(bone) < LEAST_POINTS:
        return {}
    points, count = np.concatenate([bone, cartilage]), len(bone)
    for _ in range(3):
        depth = np.percentile(points[:count, 0], 98) - points[:count, 0]
        plateau = _beyond(depth - 4, width_mm) * _beyond(18 - depth, width_mm)
        if plateau.sum() < LEAST_POINTS:
            return {}
        points = _turn(points, 1, _direction_of_breadth(points[:count], plateau))
        points[:, 2] -= np.mean(_ends(points[:count, 2], plateau, width_mm))
        height, distance = points[:count, 0], np.abs(points[:count, 2])
        reach = _quantiles(distance, plateau, [0.99], width_mm)[0]
        # The middle third holds the eminence, whose spines differ in height; spurs sit on the rim.
        ring = _beyond(distance - 0.35 * reach, width_mm) * _beyond(0.85 * reach - distance, width_mm)
        halves = [ring * _beyond(sign * points[:count, 2], width_mm) for sign in (1, -1)]
        if min(half.sum() for half in halves) < LEAST_POINTS:
            return {}
        right, left = (_quantiles(height, half, [0.95], width_mm)[0] for half in halves)
        points = _turn(points, 0, math.atan2(right - left, 1.2 * reach))
    points[:, 0] -= np.percentile(points[:count, 0], 98)
    bone, cartilage = points[:count], points[count:]
    plateau = _beyond(bone[:, 0] + 16, width_mm) * _beyond(-4 - bone[:, 0], width_mm)
    ends = _ends(bone[:, 2], plateau, width_mm)
    if not _WIDTH_MM[0] <= ends[1] - ends[0] <= _WIDTH_MM[1]:
        return {}
    halves = [plateau * _beyond(sign * (bone[:, 2] - np.mean(ends)), width_mm) for sign in (1, -1)]
    right, left = (_deviation(bone[:, 1], half) for half in halves)
    found = {"tibial_plateau_shorter_mm": left - right}
    shaft = _beyond(bone[:, 0] + 45, width_mm) * _beyond(-25 - bone[:, 0], width_mm)
    if shaft.sum() >= LEAST_POINTS and bone[:, 0].min() < -35:
        front = _lowest(-bone[:, 1], shaft, 0.05, width_mm)
        foremost, all_of_it = (_mean(bone[:, 2], weights) for weights in (front, shaft))
        found["tibial_tuberosity_lateral_mm"] = foremost - all_of_it
    if len(cartilage):
        y, x = cartilage[:, 1], cartilage[:, 2] - np.mean(np.percentile(cartilage[:, 2], (1, 99)))
        halves = [_beyond(sign * x, width_mm) for sign in (1, -1)]
        enough = min(half.sum() for half in halves) >= LEAST_POINTS // 2
        # A sheet one voxel thin is no cartilage, and has no ratio.
        if enough and min(_deviation(axis, half) for axis in (y, x) for half in halves) > 0:
            right, left = (math.log(_deviation(y, half) / _deviation(x, half)) for half in halves)
            found["tibial_cartilage_rounder"] = left - right
    return found


def _turn(points: NDArray[np.float64], axis: int, angle: float) -> NDArray[np.float64]:
    """Turn points (N, 3) in the plane of x and ``axis`` so that what lay at ``angle`` (radians) lies on x."""
    turned = points.copy()
    turned[:, 2] = points[:, 2] * math.cos(angle) + points[:, axis] * math.sin(angle)
    turned[:, axis] = points[:, axis] * math.cos(angle) - points[:, 2] * math.sin(angle)
    return turned


def _direction_of_breadth(points: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Angle in radians, within a quarter turn of x, of the broadest extent of points (N, 3) seen from above."""
    y, x = (points[:, axis] - _mean(points[:, axis], weights) for axis in (1, 2))
    return 0.5 * math.atan2(2 * _mean(x * y, weights), _mean(x * x - y * y, weights))


def _beyond(distance_mm: NDArray[np.float64], width_mm: float) -> NDArray[np.float64]:
    """Share of each voxel that lies beyond a plane, 0 to 1, its middle being ``distance_mm`` beyond it.

    All regions are bounded so: a voxel counts by its share, not by where its middle lies. Voxels lie on a grid, so
    that thousands of middles may lie on a plane at once, and rounding alone would move them from one side to the other.
    """
    return np.clip(distance_mm / width_mm + 0.5, 0.0, 1.0)


def _histogram(values: NDArray[np.float64], weights: NDArray[np.float64], width_mm: float) -> tuple[NDArray, NDArray]:
    """Middles of bins of ``width_mm`` and the weight in each; a value is divided between the two next to it."""
    start, counted = values.min(), weights > 0
    position, weights = (values[counted] - start) / width_mm, weights[counted]
    lower = position.astype(np.intp)
    upper_share = weights * (position - lower)
    size = int(lower.max(initial=0)) + 2
    mass = np.bincount(lower, weights - upper_share, size) + np.bincount(lower + 1, upper_share, size)
    return start + width_mm * np.arange(size), mass


def _quantiles(values: NDArray, weights: NDArray, shares: Sequence[float], width_mm: float) -> NDArray[np.float64]:
    """The values below which these shares of the weight lie; between the voxels of a grid they do not jump."""
    return _quantiles_of(*_histogram(values, weights, width_mm), shares, width_mm)


def _quantiles_of(middles: NDArray, mass: NDArray, shares: Sequence[float], width_mm: float) -> NDArray[np.float64]:
    borders = np.append(middles, middles[-1] + width_mm) - width_mm / 2
    below = np.append(0.0, np.cumsum(mass))
    return np.interp(np.array(shares) * below[-1], below, borders)


def _ends(values: NDArray[np.float64], weights: NDArray[np.float64], width_mm: float) -> NDArray[np.float64]:
    """(2,): both ends of the values, less the outermost hundredth of the weight on each side."""
    return _quantiles(values, weights, (0.01, 0.99), width_mm)


def _lowest(values: NDArray, weights: NDArray, share: float, width_mm: float) -> NDArray[np.float64]:
    """What is left of the weights if only this share of them counts, that of the lowest values."""
    middles, mass = _histogram(values, weights, width_mm)
    limit = _quantiles_of(middles, mass, [share], width_mm)[0]
    return weights * np.interp(values, middles, _beyond(limit - middles, width_mm))


def _deviation(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Weighted standard deviation."""
    return math.sqrt(_mean((values - _mean(values, weights)) ** 2, weights))


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Weighted mean, in a fifth of the time of np.average."""
    return float(np.einsum("i,i->", weights, values) / weights.sum())
