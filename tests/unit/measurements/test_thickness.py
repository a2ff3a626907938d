"""Surfaces and thickness of a shell whose thickness is known; needs vtk."""

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

pytest.importorskip("vtk")

from nnunetv2_anomaly.measurements.frame import Space
from nnunetv2_anomaly.measurements.meshes import signed_distances, surface_of
from nnunetv2_anomaly.measurements.thickness import measure_plate

RADIUS = 20.0
PLAIN, FINE, TURNED = np.eye(3), (0.7, 0.36, 0.36), Rotation.from_euler("xyz", [20, -15, 30], degrees=True).as_matrix()


def places(spacing, turn, size_mm=54.0):
    number = [round(size_mm / step) for step in spacing]
    indices = np.stack(np.meshgrid(*map(np.arange, number), indexing="ij"), axis=-1)
    steps = turn @ np.diag(spacing)
    middle = (np.array(number) - 1) / 2
    return (indices - middle) @ steps.T, Space(-(steps @ middle), steps)


def true_thickness(points):
    return 2 + 0.5 * np.cos(2 * np.arctan2(points[..., 1], points[..., 2]))


def shell(spacing=FINE, turn=PLAIN, hole_mm=0.0, scale=1.0):
    """A ball of bone, and on the upper part of it cartilage of a thickness that varies, with a round hole."""
    points, space = places(spacing, turn)
    away = np.linalg.norm(points, axis=-1)
    covered = points[..., 2] > -5
    if hole_mm:
        covered &= np.linalg.norm(points[..., :2] - [4.0, 0.0], axis=-1) > hole_mm
    cartilage = (away > RADIUS) & (away <= RADIUS + true_thickness(points)) & covered
    scaled = Space(scale * space.origin_mm, scale * space.steps_mm)
    return surface_of(cartilage, scaled), surface_of(away <= RADIUS, scaled)


@pytest.mark.parametrize("turn", [PLAIN, TURNED, np.diag([-1.0, 1.0, 1.0])], ids=["plain", "turned", "mirrored"])
def test_thickness_of_a_shell_is_as_it_was_made(turn):
    plate = measure_plate(*shell(turn=turn), 0.36)
    found = plate.thickness_mm[plate.bone_side]
    true = true_thickness(plate.cartilage.vertices[plate.bone_side])
    assert not np.isnan(found).any()
    assert np.corrcoef(found, true)[0, 1] > 0.94
    assert abs((found - true).mean()) < 0.03


def test_twice_the_spacing_is_twice_the_thickness():
    once, twice = (measure_plate(*shell(scale=scale), scale * 0.36) for scale in (1.0, 2.0))
    assert twice.thickness_mm[twice.bone_side].mean() == pytest.approx(
        2 * once.thickness_mm[once.bone_side].mean(), rel=0.02
    )


def test_a_hole_is_bare_bone_of_its_area():
    plate = measure_plate(*shell(hole_mm=5.0), 0.36)
    bare = plate.bone.vertex_areas[plate.denuded].sum()
    hole = math.pi * (5.0 - 1.5 * 0.36) ** 2  # what is within reach of cartilage counts as covered
    assert bare == pytest.approx(hole, rel=0.15)
    inside = np.linalg.norm(plate.bone.vertices[:, :2] - [4.0, 0.0], axis=1) < 3
    assert not plate.covered[inside & (plate.bone.vertices[:, 2] > 0)].any()
    assert not measure_plate(*shell(), 0.36).denuded.sum() > 0.02 * plate.covered.sum()


@pytest.mark.parametrize(("radius", "other", "sign"), [(11.0, 10.0, 1), (10.0, 11.0, -1)])
def test_distance_of_a_surface_outside_is_above_0(radius, other, sign):
    points, space = places((0.5, 0.4, 0.4), TURNED, 26.0)
    away = np.linalg.norm(points, axis=-1)
    found = signed_distances(surface_of(away <= radius, space), surface_of(away <= other, space))
    assert found.mean() == pytest.approx(sign, abs=0.03)


def test_surface_has_the_area_of_its_ball_and_faces_that_look_outward():
    points, space = places(FINE, TURNED)
    mesh = surface_of(np.linalg.norm(points, axis=-1) <= RADIUS, space)
    assert mesh.vertex_areas.sum() == pytest.approx(4 * math.pi * RADIUS**2, rel=0.03)
    outward = (mesh.normals(8) * mesh.vertices).sum(axis=1)
    assert np.percentile(outward, 1) > 0.95 * RADIUS
    assert outward.min() > 0
    assert surface_of(np.zeros((3, 3, 3), bool), space) is None


@pytest.mark.parametrize("true_mm", [0.6, 1.0])
def test_thin_cartilage_has_two_sides(true_mm):
    points, space = places(FINE, PLAIN)
    away = np.linalg.norm(points, axis=-1)
    cartilage = (away > RADIUS) & (away <= RADIUS + true_mm) & (points[..., 2] > -5)
    plate = measure_plate(surface_of(cartilage, space), surface_of(away <= RADIUS, space), 0.36)
    found = plate.thickness_mm[plate.bone_side]
    assert plate.bone_side.sum() > 3000
    assert np.isnan(found).mean() < 0.02
    assert np.nanmean(found) == pytest.approx(true_mm, abs=0.15)
