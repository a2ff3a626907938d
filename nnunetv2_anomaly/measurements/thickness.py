"""Cartilage thickness, and bone that its cartilage leaves bare, from the surfaces of both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from nnunetv2_anomaly.measurements.meshes import Mesh, load_vtk, polydata_of

#: cartilage is no thicker
LARGEST_MM = 7.0
#: vertices so many edges from the border of the bone side belong to the rim, where nothing is opposite
_RIM_RINGS = 2
#: normals are means over so many rings of neighbours
_SMOOTHING = 8
#: a gap of covered bone that is narrower than twice this is covered for what cartilage should cover, mm
_CLOSING_MM = 3.0


@dataclass(frozen=True)
class Plate:
    """The bone side of one bone's cartilage, and the bone beneath it."""

    cartilage: Mesh
    bone: Mesh
    bone_side: NDArray[np.bool_]  # of the cartilage's vertices, without the rim
    thickness_mm: NDArray[np.float64]  # at all cartilage vertices; NaN but on the bone side, and where no ray arrived
    covered: NDArray[np.bool_]  # of the bone's vertices
    subchondral: NDArray[np.bool_]  # of the bone's vertices: covered, or bare where cartilage should be

    @property
    def denuded(self) -> NDArray[np.bool_]:
        """Bone vertices that should be covered and are not."""
        return self.subchondral & ~self.covered


def measure_plate(cartilage: Mesh, bone: Mesh, in_plane_mm: float) -> Plate:
    """Thickness at the bone side of cartilage.

    The bone side are the cartilage's vertices within 1.5 times ``in_plane_mm`` of the bone that face it, so that thin
    cartilage has two sides as well; all others are articular, but for a rim between both. Thickness is the way along
    the smoothed normal of the interface to the first hit of the articular side, no farther than ``LARGEST_MM``.

    Args: in_plane_mm: the largest spacing within a slice.
    """
    reach = 1.5 * in_plane_mm
    distance, nearest = cKDTree(bone.vertices).query(cartilage.vertices, distance_upper_bound=reach)
    near = np.isfinite(distance)
    inward = -cartilage.normals(_SMOOTHING)
    near[near] = (inward[near] * bone.normals(_SMOOTHING)[nearest[near]]).sum(axis=1) > 0
    bone_side, articular = cartilage.grown(near, -_RIM_RINGS), cartilage.grown(~near, -1)
    thickness = np.full(len(cartilage.vertices), np.nan)
    if bone_side.any() and articular.any():
        thickness[bone_side] = _along(cartilage, articular, np.flatnonzero(bone_side), inward)
    covered = np.zeros(len(bone.vertices), bool)
    if near.any():
        covered = cKDTree(cartilage.vertices[near]).query(bone.vertices, distance_upper_bound=reach)[0] <= reach
    return Plate(cartilage, bone, bone_side, thickness, covered, subchondral_bone(bone, covered))


def _along(mesh: Mesh, articular: NDArray[np.bool_], starts: NDArray[np.intp], ways: NDArray) -> NDArray[np.float64]:
    """Way from vertices along directions to the first hit of the articular side; NaN where there is none."""
    vtk = load_vtk()
    locator = vtk.vtkStaticCellLocator()
    locator.SetDataSet(polydata_of(mesh.sub(mesh.grown(articular, 1))[0]))
    locator.BuildLocator()
    t, hit, parameters, sub, cell = vtk.mutable(0.0), [0.0] * 3, [0.0] * 3, vtk.mutable(0), vtk.mutable(0)
    found = np.full(len(starts), np.nan)
    begin = mesh.vertices[starts] + 1e-3 * ways[starts]
    end = mesh.vertices[starts] + LARGEST_MM * ways[starts]
    for place, (a, b) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
        if locator.IntersectWithLine(a, b, 1e-6, t, hit, parameters, sub, cell):
            found[place] = float(t) * LARGEST_MM
    return found


def subchondral_bone(bone: Mesh, covered: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The bone that cartilage should cover: what it covers, with its rim closed and its holes filled.

    Args: covered: of the bone's vertices.
    """
    if not covered.any() or covered.all():
        return covered
    edge = float(np.median(np.linalg.norm(bone.vertices[bone.faces[:, 0]] - bone.vertices[bone.faces[:, 1]], axis=1)))
    closed = covered.copy()
    bare = np.flatnonzero(~covered)
    to_covered, _ = cKDTree(bone.vertices[covered]).query(bone.vertices[bare], distance_upper_bound=_CLOSING_MM)
    near = covered.copy()
    near[bare] = np.isfinite(to_covered)
    if not near.all():
        # Vertices lie apart: without half an edge more, a border would move outward by as much.
        between = np.flatnonzero(near & ~covered)
        reach = _CLOSING_MM + edge / 2
        away, _ = cKDTree(bone.vertices[~near]).query(bone.vertices[between], distance_upper_bound=reach)
        closed[between[np.isinf(away)]] = True
    number, part = bone.parts(~closed)
    if number > 1:
        # All but the largest bare part are holes, if they border on what is covered: surfaces within the bone do not.
        sizes = np.bincount(part, weights=bone.vertex_areas[~closed])
        borders = np.bincount(part, weights=bone.grown(closed, 1)[~closed]) > 0
        borders[np.argmax(sizes)] = False
        closed[np.flatnonzero(~closed)[borders[part]]] = True
    return closed
