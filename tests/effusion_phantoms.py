"""Phantoms of effusion: bright fluid around the ball of a joint in coronal STIR-like slices, and readers who draw it.

Voxels are those of the hips of Felfeliyan et al.: 0.91 x 0.91 x 3 mm, slices from posterior to anterior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

SPACING_MM = (0.91, 3.0, 0.91)  # x to the left, y to posterior, z to superior
#: voxels along x, y, z; slices are not square
SIZE = (96, 24, 80)
#: cartilage between the ball and the fluid
_GAP_MM = 2.0
#: intensities: fluid, marrow of the ball, what is around, noise
_FLUID, _MARROW, _AROUND, _NOISE = 900.0, 120.0, 300.0, 40.0
#: of the smooth errors along the edge that a reader draws
_SMOOTHING_MM = 6.0


@dataclass(frozen=True)
class Effusion:
    """Fluid of up to ``thickness_mm`` on the ball of radius ``radius_mm``, thickest in one direction.

    Beyond the ball's cartilage it is thickness * c^2 thick, c the cosine of the angle to the direction, 0 behind.
    """

    radius_mm: float
    thickness_mm: float
    direction: tuple[float, float, float]  # x, y, z, of length 1
    middle_mm: tuple[float, float, float]  # of the ball, from the middle of the image

    @classmethod
    def drawn(cls, random: np.random.Generator) -> Effusion:
        """A case: balls of 22 to 26 mm, fluid of up to 3 to 10 mm."""
        direction = random.normal(size=3)
        direction, middle = direction / np.linalg.norm(direction), random.uniform(-4, 4, 3)
        return cls(random.uniform(22, 26), random.uniform(3, 10), tuple(direction.tolist()), tuple(middle.tolist()))

    @property
    def volume_ml(self) -> float:
        """Of the fluid: the integral of its shell over all directions, not a count of voxels."""
        cosines = (np.arange(20_000) + 0.5) / 20_000
        inner = self.radius_mm + _GAP_MM
        outer = inner + self.thickness_mm * cosines**2
        return float(2 * math.pi * np.mean((outer**3 - inner**3) / 3) / 1000)

    def labels(self, random: np.random.Generator | None = None, bias_mm: float = 0.0, sd_mm: float = 0.0) -> sitk.Image:
        """The fluid as label 1, exactly, or as a reader draws it.

        Args: random: of the reader. bias_mm: by which the reader draws the outer edge too far out. sd_mm: of smooth
            errors of that edge.
        """
        distance, thickness = self._coordinates()
        error = np.full(distance.shape, bias_mm)
        if random is not None and sd_mm:
            sigma = [_SMOOTHING_MM / step for step in SPACING_MM[::-1]]
            smooth = ndimage.gaussian_filter(random.normal(size=distance.shape), sigma)
            error += sd_mm * smooth / smooth.std()
        inner = self.radius_mm + _GAP_MM
        fluid = (distance >= inner) & (distance < inner + thickness + error) & (thickness > 0)
        return _as_image(fluid.astype(np.uint8))

    def image(self, random: np.random.Generator) -> sitk.Image:
        """A slice stack in which fluid is bright and fat is not."""
        distance, _ = self._coordinates()
        fluid = sitk.GetArrayFromImage(self.labels()) > 0
        voxels = np.where(fluid, _FLUID, np.where(distance < self.radius_mm, _MARROW, _AROUND))
        voxels = ndimage.gaussian_filter(voxels, (0.5, 0.0, 0.5)) + random.normal(0, _NOISE, voxels.shape)
        return _as_image(voxels.astype(np.float32))

    def _coordinates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distance from the middle of the ball and thickness of the fluid in that direction, mm, (Z, Y, X)."""
        axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(SIZE, SPACING_MM, strict=True)]
        z, y, x = np.meshgrid(*axes[::-1], indexing="ij")
        offsets = [of - middle for of, middle in zip((x, y, z), self.middle_mm, strict=True)]
        distance = np.sqrt(sum(of**2 for of in offsets))
        along = sum(of * part for of, part in zip(offsets, self.direction, strict=True))
        cosine = np.clip(along / np.maximum(distance, 1e-6), 0, None)
        return distance, self.thickness_mm * cosine**2


def _as_image(voxels: NDArray) -> sitk.Image:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING_MM)
    image.SetOrigin([-(n - 1) / 2 * step for n, step in zip(SIZE, SPACING_MM, strict=True)])
    return image


def drawn_effusions(seed: int, number: int) -> Sequence[Effusion]:
    """So many cases, the same for the same seed."""
    random = np.random.default_rng(seed)
    return [Effusion.drawn(random) for _ in range(number)]
