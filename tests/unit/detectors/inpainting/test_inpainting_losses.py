import pytest
import torch

from nnunetv2_anomaly.detectors.inpainting.loss import PreStageLoss, distillation_loss, inpainting_loss
from nnunetv2_anomaly.detectors.inpainting.networks import PreStageOutput

IMAGE = torch.tensor([[[[1.0, 0.5]]]])
INPAINTED = torch.tensor([[[[0.5, 0.5]]]])
RECONSTRUCTION = torch.tensor([[[[0.0, 0.25]]]])


def test_inpainting_loss_is_the_mean_squared_error_over_the_whole_image():
    # Eq. 1: (0.5^2 + 0^2) / 2
    assert inpainting_loss(IMAGE, INPAINTED).item() == pytest.approx(0.125)


def test_distillation_loss_adds_the_error_of_reconstruction_and_of_error_image():
    # Eq. 2, first term: ((0 - 0.5)^2 + (0.25 - 0.5)^2) / 2 = 0.15625
    # E(G) = (0.25, 0), E(A) = (1, 0.0625); second term: (0.75^2 + 0.0625^2) / 2 = 0.283203125
    assert distillation_loss(IMAGE, INPAINTED, RECONSTRUCTION).item() == pytest.approx(0.15625 + 0.283203125)


def test_distillation_loss_is_zero_where_the_detector_equals_the_inpainter():
    assert distillation_loss(IMAGE, INPAINTED, INPAINTED).item() == 0


def test_prestage_loss_is_equation_1_without_and_equation_2_with_a_reconstruction():
    loss = PreStageLoss()
    assert loss(PreStageOutput(IMAGE, INPAINTED, None), None).item() == pytest.approx(0.125)
    assert loss(PreStageOutput(IMAGE, INPAINTED, RECONSTRUCTION), None).item() == pytest.approx(0.439453125)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_prestage_losses_of_half_precision_are_float32(dtype):
    half = [tensor.to(dtype) for tensor in (IMAGE, INPAINTED, RECONSTRUCTION)]
    assert inpainting_loss(*half[:2]).dtype == torch.float32
    assert distillation_loss(*half).item() == pytest.approx(0.439453125)
