"""The pre-stage's networks: inpainter G, compressor C, detector A (method paper, Sections 3.1, 3.2, Appendix A)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn
from torch.nn.functional import interpolate

from nnunetv2_anomaly.detectors.base import Contract
from nnunetv2_anomaly.detectors.inpainting.settings import FULL, HALF
from nnunetv2_anomaly.detectors.intensity import RescalingDetector
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.networks.blocks import ConvolutionBlock, SummingUNet, full_precision, initialize_glorot
from nnunetv2_anomaly.plans.strides import Stride, downsampled_size, planned_strides

COMPRESSOR_FEATURES = (8, 4, 2, 1)


class ImageCompressor(nn.Module):
    """C: the whole image through a code of 100 numbers to a one-channel image of the bottleneck's size.

    Strided blocks with 8, 4, 2, 1 feature maps, flatten, dense ``code_length``, dense to the number of bottleneck
    voxels, sigmoid (method paper, Fig. A.10). It must stay this small: a larger one restores the anomalies. With
    fewer than four downsamplings the last feature-map numbers are kept.
    """

    def __init__(self, num_channels: int, patch_size: Sequence[int], strides: Sequence[Stride], code_length: int):
        super().__init__()
        self.bottleneck_size = downsampled_size(patch_size, strides)
        widths = (num_channels, *COMPRESSOR_FEATURES[-len(strides) :])
        shapes = zip(widths, widths[1:], strides, strict=False)
        self.blocks = nn.Sequential(*(ConvolutionBlock(*channels_and_stride) for channels_and_stride in shapes))
        self.encode = nn.Linear(widths[-1] * prod(self.bottleneck_size), code_length)
        self.decode = nn.Linear(code_length, prod(self.bottleneck_size))
        self.apply(initialize_glorot)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *patch_size) in [0, 1] -> (B, 1, *bottleneck_size) in [0, 1], unitless."""
        code = self.encode(self.blocks(image).flatten(start_dim=1))
        return torch.sigmoid(self.decode(code)).view(-1, 1, *self.bottleneck_size)


class ReconstructionNetwork(SummingUNet):
    """The shape that G and A share: the method's U-Net with C's output at the bottleneck and a sigmoid at the end.

    At half resolution, which is ours, it has no first level: the image is averaged as the first downsampling would,
    and the scores are interpolated.
    """

    def __init__(self, num_channels: int, strides: Sequence[Stride], features: int, resolution: str = FULL) -> None:
        """Args: resolution: of ``settings.RESOLUTIONS``. Raises: UserError for half of a single downsampling."""
        self.averaged = tuple(strides[0]) if resolution == HALF else None
        if self.averaged and len(strides) < 2:
            fault = f"the setting 'detector_resolution' is {HALF}, and the detector downsamples once"
            raise UserError(f"{fault}; expected at least two downsamplings, so set it to {FULL}, or use larger patches")
        of_trunk = {
            "in_channels": num_channels,
            "strides": strides[1:] if self.averaged else strides,
            "bottleneck_channels": 1,
        }
        super().__init__(out_channels=num_channels, features=features, **of_trunk)

    def forward(self, image: Tensor, bottleneck: Tensor | None = None) -> Tensor:
        """(B, C, ...) in [0, 1] and C's output (B, 1, ...) -> reconstruction (B, C, ...) in [0, 1], float32."""
        size = image.shape[2:]
        if self.averaged:
            image = interpolate(image, size=downsampled_size(size, [self.averaged]), mode="area")
        scores = super().forward(image, bottleneck)
        if self.averaged:
            scores = interpolate(scores, size=size, mode={2: "bilinear", 3: "trilinear"}[len(size)])
        return torch.sigmoid(scores)

    @torch.no_grad()
    def start_at(self, mean_intensity: Tensor) -> None:
        """Let the untrained output be the mean intensity of each channel, (C,) in (0, 1), not 0.5.

        Without it a short training spends itself on finding the mean: see docs/explanation/decisions/detectors.md.
        """
        mean = mean_intensity.to(self.output.weight).clamp(1e-3, 1 - 1e-3)
        self.output.get_parameter("bias").copy_(torch.logit(mean))


