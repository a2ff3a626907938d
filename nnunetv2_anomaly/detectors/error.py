"""The error image of a reconstruction and the focal weight made of it."""

from __future__ import annotations

import torch
from torch import Tensor


def error_image(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared reconstruction error per voxel, E(y) = (x - y)^2 (method paper, Section 3.1).

    Args: image, reconstruction: (B, C, ...) with any spatial axes, intensities in [0, 1], unitless.
    Returns: same shape, float32 whatever came in (half precision loses errors below 1e-4), in [0, 1], unitless.
    Raises: ValueError if the two shapes differ.
    """
    if image.shape != reconstruction.shape:
        raise ValueError(
            f"image and reconstruction must have one shape, got {tuple(image.shape)} and {tuple(reconstruction.shape)}"
        )
    return torch.square(image.float() - reconstruction.float())


def focal_weight(error: Tensor, beta: float) -> Tensor:
    """Focal weight per voxel, F = 1 + beta * E (method paper, Eq. 4), from the mean of E over the image channels.

    Args:
        error: (B, C, ...) error image, in [0, 1], unitless.
        beta: slope, >= 0; 99 lets F run from 1 to 100.
    Returns: (B, 1, ...), float32, in [1, 1 + beta], unitless.
    """
    return 1.0 + beta * error.float().mean(dim=1, keepdim=True)
