"""Left or right knee: what the series description, the subject table and the anatomy in the labels say of it.

A knee filed under the wrong side looks perfect in every picture: a left knee is the mirror image of a right one. Only
comparing independent sources can show the mistake, and so a conflict between any two of them is an error.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nnunetv2_anomaly.errors import UserError

#: From this |score| on the anatomy tells the side; 1 is a typical knee, 0 a symmetric one. The 20 real knees have 0.79
#: or more.
LEAST_SCORE = 0.6
#: Fewer asymmetries than these tell nothing: one bone with its cartilage has three.
LEAST_FEATURES = 3
#: At most one asymmetry in this many may speak against the others.
FEATURES_PER_EXCEPTION = 5
#: The mean over either bone must reach this, in the direction of the score: two bones, two witnesses.
LEAST_OF_BONE = 0.3
#: An asymmetry this many times that of a typical knee is not a knee's; in the 20 real ones at most 2.3.
MOST_OF_A_KNEE = 3.0
#: One asymmetry counts for this much at most, in units of a typical knee: a spur must not outvote the rest.
MOST_OF_ONE = 1.5

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

#: Distance of the voxels looked at: the asymmetries are millimetres large and are means over thousands of voxels.
_SAMPLING_MM = 1.45
#: Width of the femoral condyles and of the tibial plateau of an adult; in the 20 knees 65 to 87 mm.
_WIDTH_MM = (55.0, 105.0)
#: A whole bone ends in a small cap: area of its outermost sampled slice, per mm of slice distance. In the 20 knees up
#: to 230; above 900 with 30 mm of the field of view gone.
_MOST_CUT_MM2_PER_MM = 350.0
#: Fewer sampled voxels than this are noise, or a volume too small to measure in.
_LEAST_POINTS = 100
#: Medial and lateral tibial cartilage lie about 42 mm apart; nearer than this the names do not fit the labels.
_LEAST_COMPARTMENT_DISTANCE_MM = 15.0
_COMPARTMENT_DISTANCE_MM = 42.0
#: Fewer sampled voxels of a compartment are stray ones.
_LEAST_COMPARTMENT_POINTS = 20

_SIDES = ("right", "left")


@dataclasses.dataclass(frozen=True)
class SideEvidence:
    """What the anatomy says.

    side: "right", "left", or None where it cannot be told.
    score: unitless; above 0 speaks for right, below 0 for left; 1 is a typical right knee, -1 a typical left one, and
        from ``LEAST_SCORE`` on it may tell the side. 0 where too little could be measured.
    """

    side: str | None
    score: float


def side_from_text(text: str) -> str | None:
    """The side that a series description or a file name gives, for example SAG_3D_DESS_RIGHT.

    Only the words RIGHT and LEFT count, in capitals or not, with no letter before or after them. RT and LT do not:
    they are also short for other things (rotation, radiotherapy, "less than").

    Returns: "right", "left", or None where neither word occurs, or both do.
    """
    words = {word.lower() for word in re.findall(r"[^\W\d_]+", text)}
    named = [side for side in _SIDES if side in words]
    return named[0] if len(named) == 1 else None


def side_from_labels(labels: NDArray, spacing_mm: Sequence[float], names: Mapping[str, int]) -> SideEvidence:
    """Tell a right knee from a left one by the shape of its bones and cartilages.

    Where the names tell medial from lateral tibial cartilage, the way from one to the other decides. Otherwise up to
    six asymmetries are measured, each in a frame that its own bone gives, so that neither a turned leg nor a bent
    knee matters (``_femoral_asymmetries``, ``_tibial_asymmetries``). Each is divided by its value in a typical right
    knee, cut off at ``MOST_OF_ONE``, and the score is their mean. The side is told only if at least
    ``LEAST_FEATURES`` could be measured, |score| reaches ``LEAST_SCORE``, at most one in
    ``FEATURES_PER_EXCEPTION`` of them has the other sign, none exceeds ``MOST_OF_A_KNEE``, and either bone alone
    reaches ``LEAST_OF_BONE``. Mirroring the labels negates every asymmetry.

    Measured on the 20 real knees, labels 1 to 4: all told right and, mirrored, all left, the scores 0.79 to 1.18; with
    each knee left out of its own unit the same; turned by up to 10 degrees about any axis 1 of 240 is not told. A
    mean knee of another source (CLAIR-Knee-103R) has 1.11. None was told the wrong side, neither cropped, nor with
    cartilage removed, nor with y or z reversed. The phantoms of ``nnunetv2_anomaly.simulation`` are nearly symmetric
    and never told. 0.05 s for a volume of 160 x 384 x 384.

    Args:
        labels: (Z, Y, X), z to superior, y to anterior, x to the patient's right: "RAS" of SimpleITK, as numpy.
        spacing_mm: distance of voxels in mm, same order.
        names: label name -> value, as ``nnunetv2_anomaly.labels.LABELS``; "medial_tibial_cartilage" and
            "lateral_tibial_cartilage" may stand for "tibial_cartilage". Lesions count as their bone. Of femur and
            tibia one with its cartilage is enough; the patella is not looked at, most data sets do not label it.

    Returns: the evidence; side None where the labels do not look like one whole knee of an adult, or speak with two
        voices.

    Raises: ValueError unless labels have three axes and spacing_mm three positive numbers.
    """
    spacing = np.array([float(s) for s in spacing_mm])
    if np.ndim(labels) != 3 or spacing.shape != (3,) or not (np.isfinite(spacing).all() and spacing.min() > 0):
        raise ValueError(
            f"labels of shape {np.shape(labels)} and spacing_mm {tuple(spacing_mm)}: expected three axes (z, y, x) "
            "and three positive distances in mm"
        )
    if min(labels.shape) < 2:
        return SideEvidence(None, 0.0)
    sampled, axes, distance_mm = _sample(labels, spacing)
    compartments = [_points(sampled, axes, names, (f"{name}_tibial_cartilage",)) for name in ("medial", "lateral")]
    if min(map(len, compartments)) >= _LEAST_COMPARTMENT_POINTS:
        return _side_from_compartments(*compartments)
    # Half the difference to the mirror image: mirroring the labels then negates the score to the last bit.
    seen, mirrored = (_bones(s, axes, names, distance_mm) for s in (sampled, sampled[:, :, ::-1]))
    if seen is None or mirrored is None:
        return SideEvidence(None, 0.0)
    return _weigh(
        *(
            {name: (bone[name] - other[name]) / 2 for name in bone if name in other}
            for bone, other in zip(seen, mirrored, strict=True)
        )
    )


def agreed_side(description: str | None, table: str | None, anatomy: SideEvidence | None) -> str | None:
    """The one side that all sources tell which tell any.

    Args:
        description: "right", "left" or None, from ``side_from_text``.
        table: the same, from the subject table.
        anatomy: from ``side_from_labels``; None where it was not looked at.

    Returns: "right", "left", or None if no source tells.

    Raises:
        UserError: two of them conflict; the sentence shows all three.
        ValueError: a side is neither "right", nor "left", nor None.
    """
    told = {"description": description, "table": table, "anatomy": anatomy.side if anatomy else None}
    for source, side in told.items():
        if side not in (*_SIDES, None):
            raise ValueError(f"side of the {source} is {side!r}; expected 'right', 'left' or None")
    sides = {side for side in told.values() if side is not None}
    if len(sides) > 1:
        score = "" if anatomy is None else f" (score {anatomy.score:+.2f}; a typical right knee has +1, a left one -1)"
        raise UserError(
            f"the side of this knee is {description or 'not told'} by the series description, "
            f"{table or 'not told'} by the subject table and {told['anatomy'] or 'not told'} by the anatomy in the "
            f"labels{score}; expected one side from all that tell it; look at the image, then correct the source that "
            "is wrong, or leave this knee out"
        )
    return sides.pop() if sides else None


def _sample(
    labels: NDArray, spacing: NDArray[np.float64]
) -> tuple[NDArray, list[NDArray[np.float64]], NDArray[np.float64]]:
    """Every n-th voxel, about ``_SAMPLING_MM`` apart; where these lie in mm from the middle; their distances in mm.

    Along x the voxels are taken from both ends to the middle: a mirrored volume then yields the mirrored voxels.
    """
    steps = np.maximum(1, np.round(_SAMPLING_MM / spacing)).astype(int)
    width = labels.shape[2]
    half = np.arange(0, (width + 1) // 2, steps[2])
    indices = [
        np.arange(0, labels.shape[0], steps[0]),
        np.arange(0, labels.shape[1], steps[1]),
        np.union1d(half, width - 1 - half),
    ]
    axes = [(i - (n - 1) / 2) * s for i, n, s in zip(indices, labels.shape, spacing, strict=True)]
    return labels[:: steps[0], :: steps[1]][:, :, indices[2]], axes, spacing * steps


def _points(
    sampled: NDArray, axes: Sequence[NDArray[np.float64]], names: Mapping[str, int], wanted: Sequence[str]
) -> NDArray[np.float64]:
    """(N, 3): the voxels that have one of the wanted labels, (z, y, x) in mm; none where no label has such a name."""
    found = np.nonzero(np.isin(sampled, [names[name] for name in wanted if name in names]))
    return np.stack([axis[index] for axis, index in zip(axes, found, strict=True)], axis=1)


def _bones(
    sampled: NDArray,
    axes: Sequence[NDArray[np.float64]],
    names: Mapping[str, int],
    distance_mm: NDArray[np.float64],
) -> tuple[dict[str, float], dict[str, float]] | None:
    """Asymmetries of femur and tibia, or None where they are not a whole knee of an adult."""
    femur = _points(sampled, axes, names, ("femoral_bone", "femoral_lesion"))
    tibia = _points(sampled, axes, names, ("tibial_bone", "tibial_lesion"))
    if not _looks_like_a_knee(femur, tibia, distance_mm):
        return None
    femoral_cartilage = _points(sampled, axes, names, ("femoral_cartilage",))
    tibial_cartilage = _points(
        sampled, axes, names, ("tibial_cartilage", "medial_tibial_cartilage", "lateral_tibial_cartilage")
    )
    width_mm = float(max(distance_mm))
    femoral = _femoral_asymmetries(femur, femoral_cartilage, width_mm)
    tibial = _tibial_asymmetries(tibia, tibial_cartilage, width_mm)
    # A bone that is there with its cartilage and cannot be measured is cut off, or no adult's: then the other one is
    # no proof either.
    for found, bone, cartilage in ((femoral, femur, femoral_cartilage), (tibial, tibia, tibial_cartilage)):
        if not found and min(len(bone), len(cartilage)) >= _LEAST_POINTS:
            return None
    return femoral, tibial


def _side_from_compartments(medial: NDArray[np.float64], lateral: NDArray[np.float64]) -> SideEvidence:
    """Lateral lies to the patient's right of medial in a right knee. Points (N, 3) in mm; score 1 = 42 mm apart."""
    distance = float(np.median(lateral[:, 2]) - np.median(medial[:, 2]))
    told = abs(distance) >= _LEAST_COMPARTMENT_DISTANCE_MM
    return SideEvidence(_SIDES[distance < 0] if told else None, distance / _COMPARTMENT_DISTANCE_MM)


