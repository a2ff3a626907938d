"""Everything around the bones in a DESS-like image: muscle, fat, skin, fluid and tendons, and random textures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_anomaly.labels import BONES, CARTILAGES, LESIONS
from nnunetv2_anomaly.simulation.resampling import resample_linear

#: signal of pure tissues, unitless
MUSCLE, FAT, TENDON, FLUID, AIR = 0.30, 0.13, 0.07, 0.92, 0.0

#: from and to in mm along z, y, x
Extent = list[tuple[float, float]]

#: soft tissue is laid out on a grid of at least this spacing: its borders are soft anyway
_LAYOUT_SPACING_MM = 1.3


def gaussian_noise(
    rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float], scale_mm: Sequence[float]
) -> NDArray[np.float32]:
    """Gaussian random field of mean 0 and standard deviation 1, smoothed by a Gaussian of ``scale_mm`` along each axis.

    Where the scale is well above the spacing it is drawn on a coarser grid and interpolated. Where it is well below,
    neighbours are independent and the standard deviation falls, as a voxel shows the mean of a finer texture.
    """
    steps = [max(s, scale / 1.5) for s, scale in zip(spacing, scale_mm, strict=True)]
    counts = [int(np.ceil(n * s / step)) + 3 for n, s, step in zip(shape, spacing, steps, strict=True)]
    field = rng.standard_normal(counts, dtype=np.float32)
    sigmas = [scale / step if scale > s else 0.0 for scale, step, s in zip(scale_mm, steps, spacing, strict=True)]
    field = ndimage.gaussian_filter(field, sigmas, mode="wrap")
    # Large scales have few independent values, so the expected spread is used, not the measured one.
    field *= np.float32(np.prod([np.sqrt(2.0 * np.sqrt(np.pi) * s) if s > 0 else 1.0 for s in sigmas]))
    # Smoothed noise has the autocorrelation exp(-d^2 / (4 scale^2)), whose integral is 2 sqrt(pi) scale.
    averaging = [min(1.0, 2.0 * np.sqrt(np.pi) * scale / s) for scale, s in zip(scale_mm, spacing, strict=True)]
    field *= np.float32(np.sqrt(np.prod(averaging)))
    coarse = [(np.arange(n) - 1) * step for n, step in zip(counts, steps, strict=True)]
    fine = [np.arange(n) * s for n, s in zip(shape, spacing, strict=True)]
    return resample_linear(field, coarse, fine)


class Layout:
    """The label map on a grid of 1.3 mm or coarser, with the distances from which soft tissue is laid out."""

    def __init__(self, labels: NDArray[np.uint8], spacing: Sequence[float]) -> None:
        #: distance and positions of the image's own voxels along each axis, mm
        self.image_spacing = spacing
        self.image_grid = [(np.arange(n) + 0.5) * s for n, s in zip(labels.shape, spacing, strict=True)]
        self.grid, indices = [], []
        for n, s, positions in zip(labels.shape, spacing, self.image_grid, strict=True):
            # At least two positions, so that one can interpolate even a single slice.
            count = max(2, min(n, int(np.ceil(n * s / _LAYOUT_SPACING_MM))))
            self.grid.append(np.linspace(positions[0], max(positions[-1], positions[0] + s), count))
            indices.append(np.clip(np.rint((self.grid[-1] - positions[0]) / s).astype(int), 0, n - 1))
        self.labels = labels[np.ix_(*indices)]
        self.spacing = tuple(float(g[1] - g[0]) for g in self.grid)

    def distance(self, *wanted: int, inside: bool = False) -> NDArray[np.float32]:
        """Distance in mm to the labels wanted (inside: from them to the outside); far away where there are none."""
        mask = np.isin(self.labels, wanted)
        if not mask.any():
            return np.full(mask.shape, 0.0 if inside else 1e3, np.float32)
        return ndimage.distance_transform_edt(mask if inside else ~mask, sampling=self.spacing).astype(np.float32)

    def noise(self, rng: np.random.Generator, scale_mm: float | Sequence[float]) -> NDArray[np.float32]:
        """Random field on this grid."""
        scale = (scale_mm,) * 3 if isinstance(scale_mm, (int, float)) else scale_mm
        return gaussian_noise(rng, self.labels.shape, self.spacing, scale)

    def sample_noise(self, rng: np.random.Generator, scale_mm: float) -> NDArray[np.float32]:
        """Random field on this grid, seen on the image's grid."""
        return resample_linear(self.noise(rng, scale_mm), self.grid, self.image_grid)

    def box(self, *wanted: int) -> Extent | None:
        """Extent in mm of the labels wanted along z, y, x; None where there are none."""
        found = ndimage.find_objects(np.isin(self.labels, wanted).astype(np.uint8))
        if not found:
            return None
        return [(float(g[s.start]), float(g[s.stop - 1])) for g, s in zip(self.grid, found[0], strict=True)]


