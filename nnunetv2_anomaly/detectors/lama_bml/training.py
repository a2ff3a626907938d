"""One step of LaMa's training: the generator, then the discriminator (Suvorov et al. 2022)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from nnunetv2_anomaly.detectors.base import refuse_to_segment
from nnunetv2_anomaly.detectors.lama_bml import loss
from nnunetv2_anomaly.detectors.lama_bml.detector import LaMaDetector
from nnunetv2_anomaly.detectors.lama_bml.holes import drawn_hole
from nnunetv2_anomaly.detectors.lama_bml.networks import Discriminator
from nnunetv2_anomaly.detectors.lama_bml.perceptual import PerceptualLoss
from nnunetv2_anomaly.detectors.level import bone_numbers

#: largest norm of the gradients of either network
_LARGEST_NORM = 1.0


class AdversarialInpainting(nn.Module):
    """Generator and discriminator as they are trained, with the losses of both."""

    def __init__(self, detector: LaMaDetector, discriminator: Discriminator) -> None:
        super().__init__()
        self.detector, self.discriminator = detector, discriminator
        self.perceptual: list[PerceptualLoss] = []  # a list, so that its weights are in no checkpoint

    def forward(self, image: Tensor) -> Tensor:
        """Nothing to segment with. Raises: UserError naming the verb that makes its maps."""
        raise refuse_to_segment(self.detector)

    def generator_loss(self, image: Tensor, hole: Tensor) -> Tensor:
        """Scalar. Args: image: (B, C, Y, X), rescaled. hole: (B, 1, Y, X), 1 in the hole."""
        predicted = self.detector.generator(image, hole)
        logits, of_predicted = self.discriminator(predicted)
        with torch.no_grad():
            _, of_image = self.discriminator(image)
        total = loss.reconstruction_loss(predicted, image, hole)
        total = total + loss.ADVERSARIAL_WEIGHT * loss.generator_adversarial_loss(logits)
        total = total + loss.FEATURE_MATCHING_WEIGHT * loss.feature_matching_loss(of_predicted, of_image)
        for perceptual in self.perceptual:
            total = total + perceptual(predicted, image, self.detector.intensity_low, self.detector.intensity_high)
        return total

    def discriminator_loss(self, image: Tensor, hole: Tensor) -> Tensor:
        """Scalar; the generator is left alone. Args: as ``generator_loss``."""
        with torch.no_grad():
            predicted = self.detector.generator(image, hole)
        real = image.detach().requires_grad_()
        of_image, of_predicted = self.discriminator(real)[0], self.discriminator(predicted)[0]
        penalty = loss.gradient_penalty(of_image, real)
        return loss.discriminator_loss(of_image, of_predicted, hole) + loss.GRADIENT_PENALTY_WEIGHT * penalty

    def hole_error(self, image: Tensor, hole: Tensor) -> Tensor:
        """Mean absolute difference in the hole, which nothing trains directly. Args: as ``generator_loss``."""
        difference = (self.detector.generator(image, hole) - image).abs() * hole
        return difference.sum() / (hole.sum() * image.shape[1]).clamp(min=1)


def step(
    network: AdversarialInpainting,
    image: Tensor,
    hole: Tensor,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
) -> tuple[float, float]:
    """Train the generator, then the discriminator on what it fills now; the losses of both.

    Args: image, hole: as ``generator_loss``. optimizers: of the generator, of the discriminator.
    """
    losses = []
    for part, optimizer, of in zip(
        (network.detector.generator, network.discriminator),
        optimizers,
        (network.generator_loss, network.discriminator_loss),
        strict=True,
    ):
        network.zero_grad(set_to_none=True)
        value = of(image, hole)
        value.backward()
        clip_grad_norm_(part.parameters(), _LARGEST_NORM)
        optimizer.step()
        losses.append(float(value.detach()))
    return losses[0], losses[1]


def holes_of(labels: Tensor, bones: Sequence[Collection[int]], drawn: bool) -> Tensor:
    """Holes of a batch: all bones, or random lines and boxes.

    Args: labels: (B, 1, Y, X). bones: label values of each. Returns: (B, 1, Y, X), float32, 1 in the hole.
    """
    if not drawn:
        return (bone_numbers(labels, bones) > 0).float()
    rng = np.random.default_rng(np.random.randint(2**31))
    size = (int(labels.shape[2]), int(labels.shape[3]))
    holes = np.stack([drawn_hole(size, rng)[None] for _ in labels])
    return torch.from_numpy(holes).to(labels.device).float()