class AnomalyDetector(RescalingDetector):
    """A with everything it needs: normalised image in, E(A(x)) out (method paper, Sections 3.2, 4.1).

    The intensity range is a property of the data set, measured on the training cases after the clipping of the setting
    ``intensity_clip``: a window shows only a part of an image, whose minimum and maximum change from window to window.
    """

    #: C has dense layers, so that A takes windows of the planned size alone
    contract = Contract(family="inpainting", error_channels=None, dimensions=(2, 3), window="planned")
    clips = True

    def __init__(
        self,
        *,
        num_channels: int,
        patch_size: Sequence[int],
        strides: Sequence[Stride],
        features: int,
        code_length: int,
        resolution: str = FULL,
    ) -> None:
        """Build A and C for windows of ``patch_size`` voxels."""
        super().__init__(num_channels)
        self.patch_size = tuple(int(voxels) for voxels in patch_size)
        self.compressor = ImageCompressor(num_channels, patch_size, strides, code_length)
        self.reconstructor = ReconstructionNetwork(num_channels, strides, features, resolution)

    @classmethod
    def build(
        cls, configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]
    ) -> AnomalyDetector:
        """The untrained A with C, downsampling as nnU-Net planned for this patch size and spacing.

        Raises: UserError if the plans name no patch size or no usable strides.
        """
        return cls(
            num_channels=num_channels,
            strides=planned_strides(configuration_manager, settings["detector_downsamplings"]),
            patch_size=configuration_manager.patch_size,
            features=settings["detector_features"],
            code_length=settings["compressor_code_length"],
            resolution=settings["detector_resolution"],
        )

    def reconstruct(self, rescaled: Tensor) -> Tensor:
        """A's reconstruction of a rescaled image, (B, C, *patch_size) in [0, 1] -> same shape, float32, in [0, 1]."""
        return self.reconstructor(rescaled, self.compressor(rescaled))

    def difference(self, image: Tensor) -> Tensor:
        """x - A(x) of a normalised image: above 0 where it is brighter than expected.

        Args: image: (B, C, *patch_size), as nnU-Net normalised it.
        Returns: (B, C, *patch_size), float32, in [-1, 1], unitless.
        """
        rescaled = self.rescale(image)
        reconstruction = self.reconstruct(rescaled)
        with full_precision(rescaled):
            return rescaled - reconstruction.float()


class PreStageOutput(NamedTuple):
    """What the pre-stage's losses compare; all (B, C, ...), float32, in [0, 1], unitless."""

    image: Tensor
    inpainted: Tensor
    reconstruction: Tensor | None


class PreStageNetwork(nn.Module):
    """G and A around the one C that both use: trained with G in phase 1, frozen with G in phase 2."""

    def __init__(self, inpainter: ReconstructionNetwork, detector: AnomalyDetector) -> None:
        super().__init__()
        self.inpainter = inpainter
        self.detector = detector
        self.set_phase(0)

    @property
    def distilling(self) -> bool:
        """Whether A is trained, and not G with C."""
        return self.phase == 1

    def set_phase(self, phase: int) -> None:
        """Choose the phase: 0 trains G with C (Eq. 1), 1 trains A with G and C frozen (Eq. 2)."""
        self.phase = phase
        self.inpainter.requires_grad_(not self.distilling)
        self.detector.compressor.requires_grad_(not self.distilling)
        self.detector.reconstructor.requires_grad_(self.distilling)

    def forward(self, image_and_hole: Tensor) -> PreStageOutput:
        """Inpaint, and in phase 2 reconstruct as well.

        Args: image_and_hole: (B, C + 1, *patch_size): the normalised image channels, then the hole mask (1 = erased).
        Raises: UserError if the hole mask is missing, as when nnUNetv2_predict is given a pre-stage model.
        """
        given, expected = image_and_hole.shape[1], len(self.detector.intensity_low)
        if given != expected + 1:
            fault = f"was given {given} channel(s) and expects {expected} image channel(s) and the hole mask"
            advice = "it does not segment, so use nnUNetv2_anomaly anomaly_maps for its images, or nnUNetv2_predict"
            raise UserError(f"the pre-stage's network {fault}; {advice} with AnomalyAwareTrainer")
        rescaled = self.detector.rescale(image_and_hole[:, :-1])
        erased = rescaled * (1 - image_and_hole[:, -1:].float())
        # C sees the whole image, G only what is left of it.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.distilling):
            bottleneck = self.detector.compressor(rescaled)
            inpainted = self.inpainter(erased, bottleneck)
        reconstruction = self.detector.reconstructor(rescaled, bottleneck) if self.distilling else None
        return PreStageOutput(rescaled, inpainted, reconstruction)


def build_prestage_network(
    configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]
) -> PreStageNetwork:
    """The untrained G and A around one C, for a configuration's windows of ``num_channels`` image channels.

    Raises: UserError if the plans name no patch size or no usable strides.
    """
    strides = planned_strides(configuration_manager, settings["detector_downsamplings"])
    of_both = (settings["detector_features"], settings["detector_resolution"])
    inpainter = ReconstructionNetwork(num_channels, strides, *of_both)
    return PreStageNetwork(inpainter, AnomalyDetector.build(configuration_manager, num_channels, settings))


class InpainterWindow(nn.Module):
    """G as a window network: normalised image and hole mask (B, C + 1, ...) -> inpainting (B, C, ...) in [0, 1]."""

    def __init__(self, network: PreStageNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image_and_hole: Tensor) -> Tensor:
        """G's inpainting of one window."""
        return self.network(image_and_hole).inpainted
