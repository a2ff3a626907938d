"""Empty slices at a set rate, through nnU-Net's own loader."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EmptySlicesAtRate:
    """A preprocessed data set in which a share of what nnU-Net's loader draws is a slice without any label.

    The loader centres a patch on a voxel of a class, as it always does where it is to meet foreground; at the set rate
    the only class is that of one voxel in each empty slice. A case without labels gives empty slices alone, one without
    empty slices none. Along axes that a patch covers, every voxel is said to lie in the middle: about another one the
    loader would cut off one side of the slice and pad the other.
    """

    dataset: Any
    empty: Mapping[str, NDArray[np.intp]]  # case -> empty slices along the first axis of the preprocessed image
    rate: float
    patch_size: Sequence[int]  # voxels, Y, X

    @property
    def identifiers(self) -> list[str]:
        """All cases."""
        identifiers: list[str] = self.dataset.identifiers
        return identifiers

    def load_case(self, identifier: str) -> tuple:
        """As nnU-Net's: image, labels, labels of a previous stage, properties."""
        image, labels, previous, properties = self.dataset.load_case(identifier)
        slices, size, places = self.empty[identifier], image.shape[2:], properties["class_locations"]
        if len(slices) and np.random.uniform() < self.rate:
            places = {1: np.array([(0, index, *(np.random.randint(edge) for edge in size)) for index in slices])}
        centred = {value: self._in_the_middle(of, size) for value, of in places.items()}
        return image, labels, previous, {**properties, "class_locations": centred}

    def _in_the_middle(self, places: Any, size: Sequence[int]) -> NDArray[np.intp]:
        moved = np.array(places, np.intp).reshape(-1, 4)  # channel, slice, Y, X
        for axis, (voxels, covered) in enumerate(zip(size, self.patch_size, strict=True), start=2):
            if covered >= voxels:
                moved[:, axis] = voxels // 2
        return moved


def empty_slices(dataset: Any, cases: Sequence[str], values: Collection[int]) -> dict[str, NDArray[np.intp]]:
    """Slices of preprocessed cases without a voxel of the labels.

    Args: dataset: nnU-Net's. values: of the labels.
    Returns: case -> indices along the first axis.
    """
    found = {}
    for case in cases:
        labels = np.asarray(dataset.load_case(case)[1][0])
        found[case] = np.flatnonzero(~np.isin(labels, list(values)).any(axis=(1, 2)))
    return found
