"""Losses of the pre-stage (method paper, Eq. 1, 2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from nnunetv2_anomaly.detectors.error import error_image
from nnunetv2_anomaly.detectors.inpainting.networks import PreStageOutput


def inpainting_loss(image: Tensor, inpainted: Tensor) -> Tensor:
    """MSE(x, G(x)) over the whole image (method paper, Eq. 1). Both (B, C, ...), in [0, 1]; returns a scalar."""
    return mse_loss(inpainted.float(), image.float())


def distillation_loss(image: Tensor, inpainted: Tensor, reconstruction: Tensor) -> Tensor:
    """MSE(G(x), A(x)) + MSE(E(G(x)), E(A(x))) (method paper, Eq. 2). All (B, C, ...), in [0, 1]; returns a scalar."""
    of_images = mse_loss(reconstruction.float(), inpainted.float())
    return of_images + mse_loss(error_image(image, reconstruction), error_image(image, inpainted))


class PreStageLoss(nn.Module):
    """Eq. 1 while A is not computed, Eq. 2 once it is; the target of nnU-Net's training step plays no part."""

    def forward(self, output: PreStageOutput, target: Tensor) -> Tensor:
        """Scalar loss of one forward pass of PreStageNetwork."""
        if output.reconstruction is None:
            return inpainting_loss(output.image, output.inpainted)
        return distillation_loss(output.image, output.inpainted, output.reconstruction)
