"""Where a slice is not normal: the gradient of its score (Salehi et al. 2021, Section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from nnunetv2_anomaly.detectors.mkd.loss import LAMBDA, distance
from nnunetv2_anomaly.detectors.mkd.networks import SCORED, FeatureNetwork

#: of the smoothing, in voxels of a slice with 128
_SIGMA, _OF_SIZE = 4.0, 128
#: noisy copies of a slice, and the noise's standard deviation, for smooth gradients (Smilkov et al. 2017)
_COPIES, _NOISE = 50, 0.05
#: gradients beyond this quantile of a slice count as it
_CLIP = 0.99


def gradient_map(
    cloner: FeatureNetwork,
    teacher: FeatureNetwork,
    image: Tensor,
    method: Literal["gbp", "gradients", "smooth_grad"] = "gbp",
    lambda_value: float = LAMBDA,
    scored: Sequence[int] = SCORED,
) -> tuple[Tensor, Tensor]:
    """Map and score of slices, also where the caller has switched gradients off.

    The map is the gradient of the score to the slice, through both networks, absolute, summed over channels, clipped,
    smoothed and from 0 to 1 in each slice; "gbp" goes back through the cloner's ReLUs only where gradients are
    positive. A slice without a gradient has a map of 0.

    Args: image: (B, 3, Y, X), as the networks take it. scored: maps that count.
    Returns: map, (B, Y, X), in [0, 1]; score, (B,), unitless.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
        image = image.detach().clone().float()

        def traced(of: Tensor) -> tuple[Tensor, Tensor]:
            of = of.requires_grad_()
            score = distance(cloner(of), teacher(of), scored, lambda_value)
            (gradient,) = torch.autograd.grad(score.sum(), of)
            return gradient.detach(), score.detach()

        if method == "smooth_grad":
            noise = torch.Generator(image.device).manual_seed(0)
            drawn = [torch.randn(image.shape, generator=noise, device=image.device) for _ in range(_COPIES)]
            gradient = torch.stack([traced(image + _NOISE * of)[0] for of in drawn]).mean(dim=0)
            score = traced(image)[1]
        elif method == "gbp":
            with cloner.guided_gradients():
                gradient, score = traced(image)
        else:
            gradient, score = traced(image)
    found = gradient.abs().sum(dim=1)
    highest = found.flatten(1).quantile(_CLIP, dim=1)[:, None, None]
    found = torch.minimum(found, highest) / highest.clamp(min=torch.finfo(found.dtype).tiny)
    sigma = [_SIGMA * size / _OF_SIZE for size in image.shape[2:]]
    smoothed = torch.as_tensor(gaussian_filter(found.cpu().numpy(), (0, *sigma)), device=image.device)
    lowest, highest = smoothed.amin(dim=(1, 2), keepdim=True), smoothed.amax(dim=(1, 2), keepdim=True)
    return (smoothed - lowest) / (highest - lowest).clamp(min=torch.finfo(smoothed.dtype).tiny), score
