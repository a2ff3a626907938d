"""The method's networks with element-wise skip sums, in 2D and 3D, for feature maps of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from nnunetv2_anomaly.plans.strides import Stride

NEGATIVE_SLOPE = 0.1

_TRANSPOSED_CONVOLUTION: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class _SingleSampleConvolution(nn.Module):
    """A convolution that on a CPU takes oneDNN for a single sample as well, without gradients.

    There torch (2.15) takes a plain loop of its own for all but large feature maps, and so needs as long for one window
    as for a batch of two. Values differ by rounding alone.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: Any  # tuple[int, ...]; torch allows a word as well
    dilation: tuple[int, ...]
    groups: int

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # first of all: what is asked below would break the graph
            return super().forward(input)
        # The exact type: what torch puts in a tensor's place to look at shapes alone has no oneDNN.
        plain = type(input) is Tensor and input.device.type == "cpu" and input.dtype == torch.float32
        single = plain and input.shape[0] == 1
        onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
        if not single or not onednn or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        return torch.mkldnn_convolution(
            input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


class _Convolution2d(_SingleSampleConvolution, nn.Conv2d):
    pass


class _Convolution3d(_SingleSampleConvolution, nn.Conv3d):
    pass


_CONVOLUTION: dict[int, Callable[..., Any]] = {2: _Convolution2d, 3: _Convolution3d}


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """Autocast off for the tensor's device; nothing to do on mps, where older torch refuses the context itself."""
    if tensor.device.type in ("cuda", "cpu"):
        return torch.autocast(tensor.device.type, enabled=False)
    return nullcontext()


def initialize_glorot(module: nn.Module) -> None:
    """Glorot-uniform weights and zero biases for convolutions and dense layers; for ``Module.apply``."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def initialize_identity_or_glorot(module: nn.Module) -> None:
    """Identity for dilated convolutions (Yu and Koltun 2016), else ``initialize_glorot``; for ``Module.apply``.

    The identity initialiser lets a convolution pass its input through: the centre weight from channel c to channel c
    is 1, every other weight and the bias are 0. It draws no random numbers.
    """
    if isinstance(module, (nn.Conv2d, nn.Conv3d)) and max(module.dilation) > 1:
        nn.init.dirac_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        initialize_glorot(module)


def pointwise_convolution(in_channels: int, out_channels: int, dimensions: int) -> nn.Conv2d | nn.Conv3d:
    """1x1(x1) convolution with bias for two or three spatial axes: (B, in_channels, ...) -> (B, out_channels, ...)."""
    return _CONVOLUTION[dimensions](in_channels, out_channels, kernel_size=1)


class ConvolutionBlock(nn.Sequential):
    """3x3(x3) convolution with bias, instance normalisation, leaky ReLU of slope 0.1 (Appendix A).

    An axis of n voxels leaves a stride s with ceil(n / s) voxels, whatever the dilation.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Stride, dilation: int = 1) -> None:
        dimensions = len(stride)
        super().__init__(
            _CONVOLUTION[dimensions](
                in_channels, out_channels, kernel_size=3, stride=tuple(stride), padding=dilation, dilation=dilation
            ),
            _INSTANCE_NORM[dimensions](out_channels, affine=True),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        )


class UpsamplingSum(nn.Module):
    """Transposed 3x3(x3) convolution plus the encoder's feature map, then instance norm and leaky ReLU (Appendix A)."""

    def __init__(self, in_channels: int, out_channels: int, stride: Stride) -> None:
        super().__init__()
        dimensions = len(stride)
        self.transposed = _TRANSPOSED_CONVOLUTION[dimensions](
            in_channels, out_channels, kernel_size=3, stride=tuple(stride), padding=1
        )
        self.norm = _INSTANCE_NORM[dimensions](out_channels, affine=True)

    def forward(self, deeper: Tensor, skip: Tensor) -> Tensor:
        """Upsample (B, C, ...) to exactly the size of skip, (B, C_out, ...), odd sizes included, and add skip."""
        upsampled = self.transposed(deeper, output_size=skip.shape[2:])
        # The sum is formed in float32: under float16 autocast two large halves would overflow or cancel.
        return leaky_relu(self.norm(upsampled.float() + skip.float()), NEGATIVE_SLOPE)


