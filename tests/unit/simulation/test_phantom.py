"""The procedural knee: anatomy that holds at any grid."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunetv2_anomaly.labels import BONE_OF_LESION, BONES, LESIONS
from nnunetv2_anomaly.simulation.phantom import draw_blob_shape, draw_phantom, phantom_image, render_label_map

SHAPE, SPACING_MM = (64, 64, 48), (1.75, 1.75, 2.0)  # (z, y, x)


def knee(seed, **keywords):
    return draw_phantom(np.random.default_rng(seed), **keywords)


def rendered(seed, **keywords):
    return render_label_map(knee(seed, **keywords), shape=SHAPE, spacing_mm=SPACING_MM)


def touching(labels, first, second):
    """Number of voxels of one label that share a face with the other."""
    return int((ndimage.binary_dilation(np.isin(labels, first)) & np.isin(labels, second)).sum())


def test_the_same_seed_gives_the_same_knee_and_another_seed_another():
    assert knee(1) == knee(1)
    assert np.array_equal(rendered(1), rendered(1))
    assert knee(1) != knee(2)
    assert not np.array_equal(rendered(1), rendered(2))


@pytest.mark.parametrize("seed", range(4))
def test_every_knee_has_its_bones_and_cartilages_in_adult_volumes(seed):
    volumes_ml = np.bincount(rendered(seed, lesion_share=0.0).ravel(), minlength=10) * np.prod(SPACING_MM) / 1000
    # Ranges round those of the published manual segmentations; the shafts are cut by a smaller field of view here.
    ranges = {1: (110, 280), 2: (6, 25), 3: (45, 180), 4: (1.5, 8), 5: (9, 32), 6: (1.2, 7)}
    for label, (low, high) in ranges.items():
        assert low < volumes_ml[label] < high, label
    assert not volumes_ml[7:].any()


@pytest.mark.parametrize("seed", range(4))
def test_a_knee_stands_upright_with_its_patella_in_front(seed):
    labels = rendered(seed)
    femur, tibia, patella = (np.array(ndimage.center_of_mass(labels == bone)) * SPACING_MM for bone in BONES)
    assert femur[0] > tibia[0] + 25
    assert patella[1] > femur[1] + 25
    for bone, cartilage in ((1, 2), (3, 4), (5, 6)):
        outside = ndimage.binary_dilation(labels == cartilage, iterations=2)
        assert touching(labels, (cartilage,), (bone, *LESIONS)) > 0.2 * (labels == cartilage).sum()
        assert (outside & (labels == bone)).any()
    # The tibial cartilage is on top of its bone, the patellar one behind.
    assert ndimage.center_of_mass(labels == 4)[0] * SPACING_MM[0] > tibia[0] + 10
    assert ndimage.center_of_mass(labels == 6)[1] * SPACING_MM[1] < patella[1] - 4


@pytest.mark.parametrize("seed", range(6))
def test_bones_never_touch_each_other(seed):
    labels = rendered(seed)
    bones = [(bone, next(lesion for lesion, holder in BONE_OF_LESION.items() if holder == bone)) for bone in BONES]
    assert touching(labels, bones[0], bones[1]) == 0
    assert touching(labels, bones[0], bones[2]) == 0
    assert touching(labels, bones[1], bones[2]) == 0


def test_lesions_lie_within_the_bone_that_was_there_before():
    found = 0
    for seed in range(4):
        parameters = knee(seed, lesion_share=1.0)
        assert {lesion.bone for lesion in parameters.lesions} == set(BONES)
        labels = render_label_map(parameters, shape=SHAPE, spacing_mm=SPACING_MM)
        healthy = render_label_map(dataclasses.replace(parameters, lesions=()), shape=SHAPE, spacing_mm=SPACING_MM)
        for lesion, bone in BONE_OF_LESION.items():
            assert (healthy[labels == lesion] == bone).all()
            found += (labels == lesion).any()
        assert np.array_equal(np.where(np.isin(labels, LESIONS), healthy, labels), healthy)
    assert found >= 10  # of 12 bones


def test_most_lesions_are_near_the_cartilage():
    distances = []
    for seed in range(6):
        labels = rendered(seed, lesion_share=1.0)
        to_cartilage = ndimage.distance_transform_edt(~np.isin(labels, (2, 4, 6)), sampling=SPACING_MM)
        lesions, count = ndimage.label(np.isin(labels, LESIONS))
        distances += ndimage.minimum(to_cartilage, lesions, range(1, count + 1)).tolist()
    assert np.mean(np.array(distances) < 5.0) > 0.5


def test_a_left_knee_is_the_mirror_image_of_a_right_one():
    right = dataclasses.replace(
        knee(3, side="right"), tilt_degrees=(0.0,) * 3, femur_degrees=(0.0,) * 3, shift_mm=(0.0,) * 3
    )
    left = dataclasses.replace(right, side="left")
    rendered_right, rendered_left = (
        render_label_map(parameters, shape=SHAPE, spacing_mm=SPACING_MM) for parameters in (right, left)
    )
    # Not to the last voxel: a lesion's wobble and rounding at surfaces are on the grid's side of things.
    assert np.mean(rendered_right != rendered_left[:, :, ::-1]) < 1e-3
    assert np.mean(rendered_right != rendered_left) > 1e-2


def test_volumes_do_not_depend_on_the_grid():
    parameters = knee(2)
    coarse = render_label_map(parameters, shape=SHAPE, spacing_mm=SPACING_MM)
    fine = render_label_map(parameters, shape=(112, 112, 60), spacing_mm=(1.0, 1.0, 1.6))
    volume_coarse, volume_fine = (
        np.bincount(labels.ravel(), minlength=10) * voxel for labels, voxel in ((coarse, 6.125), (fine, 1.6))
    )
    assert volume_coarse[[1, 3, 5]] == pytest.approx(volume_fine[[1, 3, 5]], rel=0.03)
    assert volume_coarse[[2, 4, 6]] == pytest.approx(volume_fine[[2, 4, 6]], rel=0.15)


def test_the_image_points_right_anterior_and_superior():
    image = phantom_image(knee(0), size=(24, 32, 40), spacing_mm=(4.0, 3.5, 2.8))
    assert image.GetSize() == (24, 32, 40)
    assert image.GetSpacing() == pytest.approx((4.0, 3.5, 2.8))
    assert image.GetPixelID() == sitk.sitkUInt8
    direction = np.array(image.GetDirection()).reshape(3, 3)
    assert direction @ direction.T == pytest.approx(np.eye(3))
    assert np.linalg.det(direction) == pytest.approx(1.0)
    # LPS coordinates fall to the right and to anterior, and rise to superior.
    assert direction[0, 0] < -0.97
    assert direction[1, 1] < -0.97
    assert direction[2, 2] == 1.0
    centre = [(n - 1) / 2 for n in image.GetSize()]
    assert image.TransformContinuousIndexToPhysicalPoint(centre) == pytest.approx((0, 0, 0), abs=1e-6)


def test_blobs_have_the_stated_size():
    radii = [np.mean(draw_blob_shape(np.random.default_rng(seed)).radii_mm) for seed in range(300)]
    assert 4.0 < np.median(radii) < 6.0
    assert min(radii) >= 2.0
    shape = dataclasses.replace(draw_blob_shape(np.random.default_rng(0)), ripple=0.0)
    assert shape.value(np.zeros(1), np.zeros(1), np.zeros(1)) == pytest.approx(-1.0)
    tip = np.array(shape.axes[1]) * shape.radii_mm[1]
    assert shape.value(*tip[:, None]) == pytest.approx(0.0, abs=1e-9)
