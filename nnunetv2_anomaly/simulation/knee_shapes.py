"""The shapes of a procedural knee: bones and cartilages as smooth functions of the place in mm.

Array axes are (z, y, x), the knee's own frame is (u, v, w); ``nnunetv2_anomaly.simulation.phantom`` defines both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nnunetv2_anomaly.labels import BONES
from nnunetv2_anomaly.simulation.soft_tissue import sigmoid

if TYPE_CHECKING:
    from nnunetv2_anomaly.simulation.phantom import PhantomParameters

#: where the knee's origin lies in the field of view, as in the OAI: more femur than tibia is seen
_ORIGIN_HEIGHT_FRACTION = 0.34
_ORIGIN_BEHIND_CENTRE_MM = 4.0
#: on a small field of view the knee moves back, so that the patella is not cut off
_ROOM_IN_FRONT_MM = 68.0


def _rotation(degrees: Sequence[float]) -> NDArray[np.float64]:
    """Rotation matrix about u, then v, then w, acting on (u, v, w)."""
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def _smooth_min(a: NDArray, b: NDArray, width: float) -> NDArray:
    """Union of two shapes with a fillet: the minimum, rounded off where the two differ by less than ``width`` mm."""
    overlap = np.maximum(width - np.abs(a - b), 0.0) / width
    return np.minimum(a, b) - overlap * overlap * (width / 4.0)


def _smooth_max(a: NDArray, b: NDArray, width: float) -> NDArray:
    return -_smooth_min(-a, -b, width)


def _ellipsoid(u: NDArray, v: NDArray, w: NDArray, centre: Sequence[float], radii: Sequence[float]) -> NDArray:
    """First-order distance in mm to an ellipsoid: its implicit function divided by the length of its gradient."""
    scaled = [(axis - c) / r for axis, c, r in zip((u, v, w), centre, radii, strict=True)]
    length = np.sqrt(sum(s * s for s in scaled))
    gradient = np.sqrt(sum((s / r) ** 2 for s, r in zip(scaled, radii, strict=True)))
    return length * (length - 1.0) / np.maximum(gradient, 1e-6)


class KneeShapes:
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
        self.spurs: dict[int, list[tuple[NDArray, float]]] = {bone: [] for bone in BONES}
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
        return distances, {"notch": notch * scale, "fu": fu, "fv": fv, "fw": fw, "su": su, "sv": sv}

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
        radius = (np.abs(u / width) ** 2.6 + np.abs((v - centre) / depth) ** 2.6) ** (1 / 2.6)
        side = (radius - 1.0) * np.minimum(width, depth)
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
        u, v, w = self._knee_coordinates(*np.ix_(z, y, x))
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
            5: self.parameters.cartilage_mm[2]
            * sigmoid((-normals[5][1] - 0.6) / 0.06)
            * sigmoid((14.0 - distances[1]) / 2.0),
        }
        for loss in self.parameters.focal_losses:
            centre = [c * s for c, s in zip(loss.centre, self.size, strict=True)]
            squared = sum((axis - c) ** 2 for axis, c in zip((u, v, w), centre, strict=True))
            thickness[loss.bone] *= np.clip(1.0 - loss.share * np.exp(-squared / (2 * loss.radius_mm**2)), 0.0, 1.0)
        # Below a quarter of a millimetre there is no cartilage to speak of; the rim would fray on fine grids.
        outer = {b: np.where(thickness[b] > 0.25, distances[b] - thickness[b], 1.0).astype(np.float32) for b in BONES}
        return {bone: (distances[bone], outer[bone]) for bone in BONES}

    def _femoral_cartilage(self, normal: Sequence[NDArray], local: dict[str, NDArray]) -> NDArray:
        fu, fv, fw = local["fu"], local["fv"], local["fw"]
        # Round the condyles and up the trochlea, neither on their sides, nor in the notch, nor up at the shaft.
        window = sigmoid((0.80 - np.abs(normal[0])) / 0.06)
        window *= sigmoid((0.65 - normal[2]) / 0.08)
        window *= sigmoid((39.0 + 0.12 * fv - fw) / 1.2)
        window *= sigmoid((local["notch"] - 2.0) / 0.8)
        thicker = 1.0 + 0.25 * np.exp(-((fu / 14.0) ** 2) - ((fv - 30.0) / 14.0) ** 2)
        return self.parameters.cartilage_mm[0] * thicker * window

    def _tibial_cartilage(self, normal: Sequence[NDArray], local: dict[str, NDArray]) -> NDArray:
        su, sv = local["su"], local["sv"]
        thickness = np.zeros_like(su)
        for sign in (-1.0, 1.0):
            radius = np.sqrt(((su - sign * 21.5) / 14.5) ** 2 + ((sv + 5.0) / 22.0) ** 2)
            thickness += sigmoid((1.0 - radius) / 0.06) * (1.15 - 0.3 * np.minimum(radius, 1.0) ** 2)
        return self.parameters.cartilage_mm[1] * thickness * sigmoid((normal[2] - 0.55) / 0.08)

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
