"""Generator and discriminator of LaMa: large mask inpainting with Fourier convolutions.

Suvorov et al., "Resolution-robust Large Mask Inpainting with Fourier Convolutions", WACV 2022, arXiv:2109.07161; as Qin
et al. (2025) use it. Features have a local part, which 3 x 3 convolutions see, and a global part, which is convolved in
the frequencies of the whole slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_LEAK = 0.2


@dataclass(frozen=True)
class GeneratorShape:
    """Of the generator; the default is lama-fourier, 18 blocks make big-lama."""

    features: int = 64
    downsamplings: int = 3
    blocks: int = 9
    global_share: float = 0.75  # of the features in the blocks

    @property
    def multiple_of(self) -> int:
        """Voxels along both axes are padded to a multiple of so many."""
        return int(2**self.downsamplings)


class FourierUnit(nn.Module):
    """A 1 x 1 convolution of the frequencies of whole slices, real and imaginary parts as channels.

    It runs in float32, whatever autocast asks for: half precision has transforms of few sizes, and bfloat16 no complex
    numbers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, Y, X) -> the same shape, float32."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            frequencies = torch.fft.rfft2(features, norm="ortho")
            parts = torch.stack((frequencies.real, frequencies.imag), dim=2).flatten(1, 2)
            parts = torch.relu(self.norm(self.convolution(parts))).unflatten(1, (-1, 2))
            back = torch.complex(parts[:, :, 0], parts[:, :, 1])
            return torch.fft.irfft2(back, s=features.shape[2:], norm="ortho")


class SpectralTransform(nn.Module):
    """From global to global features: down to half of them, the Fourier unit beside the identity, and up again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 1, bias=False), nn.BatchNorm2d(channels // 2), nn.ReLU()
        )
        self.fourier = FourierUnit(channels // 2)
        self.expand = nn.Conv2d(channels // 2, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, Y, X) -> the same shape."""
        reduced = self.reduce(features)
        return self.expand(reduced + self.fourier(reduced))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, padding_mode="reflect", bias=False)


