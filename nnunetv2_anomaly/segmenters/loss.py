"""The loss of the anomaly-aware segmentation: nnU-Net's Dice plus a focal cross-entropy (method paper, Eq. 4, 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate


def focal_weight(error: Tensor, beta: float) -> Tensor:
    """Focal weight per voxel, F = 1 + beta * E (method paper, Eq. 4), from the mean of E over its channels.

    Args:
        error: (B, C, ...) error image, in [0, 1], unitless.
        beta: slope, >= 0; 99 lets F run from 1 to 100.
    Returns: (B, 1, ...), float32, in [1, 1 + beta], unitless.
    """
    return 1.0 + beta * error.float().mean(dim=1, keepdim=True)


def focal_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor, ignore_label: int | None = None) -> Tensor:
    """-sum_i sum_k F_i v_ik log u_ik, as the mean over the voxels that count (method paper, Eq. 4).

    The weight is per voxel, as in the paper; its authors' code reduced the cross-entropy before weighting. The mean
    divides by the number of voxels, not by the sum of the weights, so that F = 1 is plain cross-entropy and F = 2
    doubles it.

    Args:
        logits: (B, K, ...), scores before the softmax.
        target: (B, 1, ...), class indices, any number type.
        weight: (B, 1, ...), focal weight F, unitless.
        ignore_label: voxels with this class do not count; with no voxel left the loss is 0.
    Returns: scalar, float32.
    """
    labels = target[:, 0].long()
    if ignore_label is None:
        return (cross_entropy(logits.float(), labels, reduction="none") * weight[:, 0]).mean()
    valid_mask = labels != ignore_label
    voxelwise = cross_entropy(logits.float(), labels, reduction="none", ignore_index=ignore_label)
    return (voxelwise * weight[:, 0]).sum() / valid_mask.sum().clamp(min=1)


class DiceAndFocalCrossEntropy(nn.Module):
    """L_Dice + alpha * L_FCE of one scale (method paper, Eq. 5), with nnU-Net's own Dice."""

    def __init__(self, dice: nn.Module, alpha: float, ignore_label: int | None) -> None:
        super().__init__()
        self.dice = dice
        self.alpha = alpha
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Args: logits (B, K, ...), target (B, 1, ...), weight (B, 1, ...) all of one size. Returns: scalar."""
        if self.ignore_label is None:
            dice = self.dice(logits, target)
        else:
            valid_mask = target != self.ignore_label
            dice = self.dice(logits, torch.where(valid_mask, target, 0), loss_mask=valid_mask)
        return dice + self.alpha * focal_cross_entropy(logits, target, weight, self.ignore_label)


def average_to(weight: Tensor, size: Sequence[int]) -> Tensor:
    """Mean of the weight over the voxels that a coarser voxel touches, (B, 1, ...) -> (B, 1, *size)."""
    if tuple(weight.shape[2:]) == tuple(size):
        return weight
    return interpolate(weight, size=tuple(size), mode="area")


class AnomalyAwareLoss(nn.Module):
    """Brings the focal weight to every output scale; takes what nnU-Net's training step hands a loss.

    nnU-Net's steps call ``loss(output, target)``. The error image comes from ``error_image_source``, which returns
    that of the forward pass that made ``output``.
    """

    def __init__(self, loss_of_scale: nn.Module, beta: float, error_image_source: Callable[[], Tensor]) -> None:
        """Build the loss.

        Args:
            loss_of_scale: DiceAndFocalCrossEntropy, or with deep supervision nnU-Net's DeepSupervisionWrapper of it.
            beta: slope of the focal weight (Eq. 4).
            error_image_source: returns the error image, (B, C, ...), of the latest forward pass.
        """
        super().__init__()
        self.loss_of_scale = loss_of_scale
        self.beta = beta
        self.error_image_source = error_image_source

    def forward(self, output: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Tensor:
        """Scalar loss of logits (B, K, ...) and target (B, 1, ...), or of lists of them, full resolution first."""
        weight = focal_weight(self.error_image_source(), self.beta)
        if isinstance(output, (list, tuple)):
            weights = [average_to(weight, logits.shape[2:]) for logits in output]
            return self.loss_of_scale(output, target, weights)
        return self.loss_of_scale(output, target, weight)
