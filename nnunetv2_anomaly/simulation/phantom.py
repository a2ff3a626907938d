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

from nnunetv2_anomaly.labels import BONES, LABELS

#: grid of the OAI's sagittal DESS series, SimpleITK order (x, y, z)
OAI_SIZE: tuple[int, int, int] = (160, 384, 384)
OAI_SPACING_MM: tuple[float, float, float] = (0.7, 0.3646, 0.3646)

#: spacing of the grid on which the shapes are evaluated: they hold no detail below 1 mm, and fray above 1.4 mm
_WORKING_SPACING_MM = (1.0, 1.4)
_MOST_WORKING_VOXELS = 8_000_000

#: where the knee's origin lies in the field of view, as in the OAI: more femur than tibia is seen
_ORIGIN_HEIGHT_FRACTION = 0.34
_ORIGIN_BEHIND_CENTRE_MM = 4.0
#: on a small field of view the knee moves back, so that the patella is not cut off
_ROOM_IN_FRONT_MM = 68.0

_LESION_OF_BONE = {1: LABELS["femoral_lesion"], 3: LABELS["tibial_lesion"], 5: LABELS["patellar_lesion"]}

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
        """Negative inside, positive outside, 0 on the surface.

        Args: first, second, third: offsets from the centre in mm, shapes that broadcast, any fixed axis order.
        Returns: the broadcast shape, unitless, -1 at the centre of a blob without ripple.
        """
        scaled = [
            (a[0] * first + a[1] * second + a[2] * third) / r for a, r in zip(self.axes, self.radii_mm, strict=True)
        ]
        radius = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
        wobble = sum(np.sin(3.0 * s + phase) for s, phase in zip(scaled, self.phases, strict=True))
        return radius - 1.0 - self.ripple / 3.0 * wobble


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
    """Draw the shape of one bone marrow lesion or, one time in four, of one cyst (smaller, rounder).

    Returns: a blob; the mean radius is 2 to 9 mm, about 5 mm in the median.
    """
    if rng.random() < 0.25:
        radius, elongation, ripple = float(np.clip(rng.lognormal(np.log(3.0), 0.25), 2.0, 5.0)), 0.1, 0.1
    else:
        radius, elongation, ripple = float(np.clip(rng.lognormal(np.log(5.5), 0.35), 2.5, 9.0)), 0.3, 0.35
    factors = np.exp(rng.normal(0.0, elongation, 3))
    factors /= np.prod(factors) ** (1 / 3)
    axes, triangle = np.linalg.qr(rng.normal(size=(3, 3)))
    axes = axes * np.sign(np.diag(triangle))
    return BlobShape(
        radii_mm=tuple((radius * factors).tolist()),
        axes=tuple(tuple(row) for row in axes.tolist()),
        ripple=ripple,
        phases=tuple(rng.uniform(0, 2 * np.pi, 3).tolist()),
    )


