"""Images as another scanner would have made them: brighter, noisier, with a bias field, or less sharp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_anomaly.images.files import write_image

AS_IT_IS = "as it is"


def _gain(image: NDArray, rng: Generator) -> NDArray:
    return 1.5 * image


def _noise(image: NDArray, rng: Generator) -> NDArray:
    return image + rng.normal(0, 0.05 * np.percentile(image, 99), image.shape)


def _bias(image: NDArray, rng: Generator) -> NDArray:
    field = ndimage.zoom(rng.uniform(-0.3, 0.3, (3,) * image.ndim), np.array(image.shape) / 3, order=3)
    return image * np.exp(field[tuple(slice(n) for n in image.shape)])


def _resolution(image: NDArray, rng: Generator) -> NDArray:
    return ndimage.gaussian_filter(image, 0.8)


#: (Z, Y, X), any unit -> the same
SCANNERS: dict[str, Callable[[NDArray, Generator], NDArray]] = {
    "gain 1.5": _gain,
    "noise of 5 %": _noise,
    "bias field of 30 %": _bias,
    "blur of 0.8 voxels": _resolution,
}


def write_as_by(name: str, source: Path, target: Path) -> None:
    """Write all images of a folder as another scanner would have made them; the same in each run."""
    target.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sorted(source.glob("*.nii.gz"))):
        image = sitk.ReadImage(str(file))
        voxels = sitk.GetArrayFromImage(image).astype(np.float64)
        made = sitk.GetImageFromArray(SCANNERS[name](voxels, np.random.default_rng(number)).astype(np.float32))
        made.CopyInformation(image)
        write_image(made, target / file.name)
