"""The whole clean-up of a segmentation (method paper, Appendix C): uncertain and small lesions, then distant parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_anomaly.errors import counted, listed
from nnunetv2_anomaly.postprocessing.components import Removal, clean_distant_components, clean_small_lesions

if TYPE_CHECKING:
    import pandas as pd

#: what ``CleanUp.extent`` gives
EXTENT_COLUMNS = ("distance_unit", "image_diagonal", "voxel_mm3")


@dataclass(frozen=True)
class CleanUp:
    """What is removed from a segmentation."""

    anatomy: tuple[int, ...]  # labels of which the largest component stays, and what is near it
    bone_of_lesion: Mapping[int, int | None] = field(default_factory=dict)  # lesion label -> bone label, None: unknown
    max_distance_mm: float | None = 35.0  # of a smaller component from the largest, between nearest voxels
    max_distance_voxels: float | None = None  # the same in voxels, 50 as published; where given, it holds instead
    min_lesion_volume_mm3: float = 6.0  # smaller lesions go
    lesion_probability: float | None = None  # voxels of a lesion whose softmax output is lower go; None leaves them

    @property
    def needs_probabilities(self) -> bool:
        """Whether a softmax output is needed."""
        return self.lesion_probability is not None and bool(self.bone_of_lesion)

    @property
    def max_distance(self) -> float:
        """The largest distance, in voxels where it is given so, else in mm."""
        voxels, mm = self.max_distance_voxels, self.max_distance_mm
        return voxels if voxels is not None else math.inf if mm is None else mm

    def extent(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> dict[str, Any]:
        """What the limits are compared with in an image: its diagonal, in the distance's unit, and a voxel's volume."""
        in_mm = self.max_distance_voxels is None
        steps = spacing_mm if in_mm else (1.0,) * len(shape)
        diagonal = math.hypot(*((n - 1) * step for n, step in zip(shape, steps, strict=True)))
        unit = "mm" if in_mm else "voxels"
        return {"distance_unit": unit, "image_diagonal": diagonal, "voxel_mm3": math.prod(spacing_mm)}

    def without_effect(self, table: pd.DataFrame) -> list[str]:
        """Sentences on limits that can remove nothing. Args: table: columns case, and ``extent``'s."""
        if table.empty:  # a part without cases
            return []
        limit, smallest = self.max_distance, self.min_lesion_volume_mm3
        distance = f"no voxels are farther apart than the largest distance, {limit:g} {table['distance_unit'].iloc[0]}"
        volume = f"a single voxel has the smallest volume of a lesion, {smallest:g} mm3"
        found = {
            f"{distance}: nothing can be removed there for it": (table["image_diagonal"] <= limit) & bool(self.anatomy),
            f"{volume}: none can be too small there": (table["voxel_mm3"] >= smallest)
            & bool(self.bone_of_lesion and smallest),
        }
        cases = {sentence: sorted(set(table.loc[where, "case"])) for sentence, where in found.items()}
        return [f"{told} ({counted(len(names), 'case')}: {listed(names)})" for told, names in cases.items() if names]

    def apply(
        self, segmentation: NDArray, spacing_mm: Sequence[float], probabilities: Iterable[NDArray] | None = None
    ) -> Cleaned:
        """Clean a segmentation.

        First the lesions' uncertain voxels become the most probable class that is no lesion; then lesions that are
        too small become the bone that they touch, or background; then the anatomy is cleaned, so that what a lesion
        left behind far from its bone goes with it.

        Args:
            segmentation: integers, two or three axes; it is not changed.
            spacing_mm: distance of voxels along each axis, in the array's axis order.
            probabilities: softmax output of each class in the labels' order, of the segmentation's shape, as
                ``segmentations.probability_channels`` gives it; needed with ``lesion_probability`` alone.
        """
        result, uncertain = segmentation, dict[int, int]()
        if self.needs_probabilities and probabilities is not None:
            result, uncertain = self._without_uncertain(segmentation, probabilities)
        bones = {lesion: bone for lesion, bone in self.bone_of_lesion.items() if bone is not None}
        result, small = clean_small_lesions(
            result, self.bone_of_lesion, self.min_lesion_volume_mm3, spacing_mm, bone_of_lesion=bones
        )
        limit_mm = self.max_distance if self.max_distance_voxels is None else None
        result, distant = clean_distant_components(
            result, self.anatomy, self.max_distance_voxels or 0, max_distance_mm=limit_mm, spacing_mm=spacing_mm
        )
        return Cleaned(result, [*small, *distant], uncertain)

    def _without_uncertain(self, segmentation: NDArray, softmax: Iterable[NDArray]) -> tuple[NDArray, dict[int, int]]:
        """The segmentation without uncertain lesion voxels; lesion label -> how many these were."""
        lesions = np.isin(segmentation, list(self.bone_of_lesion))
        labels = segmentation[lesions]
        low, best = np.zeros(len(labels), bool), np.full(len(labels), -math.inf)
        instead = np.zeros_like(labels)
        for value, channel in enumerate(softmax):
            of_class = channel[lesions]
            if value in self.bone_of_lesion:
                # In the channel's own precision, as detection compares: 0.7 in a file of floats is not below 0.7.
                low |= (labels == value) & (of_class < self.lesion_probability)
            else:
                better = of_class > best
                best[better], instead[better] = of_class[better], value
        result = segmentation.copy()
        result[lesions] = np.where(low, instead, labels)
        return result, {int(value): int((low & (labels == value)).sum()) for value in self.bone_of_lesion}


@dataclass(frozen=True)
class Cleaned:
    """A cleaned segmentation, a new array, and what it lost."""

    segmentation: NDArray
    removals: list[Removal]
    uncertain_voxels: Mapping[int, int]  # lesion label -> how many went for their low softmax output