def draw_phantom(rng: np.random.Generator, *, side: str | None = None, lesion_share: float = 0.45) -> PhantomParameters:
    """Draw one knee.

    Args:
        rng: source of all randomness; the same state gives the same knee.
        side: "left" or "right"; drawn if None.
        lesion_share: probability in [0, 1] that a bone holds lesions (then one to three), per bone.

    Returns: parameters that ``render_label_map`` and ``phantom_image`` take.

    Raises: ValueError for another side, or a share outside [0, 1].
    """
    if side not in (None, "left", "right"):
        raise ValueError(f"side is {side!r}; expected 'left', 'right' or None")
    if not 0.0 <= lesion_share <= 1.0:
        raise ValueError(f"lesion_share is {lesion_share}; expected a probability in [0, 1]")
    drawn_side = "right" if rng.random() < 0.5 else "left"
    # One number says how osteoarthritic the knee is: thin cartilage, losses and spurs come together.
    severity = float(rng.beta(1.2, 2.0))
    cartilage = (
        rng.uniform(1.7, 2.3) - 0.5 * severity,
        rng.uniform(2.1, 2.7) - 0.5 * severity,
        rng.uniform(2.6, 3.6) - 0.7 * severity,
    )
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
        cartilage_mm=tuple(float(thickness) for thickness in cartilage),
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

    Args:
        parameters: from ``draw_phantom``.
        shape: number of voxels, array order (z, y, x).
        spacing_mm: same order.

    Returns: (Z, Y, X) uint8, values 0 to 9 of ``nnunetv2_anomaly.labels.LABELS``.

    Raises: ValueError unless three positive numbers each are given.
    """
    shape, spacing_mm = tuple(int(n) for n in shape), tuple(float(s) for s in spacing_mm)
    if len(shape) != 3 or len(spacing_mm) != 3 or min(shape) < 1 or not min(spacing_mm) > 0:
        raise ValueError(f"shape {shape} and spacing_mm {spacing_mm}: expected three positive numbers each, (z, y, x)")
    extent = tuple(n * s for n, s in zip(shape, spacing_mm, strict=True))
    knee = _Knee(parameters, extent)
    working_spacing = max(
        float(np.clip(min(spacing_mm), *_WORKING_SPACING_MM)), (np.prod(extent) / _MOST_WORKING_VOXELS) ** (1 / 3)
    )
    # Two voxels of margin on each side: derivatives and interpolation then need no special case at the border.
    working = [np.arange(-2 * working_spacing, e + 2.5 * working_spacing, working_spacing) for e in extent]
    target = [(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing_mm, strict=True)]
    fields = knee.fields(*working, working_spacing)
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
        _stamp_lesion(labels, lesion, centre, target, knee.array_to_knee)
    return labels


def phantom_image(
    parameters: PhantomParameters,
    *,
    size: Sequence[int] = OAI_SIZE,
    spacing_mm: Sequence[float] = OAI_SPACING_MM,
) -> sitk.Image:
    """The phantom's label map as an image in the pose of the OAI's sagittal DESS series.

    Args:
        parameters: from ``draw_phantom``.
        size, spacing_mm: number and distance in mm of voxels in SimpleITK order (x, y, z): x across the slices to the
            patient's right, y to anterior, z to superior.

    Returns: 3D image, uint8; the direction matrix turns x to the right and y to anterior, obliquely about the long
        axis as in many of the OAI's series; the centre of the field of view lies at the scanner's origin.

    Raises: ValueError as ``render_label_map``.
    """
    image = sitk.GetImageFromArray(
        render_label_map(parameters, shape=tuple(size)[::-1], spacing_mm=tuple(spacing_mm)[::-1])
    )
    image.SetSpacing([float(s) for s in spacing_mm])
    angle = np.deg2rad(parameters.oblique_degrees)
    # Columns are the directions of x, y, z in LPS: (-1, 0, 0) is right, (0, -1, 0) anterior, (0, 0, 1) superior.
    direction = np.array([[-np.cos(angle), np.sin(angle), 0], [-np.sin(angle), -np.cos(angle), 0], [0, 0, 1]])
    image.SetDirection(direction.ravel().tolist())
    centre = (np.array(image.GetSize()) - 1) / 2 * np.array(image.GetSpacing())
    image.SetOrigin((-(direction @ centre)).tolist())
    return image


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
    return FocalLoss(bone, tuple(float(c) for c in centre), float(rng.uniform(3.0, 8.0)), float(rng.uniform(0.5, 1.3)))


def _rotation(degrees: Sequence[float]) -> NDArray[np.float64]:
    """Rotation matrix about u, then v, then w, acting on (u, v, w)."""
    a, b, c = np.deg2rad(degrees)
    about_u = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_v = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_w = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_w @ about_v @ about_u


def _smooth_min(a: NDArray, b: NDArray, width: float) -> NDArray:
    """Union of two shapes with a fillet: the minimum, rounded off where the two differ by less than ``width`` mm."""
    overlap = np.maximum(width - np.abs(a - b), 0.0) / width
    return np.minimum(a, b) - overlap * overlap * (width / 4.0)


def _smooth_max(a: NDArray, b: NDArray, width: float) -> NDArray:
    return -_smooth_min(-a, -b, width)


def _sigmoid(x: NDArray) -> NDArray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _ellipsoid(u: NDArray, v: NDArray, w: NDArray, centre: Sequence[float], radii: Sequence[float]) -> NDArray:
    """First-order distance in mm to an ellipsoid: its implicit function divided by the length of its gradient."""
    scaled = [(axis - c) / r for axis, c, r in zip((u, v, w), centre, radii, strict=True)]
    length = np.sqrt(sum(s * s for s in scaled))
    gradient = np.sqrt(sum((s / r) ** 2 for s, r in zip(scaled, radii, strict=True)))
    return length * (length - 1.0) / np.maximum(gradient, 1e-6)


class _Knee:
    """The drawn knee in one field of view: distances to its bones, thickness of its cartilages."""

    def __init__(self, parameters: PhantomParameters, extent_mm: Sequence[float]) -> None:
        self.parameters = parameters
        height, depth, width = extent_mm
        middle = max(0.35 * depth, min(depth / 2 - _ORIGIN_BEHIND_CENTRE_MM, depth - _ROOM_IN_FRONT_MM))
        self.origin = np.array([height * _ORIGIN_HEIGHT_FRACTION, middle, width / 2]) + parameters.shift_mm
        # Lateral is right in a right knee, and x runs to the right: a left knee is the mirror image of a right one.
        lateral = 1.0 if parameters.side == "right" else -1.0
        to_knee_frame = np.array([[0, 0, lateral], [0, 1, 0], [1, 0, 0]])  # (z, y, x) -> (u, v, w)
        self.array_to_knee = _rotation(parameters.tilt_degrees) @ to_knee_frame
        self.femur_rotation = _rotation(parameters.femur_degrees)
        self.size = parameters.scale * np.array(parameters.stretch)
        femoral, tibial, patellar = parameters.cartilage_mm
        # Bones are kept apart by what lies between them, so that cartilages have room and abut at the contact.
        self.gap = {3: femoral + tibial + 0.3, 5: femoral + patellar + 0.5}
        self.spurs = {bone: [] for bone in BONES}
        for osteophyte in parameters.osteophytes:
            surface = self._surface_point(osteophyte.bone, osteophyte.anchor, osteophyte.direction)
            self.spurs[osteophyte.bone].append((surface, osteophyte.radius_mm))

    def _knee_coordinates(self, z: NDArray, y: NDArray, x: NDArray) -> list[NDArray]:
        offsets = (z - self.origin[0], y - self.origin[1], x - self.origin[2])
        return [
            sum(np.float32(r) * o.astype(np.float32) for r, o in zip(row, offsets, strict=True))
            for row in self.array_to_knee
        ]

    def _bones(self, u: NDArray, v: NDArray, w: NDArray) -> tuple[dict[int, NDArray], dict[str, NDArray]]:
        """Distance functions (mm, about true near the surface) of the three bones, and what the cartilages need."""
        su, sv, sw = (axis / np.float32(s) for axis, s in zip((u, v, w), self.size, strict=True))
        # The femur turns about the middle of its condyles, so that it rolls on the tibia and stays in the joint.
        pivot = (0.0, -4.0, 21.0)
        moved = (su - pivot[0], sv - pivot[1], sw - pivot[2])
        fu, fv, fw = (
            sum(np.float32(r) * m for r, m in zip(row, moved, strict=True)) + np.float32(p)
            for row, p in zip(self.femur_rotation, pivot, strict=True)
        )
        femur, notch = self._femur(fu, fv, fw)
        tibia = self._tibia(su, sv, sw)
        patella = self._patella(su, sv, sw)
        scale = np.float32(self.parameters.scale)
        distances = {1: femur * scale, 3: tibia * scale, 5: patella * scale}
        for bone, spurs in self.spurs.items():
            for (cu, cv, cw), radius in spurs:
                ball = np.sqrt((u - cu) ** 2 + (v - cv) ** 2 + (w - cw) ** 2) - radius
                distances[bone] = _smooth_min(distances[bone], ball, 3.0)
        for bone, gap in self.gap.items():
            distances[bone] = _smooth_max(distances[bone], gap - distances[1], 1.0)
        return distances, {"notch": notch * scale, "fu": fu, "fv": fv, "fw": fw, "su": su, "sv": sv, "sw": sw}

    def _femur(self, u: NDArray, v: NDArray, w: NDArray) -> tuple[NDArray, NDArray]:
        parameters = self.parameters
        parts = []
        for sign, size in zip((-1.0, 1.0), parameters.condyle_size, strict=True):
            posterior = _ellipsoid(u, v, w, (sign * 23, -12.5, 20 * size), (14, 20 * size, 20 * size))
            lateral_lip = 1.5 if sign > 0 else 0.0
            distal = _ellipsoid(u, v, w, (sign * 20, 8, 26), (16.5, (29 + lateral_lip) * size, 26 * size))
            epicondyle = _ellipsoid(u, v, w, (sign * 32, 1, 29), (9, 13, 12))
            parts.append(_smooth_min(_smooth_min(posterior, distal, 6.0), epicondyle, 8.0))
        trochlea = _ellipsoid(u, v, w, (0, 12, 31), (27, 27 - parameters.groove_mm, 25))
        body = _smooth_min(_smooth_min(parts[0], parts[1], 4.0), trochlea, 5.0)
        metaphysis = _ellipsoid(u, v, w, (0, 9, 42), (33, 23, 24))
        body = _smooth_min(body, metaphysis, 8.0)
        above = np.maximum(w - 38.0, 0.0)
        width = parameters.shaft_mm[0] + 16.0 * np.exp(-above / 13.0)
        depth = parameters.shaft_mm[0] + 6.0 * np.exp(-above / 13.0)
        centre = 18.0 - 7.0 * np.exp(-above / 16.0)
        shaft = (np.sqrt((u / width) ** 2 + ((v - centre) / depth) ** 2) - 1.0) * np.minimum(width, depth)
        body = _smooth_min(body, np.maximum(shaft, 38.0 - w), 6.0)
        notch = _ellipsoid(u, v, w, (0, -22, 8), (9.5, 30, 20))
        return _smooth_max(body, -notch, 4.0), notch

    def _tibia(self, u: NDArray, v: NDArray, w: NDArray) -> NDArray:
        below = np.maximum(-5.0 - w, 0.0)
        shaft = self.parameters.shaft_mm[1]
        width = shaft + (38.5 - shaft) * np.exp(-((below / 26.0) ** 1.6))
        depth = shaft + (26.0 - shaft) * np.exp(-((below / 28.0) ** 1.6))
        centre = -5.0 + 3.0 * (1.0 - np.exp(-below / 25.0))
        # Exponent 2.6: the plateau is broader than an ellipse.
        side = ((np.abs(u / width) ** 2.6 + np.abs((v - centre) / depth) ** 2.6) ** (1 / 2.6) - 1.0) * np.minimum(
            width, depth
        )
        eminence = sum(10.0 * np.exp(-(((u - s * 5.5) / 5.0) ** 2) - ((v + 5.0) / 9.0) ** 2) for s in (-1.0, 1.0))
        # The plateau slopes down to posterior by about 5 degrees.
        top = w - (-3.5 + 0.09 * v + eminence)
        body = _smooth_max(side, top, 5.0)
        tuberosity = _ellipsoid(u, v, w, (2, 15, -34), (10, 11, 15))
        # Between the plateaus the posterior rim is notched, where the cruciate ligament inserts.
        posterior_notch = _ellipsoid(u, v, w, (0, -34, -4), (8, 12, 14))
        return _smooth_max(_smooth_min(body, tuberosity, 8.0), -posterior_notch, 4.0)

    def _patella(self, u: NDArray, v: NDArray, w: NDArray) -> NDArray:
        lateral, superior = self.parameters.patella_shift_mm
        u, w = u - lateral, w - superior
        body = _ellipsoid(u, v, w, (0, 48.5, 34), (20, 11.5, 19.5))
        apex = _ellipsoid(u, v, w, (0, 49, 20), (8, 6, 9))
        # Two facets that meet in a ridge which runs in the trochlea.
        facets = 38.5 + 0.28 * np.abs(u) - v
        return _smooth_max(_smooth_min(body, apex, 6.0), facets, 3.0)

    def fields(
        self, z: NDArray, y: NDArray, x: NDArray, spacing: float
    ) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Per bone, the distance in mm to its surface and to the outer surface of its cartilage, negative inside.

        Args: z, y, x: positions in mm of a regular grid with the given spacing; the arrays returned are (Z, Y, X).
        """
        u, v, w = self._knee_coordinates(z[:, None, None], y[None, :, None], x[None, None, :])
        distances, local = self._bones(u, v, w)
        normals = {}
        for bone in BONES:
            gradient = np.gradient(distances[bone], spacing)
            length = np.sqrt(sum(g * g for g in gradient))
            # Dividing by the slope makes "t mm outside" true where shapes were squeezed or merged.
            distances[bone] = (distances[bone] / np.clip(length, 0.5, 2.0)).astype(np.float32)
            normals[bone] = [
                sum(np.float32(r) * g for r, g in zip(row, gradient, strict=True)) / np.maximum(length, 1e-3)
                for row in self.array_to_knee
            ]
        thickness = {
            1: self._femoral_cartilage(normals[1], local),
            3: self._tibial_cartilage(normals[3], local),
            5: self._patellar_cartilage(normals[5], distances[1]),
        }
        for loss in self.parameters.focal_losses:
            centre = [c * s for c, s in zip(loss.centre, self.size, strict=True)]
            squared = sum((axis - c) ** 2 for axis, c in zip((u, v, w), centre, strict=True))
            thickness[loss.bone] *= np.clip(1.0 - loss.share * np.exp(-squared / (2 * loss.radius_mm**2)), 0.0, 1.0)
        # Below a quarter of a millimetre there is no cartilage to speak of; the rim would fray on fine grids.
        return {
            bone: (
                distances[bone],
                np.where(thickness[bone] > 0.25, distances[bone] - thickness[bone], 1.0).astype(np.float32),
            )
            for bone in BONES
        }

    def _femoral_cartilage(self, normal: Sequence[NDArray], local: dict[str, NDArray]) -> NDArray:
        fu, fv, fw = local["fu"], local["fv"], local["fw"]
        # Round the condyles and up the trochlea, neither on their sides, nor in the notch, nor up at the shaft.
        window = _sigmoid((0.80 - np.abs(normal[0])) / 0.06)
        window *= _sigmoid((0.65 - normal[2]) / 0.08)
        window *= _sigmoid((39.0 + 0.12 * fv - fw) / 1.2)
        window *= _sigmoid((local["notch"] - 2.0) / 0.8)
        thicker = 1.0 + 0.25 * np.exp(-((fu / 14.0) ** 2) - ((fv - 30.0) / 14.0) ** 2)
        return self.parameters.cartilage_mm[0] * thicker * window

    def _tibial_cartilage(self, normal: Sequence[NDArray], local: dict[str, NDArray]) -> NDArray:
        su, sv = local["su"], local["sv"]
        thickness = np.zeros_like(su)
        for sign in (-1.0, 1.0):
            radius = np.sqrt(((su - sign * 21.5) / 14.5) ** 2 + ((sv + 5.0) / 22.0) ** 2)
            thickness += _sigmoid((1.0 - radius) / 0.06) * (1.15 - 0.3 * np.minimum(radius, 1.0) ** 2)
        return self.parameters.cartilage_mm[1] * thickness * _sigmoid((normal[2] - 0.55) / 0.08)

    def _patellar_cartilage(self, normal: Sequence[NDArray], femur_distance: NDArray) -> NDArray:
        facing = _sigmoid((-normal[1] - 0.6) / 0.06)
        return self.parameters.cartilage_mm[2] * facing * _sigmoid((14.0 - femur_distance) / 2.0)

    def _surface_point(self, bone: int, anchor: Sequence[float], direction: Sequence[float]) -> NDArray[np.float64]:
        """Where the ray leaves the bone: knee frame (u, v, w), mm. The anchor itself if that lies outside."""
        start, ray = np.asarray(anchor) * self.size, np.asarray(direction)
        steps = np.arange(0.0, 60.0, 0.25)
        u, v, w = ((start[axis] + steps * ray[axis]).astype(np.float32) for axis in range(3))
        outside = self._bones(u, v, w)[0][bone] > 0
        return start + ray * (steps[np.argmax(outside)] if outside.any() else 0.0)

    def lesion_centres(self) -> list[NDArray[np.float64]]:
        """Centres of the lesions in the order of the parameters, array order (z, y, x), mm from the corner."""
        centres = []
        for lesion in self.parameters.lesions:
            surface = self._surface_point(lesion.bone, lesion.anchor, lesion.direction)
            centre = surface - lesion.depth_mm * np.asarray(lesion.direction)
            centres.append(self.array_to_knee.T @ centre + self.origin)
        return centres


