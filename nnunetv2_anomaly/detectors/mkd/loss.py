"""How far the cloner is from its teacher: direction and value of their maps (Salehi et al. 2021, Eq. 1 to 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nnunetv2_anomaly.detectors.mkd.networks import CRITICAL

#: of the values beside the directions
LAMBDA = 0.01


def distance(
    of_cloner: Sequence[Tensor],
    of_teacher: Sequence[Tensor],
    layers: Sequence[int] = CRITICAL,
    lambda_value: float = LAMBDA,
) -> Tensor:
    """Distance of the maps of each slice: 1 - cosine of whole maps, plus ``lambda_value`` times their mean square.

    Args: maps: 13 each, (B, C, y, x). layers: which of them count. Returns: (B,); its mean over the batch is the loss.
    """
    total = torch.zeros(len(of_cloner[0]), device=of_cloner[0].device)
    for layer in layers:
        mine, theirs = of_cloner[layer].flatten(1).float(), of_teacher[layer].flatten(1).float()
        total = total + (1 - cosine_similarity(mine, theirs, dim=1))
        total = total + lambda_value * (mine - theirs).square().mean(dim=1)
    return total
