"""The error image of a detector: the only place where E is made."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_anomaly.networks.blocks import full_precision


def squared(difference: Tensor) -> Tensor:
    """E of a difference between image and expectation, its square per voxel.

    Args: difference: any shape, unitless.
    Returns: same shape, float32 also under autocast: half precision loses errors below 1e-4.
    """
    with full_precision(difference):
        return torch.square(difference.float())


def error_image(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared reconstruction error per voxel, E(y) = (x - y)^2 (method paper, Section 3.1).

    Args: image, reconstruction: (B, C, ...) with any spatial axes, intensities in [0, 1], unitless.
    Returns: same shape, float32, in [0, 1], unitless.
    Raises: ValueError if the two shapes differ.
    """
    if image.shape != reconstruction.shape:
        shapes = f"{tuple(image.shape)} and {tuple(reconstruction.shape)}"
        raise ValueError(f"image and reconstruction must have one shape, got {shapes}")
    return squared(image.float() - reconstruction.float())
