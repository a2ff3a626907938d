"""Left or right knee: from the series description, the subject table and the anatomy in the labels.

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

from nnunetv2_anomaly.conversion import asymmetries
from nnunetv2_anomaly.errors import UserError

# The thresholds were fitted to the 20 knees of OAI ZIB-UQ, all right ones, and their mirror images. On 48 other real
# knees a side was found in 41, never a wrong one: 0 of 41 leaves up to 7 % possible (95 % confidence).
#: The anatomy gives a side from this |score| on; 1 is a typical knee, 0 a symmetric one. The 20 knees have 0.79 on.
LEAST_SCORE = 0.6
#: Fewer asymmetries than these give no side: one bone with its cartilage has three.
LEAST_FEATURES = 3
#: At most one asymmetry in this many may speak against the others.
FEATURES_PER_EXCEPTION = 5
#: The mean over either bone must reach this, in the direction of the score: two bones, two witnesses.
LEAST_OF_BONE = 0.3
#: An asymmetry this many times that of a typical knee is not a knee's; in the 20 real ones at most 2.3.
MOST_OF_A_KNEE = 3.0
#: One asymmetry counts for this much at most, in units of a typical knee: a spur must not outvote the rest.
MOST_OF_ONE = 1.5

#: Distance of the voxels looked at: the asymmetries are millimetres large and are means over thousands of voxels.
_SAMPLING_MM = 1.45
#: A whole bone ends in a small cap: area of its outermost sampled slice, per mm of slice distance. In the 20 knees up
#: to 230; above 900 with 30 mm of the field of view gone.
_MOST_CUT_MM2_PER_MM = 350.0
#: Medial and lateral tibial cartilage lie about 42 mm apart; nearer than this the names do not fit the labels.
_LEAST_COMPARTMENT_DISTANCE_MM = 15.0
_COMPARTMENT_DISTANCE_MM = 42.0
#: Fewer sampled voxels of a compartment are stray ones.
_LEAST_COMPARTMENT_POINTS = 20

_SIDES = ("right", "left")


@dataclasses.dataclass(frozen=True)
class SideEvidence:
    """What the anatomy says."""

    side: str | None  # "right", "left", or None where it is unclear
    score: float  # unitless: 1 is a typical right knee, -1 a typical left one, 0 where too little could be measured


def side_from_text(text: str) -> str | None:
    """The side that a series description or a file name gives, for example SAG_3D_DESS_RIGHT.

    Returns: "right" or "left" where that word occurs alone, in capitals or not; RT and LT stand for other things, too.
    """
    words = {word.lower() for word in re.findall(r"[^\W\d_]+", text)}
    named = [side for side in _SIDES if side in words]
    return named[0] if len(named) == 1 else None


def side_from_labels(labels: NDArray, spacing_mm: Sequence[float], names: Mapping[str, int]) -> SideEvidence:
    """Distinguish a right knee from a left one by the shape of its bones and cartilages.

    Where medial and lateral tibial cartilage have names of their own, the way from one to the other decides, unless the
    shape contradicts. Of the shape up to six asymmetries are measured, each in its own bone's frame, so that neither a
    turned leg nor a bent knee matters (``femoral_asymmetries``, ``tibial_asymmetries``). Divided by their values in a
    typical right knee and cut off at ``MOST_OF_ONE``, their mean is the score; the thresholds above say when it gives a
    side, and docs/reference/converted-data-sets.md, "Side", what they can do. Mirroring the labels negates everything.

    Args:
        labels: (Z, Y, X), z to superior, y to anterior, x to the patient's right: "RAS" of SimpleITK, as numpy.
        spacing_mm: distance of voxels in mm, same order.
        names: label name -> value, as ``nnunetv2_anomaly.labels.LABELS``; compartments may stand for
            "tibial_cartilage". Lesions count as their bone, and one bone with its cartilage is enough.
    Returns: the evidence; side None where the labels do not look like one whole knee of an adult, or contradict.
    Raises: UserError if the names of the compartments give one side and the shape scores ``LEAST_SCORE`` for the other.
    """
    if min(labels.shape) < 2:
        return SideEvidence(None, 0.0)
    sampled, axes, distance_mm = _sample(labels, np.array(spacing_mm))
    compartments = [_points(sampled, axes, names, (f"{name}_tibial_cartilage",)) for name in ("medial", "lateral")]
    # Half the difference to the mirror image: mirroring the labels then negates the score to the last bit.
    seen, mirrored = (_bones(s, axes, names, distance_mm) for s in (sampled, sampled[:, :, ::-1]))
    shape = SideEvidence(None, 0.0)
    if seen is not None and mirrored is not None:
        pairs = zip(seen, mirrored, strict=True)
        shape = _weigh(
            *({name: (own[name] - other[name]) / 2 for name in own if name in other} for own, other in pairs)
        )
    if min(map(len, compartments)) < _LEAST_COMPARTMENT_POINTS:
        return shape
    # Lateral lies to the patient's right of medial in a right knee.
    medial, lateral = (float(np.median(points[:, 2])) for points in compartments)
    clear = abs(lateral - medial) >= _LEAST_COMPARTMENT_DISTANCE_MM
    side = _SIDES[lateral < medial] if clear else None
    named = SideEvidence(side, (lateral - medial) / _COMPARTMENT_DISTANCE_MM)
    if named.side and shape.score * named.score < 0 and abs(shape.score) >= LEAST_SCORE:
        by_place = f"{named.side} by the places of medial and lateral tibial cartilage (score {named.score:+.2f})"
        by_shape = f"{_SIDES[shape.score < 0]} by the shape of bones and cartilages ({_scored(shape)})"
        advice = "exchange the two labels, or correct the mask's axes, or leave this knee out"
        raise UserError(f"the side of this knee is {by_place} and {by_shape}; expected one side from both; {advice}")
    return named


def agreed_side(description: str | None, table: str | None, anatomy: SideEvidence) -> str | None:
    """The one side, "right" or "left", on which all sources agree that give one; None if none does.

    Raises: UserError if two of them conflict; the sentence shows all three.
    """
    sides = {description, table, anatomy.side} - {None}
    if len(sides) > 1:
        given = [side or "not given" for side in (description, table, anatomy.side)]
        by = f"{given[0]} by the series description, {given[1]} by the subject table and {given[2]} by the anatomy"
        fault = f"the side of this knee is {by} in the labels ({_scored(anatomy)}); expected one side from all that"
        advice = "look at the image, then correct the source that is wrong, or leave this knee out"
        raise UserError(f"{fault} give one; {advice}")
    return sides.pop() if sides else None


def _scored(evidence: SideEvidence) -> str:
    return f"score {evidence.score:+.2f}; a typical right knee has +1, a left one -1"


def _sample(labels: NDArray, spacing: NDArray) -> tuple[NDArray, list[NDArray[np.float64]], NDArray[np.float64]]:
    """Every n-th voxel, about ``_SAMPLING_MM`` apart; where these lie in mm from the middle; their distances in mm.

    Along x the voxels are taken from both ends to the middle: a mirrored volume then yields the mirrored voxels.
    """
    steps = np.maximum(1, np.round(_SAMPLING_MM / spacing)).astype(int)
    width = labels.shape[2]
    half = np.arange(0, (width + 1) // 2, steps[2])
    indices = [*(np.arange(0, labels.shape[k], steps[k]) for k in (0, 1)), np.union1d(half, width - 1 - half)]
    axes = [(i - (n - 1) / 2) * s for i, n, s in zip(indices, labels.shape, spacing, strict=True)]
    return labels[:: steps[0], :: steps[1]][:, :, indices[2]], axes, spacing * steps


def _points(
    sampled: NDArray, axes: Sequence[NDArray[np.float64]], names: Mapping[str, int], wanted: Sequence[str]
) -> NDArray[np.float64]:
    """(N, 3): the voxels that have one of the wanted labels, (z, y, x) in mm; none where no label has such a name."""
    found = np.nonzero(np.isin(sampled, [names[name] for name in wanted if name in names]))
    return np.stack([axis[index] for axis, index in zip(axes, found, strict=True)], axis=1)


def _bones(
    sampled: NDArray, axes: Sequence[NDArray], names: Mapping[str, int], distance_mm: NDArray
) -> tuple[dict[str, float], dict[str, float]] | None:
    """Asymmetries of femur and tibia, or None where they are not a whole knee of an adult."""
    of_tibia = ("tibial_cartilage", "medial_tibial_cartilage", "lateral_tibial_cartilage")
    structures = (
        ("femoral_bone", "femoral_lesion"),
        ("femoral_cartilage",),
        ("tibial_bone", "tibial_lesion"),
        of_tibia,
    )
    femur, femoral_cartilage, tibia, tibial_cartilage = (_points(sampled, axes, names, of) for of in structures)
    if not _looks_like_a_knee(femur, tibia, distance_mm):
        return None
    width_mm = float(max(distance_mm))
    femoral = asymmetries.femoral_asymmetries(femur, femoral_cartilage, width_mm)
    tibial = asymmetries.tibial_asymmetries(tibia, tibial_cartilage, width_mm)
    # A bone that is there with its cartilage and cannot be measured is cut off, or no adult's: then the other one is
    # no proof either.
    for found, bone, cartilage in ((femoral, femur, femoral_cartilage), (tibial, tibia, tibial_cartilage)):
        if not found and min(len(bone), len(cartilage)) >= asymmetries.LEAST_POINTS:
            return None
    return femoral, tibial


def _looks_like_a_knee(femur: NDArray, tibia: NDArray, distance_mm: NDArray) -> bool:
    """Whether both ends of the joint's width are seen and the femur stands on the tibia."""
    most = _MOST_CUT_MM2_PER_MM * distance_mm[2] / (distance_mm[0] * distance_mm[1])
    for bone in (femur, tibia):
        # Its own outermost slices, not the volume's: labels may also have been blanked beyond a cut.
        if len(bone) and any((bone[:, 2] == end).sum() > most for end in (bone[:, 2].min(), bone[:, 2].max())):
            return False
    return not (len(femur) and len(tibia)) or bool(np.median(femur[:, 0]) > np.median(tibia[:, 0]))


def _weigh(*bones: Mapping[str, float]) -> SideEvidence:
    """Score and side from the asymmetries of each bone, named and in the units of ``TYPICAL_OF_RIGHT``."""
    typical = asymmetries.TYPICAL_OF_RIGHT
    relative = [np.array([value / typical[name] for name, value in bone.items()]) for bone in bones if bone]
    if sum(map(len, relative)) < LEAST_FEATURES:
        return SideEvidence(None, 0.0)
    every = np.concatenate(relative)
    score = float(np.clip(every, -MOST_OF_ONE, MOST_OF_ONE).mean())
    sign = math.copysign(1.0, score)
    clear = (
        abs(score) >= LEAST_SCORE
        and (every * sign < 0).sum() <= len(every) // FEATURES_PER_EXCEPTION
        and np.abs(every).max() <= MOST_OF_A_KNEE
        and min(sign * np.clip(bone, -MOST_OF_ONE, MOST_OF_ONE).mean() for bone in relative) >= LEAST_OF_BONE
    )
    return SideEvidence(_SIDES[score < 0] if clear else None, score)
