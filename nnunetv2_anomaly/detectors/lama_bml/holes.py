"""Holes that training fills: the bone, as Qin et al. train, or thick lines and boxes, as LaMa's authors do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.draw import line

#: the numbers below are voxels of a slice with so many
_OF_SIZE = 256
_LINES, _SEGMENTS, _LENGTH, _WIDTH = (1, 6), (1, 5), (10, 209), (5, 104)
_BOXES, _SIDE, _MARGIN = (1, 4), (30, 150), 10


def drawn_hole(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Thick lines or boxes, each half of the time. Args: shape: (Y, X)."""
    return line_hole(shape, rng) if rng.random() < 0.5 else box_hole(shape, rng)


def line_hole(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """1 to 6 thick lines of 1 to 5 segments each; lengths and widths go with the size of the slice, (Y, X)."""
    scale = min(shape) / _OF_SIZE
    hole = np.zeros(shape, bool)
    for _ in range(rng.integers(_LINES[0], _LINES[1], endpoint=True)):
        drawn = np.zeros(shape, bool)
        place = rng.uniform(0, shape)
        for _ in range(rng.integers(_SEGMENTS[0], _SEGMENTS[1], endpoint=True)):
            angle, length = rng.uniform(0, 2 * np.pi), scale * rng.uniform(*_LENGTH)
            end = np.clip(place + length * np.array([np.sin(angle), np.cos(angle)]), 0, np.array(shape) - 1)
            drawn[line(*np.floor(place).astype(int).tolist(), *np.floor(end).astype(int).tolist())] = True
            place = end
        hole |= ndimage.distance_transform_edt(~drawn) <= scale * rng.uniform(*_WIDTH) / 2
    return hole


def box_hole(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """1 to 4 boxes that keep a margin from the border; sides go with the size of the slice, (Y, X)."""
    scale = min(shape) / _OF_SIZE
    hole = np.zeros(shape, bool)
    margin = int(scale * _MARGIN)
    for _ in range(rng.integers(_BOXES[0], _BOXES[1], endpoint=True)):
        box = []
        for size in shape:
            side = int(min(max(1.0, scale * rng.uniform(*_SIDE)), size - 2 * margin))
            start = int(rng.integers(margin, size - margin - side, endpoint=True))
            box.append(slice(start, start + side))
        hole[tuple(box)] = True
    return hole
