"""The borders of a mask's labels, and what an image's intensities on both sides of them say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.label_maps import relabelled
from nnunetv2_anomaly.labels import BONE_OF_LESION

if TYPE_CHECKING:
    from nnunetv2_anomaly.conversion.mapping import AxisMapping

#: Borders are looked at as far as this share of each axis on either side, one voxel at least: about 1.5 mm in the OAI's
#: DESS series, 2 of 160 slices and 4 of 384 voxels.
REACH = 1 / 96

#: border places drawn per pair of labels, and voxels looked at in search of them
_PLACES_PER_PAIR = 2000
_SEARCHED_VOXELS = 3_000_000

#: Intensities are cut into this many bins of equal counts, and as many of equal width. A small mask gets fewer: a
#: histogram with few counts a bin finds a difference between any two sides.
_BINS = 24
_FEWEST_BINS = 4
_COUNTS_PER_BIN = 24


def voxels(shape: Sequence[int], share: float) -> tuple[int, ...]:
    """A share of each axis in voxels, one at least."""
    return tuple(max(1, round(n * share)) for n in shape)


@dataclasses.dataclass(frozen=True)
class Borders:
    """Voxels on both sides of the labels' borders, in the mask's own axes."""

    positions: NDArray[np.int32]  # (3, N)
    kinds: NDArray[np.intp]  # (N,), which pair of labels, 0 to kind_count - 1
    sides: NDArray[np.intp]  # (N,), 0 or 1: as many of either in each kind
    regions: NDArray[np.intp]  # (N,), 0 to 7

    @classmethod
    def drawn_from(cls, labels: NDArray) -> Borders:
        """Draw them from a mask (A, B, C), always the same ones.

        Raises: UserError if the mask is empty or all of one label.
        """
        random = np.random.default_rng(0)
        places, axes, below, above = _faces(labels)
        if not axes.size:
            value = int(labels.flat[0])
            raise UserError(f"the mask is {f'all of label {value}' if value else 'empty'}; expected borders in it")
        known, codes = np.unique(np.concatenate([below, above]), return_inverse=True)
        below, above = codes[: below.size], codes[below.size :]
        pairs = np.minimum(below, above) * known.size + np.maximum(below, above)
        drawn: list[NDArray[np.intp]] = []
        for pair in np.unique(pairs):
            found: NDArray[np.intp] = np.flatnonzero(pairs == pair)
            if found.size > _PLACES_PER_PAIR:
                found = random.choice(found, _PLACES_PER_PAIR, replace=False)
            drawn.append(found)
        chosen = np.sort(np.concatenate(drawn))
        places, axes, pairs, below, above = (of[..., chosen] for of in (places, axes, pairs, below, above))

        reach, limits = np.array(voxels(labels.shape, REACH)), np.array(labels.shape)
        looked_at, kinds, sides, index = [], [], [], np.arange(axes.size)
        for depth in range(reach.max()):
            lower, upper = places.copy(), places.copy()
            lower[axes, index] -= depth
            upper[axes, index] += 1 + depth
            kept = (depth < reach[axes]) & (lower[axes, index] >= 0) & (upper[axes, index] < limits[axes])
            # Beyond a thin cartilage lies something else: such a place is no longer one on both sides of its border.
            first, second = (relabelled(labels[tuple(of[:, kept])], BONE_OF_LESION) for of in (lower, upper))
            kept[kept] = (first == known[below[kept]]) & (second == known[above[kept]])
            looked_at += [lower[:, kept], upper[:, kept]]
            kinds += [pairs[kept]] * 2
            sides += [(below > above)[kept], (below < above)[kept]]
        positions = np.concatenate(looked_at, axis=1)
        above_middle = positions > np.median(positions, axis=1, keepdims=True)
        return cls(
            positions=positions.astype(np.int32),
            kinds=np.unique(np.concatenate(kinds), return_inverse=True)[1],
            sides=np.concatenate(sides).astype(np.intp),
            regions=np.array([4, 2, 1]) @ above_middle,
        )


def _faces(labels: NDArray) -> list[NDArray]:
    """Neighbours that differ in label, lesions as bone: lower position (3, N), axis (N,), labels below, above (N,)."""
    # Of a large mask only every so many lines of voxels are searched, along each axis in turn.
    stride = max(1, int(np.ceil(np.sqrt(labels.size / _SEARCHED_VOXELS))))
    found = []
    for axis in range(3):
        lines = tuple(
            slice(None) if a == axis else slice(min(stride, n) // 2, None, stride) for a, n in enumerate(labels.shape)
        )
        view = np.moveaxis(labels[lines], axis, 0)
        where = np.nonzero(view[1:] != view[:-1])
        below, above = (relabelled(side[where], BONE_OF_LESION) for side in (view[:-1], view[1:]))
        places = np.empty((3, below.size), np.intp)
        others = [a for a in range(3) if a != axis]
        places[axis] = where[0]
        for a, found_at in zip(others, where[1:], strict=True):
            places[a] = found_at * stride + lines[a].start
        kept = below != above
        found.append((places[:, kept], np.full(kept.sum(), axis), below[kept], above[kept]))
    return [np.concatenate(parts, axis=-1) for parts in zip(*found, strict=True)]


class Fit:
    """Scores of borders laid over one image."""

    def __init__(self, image: NDArray, borders: Borders) -> None:
        self.image, self.borders = image, borders
        kinds = int(borders.kinds.max()) + 1
        counts_per_histogram = borders.kinds.size / (8 * kinds)
        self.edges = _bin_edges(image, int(np.clip(counts_per_histogram / _COUNTS_PER_BIN, _FEWEST_BINS, _BINS)))
        # Most images hold integers of 16 bits or less: looking their bins up is several times as fast as a search.
        self.lowest, self.bin_of = 0, None
        if np.issubdtype(image.dtype, np.integer) and image.dtype.itemsize <= 2:
            limits = np.iinfo(image.dtype)
            self.lowest = int(limits.min)
            values = np.arange(self.lowest, int(limits.max) + 1)
            self.bin_of = np.searchsorted(self.edges, values, side="right")
        self.shape = (8, kinds, 2, self.edges.size + 1)
        self.codes = np.ravel_multi_index(
            (borders.regions, borders.kinds, borders.sides, np.zeros_like(borders.sides)), self.shape
        )

    def _counts(self, mapping: AxisMapping, move: Sequence[int]) -> NDArray[np.intp]:
        """(regions, kinds, 2, bins): how often each intensity is met on each side."""
        index = []
        for k, axis in enumerate(mapping.order):
            position = self.borders.positions[axis]
            last = self.image.shape[k] - 1
            if k in mapping.flips:
                position = last - position
            index.append(np.clip(position + move[k], 0, last) if move[k] else position)
        values = self.image[tuple(index)]
        if self.bin_of is None:
            bins = np.searchsorted(self.edges, values, side="right")
        else:
            bins = self.bin_of[values.astype(np.intp) - self.lowest]
        return np.bincount(self.codes + bins, minlength=int(np.prod(self.shape))).reshape(self.shape)

    def score(self, mapping: AxisMapping, move: Sequence[int] = (0, 0, 0)) -> float:
        """Score in bits of the mask under a mapping, then moved by so many voxels (z, y, x)."""
        return float(self.regional_scores(mapping, move).sum())

    def regional_scores(self, mapping: AxisMapping, move: Sequence[int]) -> NDArray[np.float64]:
        """(8,): what each region of the mask adds to the score."""
        counts = self._counts(mapping, move)
        total = counts.sum(axis=(2, 3))
        return (_divergence_bits(counts) * total).sum(axis=1) / total.sum()


def _divergence_bits(counts: NDArray) -> NDArray[np.float64]:
    """Jensen-Shannon divergence in bits of two histograms of equal totals: (..., 2, bins) to (...)."""
    total = counts.sum(axis=(-2, -1))
    shares = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    mixed = shares.mean(axis=-2)
    divergence = _entropy_bits(mixed) - _entropy_bits(shares).mean(axis=-1)
    # Few counts make equal distributions look different; this is what they are expected to feign (Miller and Madow).
    feigned = ((counts.sum(axis=-2) > 0).sum(axis=-1) - 1) / (2 * np.log(2) * np.maximum(total, 1))
    return divergence - feigned


def _entropy_bits(shares: NDArray) -> NDArray[np.float64]:
    return -(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(axis=-1)


def _bin_edges(image: NDArray, count: int) -> NDArray[np.float64]:
    """Edges of ``count`` bins of equal counts and as many of equal width, so that a rare tissue gets its own.

    Raises: UserError if the image is constant.
    """
    seen = image[tuple(slice(None, None, max(1, n // 48)) for n in image.shape)].ravel().astype(np.float64)
    seen = seen[np.isfinite(seen)]
    if not seen.size or seen.min() == seen.max():
        seen = image[np.isfinite(image)].astype(np.float64)
    if not seen.size or seen.min() == seen.max():
        raise UserError("the image has the same intensity everywhere; nothing can be laid over it")
    low, high = np.quantile(seen, (0.005, 0.998))
    if low == high:
        low, high = seen.min(), seen.max()
    equal_counts = np.quantile(seen, np.linspace(0, 1, count + 1)[1:])
    return np.unique(np.concatenate([equal_counts, np.linspace(low, high, count + 1)]))