class FourierConvolution(nn.Module):
    """A fast Fourier convolution: four ways between local and global features, batch norm and ReLU for each."""

    def __init__(self, inputs: tuple[int, int], outputs: tuple[int, int], stride: int = 1) -> None:
        """Args: inputs, outputs: number of local and of global features; without global ones it is a convolution."""
        super().__init__()
        (local, wide), (to_local, to_wide) = inputs, outputs
        self.local_to_local = _convolution(local, to_local, stride)
        self.local_to_global = _convolution(local, to_wide, stride) if to_wide else None
        self.global_to_local = _convolution(wide, to_local, stride) if wide else None
        self.global_to_global = SpectralTransform(wide) if wide and to_wide else None
        self.local_norm = nn.BatchNorm2d(to_local)
        self.global_norm = nn.BatchNorm2d(to_wide) if to_wide else None

    def forward(self, local: Tensor, wide: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Local and global features, (B, C, Y, X) each, -> the same."""
        to_local = self.local_to_local(local)
        if self.global_to_local is not None:
            to_local = to_local + self.global_to_local(wide)
        to_local = torch.relu(self.local_norm(to_local))
        if self.local_to_global is None or self.global_norm is None:
            return to_local, None
        to_wide = self.local_to_global(local)
        if self.global_to_global is not None:
            to_wide = to_wide + self.global_to_global(wide)
        return to_local, torch.relu(self.global_norm(to_wide))


class ResidualBlock(nn.Module):
    """Two Fourier convolutions beside the identity of each part; no ReLU after the sum."""

    def __init__(self, features: tuple[int, int]) -> None:
        super().__init__()
        self.first = FourierConvolution(features, features)
        self.second = FourierConvolution(features, features)

    def forward(self, local: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
        """Local and global features, (B, C, Y, X) each, -> the same."""
        to_local, to_wide = self.second(*self.first(local, wide))
        assert to_wide is not None
        return local + to_local, wide + to_wide


class Generator(nn.Module):
    """Inpaints the hole of a slice."""

    def __init__(self, num_channels: int, shape: GeneratorShape = GeneratorShape()) -> None:
        """Args: num_channels: of the image; the hole is one more input."""
        super().__init__()
        self.shape = shape
        self.enter = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(num_channels + 1, shape.features, 7, bias=False),
            nn.BatchNorm2d(shape.features),
            nn.ReLU(),
        )
        widths = [shape.features * 2**step for step in range(shape.downsamplings + 1)]
        wide = round(widths[-1] * shape.global_share)
        parts = (widths[-1] - wide, wide)
        outputs = [(width, 0) for width in widths[1:-1]] + [parts]
        self.down = nn.ModuleList(
            FourierConvolution((width, 0), to, stride=2) for width, to in zip(widths, outputs, strict=False)
        )
        self.blocks = nn.ModuleList(ResidualBlock(parts) for _ in range(shape.blocks))
        up: list[nn.Module] = []
        for width, to in zip(widths[::-1], widths[-2::-1], strict=False):
            up += [nn.ConvTranspose2d(width, to, 3, 2, padding=1, output_padding=1), nn.BatchNorm2d(to), nn.ReLU()]
        self.up = nn.Sequential(*up)
        self.leave = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(shape.features, num_channels, 7), nn.Sigmoid())

    def forward(self, image: Tensor, hole: Tensor) -> Tensor:
        """The slice with its hole filled; voxels outside the hole come out only near what they were.

        Args: image: (B, C, Y, X), in [0, 1]; what is in the hole is not looked at. hole: (B, 1, Y, X), 1 in the hole.
        Returns: (B, C, Y, X), in [0, 1].
        """
        size = image.shape[2:]
        stacked = padded(torch.cat((image * (1 - hole), hole.to(image.dtype)), dim=1), self.shape.multiple_of)
        local, wide = self.enter(stacked), None
        for layer in self.down:
            local, wide = layer(local, wide)
        for block in self.blocks:
            local, wide = block(local, wide)
        assert wide is not None
        filled: Tensor = self.leave(self.up(torch.cat((local, wide), dim=1)))
        return filled[..., : size[0], : size[1]]

    def inpaint(self, image: Tensor, hole: Tensor) -> Tensor:
        """The slice as it is outside the hole, and as ``forward`` fills it within."""
        return torch.where(hole > 0, self(image, hole), image)


def padded(image: Tensor, multiple_of: int) -> Tensor:
    """A slice mirrored at its end, the last voxel twice, up to a multiple of voxels along both axes: (B, C, Y, X)."""
    for axis in (2, 3):
        size = image.shape[axis]
        places = torch.arange(size + -size % multiple_of, device=image.device) % (2 * size)
        image = image.index_select(axis, torch.where(places < size, places, 2 * size - 1 - places))
    return image


class Discriminator(nn.Module):
    """Judges patches of a slice (pix2pixHD's, one scale): a logit above 0 for real ones."""

    def __init__(self, num_channels: int, features: int = 64, layers: int = 4) -> None:
        super().__init__()
        widths = [min(features * 2**step, 8 * features) for step in range(layers)]
        stages = [nn.Sequential(nn.Conv2d(num_channels, widths[0], 4, 2, padding=2), nn.LeakyReLU(_LEAK))]
        for number, width in enumerate(widths):
            to = widths[number + 1] if number + 1 < layers else min(2 * width, 8 * features)
            stride = 2 if number + 1 < layers else 1
            convolution = nn.Conv2d(width, to, 4, stride, padding=2)
            stages.append(nn.Sequential(convolution, nn.BatchNorm2d(to), nn.LeakyReLU(_LEAK)))
        self.stages = nn.ModuleList(stages)
        self.judge = nn.Conv2d(to, 1, 4, 1, padding=2)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Args: image: (B, C, Y, X). Returns: logits (B, 1, y, x) of its patches, and the features of all stages."""
        features = []
        for stage in self.stages:
            image = stage(image)
            features.append(image)
        return self.judge(image), features
