"""The Dice losses of the method paper: Eq. 3 for training, Eq. 6 for transfer learning.

With ``DiceAndFocalCrossEntropy`` they make Eq. 5 and Eq. 7. They differ from nnU-Net's Dice in that the background
counts as a class, every sample of a batch has its own Dice, and nothing is added to numerator and denominator.

A class absent from the reference has the Dice 0 whatever its scores are, and its share of the loss is constant: only
the cross-entropy teaches the network not to predict it. That is how the equations stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALLEST_DENOMINATOR = 1e-8


def _softmax(logits: Tensor) -> Tensor:
    """u, at least float32: half precision cannot hold sums over millions of voxels."""
    return torch.softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _sums_per_class(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sum of values (B, ...) over the voxels of each class in labels (B, ...), class indices: (B, num_classes).

    Summed row by row first: a single float32 number stops growing at 2^24, fewer than the voxels of a knee.
    """
    rows = labels.reshape(labels.shape[0], -1, labels.shape[-1])
    sums = values.new_zeros(*rows.shape[:2], num_classes)
    return sums.scatter_add_(2, rows, values.reshape(rows.shape)).sum(dim=1)


class _ProbabilityAndOverlap(torch.autograd.Function):
    """sum_i u and sum_i u v per sample and class, without a one-hot reference and with the softmax's gradient by hand.

    At 160 x 384 x 384 voxels and 10 classes one float32 tensor of scores has 0.9 GB. Nothing of that size is kept for
    the backward pass but the logits, and the backward pass makes two: u and the gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, valid_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """logits (B, K, ...), labels (B, ...) in 0 ... K - 1, valid_mask (B, ...) bool -> two sums (B, K)."""
        ctx.save_for_backward(logits, labels, valid_mask)
        probabilities = _softmax(logits)
        of_reference = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
        if valid_mask is not None:
            of_reference = of_reference * valid_mask
            probabilities *= valid_mask.unsqueeze(1)
        return probabilities.flatten(2).sum(dim=2), _sums_per_class(of_reference, labels, logits.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_probability: Tensor, of_overlap: Tensor) -> tuple[Tensor, None, None]:
        """Gradients (B, K) of the two sums -> gradient of the logits."""
        logits, labels, valid_mask = ctx.saved_tensors
        probabilities = _softmax(logits)
        # The loss changes with u_ik by g_ik = of_probability_k + v_ik of_overlap_k, and with the logit z_ik by
        # u_ik (g_ik - sum_j u_ij g_ij). gradient holds u g first.
        gradient = probabilities * of_probability.view(*of_probability.shape, *(1,) * (logits.ndim - 2))
        of_reference = of_overlap.gather(1, labels.flatten(1)).view_as(labels).unsqueeze(1)
        index = labels.unsqueeze(1)
        gradient.scatter_add_(1, index, probabilities.gather(1, index) * of_reference)
        gradient.addcmul_(probabilities, gradient.sum(dim=1, keepdim=True), value=-1)
        if valid_mask is not None:
            gradient *= valid_mask.unsqueeze(1)
        return gradient.to(logits.dtype), None, None


def _labels_and_mask(
    target: Tensor, loss_mask: Tensor | None, ignore_label: int | None
) -> tuple[Tensor, Tensor | None]:
    """Class indices (B, ...), 0 where a voxel does not count, and bool (B, ...) of those that do; None if all do."""
    labels = target[:, 0].long()
    valid_mask = None if loss_mask is None else loss_mask[:, 0] != 0
    if ignore_label is not None:
        not_ignored = labels != ignore_label
        valid_mask = not_ignored if valid_mask is None else valid_mask & not_ignored
    if valid_mask is not None:
        labels = torch.where(valid_mask, labels, 0)
    return labels, valid_mask


def _voxels_per_class(labels: Tensor, valid_mask: Tensor | None, like: Tensor) -> Tensor:
    """Number of voxels of each class that count, (B, K), in the type and for the classes of ``like``, (B, K)."""
    ones = like.new_ones(()).expand(labels.shape) if valid_mask is None else valid_mask.to(like.dtype)
    return _sums_per_class(ones, labels, like.shape[1])


def _dice_of_classes(logits: Tensor, labels: Tensor, valid_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """2 sum_i u v / (sum_i u + sum_i v), and sum_i v, both (B, K), float32 or better."""
    probability, overlap = _ProbabilityAndOverlap.apply(logits, labels, valid_mask)
    reference = _voxels_per_class(labels, valid_mask, probability)
    return 2 * overlap / (probability + reference).clamp_min(SMALLEST_DENOMINATOR), reference


class MultiClassDiceLoss(nn.Module):
    """1 - (2/|K|) sum_k (sum_i u v) / (sum_i u + sum_i v) (method paper, Eq. 3), background included.

    A class that has neither reference nor probability has the Dice 0 / 1e-8 = 0 and adds 1/|K| to the loss; with no
    voxel that counts the loss is 1, with gradient 0.
    """

    def __init__(self, ignore_label: int | None = None) -> None:
        """Build the loss; voxels whose target is ignore_label do not count."""
        super().__init__()
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, target: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Mean over the batch of each sample's loss.

        Args:
            logits: (B, K, ...), scores before the softmax, which is taken in float32.
            target: (B, 1, ...), class indices 0 ... K - 1, any number type.
            loss_mask: (B, 1, ...), voxels with 0 or False do not count; their target may be anything.
        Returns: scalar in [0, 1], float32 (float64 for float64 logits).
        Raises: RuntimeError, of torch.gather, for a class index outside 0 ... K - 1.
        """
        labels, valid_mask = _labels_and_mask(target, loss_mask, self.ignore_label)
        dice, _ = _dice_of_classes(logits, labels, valid_mask)
        return 1 - dice.mean()


class WeightedDiceLoss(nn.Module):
    """(1/|K|) sum_k w_k (1 - 2 sum_i u v / (sum_i u + sum_i v)) (method paper, Eq. 6), background included.

    Sample by sample w_k is 0 for a class that is absent from reference and prediction alike: no voxel has it as target
    and no voxel has its largest score there (of equal scores the first class has it). The division is by |K| whatever
    the weights are. With no voxel that counts the loss is 0.
    """

    def __init__(self, class_weights: Sequence[float], ignore_label: int | None = None) -> None:
        """Build the loss.

        Args:
            class_weights: w_k, one per class, background first; the paper has 1 for classes learned before, 10 for new
                ones.
            ignore_label: voxels with this target do not count.
        """
        super().__init__()
        self.class_weights = tuple(float(weight) for weight in class_weights)
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, target: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Mean over the batch of each sample's loss.

        Args: logits (B, K, ...), target (B, 1, ...), loss_mask (B, 1, ...) as in MultiClassDiceLoss.
        Returns: scalar in [0, mean of the weights], float32 (float64 for float64 logits).
        Raises: as MultiClassDiceLoss.
        """
        labels, valid_mask = _labels_and_mask(target, loss_mask, self.ignore_label)
        dice, reference = _dice_of_classes(logits, labels, valid_mask)
        with torch.no_grad():
            predicted = _voxels_per_class(logits.argmax(dim=1), valid_mask, reference)
            present = (reference > 0) | (predicted > 0)
            weights = present * dice.new_tensor(self.class_weights)
        return (weights * (1 - dice)).mean()
