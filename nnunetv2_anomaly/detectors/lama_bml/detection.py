"""From a slice and its inpainted form to lesions (Qin et al. 2025): equalise, subtract, threshold, open and close.

The paper prints the absolute difference, and says that lesions are brighter than marrow and that what is below 0 is
left out: the difference is taken as image less inpainting here, and its positive part for bright lesions.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.exposure import equalize_hist
from skimage.filters import threshold_otsu
from skimage.morphology import disk

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


def lesion_mask(
    score: NDArray[np.floating],
    bone: NDArray[np.bool_],
    opening_voxels: int,
    closing_voxels: int,
    min_difference: float = 0.0,
) -> NDArray[np.bool_]:
    """What Otsu's threshold of a bone's scores leaves, opened and then closed by discs.

    Otsu always divides, so that a slice without a lesion has one, too: ``min_difference`` is a least score for it.

    Args: score, bone: (Y, X). opening_voxels, closing_voxels: radii of the discs; 0 leaves a step out.
    Returns: (Y, X); empty where scores do not differ.
    """
    inside = score[bone]
    if not inside.size or inside.min() == inside.max():
        return np.zeros(bone.shape, bool)
    found = (score > max(float(threshold_otsu(inside)), min_difference)) & bone
    if opening_voxels:
        found = ndimage.binary_opening(found, disk(opening_voxels))
    if closing_voxels:
        margin = closing_voxels  # or the slice's edge would eat what touches it
        closed = ndimage.binary_closing(np.pad(found, margin), disk(closing_voxels))
        found = closed[margin:-margin, margin:-margin]
    return found & bone
