import math

import pytest
import torch

from nnunetv2_anomaly.detectors.inpainting.quality import ErasedRegionQuality, blurred, erased_region_quality

PATCH_SIZE = (8, 8, 8)
# Four voxels in a row, the first two erased.
IMAGE = torch.tensor([0.2, 0.6, 0.5, 1.0]).view(1, 1, 4, 1)
RECONSTRUCTION = torch.tensor([0.3, 0.3, 0.4, 0.7]).view(1, 1, 4, 1)
HOLE = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 4, 1)


def test_means_against_pencil_numbers():
    quality = erased_region_quality(IMAGE, RECONSTRUCTION, HOLE, (4, 1))
    assert quality.summary()["mse_erased"] == pytest.approx((0.01 + 0.09) / 2)
    assert quality.summary()["mse_constant"] == pytest.approx(0.04)  # about the mean inside, 0.4
    assert quality.summary()["mse_outside"] == pytest.approx((0.01 + 0.09) / 2)
    assert list(quality.summary()) == ["mse_erased", "mse_constant", "mse_blurred", "mse_outside"]


def test_blurred_mse_is_that_of_the_blurred_image_inside_the_erased_region():
    image = torch.rand(1, 2, 16, 16, 16, generator=torch.manual_seed(0))
    hole = torch.zeros(1, 1, 16, 16, 16)
    hole[..., :5] = 1
    quality = erased_region_quality(image, image, hole, (16, 16, 16))
    expected = torch.square(image - blurred(image, (16, 16, 16)))[..., :5].mean().item()
    assert quality.summary()["mse_blurred"] == pytest.approx(expected, rel=1e-5)
    assert quality.summary()["mse_blurred"] > 0
    assert quality.summary()["mse_erased"] == 0


def test_each_image_and_channel_has_its_own_constant():
    image = torch.zeros(2, 2, 2, 2)
    image[0, 1], image[1, 0] = 0.5, 1.0
    quality = erased_region_quality(image, torch.zeros_like(image), torch.ones(2, 1, 2, 2), (2, 2))
    assert quality.summary()["mse_constant"] == 0
    assert quality.summary()["mse_erased"] == pytest.approx((0.25 + 1) / 4)
    assert quality.num_inside == 16


def test_added_cases_are_weighted_by_their_voxels():
    small = ErasedRegionQuality(inside=1.0, inside_constant=2.0, inside_blurred=3.0, num_inside=1, num_outside=1)
    large = ErasedRegionQuality(inside=3.0, outside=8.0, num_inside=3, num_outside=3)
    total = sum((small, large), ErasedRegionQuality())
    assert total.summary() == {"mse_erased": 1.0, "mse_constant": 0.5, "mse_blurred": 0.75, "mse_outside": 2.0}


def test_mean_over_no_voxel_is_nan():
    nothing_erased = erased_region_quality(IMAGE, RECONSTRUCTION, torch.zeros_like(HOLE), (4, 1))
    assert math.isnan(nothing_erased.summary()["mse_erased"])
    assert math.isnan(nothing_erased.summary()["mse_constant"])
    assert nothing_erased.summary()["mse_outside"] == pytest.approx(0.05)
    assert math.isnan(
        erased_region_quality(IMAGE, RECONSTRUCTION, torch.ones_like(HOLE), (4, 1)).summary()["mse_outside"]
    )


def test_blurred_image_of_a_constant_is_that_constant():
    image = torch.full((1, 1, 9, 10, 11), 0.3)
    torch.testing.assert_close(blurred(image, PATCH_SIZE), image)


def test_blur_keeps_a_grid_of_8_cells_along_a_patch_axis():
    # 16 voxels, 8 cells of two: an alternating pattern vanishes, a slow one stays
    stripes = torch.tensor([0.0, 1.0] * 8).view(1, 1, 16, 1).expand(1, 1, 16, 16)
    torch.testing.assert_close(blurred(stripes, (16, 16)), torch.full((1, 1, 16, 16), 0.5))
    slope = torch.linspace(0, 1, 16).view(1, 1, 16, 1).expand(1, 1, 16, 16)
    torch.testing.assert_close(blurred(slope, (16, 16))[:, :, 1:-1], slope[:, :, 1:-1])


def test_whole_image_is_blurred_as_its_patches_are():
    slope = torch.rand(1, 1, 32, 16, generator=torch.manual_seed(0))
    # cells of two voxels in the patch of 16 and in the image of 32 alike
    whole, patch = blurred(slope, (16, 16)), blurred(slope[:, :, :16], (16, 16))
    torch.testing.assert_close(whole[:, :, :15], patch[:, :, :15])


def test_volume_of_a_2d_configuration_is_blurred_within_its_slices():
    volume = torch.rand(1, 1, 3, 16, 16, generator=torch.manual_seed(0))
    expected = torch.stack([blurred(volume[:, :, index], (16, 16)) for index in range(3)], dim=2)
    torch.testing.assert_close(blurred(volume, (16, 16)), expected)


def test_image_smaller_than_the_grid_is_not_blurred():
    image = torch.rand(1, 1, 4, 4, generator=torch.manual_seed(0))
    torch.testing.assert_close(blurred(image, (4, 4)), image)
