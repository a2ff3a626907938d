import pytest
import torch

from nnunetv2_anomaly.detectors.error import error_image
from nnunetv2_anomaly.segmenters.loss import focal_weight


def test_error_image_is_the_squared_difference_per_voxel():
    image = torch.tensor([[[[0.0, 0.5], [1.0, 0.2]]]])
    reconstruction = torch.tensor([[[[0.0, 0.25], [0.0, 0.3]]]])
    expected = torch.tensor([[[[0.0, 0.0625], [1.0, 0.01]]]])
    torch.testing.assert_close(error_image(image, reconstruction), expected)


@pytest.mark.parametrize(("dtype", "difference"), [(torch.float16, 67 / 2048), (torch.bfloat16, 45 / 256)])
def test_error_image_of_half_precision_input_is_computed_in_float32(dtype, difference):
    # Image and reconstruction are exact in half precision; the square of their difference is not.
    image = torch.full((1, 1, 2, 2, 2), 0.5, dtype=dtype)
    error = error_image(image, torch.full_like(image, 0.5 + difference))
    assert error.dtype == torch.float32
    assert (error == difference**2).all()


def test_error_image_refuses_different_shapes_naming_both():
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 4\) and \(1, 2, 4, 4\)"):
        error_image(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4))


def test_focal_weight_with_beta_99_runs_from_1_to_100():
    weight = focal_weight(torch.tensor([[[0.0, 0.5, 1.0]]]), beta=99)
    torch.testing.assert_close(weight, torch.tensor([[[1.0, 50.5, 100.0]]]))


def test_focal_weight_takes_the_mean_over_the_image_channels():
    error = torch.tensor([[[0.0, 0.2], [0.5, 0.4]]])  # (B, C, X) = (1, 2, 2)
    torch.testing.assert_close(focal_weight(error, beta=10), torch.tensor([[[3.5, 4.0]]]))


def test_focal_weight_is_float32_from_half_input_and_has_one_channel():
    weight = focal_weight(torch.full((2, 3, 4, 5), 0.25, dtype=torch.float16), beta=99)
    assert weight.dtype == torch.float32
    assert weight.shape == (2, 1, 4, 5)
    torch.testing.assert_close(weight, torch.full((2, 1, 4, 5), 25.75))


def test_focal_weight_with_beta_0_is_1_everywhere():
    assert (focal_weight(torch.rand(1, 2, 3, 3, generator=torch.manual_seed(0)), beta=0) == 1).all()
