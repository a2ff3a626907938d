"""The main network, which cuts an image in two and mixes the cuts again, and the discriminator (Dey et al., ASC-Net).

Where paper and public code differ, docs/how-to/asc-net.md says which is built.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

#: downsamplings; sides have to be a multiple of 2 to the power of it
LEVELS = 4
_DROPOUT = 0.3
#: of Keras's batch norm, in torch's words
_NORM: dict[str, Any] = {"eps": 1e-3, "momentum": 0.01}


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(outputs, **_NORM)]
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """Four blocks of two convolutions, each with a max-pool and dropout behind it, and two convolutions more."""

    def __init__(self, num_channels: int, features: int = 32) -> None:
        """Args: features: of the first block; they double."""
        super().__init__()
        widths = [num_channels, *(features * 2**level for level in range(LEVELS))]
        self.blocks = nn.ModuleList(_convolutions(*pair) for pair in itertools.pairwise(widths))
        self.transition = _convolutions(widths[-1], 2 * widths[-1])
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, C, Y, X), multiples of 16 -> features before each max-pool, and those at a sixteenth of the size."""
        skips = []
        for block in self.blocks:
            skips.append(block(image))
            image = self.dropout(max_pool2d(skips[-1], 2))
        return skips, self.transition(image)


class Decoder(nn.Module):
    """Up again, with the encoder's features beside, to one cut."""

    def __init__(self, num_channels: int, features: int, drop_last: bool) -> None:
        """Args: features: of the encoder's first block. drop_last: whether dropout stands at full resolution, too."""
        super().__init__()
        widths = [features * 2**level for level in range(LEVELS, -1, -1)]
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in itertools.pairwise(widths))
        self.blocks = nn.ModuleList(_convolutions(2 * width, width) for width in widths[1:])
        rates = [_DROPOUT] * (LEVELS - 1) + [_DROPOUT if drop_last else 0.0]
        self.dropouts = nn.ModuleList(nn.Dropout(rate) for rate in rates)
        self.head = nn.Conv2d(features, num_channels, 1)

    def forward(self, skips: Sequence[Tensor], bottom: Tensor) -> Tensor:
        """What ``Encoder`` returned -> (B, C, Y, X), in [0, 1]."""
        for up, dropout, block, skip in zip(self.up, self.dropouts, self.blocks, reversed(skips), strict=True):
            bottom = block(dropout(torch.cat((up(bottom), skip), dim=1)))
        return torch.sigmoid(self.head(bottom))


class Cuts(NamedTuple):
    """(B, C, Y, X) each, in [0, 1]."""

    fence: Tensor  # what looks like the reference set
    wild: Tensor  # the rest
    reconstruction: Tensor  # both, mixed


class MainNetwork(nn.Module):
    """One encoder, two decoders and a mixer of one weight for each cut."""

    def __init__(self, num_channels: int, features: int = 32) -> None:
        super().__init__()
        self.encoder = Encoder(num_channels, features)
        self.fence = Decoder(num_channels, features, drop_last=False)
        self.wild = Decoder(num_channels, features, drop_last=True)
        self.mixer = nn.Conv2d(2 * num_channels, num_channels, 1)

    def forward(self, image: Tensor) -> Cuts:
        """(B, C, Y, X), in [0, 1]; sides are multiples of 16."""
        skips, bottom = self.encoder(image)
        fence, wild = self.fence(skips, bottom), self.wild(skips, bottom)
        return Cuts(fence, wild, torch.sigmoid(self.mixer(torch.cat((fence, wild), dim=1))))

    @property
    def wild_weight(self) -> float:
        """Share of the wild cut in the mixer's weights, in [0, 1]."""
        fence, wild = self.mixer.weight.detach().abs().chunk(2, dim=1)
        return float(wild.sum() / (fence.sum() + wild.sum()))


class Discriminator(nn.Module):
    """The encoder's layout and a dense layer: above 0 for what looks like the reference set."""

    def __init__(self, num_channels: int, size: Sequence[int], features: int = 32) -> None:
        """Args: size: (Y, X) of all slices that it will judge."""
        super().__init__()
        self.encoder = Encoder(num_channels, features)
        self.dense = nn.Linear(features * 2**LEVELS * prod(voxels // 2**LEVELS for voxels in size), 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B,), in [-1, 1]."""
        return torch.tanh(self.dense(self.encoder(image)[1].flatten(1)))[:, 0]

    @contextmanager
    def as_judge(self) -> Iterator[None]:
        """Within it gradients pass, and neither parameters nor running statistics change.

        Batches are normalised by themselves, as a frozen network's are in Keras 2.2.
        """
        norms = [layer for layer in self.modules() if isinstance(layer, nn.BatchNorm2d)]
        self.requires_grad_(False)
        for norm in norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            self.requires_grad_(True)
            for norm in norms:
                norm.track_running_stats = True
