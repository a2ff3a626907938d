"""Which axes of a mask without pose are which axes of its image, found from the voxels alone.

The masks of OAI ZIB carry no pose. Of the 48 ways to permute and reverse three axes, those that give the image's shape
are tried. Under the right one, and with the right image, the labels' borders lie on borders of intensity: what is seen
just on one side of a border differs from what is seen just on its other side. Under any other, and on another knee,
both sides look alike, since borders run through tissue that knows nothing of them. Neither the scale of the
intensities nor the sign of any contrast matters.

Measured on the 20 masks of OAI ZIB-UQ with images simulated from them at full size, blurred, noisy, with a bias field
or little contrast, and masks without patella, with smooth errors or a voxel more or less: 560 of 560 were accepted on
their own image, margins 0.22 to 0.92, and 0 of 1900 on another knee's, margins up to 0.02. The thresholds were chosen
with these numbers in view, and a simulated image follows its mask as no real one does. A single label with errors of
1.5 voxels is mostly refused (tibia alone: 24 of 80 accepted), and voxels of 3 mm are too coarse: of other phantoms'
masks at 2.2 to 2.9 mm 1 of 3200 was accepted, and blur by 2 mm makes masks fail on their own image.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nnunetv2_anomaly.conversion.borders import REACH, Borders, Fit, voxels
from nnunetv2_anomaly.errors import UserError

#: least margin and least score (bits) at which a mapping is believed
CLEAR_MARGIN = 0.2
CLEAR_SCORE = 0.025

#: A rival is worth naming in an error message where it scores as much as this (bits); less is chance.
_TELLING_SCORE = 0.1

#: Copies of the mask that compete with it are moved by this share of each axis, one voxel at least: about 4 mm, 5 of
#: 160 slices and 12 of 384 voxels. Nearer ones would fit as well where a border was drawn a millimetre off.
_STEP = 1 / 32

#: the directions in which copies are moved
_SIGNS = [signs for signs in itertools.product((-1, 0, 1), repeat=3) if any(signs)]

#: A smaller move counts if it improves the score by this factor. A mask whose borders are a voxel off here and there
#: gains less by any move; one that lies off by 1 mm as a whole gains more on a sharp image.
_GAIN = 1.25

#: The next best mappings are moved, too, where they score at least this share of the best one.
_WORTH_MOVING = 0.3


@dataclasses.dataclass(frozen=True)
class AxisMapping:
    """How a mask's array axes become the image's: transpose to ``order``, then reverse the axes in ``flips``."""

    order: tuple[int, ...]  # 0, 1, 2 in some order
    flips: tuple[int, ...]  # some of them, sorted

    @classmethod
    def parse(cls, text: str) -> AxisMapping:
        """Read what ``str`` writes."""
        parts = text.split()
        return cls(tuple(int(part[0]) for part in parts), tuple(k for k, part in enumerate(parts) if part[1] == "-"))

    def __str__(self) -> str:
        """The mask's axis that becomes each of the image's, + if it keeps its sense: "2+ 1- 0+"."""
        return " ".join(f"{axis}{'-' if k in self.flips else '+'}" for k, axis in enumerate(self.order))

    def apply(self, labels: NDArray) -> NDArray:
        """A view of the mask with the image's axes: (A, B, C) in, (Z, Y, X) out."""
        return np.flip(labels.transpose(self.order), self.flips)


#: the mask has the image's axes already
IDENTITY = AxisMapping((0, 1, 2), ())


@dataclasses.dataclass(frozen=True)
class MappingEvidence:
    """How well a mask fits an image under each mapping, and under the best one when moved a little.

    A score is the information, in bits, that an intensity near a border of labels gives about the side that it lies
    on: the Jensen-Shannon divergence of the intensities on both sides, mean over regions and kinds of border. 0 is no
    relation (chance makes it slightly negative at times), 1 is certainty.

    ``margin`` compares the score s of the best mapping with the strongest rival's r: (s - r) / max(s, r), unitless, 1
    where no rival explains anything, 0 where one is as good, negative where one is better. Rivals are the other
    mappings; the mask whose eight regions are each moved by about 4 mm, in whichever of 26 directions suits the region
    best, so that another knee finds a rival everywhere; and the mask moved as a whole, if that
    improves the score by a quarter or more.
    """

    best: AxisMapping
    score: float
    runner_up: AxisMapping
    runner_up_score: float
    rival: str  # the strongest one, in words
    rival_score: float

    @property
    def margin(self) -> float:
        """How clearly the best mapping beats its strongest rival, as the class says."""
        top = max(self.score, self.rival_score)
        return (self.score - self.rival_score) / top if top > 0 else 0.0

    @property
    def clear(self) -> bool:
        """Whether the best mapping can be believed: margin and score reach their thresholds."""
        return self.margin >= CLEAR_MARGIN and self.score >= CLEAR_SCORE

    def contradicts(self, mapping: AxisMapping) -> bool:
        """Whether the voxels clearly call for another mapping than this one, for example the one in a header."""
        return self.clear and mapping != self.best

    def reason(self) -> str:
        """Why the mapping is not clear, in words."""
        found = f"the best mapping ({self.best}) scores {self.score:.3f} bits"
        if self.score < CLEAR_SCORE and self.rival_score < _TELLING_SCORE:
            return f"the labels hardly say anything about the intensities at their borders: {found} of {CLEAR_SCORE:g}"
        return f"{found}, {self.rival} {self.rival_score:.3f}"


