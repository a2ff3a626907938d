"""Losses of LaMa's training, with m = 1 in the hole (Suvorov et al. 2022, Section 2.3, and the published weights)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, mse_loss, softplus

#: of the terms; nothing pulls the hole to its true content but the discriminator and its features
KNOWN_WEIGHT = 10.0  # L1 outside the hole
ADVERSARIAL_WEIGHT = 10.0
FEATURE_MATCHING_WEIGHT = 100.0
GRADIENT_PENALTY_WEIGHT = 0.001


def reconstruction_loss(predicted: Tensor, image: Tensor, hole: Tensor) -> Tensor:
    """Mean over all voxels of the absolute difference outside the hole, weighted; 0 within it.

    Args: predicted, image: (B, C, Y, X). hole: (B, 1, Y, X), 1 in the hole.
    """
    return (KNOWN_WEIGHT * (1 - hole) * (predicted - image).abs()).mean()


def generator_adversarial_loss(logits_of_predicted: Tensor) -> Tensor:
    """Non-saturating loss over all patches: (B, 1, y, x) -> scalar."""
    return softplus(-logits_of_predicted).mean()


def feature_matching_loss(of_predicted: Sequence[Tensor], of_image: Sequence[Tensor]) -> Tensor:
    """Mean over the discriminator's stages of the mean squared difference of features."""
    losses = [mse_loss(mine, theirs) for mine, theirs in zip(of_predicted, of_image, strict=True)]
    return torch.stack(losses).mean()


def discriminator_loss(logits_of_image: Tensor, logits_of_predicted: Tensor, hole: Tensor) -> Tensor:
    """Real slices are real; of filled ones only patches in the hole are fake, and the known ones real.

    Args: logits: (B, 1, y, x). hole: (B, 1, Y, X), 1 in the hole.
    """
    fake = interpolate(hole.float(), size=logits_of_predicted.shape[2:], mode="nearest")
    of_predicted = fake * softplus(logits_of_predicted) + (1 - fake) * softplus(-logits_of_predicted)
    return (softplus(-logits_of_image) + of_predicted).mean()


def gradient_penalty(logits_of_image: Tensor, image: Tensor) -> Tensor:
    """R1: squared norm of the gradient of a real slice's summed logits, mean over slices (Mescheder et al. 2018).

    Args: logits_of_image: (B, 1, y, x), of ``image``, (B, C, Y, X), which requires gradients.
    """
    (gradient,) = torch.autograd.grad(logits_of_image.sum(), image, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()
