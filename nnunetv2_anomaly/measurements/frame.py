"""Axes of a knee that its own bones give, in millimetres of patient space.

All coordinates are (lateral, anterior, superior): a left knee is measured in place, and looks like a right one in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

#: of voxels or points, True within
Mask: TypeAlias = NDArray[np.bool_]

#: Bone this far above the lowest point of the femur is shaft, which has a direction; mm.
_SHAFT_FROM_MM = 45.0
#: A shorter piece of it has none.
_LEAST_SHAFT_MM = 12.0
#: Of so many points memory counts.
_MANY = 100_000
#: Fits look at the means of points in cubes of so many mm: few, and the same in whatever order voxels are stored.
_CUBE_MM = 2.5
#: Residuals of the cylinder fit beyond this count less and less, mm.
_SOFT_MM = 1.0


@dataclass(frozen=True)
class Motion:
    """A rigid motion in the coordinates of ``Space``."""

    rotation: NDArray[np.float64]  # (3, 3)
    translation_mm: NDArray[np.float64]  # (3,)
    residual_mm: float = 0.0  # mean distance of the surfaces that it brings together

    def of(self, points_mm: NDArray[np.floating]) -> NDArray[np.floating]:
        """Places after it, (N, 3) mm."""
        return points_mm @ self.rotation.T.astype(points_mm.dtype) + self.translation_mm.astype(points_mm.dtype)


@dataclass(frozen=True)
class Space:
    """Where the voxels of an array lie in the patient."""

    origin_mm: NDArray[np.float64]  # (3,), of the first voxel: lateral, anterior, superior
    steps_mm: NDArray[np.float64]  # (3, 3): column k is the way from one voxel to the next along array axis k
    #: (3, 3): from these axes to ITK's world; of a right knee unless said otherwise
    to_lps: NDArray[np.float64] = field(default_factory=lambda: np.diag([-1.0, -1.0, 1.0]))

    @classmethod
    def of(cls, origin_lps_mm: Sequence[float], steps_lps_mm: NDArray[np.float64], side: str) -> Space:
        """The space of a knee.

        Args:
            origin_lps_mm: of the first voxel in ITK's world, to the patient's left, posterior, superior.
            steps_lps_mm: (3, 3), column k is the way along array axis k, in the same world.
            side: "right" or "left".
        """
        signs = np.array([-1.0 if side == "right" else 1.0, -1.0, 1.0])
        steps = signs[:, None] * np.asarray(steps_lps_mm)
        return cls(signs * np.asarray(origin_lps_mm, dtype=float), steps, np.diag(signs))

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Distance of voxels along each array axis."""
        return np.linalg.norm(self.steps_mm, axis=0)

    def moved(self, motion: Motion) -> Space:
        """Where they lie after a motion."""
        origin, steps = motion.of(self.origin_mm[None])[0], motion.rotation @ self.steps_mm
        return replace(self, origin_mm=origin, steps_mm=steps)

    def part(self, start: NDArray) -> Space:
        """The space of the part of the array that begins at an index, (3,)."""
        return replace(self, origin_mm=self.origin_mm + self.steps_mm @ start)

    def points(self, indices: NDArray) -> NDArray[np.floating]:
        """Places of voxels: indices (N, 3) in the array's axes -> (N, 3) mm; float32 of many, which is near enough."""
        if len(indices) < _MANY:
            return self.origin_mm + indices @ self.steps_mm.T
        return indices.astype(np.float32) @ self.steps_mm.T.astype(np.float32) + self.origin_mm.astype(np.float32)


