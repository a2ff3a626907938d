"""The anomaly-aware network: frozen detector, then a segmenter that sees its error channel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.base import Detector
from nnunetv2_anomaly.networks.blocks import full_precision
from nnunetv2_anomaly.segmenters.settings import ERROR_CHANNELS, NORMALISED


class AnomalyAwareNetwork(nn.Module):
    """S sees [image, error channel] (method paper, Section 3.3); outwards it takes the plain image channels.

    That lets nnU-Net's own prediction feed it plain images. ``decoder`` is the segmenter's, where nnU-Net switches
    deep supervision, and the state-dict keys of its output layers keep ``.seg_layers.``, which nnU-Net's
    ``-pretrained_weights`` looks for.
    """

    error_channel_coefficients: Tensor
    #: with an encoder and a decoder, as nnU-Net's planned networks have
    segmenter: Any

    def __init__(self, detector: Detector, segmenter: nn.Module, channel: str, num_maps: int) -> None:
        """Put them together.

        Args:
            detector: of any family; it is frozen.
            segmenter: a network for the image's channels and the detector's error channels.
            channel: a key of ``ERROR_CHANNELS``, or ``NORMALISED``: what the segmenter sees of the detector's error.
            num_maps: the detector's error channels.
        """
        super().__init__()
        self.detector = detector.requires_grad_(False).eval()
        self.segmenter = segmenter
        # With the weights, because these are worth nothing with another channel: settings may change after a training.
        normalised = torch.full((2, num_maps), torch.nan)  # as long as ``normalise_error_channel`` has not been called
        coefficients = normalised if channel == NORMALISED else torch.tensor(ERROR_CHANNELS[channel])
        self.register_buffer("error_channel_coefficients", coefficients)
        #: of the latest forward pass, for the loss: nnU-Net's steps hand a loss only output and target
        self.latest_error_image: Tensor | None = None

    @property
    def error_channel_name(self) -> str:
        """Which of ``ERROR_CHANNELS`` the weights see, or ``NORMALISED``."""
        if self.error_channel_coefficients.ndim == 2:
            return NORMALISED
        given = tuple(self.error_channel_coefficients.tolist())
        return next((name for name, coefficients in ERROR_CHANNELS.items() if coefficients == given), str(given))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        given = state_dict.get(f"{prefix}error_channel_coefficients")
        if given is not None:  # the weights' channel stays, of whatever shape
            self.error_channel_coefficients = self.error_channel_coefficients.new_empty(given.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def normalise_error_channel(self, patches: Iterable[Tensor]) -> None:
        """Give the detector's error unit variance, channel by channel, over patches (B, C, *patch_size) of one size."""
        maps = (self.detector.maps(patch)[1].float().transpose(0, 1).flatten(1) for patch in patches)
        moments = torch.stack([torch.stack((of.mean(dim=1), of.square().mean(dim=1))) for of in maps]).mean(dim=0)
        deviation = (moments[1] - moments[0].square()).clamp(min=1e-16).sqrt()
        self.error_channel_coefficients.copy_(torch.stack((torch.zeros_like(deviation), 1 / deviation)))

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

    def forward(self, image: Tensor) -> Any:
        """Segment a normalised image.

        Args: image: (B, C, *patch_size), as nnU-Net normalised it.
        Returns: what the segmenter returns: logits (B, classes, *patch_size), or with deep supervision a list
            of them, full resolution first; of Mask R-CNN in training its losses.
        """
        return self.segmenter(self.seen(image))

    @torch.no_grad()
    def seen(self, image: Tensor) -> Tensor:
        """What the segmenter is given of an image (B, C, *patch_size): (B, C + error channels, *patch_size)."""
        difference, self.latest_error_image = self.detector.maps(image)
        channel = error_channel(difference, self.latest_error_image, self.error_channel_coefficients)
        return torch.cat((image, channel.to(image.dtype)), dim=1)


def error_channel(difference: Tensor, error: Tensor, coefficients: Tensor) -> Tensor:
    """What a segmenter sees of a detector's maps.

    Args:
        difference, error: (B, C, ...), a detector's ``maps``, unitless.
        coefficients: (2,), one of the pairs in ``ERROR_CHANNELS``; or (2, C), a pair for each channel.
    Returns: (B, C, ...), a * difference + b * error, float32, unitless.
    """
    with full_precision(difference):
        a, b = (of.reshape(-1, *[1] * (difference.ndim - 2)) for of in coefficients)
        return a * difference + b * error
