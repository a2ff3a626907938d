"""The anomaly-aware network: frozen detector, then the segmentation network that nnU-Net planned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunetv2_anomaly.prestage.networks import AnomalyDetector


class AnomalyAwareNetwork(nn.Module):
    """S sees [image, error image] (method paper, Section 3.3); outwards it takes the plain image channels.

    That lets nnU-Net's own prediction feed it plain images. ``decoder`` is the segmenter's, where nnU-Net switches
    deep supervision, and the state-dict keys of its output layers keep ``.seg_layers.``, which nnU-Net's
    ``-pretrained_weights`` looks for.
    """

    def __init__(self, detector: AnomalyDetector, segmenter: nn.Module) -> None:
        super().__init__()
        self.detector = detector.requires_grad_(False).eval()
        self.segmenter = segmenter
        #: of the latest forward pass, for the loss: nnU-Net's steps hand a loss only output and target
        self.latest_error_image: Tensor | None = None

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
            error = self.detector(image)
        self.latest_error_image = error
        return self.segmenter(torch.cat((image, error.to(image.dtype)), dim=1))
