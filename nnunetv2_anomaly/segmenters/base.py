"""The anomaly-aware network: frozen detector, then the segmentation network that nnU-Net planned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.error_channel import ERROR_CHANNELS, error_channel
from nnunetv2_anomaly.detectors.inpainting.networks import AnomalyDetector
from nnunetv2_anomaly.networks.blocks import full_precision

#: of a network's state dict
CHANNEL_KEY = "error_channel_coefficients"


class AnomalyAwareNetwork(nn.Module):
    """S sees [image, error channel] (method paper, Section 3.3); outwards it takes the plain image channels.

    That lets nnU-Net's own prediction feed it plain images. ``decoder`` is the segmenter's, where nnU-Net switches
    deep supervision, and the state-dict keys of its output layers keep ``.seg_layers.``, which nnU-Net's
    ``-pretrained_weights`` looks for.
    """

    error_channel_coefficients: Tensor

    def __init__(self, detector: AnomalyDetector, segmenter: nn.Module, channel: str) -> None:
        """Put them together.

        Args:
            detector: A; it is frozen.
            segmenter: the planned network, for twice the image's channels.
            channel: a key of ``ERROR_CHANNELS``: what the segmenter sees of A's error.
        """
        super().__init__()
        self.detector = detector.requires_grad_(False).eval()
        self.segmenter = segmenter
        # With the weights, because these are worth nothing with another channel: settings may change after a training.
        self.register_buffer(CHANNEL_KEY, torch.tensor(ERROR_CHANNELS[channel]))
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """As in nn.Module; a checkpoint that does not tell its channel is from before there was a choice."""
        published = torch.tensor(ERROR_CHANNELS["published"]).to(self.error_channel_coefficients)
        state_dict.setdefault(prefix + CHANNEL_KEY, published)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Segment a normalised image.

        Args: image: (B, C, *patch_size), as nnU-Net normalised it.
        Returns: what the planned network returns: logits (B, classes, *patch_size), or with deep supervision a list
            of them, full resolution first.
        """
        with torch.no_grad():
            difference = self.detector.difference(image)
            with full_precision(difference):
                self.latest_error_image = torch.square(difference)
                channel = error_channel(difference, self.error_channel_coefficients)
        return self.segmenter(torch.cat((image, channel.to(image.dtype)), dim=1))