class SummingTrunk(nn.Module):
    """Encoder and decoder that the method's networks share (method paper, Appendix A, Fig. 2, 3).

    Level 1: two blocks. Each further level: one strided block, then one block; feature maps double. Up: transposed
    convolution plus the encoder's feature map, normalisation, then two blocks.

    With dilations the last level is CAN's context aggregation module instead: one strided block, one dilated block per
    dilation, then a block without dilation that doubles the feature maps once more.

    A subclass adds its output layers and then initialises everything with
    ``self.apply(initialize_identity_or_glorot)``: the order of the random draws is part of repeating a run from its
    seed.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        features: int,
        strides: Sequence[Stride],
        bottleneck_channels: int = 0,
        dilations: Sequence[int] = (),
    ) -> None:
        """Build the layers.

        Args:
            in_channels: channels of the input.
            features: feature maps at full resolution.
            strides: one entry per downsampling, each with one stride per spatial axis; two or three spatial axes.
            bottleneck_channels: channels that the caller concatenates at the bottleneck (C's code image in G and A).
            dilations: dilations of the context aggregation module, in voxels of the last level; none for a U-Net.
        """
        super().__init__()
        self.dimensions = len(strides[0])
        ones = (1,) * self.dimensions
        widths = [features * 2**level for level in range(len(strides) + 1)]
        self.encoder = nn.ModuleList(
            [nn.Sequential(ConvolutionBlock(in_channels, features, ones), ConvolutionBlock(features, features, ones))]
        )
        for level, stride in enumerate(strides, start=1):
            width = widths[level]
            blocks = [ConvolutionBlock(widths[level - 1], width, stride)]
            if dilations and level == len(strides):
                blocks += [ConvolutionBlock(width, width, ones, dilation) for dilation in dilations]
                blocks.append(ConvolutionBlock(width, 2 * width, ones))
            else:
                blocks.append(ConvolutionBlock(width, width, ones))
            self.encoder.append(nn.Sequential(*blocks))
        self.upsampling = nn.ModuleList()
        self.decoder = nn.ModuleList()
        deeper = (2 if dilations else 1) * widths[-1] + bottleneck_channels
        #: channels of each of ``feature_maps``, deepest first
        self.map_channels = [deeper, *reversed(widths[:-1])]
        for level in range(len(strides) - 1, -1, -1):
            self.upsampling.append(UpsamplingSum(deeper, widths[level], strides[level]))
            self.decoder.append(
                nn.Sequential(
                    ConvolutionBlock(widths[level], widths[level], ones),
                    ConvolutionBlock(widths[level], widths[level], ones),
                )
            )
            deeper = widths[level]

    def feature_maps(self, image: Tensor, bottleneck: Tensor | None = None) -> list[Tensor]:
        """Feature maps of the bottleneck and of every decoder level.

        Args:
            image: (B, in_channels, ...) with the spatial axes of the strides.
            bottleneck: (B, bottleneck_channels, ...) of the bottleneck's size, concatenated there.
        Returns: one (B, map_channels[i], ...) per level, deepest first: the bottleneck's output with the concatenated
            channels, then every decoder level; the last one has the image's size. Half precision under autocast.
        """
        skips = []
        x = image
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        if bottleneck is not None:
            x = torch.cat((x, bottleneck.to(x.dtype)), dim=1)
        maps = [x]
        for upsample, blocks, skip in zip(self.upsampling, self.decoder, reversed(skips[:-1]), strict=True):
            maps.append(blocks(upsample(maps[-1], skip)))
        return maps


class SummingUNet(SummingTrunk):
    """The U-Net shape of G, A and UNET (method paper, Appendix A, Fig. 2, 3): the trunk and a 1x1(x1) convolution.

    The convolution is computed in float32 also under autocast.
    """

    def __init__(self, *, out_channels: int, features: int, **of_trunk: Any) -> None:
        """Build the network with ``out_channels`` output channels; all else as in SummingTrunk."""
        super().__init__(features=features, **of_trunk)
        self.output = pointwise_convolution(features, out_channels, self.dimensions)
        self.apply(initialize_identity_or_glorot)

    def forward(self, image: Tensor, bottleneck: Tensor | None = None) -> Tensor:
        """Scores before any output non-linearity, (B, out_channels, ...) of the image's size, float32.

        Args: image, bottleneck: as ``feature_maps`` takes them.
        """
        x = self.feature_maps(image, bottleneck)[-1]
        with full_precision(x):
            return self.output(x.float())