def _looks_like_a_knee(
    femur: NDArray[np.float64], tibia: NDArray[np.float64], distance_mm: NDArray[np.float64]
) -> bool:
    """Whether both ends of the joint's width are seen and the femur stands on the tibia."""
    most = _MOST_CUT_MM2_PER_MM * distance_mm[2] / (distance_mm[0] * distance_mm[1])
    for bone in (femur, tibia):
        # Its own outermost slices, not the volume's: labels may also have been blanked beyond a cut.
        for end in (bone[:, 2].min(), bone[:, 2].max()) if len(bone) else ():
            if (bone[:, 2] == end).sum() > most:
                return False
    if len(femur) and len(tibia):
        return bool(np.median(femur[:, 0]) > np.median(tibia[:, 0]))
    return True


def _weigh(*bones: Mapping[str, float]) -> SideEvidence:
    """Score and side from the asymmetries of each bone, named and in the units of ``TYPICAL_OF_RIGHT``."""
    relative = [np.array([value / TYPICAL_OF_RIGHT[name] for name, value in bone.items()]) for bone in bones if bone]
    if sum(map(len, relative)) < LEAST_FEATURES:
        return SideEvidence(None, 0.0)
    every = np.concatenate(relative)
    score = float(np.clip(every, -MOST_OF_ONE, MOST_OF_ONE).mean())
    sign = math.copysign(1.0, score)
    told = (
        abs(score) >= LEAST_SCORE
        and (every * sign < 0).sum() <= len(every) // FEATURES_PER_EXCEPTION
        and np.abs(every).max() <= MOST_OF_A_KNEE
        and min(sign * np.clip(bone, -MOST_OF_ONE, MOST_OF_ONE).mean() for bone in relative) >= LEAST_OF_BONE
    )
    return SideEvidence(_SIDES[score < 0] if told else None, score)


