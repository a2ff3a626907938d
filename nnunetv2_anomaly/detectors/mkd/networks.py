"""Teacher and cloner of multiresolution knowledge distillation (Salehi et al., CVPR 2021, arXiv:2011.11108).

A small network learns to give what a frozen VGG-16 gives, of normal slices alone: where both differ, something is not
normal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

#: widths of VGG-16's convolutions; after each group comes a max-pool
TEACHER_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
#: of the cloner, whose groups end as wide as the teacher's, but for the first
CLONER_WIDTHS = ((16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512))
#: of the 13 maps, those that are compared in training: the second to the fifth max-pool
CRITICAL = (3, 6, 9, 12)
#: and in scoring
SCORED = (6, 9, 12)


class _GuidedReLU(torch.autograd.Function):
    """ReLU whose gradient is passed on only where it is positive as well (Springenberg et al. 2015)."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        return features.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        return gradients[0].clamp(min=0) * (features > 0)


class FeatureNetwork(nn.Module):
    """Convolutions of 3 x 3 in groups, a max-pool after each group."""

    def __init__(self, widths: Sequence[Sequence[int]], *, bias: bool, norm: bool) -> None:
        """Args: norm: batch norm after every convolution but the last of a group."""
        super().__init__()
        self.guided = False
        inputs = 3
        self.groups = nn.ModuleList()
        for group in widths:
            layers = nn.ModuleList()
            for number, width in enumerate(group, start=1):
                convolution = nn.Conv2d(inputs, width, 3, padding=1, bias=bias)
                normed = norm and number < len(group)
                layers.append(nn.Sequential(convolution, *([nn.BatchNorm2d(width)] if normed else [])))
                inputs = width
            self.groups.append(layers)

    def forward(self, image: Tensor) -> list[Tensor]:
        """A map for each of the 13 convolutions, after its ReLU, and after the max-pool for the last of a group.

        Args: image: (B, 3, Y, X), a multiple of 32 voxels along both axes.
        """
        maps = []
        for group in self.groups:
            assert isinstance(group, nn.ModuleList)
            for number, layer in enumerate(group, start=1):
                convolved = layer(image)
                image = _GuidedReLU.apply(convolved) if self.guided else relu(convolved)
                if number == len(group):
                    image = max_pool2d(image, 2)
                maps.append(image)
        return maps

    @contextmanager
    def guided_gradients(self) -> Iterator[None]:
        """Within it gradients are those of guided back-propagation."""
        self.guided = True
        try:
            yield
        finally:
            self.guided = False


def build_cloner() -> FeatureNetwork:
    """The untrained cloner, 343,984 parameters, initialised as Glorot and Bengio (2010) do."""
    cloner = FeatureNetwork(CLONER_WIDTHS, bias=False, norm=True)
    for layer in cloner.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
    return cloner


def build_teacher() -> FeatureNetwork:
    """VGG-16's convolutions, 14,714,688 parameters, frozen, without weights."""
    teacher = FeatureNetwork(TEACHER_WIDTHS, bias=True, norm=False)
    return teacher.requires_grad_(False).eval()


def load_vgg16(teacher: FeatureNetwork, state: dict[str, Tensor]) -> None:
    """Take the weights of torchvision's VGG-16. Raises: ValueError if they are of another network."""
    convolutions = [layer for layer in teacher.modules() if isinstance(layer, nn.Conv2d)]
    numbers = sorted({int(name.split(".")[1]) for name in state if name.startswith("features.")})
    if len(numbers) != len(convolutions):
        raise ValueError(f"they have {len(numbers)} convolutions; VGG-16 has {len(convolutions)}")
    for number, layer in zip(numbers, convolutions, strict=True):
        weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
        assert layer.bias is not None
        if weight.shape != layer.weight.shape:
            raise ValueError(f"convolution {number} is {tuple(weight.shape)}; VGG-16's is {tuple(layer.weight.shape)}")
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(bias)
