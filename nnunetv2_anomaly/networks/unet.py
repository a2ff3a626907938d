"""The method's U-Net with element-wise skip sums, in 2D and 3D, for feature maps of any size."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

NEGATIVE_SLOPE = 0.1

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED_CONVOLUTION = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}

Stride = Sequence[int]


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


class ConvolutionBlock(nn.Sequential):
    """3x3(x3) convolution with bias, instance normalisation, leaky ReLU of slope 0.1 (Appendix A).

    An axis of n voxels leaves a stride s with ceil(n / s) voxels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Stride) -> None:
        dimensions = len(stride)
        super().__init__(
            _CONVOLUTION[dimensions](in_channels, out_channels, kernel_size=3, stride=tuple(stride), padding=1),
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


class SummingUNet(nn.Module):
    """The U-Net shape of G, A and UNET (method paper, Appendix A, Fig. 2, 3).

    Level 1: two blocks. Each further level: one strided block, then one block; feature maps double. Up: transposed
    convolution plus the encoder's feature map, normalisation, then two blocks. Last: a 1x1(x1) convolution, computed
    in float32 also under autocast.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        features: int,
        strides: Sequence[Stride],
        bottleneck_channels: int = 0,
    ) -> None:
        """Build the network.

        Args:
            in_channels, out_channels: channels of input and output.
            features: feature maps at full resolution.
            strides: one entry per downsampling, each with one stride per spatial axis; two or three spatial axes.
            bottleneck_channels: channels that the caller concatenates at the bottleneck (C's code image in G and A).
        Raises: ValueError if strides are empty or differ in their number of axes.
        """
        super().__init__()
        if not strides or len({len(stride) for stride in strides}) != 1 or len(strides[0]) not in _CONVOLUTION:
            raise ValueError(f"strides must be a list of strides with two or three axes each, got {strides}")
        dimensions = len(strides[0])
        ones = (1,) * dimensions
        widths = [features * 2**level for level in range(len(strides) + 1)]
        self.encoder = nn.ModuleList(
            [nn.Sequential(ConvolutionBlock(in_channels, features, ones), ConvolutionBlock(features, features, ones))]
        )
        for level, stride in enumerate(strides, start=1):
            self.encoder.append(
                nn.Sequential(
                    ConvolutionBlock(widths[level - 1], widths[level], stride),
                    ConvolutionBlock(widths[level], widths[level], ones),
                )
            )
        self.upsampling = nn.ModuleList()
        self.decoder = nn.ModuleList()
        deeper = widths[-1] + bottleneck_channels
        for level in range(len(strides) - 1, -1, -1):
            self.upsampling.append(UpsamplingSum(deeper, widths[level], strides[level]))
            self.decoder.append(
                nn.Sequential(
                    ConvolutionBlock(widths[level], widths[level], ones),
                    ConvolutionBlock(widths[level], widths[level], ones),
                )
            )
            deeper = widths[level]
        self.output = _CONVOLUTION[dimensions](features, out_channels, kernel_size=1)
        self.apply(initialize_glorot)

    def forward(self, image: Tensor, bottleneck: Tensor | None = None) -> Tensor:
        """Scores before any output non-linearity.

        Args:
            image: (B, in_channels, ...) with the spatial axes of the strides.
            bottleneck: (B, bottleneck_channels, ...) of the bottleneck's size, concatenated there.
        Returns: (B, out_channels, ...) of the image's size, float32.
        """
        feature_maps = []
        x = image
        for stage in self.encoder:
            x = stage(x)
            feature_maps.append(x)
        if bottleneck is not None:
            x = torch.cat((x, bottleneck.to(x.dtype)), dim=1)
        for upsample, blocks, skip in zip(self.upsampling, self.decoder, reversed(feature_maps[:-1]), strict=True):
            x = blocks(upsample(x, skip))
        with full_precision(x):
            return self.output(x.float())


def downsampled_size(size: Sequence[int], strides: Sequence[Stride]) -> tuple[int, ...]:
    """Size in voxels of the feature maps that ``strides`` leave of an image of ``size`` voxels, axis by axis."""
    current = tuple(int(voxels) for voxels in size)
    for stride in strides:
        current = tuple(-(-voxels // step) for voxels, step in zip(current, stride, strict=True))
    return current