def candidate_mappings(mask_shape: Sequence[int], image_shape: Sequence[int]) -> list[AxisMapping]:
    """All mappings under which a mask of one shape gets the other: 0, 8, 16 or 48, the identity first if among them."""
    if len(mask_shape) != 3:
        return []
    return [
        AxisMapping(order, flips)
        for order in itertools.permutations(range(3))
        if tuple(mask_shape[axis] for axis in order) == tuple(image_shape)
        for count in range(4)
        for flips in itertools.combinations(range(3), count)
    ]


def mapping_evidence(image: NDArray, labels: NDArray) -> MappingEvidence:
    """Find how a mask's axes become its image's; the same input gives the same numbers.

    Args: image: (Z, Y, X), any numeric type and scale. labels: (A, B, C), the same axes in any order and sense,
        integers, 0 = background. Lesions count as the bone that holds them, since their borders are faint.
    Raises: UserError if no mapping gives the image's shape, the mask has no borders, or the image is constant.
    """
    candidates = candidate_mappings(labels.shape, image.shape)
    if not candidates:
        fault = f"the mask's shape {labels.shape} does not become the image's {image.shape} by any order of its axes"
        raise UserError(f"{fault}: they are of different series, or one of them was resampled")
    borders = Borders.drawn_from(labels)
    fit = Fit(image, borders)
    scores = {mapping: fit.score(mapping) for mapping in candidates}
    ranking = sorted(candidates, key=lambda mapping: -scores[mapping])  # stable: ties keep the candidates' order
    best, runner_up = ranking[:2]
    steps, reach = voxels(image.shape, _STEP), voxels(image.shape, REACH)
    moves = [tuple(int(s * k) for s, k in zip(steps, signs, strict=True)) for signs in _SIGNS]
    moved = [fit.regional_scores(best, move) for move in moves]
    regional_score = float(np.max(moved, axis=0).sum())
    known = {(0, 0, 0): scores[best], **{m: float(r.sum()) for m, r in zip(moves, moved, strict=True)}}
    displaced, displacement, displaced_score = best, *_best_displacement(fit, best, known, reach)
    for mapping in ranking[1:4] if scores[best] >= CLEAR_SCORE else ():
        # A mask that lies off by a little may fit better mirrored than in its own orientation, knees being nearly
        # symmetric: then it is its own orientation, moved, that is the rival.
        if scores[mapping] >= _WORTH_MOVING * scores[best]:
            move, score = _best_displacement(fit, mapping, {(0, 0, 0): scores[mapping]}, reach)
            if score > displaced_score:
                displaced, displacement, displaced_score = mapping, move, score
    rivals = {
        f"another one ({runner_up}) nearly as much,": scores[runner_up],
        "moved by a few voxels, so that it may be another knee's mask,": max(regional_score, 0.0),
    }
    rival, rival_score = max(rivals.items(), key=lambda entry: entry[1])
    if displaced_score >= _GAIN * scores[best]:
        rival_score = max(rival_score, displaced_score)
        if displaced_score >= _TELLING_SCORE:
            rival = f"moved by {displacement} voxels (z, y, x) under the mapping {displaced}"
    return MappingEvidence(best, scores[best], runner_up, scores[runner_up], rival, rival_score)


def _best_displacement(
    fit: Fit, mapping: AxisMapping, known: Mapping[tuple[int, ...], float], steps: Sequence[int]
) -> tuple[tuple[int, ...], float]:
    """The move in voxels (z, y, x) under which the mask fits best, found by climbing from the best of those known."""
    scores = dict(known)
    best = max(scores, key=scores.__getitem__)  # ties: the first one, no move at all
    while max(steps) > 0:
        around = [
            tuple(b + (sign * s if a == axis else 0) for a, (b, s) in enumerate(zip(best, steps, strict=True)))
            for axis in range(3)
            for sign in (-1, 1)
        ]
        scores |= {move: fit.score(mapping, move) for move in around if move not in scores}
        better = max(around, key=scores.__getitem__)
        if scores[better] > scores[best]:
            best = better
        else:
            steps = [s // 2 for s in steps]
    return best, scores[best]