def resample_linear(
    field: NDArray[np.float32], positions: Sequence[NDArray], target: Sequence[NDArray]
) -> NDArray[np.float32]:
    """Linear interpolation of a field on a regular grid at the points of another, one axis after the other.

    Args:
        field: (Z, Y, X), any unit.
        positions: where its voxels lie, three increasing arrays of equal steps, mm, two positions at least each.
        target: where to interpolate, three arrays in mm; beyond the grid its border value goes on.

    Returns: (len(target[0]), len(target[1]), len(target[2])), the field's unit.
    """
    # The axis that shrinks most goes first: fewer values to handle afterwards.
    order = sorted(range(3), key=lambda axis: len(target[axis]) / len(positions[axis]))
    for axis in order:
        step = positions[axis][1] - positions[axis][0]
        index = np.clip((target[axis] - positions[axis][0]) / step, 0, len(positions[axis]) - 1.001)
        lower = index.astype(int)
        weight = (index - lower).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        below, above = np.take(field, lower, axis), np.take(field, lower + 1, axis)
        above -= below
        above *= weight
        above += below
        field = above
    return field


def _stamp_lesion(
    labels: NDArray[np.uint8],
    lesion: PhantomLesion,
    centre: NDArray,
    target: Sequence[NDArray],
    array_to_knee: NDArray,
) -> None:
    """Relabel the voxels of the lesion's own bone that lie within it, in place."""
    reach = 1.6 * max(lesion.shape.radii_mm)
    box = tuple(
        slice(*np.searchsorted(positions, (middle - reach, middle + reach)))
        for positions, middle in zip(target, centre, strict=True)
    )
    z, y, x = (positions[s] - middle for positions, s, middle in zip(target, box, centre, strict=True))
    # A box beyond the field of view has no voxel, and nothing happens.
    offsets = (z[:, None, None], y[None, :, None], x[None, None, :])
    inside = lesion.shape.value(*(sum(r * o for r, o in zip(row, offsets, strict=True)) for row in array_to_knee)) < 0
    region = labels[box]
    region[inside & (region == lesion.bone)] = _LESION_OF_BONE[lesion.bone]
