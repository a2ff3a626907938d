"""Losses of the two phases."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from nnunetv2_anomaly.detectors.level import bone_numbers, level_within

if TYPE_CHECKING:
    from nnunetv2_anomaly.detectors.pasted.networks import PastedOutput

#: by which voxels of anomalies count more
POSITIVE_WEIGHT = 10.0
#: weights of voxels outside bones, and by how much those inside count more, in phases 1 and 2
_OUTSIDE, _INSIDE = (0.1, 0.05), 1.0


class PastedLoss(nn.Module):
    """Phase 1: A(x) is to be the local level in bones, and x elsewhere. Phase 2: D is to find what was pasted."""

    def __init__(
        self,
        bones: Sequence[Collection[int]],
        sigma_voxels: Sequence[float],
        polarity: str,
        ignore_label: int | None = None,
    ) -> None:
        """Set the target.

        Args: bones: label values of each. sigma_voxels, polarity: as ``local_level`` takes them. ignore_label: voxels
            with this label do not count.
        """
        super().__init__()
        self.bones, self.sigma_voxels, self.polarity = bones, sigma_voxels, polarity
        self.ignore_label = -1 if ignore_label is None else ignore_label  # nnU-Net leaves no label below 0

    def forward(self, output: PastedOutput, target: Tensor) -> Tensor:
        """Scalar loss. Args: target: (B, 2, *patch_size), labels, and 1 or 2 where brighter or darker was pasted."""
        numbers = bone_numbers(target[:, 0], self.bones)
        inside = (numbers > 0)[:, None].float()
        known = (target[:, :1] != self.ignore_label).float()
        if output.logits is None:
            with torch.no_grad():
                level = level_within(output.rescaled, numbers, self.sigma_voxels, self.polarity)
            squares = torch.square(output.rescaled - output.deviation - level)
            return (known * (_OUTSIDE[0] + _INSIDE * inside) * squares).mean()
        wanted = torch.stack((target[:, 1] == 1, target[:, 1] == 2), dim=1).to(output.logits)
        weight = torch.full((), POSITIVE_WEIGHT, device=wanted.device)
        entropy = binary_cross_entropy_with_logits(output.logits, wanted, pos_weight=weight, reduction="none")
        return (known * (_OUTSIDE[1] + _INSIDE * inside) * entropy).mean()
