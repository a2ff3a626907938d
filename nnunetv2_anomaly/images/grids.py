"""Voxel grids in space: where the voxels of a file lie, and whether two files share them."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

#: Axis order of every converted volume: x to the patient's right, y to anterior, z to superior. The published masks
#: have it, and nnU-Net's SimpleITKIOWithReorient, which the data sets name as reader.
ORIENTATION = "RAS"

#: direction -> the opposite one
OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}

#: Grids whose corners lie closer together than this are the same one. Positions in DICOM headers are rounded, and
#: 160 slices multiply the rounding of one step; another examination of the same knee is off by millimetres.
TOLERANCE_MM = 0.05


@dataclasses.dataclass(frozen=True)
class Grid:
    """Pose of a 3D volume as SimpleITK has it: x fastest, LPS world, mm."""

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...]  # 3 x 3, row by row; its columns are the directions of the voxel axes

    @classmethod
    def of(cls, image: sitk.Image | sitk.ImageFileReader) -> Grid:
        """Grid of a 3D image, or of a file reader whose header has been read."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def from_arrays(cls, size: ArrayLike, spacing_mm: ArrayLike, origin_mm: ArrayLike, direction: ArrayLike) -> Grid:
        """Grid of three numbers each, and a (3, 3) matrix of directions, as in the class."""
        return cls(*(tuple(np.ravel(part).tolist()) for part in (size, spacing_mm, origin_mm, direction)))

    @property
    def orientation(self) -> str:
        """The way the axes point most nearly, for example "RAS"."""
        return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(self.direction)

    def steps_mm(self) -> NDArray[np.float64]:
        """(3, 3): column k is the way from one voxel to the next along voxel axis k."""
        return np.array(self.direction).reshape(3, 3) * np.array(self.spacing_mm)

    def oriented(self) -> Grid:
        """The same voxels with the axes in ``ORIENTATION``'s order; obliqueness is kept, nothing is resampled."""
        order, flips = axes_to(self.orientation)
        ways = (self.steps_mm()[:, axis] * (self.size[axis] - 1) for axis in flips)
        origin = sum(ways, start=np.array(self.origin_mm))
        signs = np.array([-1.0 if axis in flips else 1.0 for axis in range(3)])
        direction = (np.array(self.direction).reshape(3, 3) * signs)[:, order]
        return Grid.from_arrays(np.array(self.size)[order], np.array(self.spacing_mm)[order], origin, direction)


def axes_to(orientation: str) -> tuple[list[int], tuple[int, ...]]:
    """How voxel axes that point as ``orientation`` says become those of ``ORIENTATION``.

    Returns: (order, flips): new axis k is old axis order[k]; the old axes in flips run the other way.
    """
    order = [next(axis for axis in range(3) if orientation[axis] in (of, OPPOSITE[of])) for of in ORIENTATION]
    return order, tuple(axis for axis, letter in zip(order, ORIENTATION, strict=True) if orientation[axis] != letter)


def oriented(image: sitk.Image) -> sitk.Image:
    """A 3D image with the axes in ``ORIENTATION``'s order, its voxels at their places.

    Equals sitk.DICOMOrient and takes a quarter of its time, which is as long as writing a label map takes.
    """
    grid = Grid.of(image)
    if grid.orientation == ORIENTATION:
        return image
    return posed(turned(sitk.GetArrayViewFromImage(image), grid), grid.oriented())


def turned(voxels: NDArray, grid: Grid) -> NDArray:
    """A view of voxels in the axis order (Z, Y, X) of a grid's file, with their axes as ``oriented`` gives them."""
    order, flips = _array_axes(grid)
    return np.flip(voxels, flips).transpose(order)


def turned_back(voxels: NDArray, grid: Grid) -> NDArray:
    """Voxels (Z, Y, X), as ``oriented`` gives them, in the axis order that the file of a grid has."""
    order, flips = _array_axes(grid)
    return np.ascontiguousarray(np.flip(voxels.transpose(np.argsort(order)), flips))


def _array_axes(grid: Grid) -> tuple[list[int], tuple[int, ...]]:
    """``axes_to`` for arrays, whose axes are those of the image in reverse."""
    order, flips = axes_to(grid.orientation)
    return [2 - axis for axis in reversed(order)], tuple(2 - axis for axis in flips)


def posed(voxels: NDArray, grid: Grid) -> sitk.Image:
    """An image of voxels (Z, Y, X) on a grid of size (X, Y, Z)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    return image


def corner_distance_mm(grid: Grid, other: Grid) -> float:
    """Largest distance between corresponding corners of two grids, whatever the order of their axes.

    Raises: ValueError if the sizes differ once both are oriented alike.
    """
    grid, other = grid.oriented(), other.oriented()
    if grid.size != other.size:
        raise ValueError(f"sizes {grid.size} and {other.size} differ")
    pose, other_pose = (np.c_[g.steps_mm(), g.origin_mm] for g in (grid, other))
    return apart_mm(pose, other_pose, grid.size)


def apart_mm(pose: NDArray, other: NDArray, size: tuple[int, ...]) -> float:
    """The largest distance between the corners of a volume in two poses, (4, 4) or (3, 4)."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in size), [1])))
    return float(np.linalg.norm(corners @ (pose - other).T, axis=1).max())


def same_grid(grid: Grid, other: Grid) -> bool:
    """Whether two volumes have the same voxels, whatever the order of their axes (``TOLERANCE_MM``)."""
    return grid.oriented().size == other.oriented().size and corner_distance_mm(grid, other) <= TOLERANCE_MM


def differences(grid: Grid, other: Grid) -> str:
    """How two grids differ once both are oriented alike, in words; empty if they are the same."""
    if same_grid(grid, other):
        return ""
    grid, other = grid.oriented(), other.oriented()
    told = []
    if grid.size != other.size:
        told.append(f"size {joined(grid.size)} against {joined(other.size)}")
    spacing = np.abs(np.subtract(grid.spacing_mm, other.spacing_mm))
    if (spacing * np.array(grid.size)).max() > TOLERANCE_MM:
        told.append(f"spacing {joined(grid.spacing_mm)} against {joined(other.spacing_mm)} mm")
    origin = float(np.linalg.norm(np.subtract(grid.origin_mm, other.origin_mm)))
    if origin > TOLERANCE_MM:
        told.append(f"origin {joined(grid.origin_mm)} against {joined(other.origin_mm)}, {origin:.2f} mm apart")
    axes = [np.array(g.direction).reshape(3, 3) for g in (grid, other)]
    angle = np.degrees(np.arccos(np.clip((axes[0] * axes[1]).sum(axis=0), -1, 1))).max()
    if angle > 0.01:
        told.append(f"direction {angle:.2f} degrees apart")
    return "; ".join(told) or f"corners {corner_distance_mm(grid, other):.3f} mm apart"


def joined(values: tuple[float, ...]) -> str:
    """Numbers of the axes in words, for example "160 x 384 x 384"."""
    return " x ".join(f"{value:.6g}" for value in values)