def _femoral_asymmetries(
    bone: NDArray[np.float64], cartilage: NDArray[np.float64], width_mm: float
) -> dict[str, float]:
    """Asymmetries of the femur between its right and its left half.

    The frame: x along the broadest extent of the condyles seen from above, tilted so that both condyles end at one
    height; origin at the lowest point, the hindmost point and the middle of the condyles.

    - trochlea_lateral_mm: mean x of the cartilage on the anterior half. The trochlea lies lateral, its lateral facet
      is the broader one.
    - trochlea_higher_mm: mean height of that cartilage on the right, less that on the left. The lateral facet reaches
      further up.
    - femoral_shaft_lateral_mm: mean x of the bone 40 to 60 mm up. The shaft stands oblique on the condyles, and the
      medial condyle overhangs it more.

    Args: bone, cartilage: (N, 3), (z, y, x) in mm. width_mm: breadth of a voxel (``_beyond``).
    Returns: those that can be measured, positive in a right knee; none where size or sense is not a knee's.
    """
    if min(len(bone), len(cartilage)) < _LEAST_POINTS:
        return {}
    points = np.concatenate([bone, cartilage])
    for _ in range(3):
        low = _beyond(np.percentile(points[:, 0], 0.5) + 25 - points[:, 0], width_mm)
        if low.sum() < _LEAST_POINTS:
            return {}
        points = _turn(points, 1, _direction_of_breadth(points, low))
        points[:, 2] -= np.mean(_ends(points[:, 2], low, width_mm))
        halves = [low * _beyond(sign * points[:, 2], width_mm) for sign in (1, -1)]
        if min(half.sum() for half in halves) < _LEAST_POINTS:
            return {}
        right, left = (
            np.average(points, axis=0, weights=_lowest(points[:, 0], half, 0.03, width_mm)) for half in halves
        )
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
    if min(half.sum() for half in halves) >= _LEAST_POINTS // 2:
        right, left = (float(np.average(cartilage[:, 0], weights=half)) for half in halves)
        found["trochlea_lateral_mm"] = float(np.average(cartilage[:, 2], weights=trochlea))
        found["trochlea_higher_mm"] = right - left
    shaft = _beyond(bone[:, 0] - 40, width_mm) * _beyond(60 - bone[:, 0], width_mm)
    if shaft.sum() >= _LEAST_POINTS and bone[:, 0].max() > 50:
        found["femoral_shaft_lateral_mm"] = float(np.average(bone[:, 2], weights=shaft))
    return found


