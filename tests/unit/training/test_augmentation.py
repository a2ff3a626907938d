import numpy as np
import pytest
import torch

from nnunetv2_anomaly.training.augmentation import (
    RotationAboutOneAxis,
    loaded_patch_size,
    published_spatial_transform,
)


@pytest.mark.parametrize("patch_size", [(24, 24, 24), (20, 40, 32), (32, 48)])
def test_ranges_are_the_published_ones_and_all_of_them_are_used(patch_size):
    """Scaling 0.9 to 1.1, one axis within 10 degrees, translation within 10 voxels along each axis."""
    np.random.seed(0)
    transform = published_spatial_transform(patch_size)
    loaded = loaded_patch_size(patch_size)
    image = torch.zeros((1, *loaded))
    shifts, scales = [], []
    for _ in range(300):
        parameters = transform.get_parameters(image=image)
        shifts.append(np.array(parameters["center_location_in_pixels"]) - np.array(loaded) / 2)
        affine = np.array(parameters["affine"])
        scales.append(np.abs(np.linalg.det(affine)) ** (1 / len(patch_size)))
    shifts = np.abs(shifts)
    assert shifts.max() <= 10.0
    assert (shifts.max(axis=0) >= 8).all()
    assert 0.899 <= min(scales) < 0.92
    assert 1.08 < max(scales) <= 1.101


def test_one_axis_turns_within_ten_degrees():
    np.random.seed(0)
    rotation = RotationAboutOneAxis()
    image = torch.zeros((1, 4, 4, 4))
    angles = np.degrees([[rotation(image, dim) for dim in range(3)] for _ in range(300)])
    assert ((angles != 0).sum(axis=1) == 1).all()
    assert set(np.nonzero(angles)[1]) == {0, 1, 2}
    assert 9 < angles.max() <= 10
    assert -10 <= angles.min() < -9


def test_loaded_region_holds_the_patch_however_it_is_turned():
    """A region of ones around a patch: no zero may come in from beyond it."""
    np.random.seed(0)
    patch_size = (24, 20, 28)
    transform = published_spatial_transform(patch_size)
    for _ in range(30):
        out = transform(image=torch.ones((1, *loaded_patch_size(patch_size))), segmentation=None)
        assert out["image"].shape == (1, *patch_size)
        assert out["image"].min() > 0.999
