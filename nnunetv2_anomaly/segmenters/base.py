"""The anomaly-aware network: frozen detector, then a segmenter that sees its error channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.base import Detector
from nnunetv2_anomaly.networks.blocks import full_precision
from nnunetv2_anomaly.segmenters.settings import ERROR_CHANNELS


class AnomalyAwareNetwork(nn.Module):
    """S sees [image, error channel] (method paper, Section 3.3); outwards it takes the plain image channels.

    That lets nnU-Net's own prediction feed it plain images. ``decoder`` is the segmenter's, where nnU-Net switches
    deep supervision, and the state-dict keys of its output layers keep ``.seg_layers.``, which nnU-Net's
    ``-pretrained_weights`` looks for.
    """

    error_channel_coefficients: Tensor
    #: with an encoder and a decoder, as nnU-Net's planned networks have
    segmenter: Any

    def __init__(self, detector: Detector, segmenter: nn.Module, channel: str) -> None:
        """Put them together.

        Args:
            detector: of any family; it is frozen.
            segmenter: a network for the image's channels and the detector's error channels.
            channel: a key of ``ERROR_CHANNELS``: what the segmenter sees of the detector's error.
        """
        super().__init__()
        self.detector = detector.requires_grad_(False).eval()
        self.segmenter = segmenter
        # With the weights, because these are worth nothing with another channel: settings may change after a training.
        self.register_buffer("error_channel_coefficients", torch.tensor(ERROR_CHANNELS[channel]))
        #: of the latest forward pass, for the loss: nnU-Net's steps hand a loss only output and target
        self.latest_error_image: Tensor | None = None

    @property
    def error_channel_name(self) -> str:
        """Which of ``ERROR_CHANNELS`` the weights see."""
        given = tuple(self.error_channel_coefficients.tolist())
        return next((name for name, coefficients in ERROR_CHANNELS.items() if coefficients == given), str(given))

    @property
    def encoder(self) -> nn.Module:
        """The segmenter's encoder."""
        return self.segmenter.encoder

    @property
    def decoder(self) -> nn.Module:
        """The segmenter's decoder."""
        return self.segmenter.decoder

    def train(self, mode: bool = True) -> AnomalyAwareNetwork:
        """As in nn.Module, but the detector stays in evaluation mode."""
        super().train(mode)
        self.detector.eval()
        return self

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Segment a normalised image.

        Args: image: (B, C, *patch_size), as nnU-Net normalised it.
        Returns: what the planned network returns: logits (B, classes, *patch_size), or with deep supervision a list
            of them, full resolution first.
        """
        with torch.no_grad():
            difference, self.latest_error_image = self.detector.maps(image)
            channel = error_channel(difference, self.latest_error_image, self.error_channel_coefficients)
        return self.segmenter(torch.cat((image, channel.to(image.dtype)), dim=1))


def error_channel(difference: Tensor, error: Tensor, coefficients: Tensor) -> Tensor:
    """What a segmenter sees of a detector's maps.

    Args:
        difference, error: (B, C, ...), a detector's ``maps``, unitless.
        coefficients: (2,), one of the pairs in ``ERROR_CHANNELS``.
    Returns: (B, C, ...), a * difference + b * error, float32, unitless.
    """
    with full_precision(difference):
        return coefficients[0] * difference + coefficients[1] * error