def _tibial_asymmetries(bone: NDArray[np.float64], cartilage: NDArray[np.float64], width_mm: float) -> dict[str, float]:
    """Asymmetries of the tibia between its right and its left half.

    The frame: x along the broadest extent of the plateau seen from above, tilted so that both plateaus end at one
    height; origin at the height of the eminence and in the middle of the plateau.

    - tibial_tuberosity_lateral_mm: mean x of the foremost twentieth of the bone 25 to 45 mm down, less that of all of
      it.
    - tibial_plateau_shorter_mm: standard deviation along y of the bone 4 to 16 mm down on the left, less that on the
      right: the lateral plateau is the shorter one.
    - tibial_cartilage_rounder: logarithm of the ratio length to breadth (standard deviations along y and x) of the
      cartilage on the left, less that on the right, unitless: the lateral cartilage is round, the medial one long.

    Args: bone, cartilage: (N, 3), (z, y, x) in mm. width_mm: breadth of a voxel (``_beyond``).
    Returns: those that can be measured, positive in a right knee; none where the size is not a knee's.
    """
    if len(bone) < _LEAST_POINTS:
        return {}
    points, count = np.concatenate([bone, cartilage]), len(bone)
    for _ in range(3):
        depth = np.percentile(points[:count, 0], 98) - points[:count, 0]
        plateau = _beyond(depth - 4, width_mm) * _beyond(18 - depth, width_mm)
        if plateau.sum() < _LEAST_POINTS:
            return {}
        points = _turn(points, 1, _direction_of_breadth(points[:count], plateau))
        points[:, 2] -= np.mean(_ends(points[:count, 2], plateau, width_mm))
        height, distance = points[:count, 0], np.abs(points[:count, 2])
        reach = _quantiles(distance, plateau, [0.99], width_mm)[0]
        # The middle third holds the eminence, whose spines differ in height; spurs sit on the rim.
        ring = _beyond(distance - 0.35 * reach, width_mm) * _beyond(0.85 * reach - distance, width_mm)
        halves = [ring * _beyond(sign * points[:count, 2], width_mm) for sign in (1, -1)]
        if min(half.sum() for half in halves) < _LEAST_POINTS:
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
    if shaft.sum() >= _LEAST_POINTS and bone[:, 0].min() < -35:
        front = _lowest(-bone[:, 1], shaft, 0.05, width_mm)
        foremost, all_of_it = (float(np.average(bone[:, 2], weights=w)) for w in (front, shaft))
        found["tibial_tuberosity_lateral_mm"] = foremost - all_of_it
    if len(cartilage):
        y, x = cartilage[:, 1], cartilage[:, 2] - np.mean(np.percentile(cartilage[:, 2], (1, 99)))
        halves = [_beyond(sign * x, width_mm) for sign in (1, -1)]
        # A sheet one voxel thin is no cartilage, and has no ratio.
        if (
            min(half.sum() for half in halves) >= _LEAST_POINTS // 2
            and min(_deviation(axis, half) for axis in (y, x) for half in halves) > 0
        ):
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
    (yy, xy), (_, xx) = np.cov(points[:, 1:].T, aweights=weights)
    return 0.5 * math.atan2(2 * xy, xx - yy)