def sigmoid(x: NDArray) -> NDArray:
    """Logistic function, of any shape, unitless."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def mix(image: NDArray, level: NDArray | float, share: NDArray) -> NDArray:
    """Partial volume: ``share`` in [0, 1] of every voxel becomes ``level``."""
    return image + (level - image) * share


def soft_tissue(layout: Layout, rng: np.random.Generator) -> NDArray[np.float32]:
    """Everything round bones and cartilages, on the layout's grid: skin, fat, muscle, tendons, menisci, fluid, air."""
    z, y, x = np.ix_(*layout.grid)
    depth = -_skin(layout, rng)
    muscle = MUSCLE * (1.0 + 0.08 * layout.noise(rng, (14.0, 5.0, 5.0)))
    # Thin sheets of fat between muscles are where a smooth field changes its sign.
    septa = np.exp(-((layout.noise(rng, (25.0, 9.0, 9.0)) / 0.12) ** 2))
    fat = FAT * (1.0 + 0.25 * layout.noise(rng, 2.5))
    subcutaneous = rng.uniform(4.0, 9.0) * (1.0 + 0.2 * layout.noise(rng, 20.0))
    image = mix(muscle, fat, np.maximum(0.7 * septa, sigmoid((subcutaneous - depth) / 0.6)))
    image = mix(image, 0.35, np.exp(-(((depth - 1.0) / 0.9) ** 2)))  # the skin itself

    joint = layout.box(*CARTILAGES) or layout.box(*BONES, *LESIONS)
    patella = layout.box(5, 6, 9)
    tibia = layout.box(3, 4, 8)
    if joint is not None:
        # Fat fills the joint round the bones; in front, below the patella, it is Hoffa's fat pad.
        near = layout.distance(*BONES, *LESIONS)
        lower, upper = joint[0][0] - 12.0, joint[0][1] + 6.0
        height = sigmoid((z - lower) / 3.0) * sigmoid((upper - z) / 3.0)
        image = mix(image, fat * 1.15, 0.85 * height * sigmoid((9.0 - near) / 2.0))
        if patella is not None:
            behind = sigmoid((patella[1][1] - 6.0 - y) / 2.0) * sigmoid((y - np.mean(joint[1])) / 4.0)
            below = sigmoid((np.mean(patella[0]) - z) / 3.0) * sigmoid((z - lower) / 4.0)
            image = mix(image, fat * 1.2, 0.95 * behind * below * sigmoid((26.0 - near) / 3.0))
    if patella is not None:
        image = _tendons(image, patella, tibia, z, y, x)

    femoral, tibial = layout.distance(2), layout.distance(4)
    wedge = sigmoid((5.5 - np.maximum(femoral, tibial)) / 0.5)  # menisci fill the wedge between the cartilages
    image = mix(image, 0.10 + 0.03 * layout.noise(rng, 1.5), wedge)
    cartilage = np.minimum(np.minimum(femoral, tibial), layout.distance(6))
    film = sigmoid((0.9 + 0.8 * layout.noise(rng, 5.0) - cartilage) / 0.35)
    if patella is not None:
        # The suprapatellar pouch reaches up behind the quadriceps tendon.
        swelling = max(0.0, rng.normal(1.2, 1.0))
        centre = (patella[0][1] + 8.0, patella[1][0] + 1.0, np.mean(patella[2]))
        radii = (16.0, 1.0 + swelling, 15.0)
        ball = np.sqrt(sum(((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), centre, radii, strict=True)))
        film = np.maximum(film, sigmoid((1.0 - ball) * (1.0 + swelling) / 0.5))
    image = mix(image, FLUID * rng.uniform(0.85, 1.05), np.clip(film * (1.0 - 0.8 * wedge), 0.0, 1.0))
    return mix(image, AIR, sigmoid(-depth / 0.4)).astype(np.float32)


