"""Steps of both networks (Dey et al., Algorithm 1)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from nnunetv2_anomaly.detectors.asc_net import loss
from nnunetv2_anomaly.detectors.asc_net.detector import ASCNetDetector
from nnunetv2_anomaly.detectors.asc_net.networks import Cuts, Discriminator
from nnunetv2_anomaly.detectors.base import refuse_to_segment


class MainLosses(NamedTuple):
    """Scalars."""

    fence: Tensor
    disjoint: Tensor
    reconstruction: Tensor


class SelectiveCutting(nn.Module):
    """Main network and discriminator as they are trained."""

    def __init__(self, detector: ASCNetDetector, discriminator: Discriminator, penalty: float) -> None:
        """Args: penalty: weight of the squared kernels in both losses."""
        super().__init__()
        self.detector, self.discriminator, self.penalty = detector, discriminator, penalty

    def forward(self, image: Tensor) -> Tensor:
        """Nothing to segment with. Raises: UserError naming the verb that makes its maps."""
        raise refuse_to_segment(self.detector)

    @torch.no_grad()
    def cuts(self, image: Tensor) -> Cuts:
        """Of rescaled slices (B, C, Y, X), by the main network as it is at prediction."""
        main = self.detector.main
        training = main.training
        found: Cuts = main.eval()(image)
        main.train(training)
        return found

    def main_losses(self, image: Tensor) -> MainLosses:
        """Of rescaled slices (B, C, Y, X); the discriminator only judges."""
        cuts = self.detector.main(image)
        with self.discriminator.as_judge():
            judged = self.discriminator(cuts.fence)
        return MainLosses(
            loss.fence_loss(judged),
            loss.disjoint_loss(cuts.fence, cuts.wild),
            mse_loss(cuts.reconstruction, image),
        )

    def train_main(self, image: Tensor, optimizer: torch.optim.Optimizer, disjoint: bool) -> float:
        """One step on rescaled slices. Args: disjoint: whether the disjoint term counts."""
        losses = self.main_losses(image)
        total = losses.fence + losses.reconstruction + (losses.disjoint if disjoint else 0.0)
        return self._step(total + self.penalty * loss.weight_penalty(self.detector.main), optimizer)

    def train_discriminator(
        self, image: Tensor, reference: Tensor, optimizer: torch.optim.Optimizer, second_stage: bool
    ) -> float:
        """One step on rescaled slices of both kinds; in stage 2 the reference's fence cuts are true as well."""
        true, false = reference, self.cuts(image).fence
        if second_stage:
            true = torch.cat((true, self.cuts(reference).fence))
            false = torch.cat((false, false))  # as many of either kind
        judged = self.discriminator(torch.cat((true, false)))
        total = loss.discriminator_loss(judged[: len(true)], judged[len(true) :])
        return self._step(total + self.penalty * loss.weight_penalty(self.discriminator), optimizer)

    def _step(self, total: Tensor, optimizer: torch.optim.Optimizer) -> float:
        self.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        return float(total.detach())

    @torch.no_grad()
    def restart_discriminator(self) -> None:
        """Give it new weights."""
        fresh = copy.deepcopy(self.discriminator)
        for layer in fresh.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                layer.reset_parameters()
        self.discriminator.load_state_dict(fresh.state_dict())