def _beyond(distance_mm: NDArray[np.float64], width_mm: float) -> NDArray[np.float64]:
    """Share of each voxel that lies beyond a plane, 0 to 1, its middle being ``distance_mm`` beyond it.

    All regions are bounded so: a voxel counts by its share, not by where its middle lies. Voxels lie on a grid, so
    that thousands of middles may lie on a plane at once, and rounding alone would move them from one side to the other.
    """
    return np.clip(distance_mm / width_mm + 0.5, 0.0, 1.0)


def _histogram(
    values: NDArray[np.float64], weights: NDArray[np.float64], width_mm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middles of bins of ``width_mm`` and the weight in each; a value is divided between the two next to it."""
    start = values.min()
    position = (values - start) / width_mm
    lower = position.astype(np.intp)
    upper_share = weights * (position - lower)
    size = int(lower.max()) + 2
    mass = np.bincount(lower, weights - upper_share, size) + np.bincount(lower + 1, upper_share, size)
    return start + width_mm * np.arange(size), mass


def _quantiles(
    values: NDArray[np.float64], weights: NDArray[np.float64], shares: Sequence[float], width_mm: float
) -> NDArray[np.float64]:
    """The values below which these shares of the weight lie; between the voxels of a grid they do not jump."""
    middles, mass = _histogram(values, weights, width_mm)
    borders = np.append(middles, middles[-1] + width_mm) - width_mm / 2
    below = np.append(0.0, np.cumsum(mass))
    return np.interp(np.array(shares) * below[-1], below, borders)


def _ends(values: NDArray[np.float64], weights: NDArray[np.float64], width_mm: float) -> NDArray[np.float64]:
    """(2,): both ends of the values, less the outermost hundredth of the weight on each side."""
    return _quantiles(values, weights, (0.01, 0.99), width_mm)


def _lowest(
    values: NDArray[np.float64], weights: NDArray[np.float64], share: float, width_mm: float
) -> NDArray[np.float64]:
    """What is left of the weights if only this share of them counts, that of the lowest values."""
    middles, _ = _histogram(values, weights, width_mm)
    limit = _quantiles(values, weights, [share], width_mm)[0]
    return weights * np.interp(values, middles, _beyond(limit - middles, width_mm))


def _deviation(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Weighted standard deviation."""
    return math.sqrt(np.average((values - np.average(values, weights=weights)) ** 2, weights=weights))
