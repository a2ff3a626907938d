"""Grids in space: turning axes moves no voxel, and two grids are the same one whatever the order of their axes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_anomaly.images.grids import (
    ORIENTATION,
    TOLERANCE_MM,
    Grid,
    axes_to,
    corner_distance_mm,
    differences,
    oriented,
    same_grid,
)

#: direction of real masks: x to the right, y to anterior, z to superior, 8 degrees oblique
OBLIQUE = (-0.99026807, 0.1391731, 0.0, -0.1391731, -0.99026807, 0.0, 0.0, 0.0, 1.0)
REAL = Grid((160, 384, 384), (0.7, 0.3646, 0.3646), (-22.8, 80.7, -80.3), OBLIQUE)

#: the 48 ways in which axes can lie, such as "PIR"
ORIENTATIONS = [
    "".join(letters) for pairs in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*pairs)
]


def rotation(axis, degrees):
    """3 x 3 rotation about an axis of any length (Rodrigues)."""
    x, y, z = np.array(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def changed(grid, **fields):
    values = {"size": grid.size, "spacing_mm": grid.spacing_mm, "origin_mm": grid.origin_mm, **fields}
    return Grid(**{"direction": grid.direction, **values})


def image_on(grid):
    """An image whose voxels are all different."""
    image = sitk.GetImageFromArray(np.arange(math.prod(grid.size), dtype=np.int32).reshape(grid.size[::-1]))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    return image


coordinates = st.floats(-300, 300)
grids = st.builds(
    lambda size, spacing, origin, orientation, axis, degrees: Grid(
        size,
        spacing,
        origin,
        tuple(
            (
                rotation(axis, degrees)
                @ np.reshape(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(orientation), (3, 3))
            )
            .ravel()
            .tolist()
        ),
    ),
    st.tuples(*[st.integers(2, 6)] * 3),
    st.tuples(*[st.floats(0.3, 3)] * 3),
    st.tuples(*[coordinates] * 3),
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.floats(0.1, 1)] * 3),
    # In steps: ITK's inverse of a direction fails at angles such as 1e-300.
    st.integers(-1800, 1800).map(lambda tenths: tenths / 10),
)


@given(grids)
@settings(max_examples=40, deadline=None, database=None)
def test_oriented_grid_is_that_of_the_oriented_image(grid):
    image = oriented(image_on(grid))
    turned, expected = grid.oriented(), Grid.of(image)
    assert turned.size == expected.size
    assert turned.spacing_mm == pytest.approx(expected.spacing_mm, rel=1e-12)
    assert turned.origin_mm == pytest.approx(expected.origin_mm, abs=1e-9)
    assert turned.direction == pytest.approx(expected.direction, abs=1e-12)
    assert turned.orientation == ORIENTATION
    assert turned.oriented() == turned


@given(grids)
@settings(max_examples=30, deadline=None, database=None)
def test_orienting_moves_no_voxel(grid):
    before = image_on(grid)
    after = oriented(before)
    values = sitk.GetArrayFromImage(after)
    for index in itertools.product(*((0, n - 1) for n in grid.size)):
        place = after.TransformPhysicalPointToIndex(before.TransformIndexToPhysicalPoint(index))
        assert values[place[::-1]] == before[index]


@given(grids, st.sampled_from(ORIENTATIONS))
@settings(max_examples=40, deadline=None, database=None)
def test_the_order_of_axes_makes_no_other_grid(grid, orientation):
    other = Grid.of(sitk.DICOMOrient(image_on(grid), orientation))
    assert same_grid(grid, other)
    assert same_grid(other, grid)
    assert corner_distance_mm(grid, other) < 1e-9
    assert differences(grid, other) == ""


@given(grids, st.tuples(*[st.floats(-1, 1)] * 3), st.floats(0.2, 50))
@settings(max_examples=30, deadline=None, database=None)
def test_a_shifted_grid_is_another_one(grid, way, distance):
    length = np.linalg.norm(way)
    if length < 0.1:
        return
    shifted = changed(grid, origin_mm=tuple((np.array(grid.origin_mm) + np.array(way) / length * distance).tolist()))
    assert corner_distance_mm(grid, shifted) == pytest.approx(distance)
    assert not same_grid(grid, shifted)
    assert "origin" in differences(grid, shifted)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_axes_are_named_as_simpleitk_does(orientation):
    direction = sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(orientation)
    grid = Grid((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction)
    assert grid.orientation == orientation
    order, flips = axes_to(orientation)
    turned = np.array(direction).reshape(3, 3) * [-1 if axis in flips else 1 for axis in range(3)]
    expected = sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(ORIENTATION)
    assert (turned[:, order].ravel() == expected).all()


def test_steps_are_the_ways_between_voxels():
    image = image_on(Grid((3, 4, 5), (0.7, 0.4, 0.5), (1.0, 2.0, 3.0), OBLIQUE))
    steps = Grid.of(image).steps_mm()
    here = np.array(image.TransformIndexToPhysicalPoint((1, 1, 1)))
    for axis in range(3):
        index = [2 if axis == each else 1 for each in range(3)]
        there = image.TransformIndexToPhysicalPoint(index)
        assert there - here == pytest.approx(steps[:, axis], abs=1e-6)


def test_grid_of_a_file_is_that_of_the_image_in_it(tmp_path):
    image = image_on(Grid((3, 4, 5), (0.7, 0.4, 0.5), (1.0, 2.0, 3.0), OBLIQUE))
    sitk.WriteImage(image, str(tmp_path / "image.nrrd"))
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(tmp_path / "image.nrrd"))
    reader.ReadImageInformation()
    assert same_grid(Grid.of(reader), Grid.of(image))


@pytest.mark.parametrize(("shift", "same"), [(0.9 * TOLERANCE_MM, True), (1.1 * TOLERANCE_MM, False)])
def test_rounding_is_tolerated(shift, same):
    other = changed(REAL, origin_mm=(-22.8, 80.7 + shift, -80.3))
    assert same_grid(REAL, other) == same
    assert (differences(REAL, other) == "") == same


def test_grids_of_other_size_have_no_corner_distance():
    other = changed(REAL, size=(160, 384, 352))
    with pytest.raises(ValueError, match="differ"):
        corner_distance_mm(REAL, other)
    assert not same_grid(REAL, other)
    assert differences(REAL, other) == "size 160 x 384 x 384 against 160 x 384 x 352"


def test_a_small_spacing_error_adds_up_to_another_grid():
    other = changed(REAL, spacing_mm=(0.7, 0.365, 0.3646))
    assert not same_grid(REAL, other)
    assert differences(REAL, other) == "spacing 0.7 x 0.3646 x 0.3646 against 0.7 x 0.365 x 0.3646 mm"


def test_differences_are_told_in_words():
    turned = rotation((0, 0, 1), 2) @ np.reshape(OBLIQUE, (3, 3))
    other = changed(REAL, origin_mm=(-22.8, 83.7, -84.3), direction=tuple(turned.ravel().tolist()))
    assert differences(REAL, other) == (
        "origin -22.8 x 80.7 x -80.3 against -22.8 x 83.7 x -84.3, 5.00 mm apart; direction 2.00 degrees apart"
    )


def test_a_turn_is_told_where_nothing_else_differs():
    turned = rotation((0, 0, 1), 0.1) @ np.reshape(OBLIQUE, (3, 3))
    assert differences(REAL, changed(REAL, direction=tuple(turned.ravel().tolist()))) == "direction 0.10 degrees apart"


def test_grids_that_differ_a_little_everywhere_are_told_apart_too():
    # Each of origin, spacing and direction is within what is told of it, their sum is not.
    turned = rotation((1, 0, 0), 0.009) @ np.reshape(OBLIQUE, (3, 3))
    other = changed(
        REAL,
        origin_mm=(-22.8, 80.7, -80.26),
        spacing_mm=(0.7, 0.3646, 0.3647),
        direction=tuple(turned.ravel().tolist()),
    )
    assert not same_grid(REAL, other)
    assert differences(REAL, other).startswith("corners 0.")


@pytest.mark.parametrize("degrees", [0.012, 0.02, 0.03])
def test_differences_are_told_wherever_grids_differ(degrees):
    turned = rotation((0, 0, 1), degrees) @ np.reshape(OBLIQUE, (3, 3))
    other = changed(REAL, direction=tuple(turned.ravel().tolist()))
    assert bool(differences(REAL, other)) != same_grid(REAL, other)
