"""How much a slice stands out from its inpainted form (Qin et al. 2025): equalise, subtract.

The paper prints the absolute difference, and says that lesions are brighter than marrow and that what is below 0 is
left out: the difference is taken as image less inpainting here, and its positive part for bright lesions.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.exposure import equalize_hist

from nnunetv2_anomaly.detectors.level import POLARITIES

#: of the equalisation
_BINS = 256


def lesion_score(image: NDArray, inpainted: NDArray, bone: NDArray[np.bool_], polarity: str) -> NDArray[np.float64]:
    """How much a slice stands out from its inpainted form, both equalised, each by itself.

    Args:
        image, inpainted: (Y, X), of one scale; they differ in the bone alone.
        bone: (Y, X).
        polarity: "bright", "dark" or "both": what lesions are against marrow.
    Returns: (Y, X), in [0, 1], 0 outside the bone.
    """
    difference = equalize_hist(image, nbins=_BINS) - equalize_hist(inpainted, nbins=_BINS)
    return np.where(bone, POLARITIES[polarity](torch.from_numpy(difference)).numpy(), 0.0)