@dataclass(frozen=True)
class Frame:
    """Axes of one bone."""

    origin_mm: NDArray[np.float64]  # (3,), in the space
    axes: NDArray[np.float64]  # (3, 3): rows are the directions lateral, anterior, superior of the bone

    def coordinates(self, points_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """Places in the bone's own axes: (N, 3) mm -> (N, 3) mm."""
        return (points_mm - self.origin_mm) @ self.axes.T

    def of_voxels(self, indices: NDArray, space: Space) -> NDArray[np.float32]:
        """The same of voxels, (N, 3) indices, without their places in between."""
        turned = (self.axes @ space.steps_mm).astype(np.float32)
        start = (self.axes @ (space.origin_mm - self.origin_mm)).astype(np.float32)
        return indices.astype(np.float32) @ turned.T + start


def means_of_cubes(points: NDArray, edge_mm: float) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Means of the points in each cube that has any, (N, 3) -> (M, 3), and the number of each point's cube, (N,)."""
    # Axis by axis, which takes a third of the time that rows of three take.
    x, y, z = (np.floor(axis / edge_mm).astype(np.int32) for axis in points.T)
    x, y, z = x - x.min(), y - y.min(), z - z.min()
    key = (x * (int(y.max()) + 1) + y) * (int(z.max()) + 1) + z
    cube = (np.cumsum(np.bincount(key) > 0) - 1)[key]
    sums = np.stack([np.bincount(cube, weights=axis) for axis in points.T], axis=1)
    return sums / np.bincount(cube)[:, None], cube


def thinned(points: NDArray) -> NDArray[np.float64]:
    """Means of the points in each cube of 2.5 mm that has any, (N, 3) -> (M, 3)."""
    return means_of_cubes(points, _CUBE_MM)[0]


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / np.linalg.norm(vector)


def _frame(origin: NDArray, lateral: NDArray, superior: NDArray) -> Frame:
    """Right angles by turning ``superior``."""
    lateral = _unit(lateral)
    superior = _unit(superior - (superior @ lateral) * lateral)
    return Frame(origin, np.stack([lateral, np.cross(superior, lateral), superior]))


def tibial_frame(medial: NDArray[np.floating], lateral: NDArray[np.floating]) -> Frame:
    """Axes of the tibia: superior is the normal of the plateau, lateral the way between its halves.

    Args: medial, lateral: interface of bone and cartilage of each half, (N, 3) mm.
    """
    centres = medial.mean(axis=0), lateral.mean(axis=0)
    around = np.concatenate([thinned(medial) - centres[0], thinned(lateral) - centres[1]])
    normal = np.linalg.svd(around, full_matrices=False)[2][2]
    normal = normal if normal[2] > 0 else -normal
    way = centres[1] - centres[0]
    across = _unit(way - (way @ normal) * normal)
    return Frame((centres[0] + centres[1]) / 2, np.stack([across, np.cross(normal, across), normal]))


def fitted_cylinder(points: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The cylinder that condyles roll on: nearest to points, soft-L1 least squares, from the lateral axis on.

    Args: points: (N, 3) mm, of the femur's interface of bone and cartilage.
    Returns: a place on its axis at the middle of the points, (3,) mm; the axis, a unit vector to lateral, (3,).
    """
    points = thinned(points)
    middle = points.mean(axis=0)
    around = points - middle

    def axis_of(tilt: NDArray) -> NDArray[np.float64]:
        return _unit(np.array([1.0, tilt[0], tilt[1]]))

    def distances(values: NDArray) -> NDArray[np.float64]:
        axis = axis_of(values[:2])
        away = around - np.array([0.0, values[2], values[3]])
        away = away - np.outer(away @ axis, axis)
        return np.linalg.norm(away, axis=1) - values[4]

    start = np.array([0.0, 0.0, 0.0, 10.0, 22.0])
    found = least_squares(distances, start, loss="soft_l1", f_scale=_SOFT_MM).x
    return middle + np.array([0.0, found[2], found[3]]), axis_of(found[:2])


def femoral_frame(interface: NDArray[np.floating], bone: NDArray[np.floating]) -> Frame:
    """Axes of the femur: lateral is the axis of the condyles, superior the direction of the shaft where it is seen.

    Args: interface: of bone and cartilage, (N, 3) mm. bone: (N, 3) mm.
    """
    centre, axis = fitted_cylinder(interface)
    superior = np.array([0.0, 0.0, 1.0])
    points = thinned(bone)
    for _ in range(2):
        heights = _frame(centre, axis, superior).coordinates(points)[:, 2]
        above = heights - heights.min() - _SHAFT_FROM_MM
        slabs = [points[(above >= low) & (above < low + 4)] for low in np.arange(0, max(above.max(), 0) - 4, 4)]
        centres = np.array([slab.mean(axis=0) for slab in slabs if len(slab) > 10])
        if len(centres) * 4 < _LEAST_SHAFT_MM:
            break
        direction = np.linalg.svd(centres - centres.mean(axis=0), full_matrices=False)[2][0]
        superior = direction if direction[2] > 0 else -direction
    return _frame(centre, axis, superior)


def patellar_frame(bone: NDArray[np.floating], lateral: NDArray[np.float64] | None) -> Frame:
    """Axes of the patella: anterior is across its thinnest extent.

    Args: bone: (N, 3) mm. lateral: direction, of the femur's axes; None: the patient's.
    """
    centre = bone.mean(axis=0)
    anterior = np.linalg.svd(thinned(bone) - centre, full_matrices=False)[2][2]
    anterior = anterior if anterior[1] > 0 else -anterior
    across = np.array([1.0, 0.0, 0.0]) if lateral is None else lateral
    across = _unit(across - (across @ anterior) * anterior)
    return Frame(centre, np.stack([across, anterior, np.cross(across, anterior)]))