def _skin(layout: Layout, rng: np.random.Generator) -> NDArray[np.float32]:
    """Signed distance in mm to the skin, negative inside the leg: per axial slice a rounded box about the bones."""
    foreground = np.asarray(layout.labels > 0)
    if not foreground.any():
        return np.full(foreground.shape, 1e3, np.float32)
    z, y, x = layout.grid
    filled = np.flatnonzero(foreground.any((1, 2)))
    nearest = filled[np.argmin(np.abs(np.arange(len(z))[:, None] - filled), axis=1)]
    front = y[len(y) - 1 - np.argmax(np.flip(foreground.any(2), axis=1), axis=1)][nearest]
    back = y[np.argmax(foreground.any(2), axis=1)][nearest]
    left = x[np.argmax(foreground.any(1), axis=1)][nearest]
    right = x[len(x) - 1 - np.argmax(np.flip(foreground.any(1), axis=1), axis=1)][nearest]

    def smooth(profile: NDArray, mm: float) -> NDArray:
        return ndimage.gaussian_filter1d(profile, mm / layout.spacing[0], mode="nearest")

    window = max(1, int(50.0 / layout.spacing[0]))
    front = smooth(ndimage.maximum_filter1d(front, window), 12.0) + rng.uniform(6.0, 10.0)
    back = smooth(np.full_like(back, back.min()) * 0.7 + 0.3 * back, 15.0) - rng.uniform(22.0, 32.0)
    half_width = (right - left).max() / 2 + rng.uniform(10.0, 18.0)
    centre_x = (left.min() + right.max()) / 2
    half_depth = (front - back) / 2
    across = np.abs((x - centre_x) / half_width) ** 2.5
    along = np.abs((y[None, :] - ((front + back) / 2)[:, None]) / half_depth[:, None]) ** 2.5
    radius = (along[:, :, None] + across[None, None, :]) ** (1 / 2.5)
    contour = (radius - 1.0) * np.minimum(half_width, half_depth)[:, None, None]
    return np.minimum(contour, layout.distance(*range(1, 10)) - 4.0).astype(np.float32)


def _tendons(image: NDArray, patella: Extent, tibia: Extent | None, z: NDArray, y: NDArray, x: NDArray) -> NDArray:
    """Dark bands: the quadriceps tendon above the patella, the patellar tendon from its apex to the tibia."""
    middle_x = np.mean(patella[2])
    top_y, apex_y = patella[1][0] * 0.4 + patella[1][1] * 0.6, np.mean(patella[1])
    end_z = patella[0][0] - 45.0
    end_y = tibia[1][1] + 2.0 if tibia is not None else apex_y - 12.0
    along = np.clip((patella[0][0] - z) / (patella[0][0] - end_z), 0.0, 1.0)
    course = np.where(z > np.mean(patella[0]), top_y, apex_y + (end_y - apex_y) * along)
    band = sigmoid((2.5 - np.abs(y - course)) / 0.5) * sigmoid((12.0 - np.abs(x - middle_x)) / 1.5)
    return mix(image, TENDON, 0.9 * band * sigmoid((z - end_z) / 2.0))
