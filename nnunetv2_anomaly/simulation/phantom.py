"""A procedural knee: femur, tibia, patella, their cartilages and bone marrow lesions, as a label map.

Drawing and applying are apart: ``draw_phantom`` turns a random generator into ``PhantomParameters``, and
``render_label_map`` turns these into labels on any grid. Every shape is a smooth function in millimetres, so that one
knee looks the same at 0.36 mm and at 2 mm, and a cartilage of 2 mm keeps its place on a grid of 2 mm.

Frames. Array axes are (z, y, x) as SimpleITK's GetArrayFromImage gives them: z runs to superior, y to anterior, x to
the patient's right, as in the published OAI ZIB-UQ files. The knee's own frame is (u, v, w) in mm: u to lateral, v to
anterior, w to superior, origin between the femoral condyles at the height of their lowest point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunetv2_anomaly.images.grids import Grid, posed
from nnunetv2_anomaly.labels import BONE_OF_LESION, BONES
from nnunetv2_anomaly.simulation.knee_shapes import KneeShapes
from nnunetv2_anomaly.simulation.resampling import resample_linear

#: grid of the OAI's sagittal DESS series, SimpleITK order (x, y, z)
OAI_SIZE: tuple[int, int, int] = (160, 384, 384)
OAI_SPACING_MM: tuple[float, float, float] = (0.7, 0.3646, 0.3646)

#: spacing of the grid on which the shapes are evaluated: they hold no detail below 1 mm, and fray above 1.4 mm
_WORKING_SPACING_MM = (1.0, 1.4)
_MOST_WORKING_VOXELS = 8_000_000

LESION_OF_BONE = {bone: lesion for lesion, bone in BONE_OF_LESION.items()}

#: inside of each bone, knee frame (u, v, w) in mm: rays to lesions and osteophytes start here
_ANCHORS: dict[int, tuple[tuple[float, float, float], ...]] = {
    1: ((-22.0, -4.0, 22.0), (22.0, -4.0, 22.0), (0.0, 14.0, 34.0)),
    3: ((-20.0, -4.0, -18.0), (20.0, -4.0, -18.0)),
    5: ((0.0, 49.0, 34.0),),
}
#: direction from the anchor to the middle of the cartilage, knee frame
_TO_CARTILAGE: dict[int, tuple[tuple[float, float, float], ...]] = {
    1: ((0.0, -0.1, -1.0), (0.0, -0.1, -1.0), (0.0, 1.0, -0.3)),
    3: ((0.0, 0.0, 1.0), (0.0, 0.0, 1.0)),
    5: ((0.0, -1.0, 0.0),),
}


@dataclasses.dataclass(frozen=True)
class BlobShape:
    """A wobbly ellipsoid, the shape of a lesion: everything in mm, free of any grid."""

    radii_mm: tuple[float, float, float]
    axes: tuple[tuple[float, float, float], ...]  # rows: unit vectors of the ellipsoid's axes
    ripple: float  # share of the radius by which the surface wobbles
    phases: tuple[float, ...]  # three, radians

    def value(self, first: NDArray, second: NDArray, third: NDArray) -> NDArray:
        """Negative inside, positive outside, 0 on the surface, unitless; -1 at the centre of a blob without ripple.

        Args: first, second, third: offsets from the centre in mm, shapes that broadcast, any fixed axis order.
        """
        scaled = [
            (a[0] * first + a[1] * second + a[2] * third) / r for a, r in zip(self.axes, self.radii_mm, strict=True)
        ]
        radius = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
        wobble = sum(np.sin(3.0 * s + phase) for s, phase in zip(scaled, self.phases, strict=True))
        return radius - 1.0 - self.ripple / 3.0 * wobble

    def inside(
        self, centre_mm: Sequence[float] | NDArray, grid: Sequence[NDArray], to_own_axes: NDArray
    ) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
        """A box of the grid, empty where the blob lies beyond it, and which of its voxels lie within the blob.

        Args: centre_mm: on the grid's axes. grid: positions of the voxels along each axis, mm. to_own_axes: (3, 3),
            turns an offset on the grid's axes into one on those of ``value``.
        """
        reach = 1.6 * max(self.radii_mm)
        box = tuple(slice(*np.searchsorted(g, (c - reach, c + reach))) for g, c in zip(grid, centre_mm, strict=True))
        offsets = np.ix_(*(g[s] - c for g, s, c in zip(grid, box, centre_mm, strict=True)))
        turned = (sum(r * o for r, o in zip(row, offsets, strict=True)) for row in to_own_axes)
        return box, self.value(*turned) < 0


@dataclasses.dataclass(frozen=True)
class PhantomLesion:
    """A lesion in a bone: a blob at some depth below the surface point that a ray from inside the bone meets."""

    bone: int
    anchor: tuple[float, float, float]  # knee frame, mm, before scaling
    direction: tuple[float, float, float]  # knee frame, unit vector
    depth_mm: float
    shape: BlobShape


@dataclasses.dataclass(frozen=True)
class Osteophyte:
    """A bony spur: a ball on the surface, merged smoothly with its bone."""

    bone: int
    anchor: tuple[float, float, float]
    direction: tuple[float, float, float]
    radius_mm: float


@dataclasses.dataclass(frozen=True)
class FocalLoss:
    """A place where cartilage is thinned: Gaussian in space."""

    bone: int
    centre: tuple[float, float, float]  # knee frame, mm, before scaling
    radius_mm: float
    share: float  # 1 = down to the bone


@dataclasses.dataclass(frozen=True)
class PhantomParameters:
    """Everything drawn for one knee. Angles in degrees, lengths in mm, factors unitless."""

    side: str  # "left" or "right"
    scale: float
    stretch: tuple[float, float, float]  # factors along u, v, w
    tilt_degrees: tuple[float, float, float]  # of the whole knee about u, v, w
    femur_degrees: tuple[float, float, float]  # of the femur against the tibia: flexion, varus, rotation
    shift_mm: tuple[float, float, float]  # of the knee in the field of view, array order (z, y, x)
    oblique_degrees: float  # of the slices about the patient's long axis, goes into the direction matrix
    condyle_size: tuple[float, float]  # medial, lateral
    groove_mm: float  # depth of the trochlea
    shaft_mm: tuple[float, float]  # half width of the shafts of femur and tibia
    patella_shift_mm: tuple[float, float]  # lateral, superior
    cartilage_mm: tuple[float, float, float]  # femoral, tibial, patellar
    focal_losses: tuple[FocalLoss, ...]
    osteophytes: tuple[Osteophyte, ...]
    lesions: tuple[PhantomLesion, ...]


def draw_blob_shape(rng: np.random.Generator) -> BlobShape:
    """Draw the shape of a bone marrow lesion, mean radius 2.5 to 9 mm, or in one of four of a smaller, rounder cyst."""
    if rng.random() < 0.25:
        radius, elongation, ripple = float(np.clip(rng.lognormal(np.log(3.0), 0.25), 2.0, 5.0)), 0.1, 0.1
    else:
        radius, elongation, ripple = float(np.clip(rng.lognormal(np.log(5.5), 0.35), 2.5, 9.0)), 0.3, 0.35
    factors = np.exp(rng.normal(0.0, elongation, 3))
    factors /= np.prod(factors) ** (1 / 3)
    return turned_blob(rng, (radius * factors).tolist(), ripple)


def turned_blob(rng: np.random.Generator, radii_mm: Sequence[float], ripple: float) -> BlobShape:
    """A blob of these half-axes that lies in a random direction. Args: ripple: as in ``BlobShape``."""
    axes, triangle = np.linalg.qr(rng.normal(size=(3, 3)))
    axes = axes * np.sign(np.diag(triangle))
    return BlobShape(
        radii_mm=(radii_mm[0], radii_mm[1], radii_mm[2]),
        axes=tuple(tuple(row) for row in axes.tolist()),
        ripple=ripple,
        phases=tuple(rng.uniform(0, 2 * np.pi, 3).tolist()),
    )


def draw_phantom(rng: np.random.Generator, *, side: str | None = None, lesion_share: float = 0.45) -> PhantomParameters:
    """Draw one knee.

    Args: side: "left" or "right"; drawn if None. lesion_share: probability in [0, 1] that a bone holds lesions (then
        one to three), per bone.
    """
    drawn_side = "right" if rng.random() < 0.5 else "left"
    # One number says how osteoarthritic the knee is: thin cartilage, losses and spurs come together.
    severity = float(rng.beta(1.2, 2.0))
    cartilage_mm = rng.uniform((1.7, 2.1, 2.6), (2.3, 2.7, 3.6)) - np.array((0.5, 0.5, 0.7)) * severity
    return PhantomParameters(
        side=side or drawn_side,
        scale=float(rng.uniform(0.9, 1.1)),
        stretch=tuple(rng.uniform(0.96, 1.04, 3).tolist()),
        tilt_degrees=tuple(rng.normal(0.0, (4.0, 2.0, 3.0)).tolist()),
        femur_degrees=tuple(rng.normal((2.0, 0.0, 0.0), (4.0, 1.5, 3.0)).tolist()),
        shift_mm=tuple(rng.normal(0.0, (3.0, 2.0, 1.5)).tolist()),
        oblique_degrees=float(np.clip(rng.normal(0.0, 6.0), -12.0, 12.0)),
        condyle_size=tuple(rng.normal((1.02, 0.98), 0.025).tolist()),
        groove_mm=float(rng.uniform(2.0, 6.0)),
        shaft_mm=tuple(rng.uniform((12.5, 14.0), (15.5, 17.5)).tolist()),
        patella_shift_mm=tuple(rng.normal((2.0, 0.0), (1.5, 3.0)).tolist()),
        cartilage_mm=tuple(cartilage_mm.tolist()),
        focal_losses=tuple(_draw_focal_loss(rng) for _ in range(rng.poisson(0.5 + 4.0 * severity))),
        osteophytes=tuple(_draw_osteophyte(rng, severity) for _ in range(rng.poisson(14.0 * severity))),
        lesions=tuple(
            _draw_lesion(rng, bone) for bone in BONES if rng.random() < lesion_share for _ in range(rng.integers(1, 4))
        ),
    )


def render_label_map(
    parameters: PhantomParameters, *, shape: Sequence[int], spacing_mm: Sequence[float]
) -> NDArray[np.uint8]:
    """Label the voxel centres of a grid, the knee's origin at a fixed place of the field of view.

    Args: shape, spacing_mm: number and distance in mm of voxels, array order (z, y, x).
    Returns: (Z, Y, X) uint8, values 0 to 9 of ``nnunetv2_anomaly.labels.LABELS``.
    """
    shape, spacing_mm = tuple(int(n) for n in shape), tuple(float(s) for s in spacing_mm)
    extent = tuple(n * s for n, s in zip(shape, spacing_mm, strict=True))
    knee = KneeShapes(parameters, extent)
    finest = float(np.clip(min(spacing_mm), *_WORKING_SPACING_MM))
    working_spacing = max(finest, (np.prod(extent) / _MOST_WORKING_VOXELS) ** (1 / 3))
    # Two voxels of margin on each side: derivatives and interpolation then need no special case at the border.
    working = [np.arange(-2 * working_spacing, e + 2.5 * working_spacing, working_spacing) for e in extent]
    target = [(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing_mm, strict=True)]
    z, y, x = working
    fields = knee.fields(z, y, x, working_spacing)
    labels = np.zeros(shape, np.uint8)
    # Cartilage first, the deeper inside wins where two abut; bones are apart by construction and come last.
    deepest = np.zeros(shape, np.float32)
    for bone in BONES:
        bone_distance, outer_distance = fields.pop(bone)
        outer = resample_linear(outer_distance, working, target)
        labels[outer < deepest] = bone + 1
        np.minimum(deepest, outer, out=deepest)
        labels[resample_linear(bone_distance, working, target) < 0] = bone
    for lesion, centre in zip(parameters.lesions, knee.lesion_centres(), strict=True):
        box, inside = lesion.shape.inside(centre, target, knee.array_to_knee)
        labels[box][inside & (labels[box] == lesion.bone)] = LESION_OF_BONE[lesion.bone]
    return labels


def phantom_image(
    parameters: PhantomParameters, *, size: Sequence[int] = OAI_SIZE, spacing_mm: Sequence[float] = OAI_SPACING_MM
) -> sitk.Image:
    """The phantom's label map as an image in the pose of the OAI's sagittal DESS series.

    Args: size, spacing_mm: number and distance in mm of voxels in SimpleITK order (x, y, z).
    Returns: 3D image, uint8; x across the slices to the patient's right, y to anterior, z to superior, turned obliquely
        about the long axis as many of the OAI's series are; its centre lies at the scanner's origin.
    """
    labels = render_label_map(parameters, shape=size[::-1], spacing_mm=spacing_mm[::-1])
    angle = np.deg2rad(parameters.oblique_degrees)
    # Columns are the directions of x, y, z in LPS: (-1, 0, 0) is right, (0, -1, 0) anterior, (0, 0, 1) superior.
    direction = np.array([[-np.cos(angle), np.sin(angle), 0], [-np.sin(angle), -np.cos(angle), 0], [0, 0, 1]])
    spacing = np.array(spacing_mm, dtype=float)
    origin = -(direction @ ((np.array(labels.shape[::-1]) - 1) / 2 * spacing))
    return posed(labels, Grid.from_arrays(labels.shape[::-1], spacing, origin, direction))


def _draw_direction(rng: np.random.Generator, towards: Sequence[float], spread: float) -> tuple[float, float, float]:
    direction = np.asarray(towards) + rng.normal(0.0, spread, 3)
    return tuple((direction / np.linalg.norm(direction)).tolist())


def _draw_lesion(rng: np.random.Generator, bone: int) -> PhantomLesion:
    index = int(rng.integers(len(_ANCHORS[bone])))
    shape = draw_blob_shape(rng)
    subchondral = rng.random() < 0.75
    direction = _draw_direction(rng, _TO_CARTILAGE[bone][index], 0.35 if subchondral else 1.2)
    # A subchondral lesion is cut by the bone's surface, another one lies within the marrow.
    depth = float(np.mean(shape.radii_mm)) * (rng.uniform(0.3, 0.9) if subchondral else rng.uniform(1.0, 2.0))
    return PhantomLesion(bone, _ANCHORS[bone][index], direction, depth, shape)


def _draw_osteophyte(rng: np.random.Generator, severity: float) -> Osteophyte:
    bone = int(rng.choice(BONES, p=(0.45, 0.4, 0.15)))
    if bone == 5:
        index, towards = 0, (0.0, -0.3, rng.choice((-1.0, 1.0)))
    else:
        # At the margins: outwards, forwards or backwards, near the joint line.
        index = int(rng.integers(2))
        outwards = -1.0 if index == 0 else 1.0
        towards = (outwards * rng.uniform(0.3, 1.0), rng.uniform(-1.0, 1.0), -0.5 if bone == 1 else 0.75)
    direction = _draw_direction(rng, towards, 0.15)
    return Osteophyte(bone, _ANCHORS[bone][index], direction, float(rng.uniform(1.5, 2.5) + 2.5 * severity))


def _draw_focal_loss(rng: np.random.Generator) -> FocalLoss:
    bone = int(rng.choice(BONES, p=(0.45, 0.35, 0.2)))
    centre = {
        1: (rng.choice((-22.0, 22.0)), rng.uniform(-25.0, 20.0), rng.uniform(0.0, 5.0)),
        3: (rng.choice((-20.0, 20.0)), rng.uniform(-16.0, 12.0), -4.0),
        5: (rng.uniform(-12.0, 12.0), 41.0, rng.uniform(24.0, 44.0)),
    }[bone]
    radius_mm, share = rng.uniform((3.0, 0.5), (8.0, 1.3)).tolist()
    return FocalLoss(bone, tuple(np.asarray(centre, float).tolist()), radius_mm, share)
