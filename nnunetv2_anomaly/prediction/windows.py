"""A detector over whole volumes, by nnU-Net's sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.base import Detector
from nnunetv2_anomaly.images.sliding_window import Windows


@dataclass(frozen=True)
class Maps:
    """What a detector made of a volume, on the preprocessed grid."""

    image: Tensor  # (C, X, Y, Z), on the detector's scale
    difference: Tensor  # (E, X, Y, Z), above 0 where brighter than expected
    error: Tensor  # (E, X, Y, Z)
    expected: Tensor | None  # (C, X, Y, Z), in place of the image, where there is one map per image channel
    bones: Tensor | None = None  # (X, Y, Z), 0 outside, another number for each; where they are known


def _maps(detector: Detector, rescaled: Tensor, difference: Tensor, error: Tensor, bones: Tensor | None) -> Maps:
    reconstructed = detector.reconstructs and rescaled.shape == difference.shape
    return Maps(rescaled, difference, error, rescaled - difference if reconstructed else None, bones)


def mean_maps(maps: Sequence[Maps]) -> Maps:
    """The mean of the maps that several detectors made of one volume, map by map; bones are where any saw one."""
    mean = {
        kind: torch.stack([getattr(of, kind) for of in maps]).mean(dim=0)
        for kind in ("image", "difference", "error", "expected")
        if getattr(maps[0], kind) is not None
    }
    bones = [of.bones for of in maps if of.bones is not None]
    return replace(maps[0], **mean, bones=torch.stack(bones).amax(dim=0) if bones else None)


#: Maps are blended in so small units that nnU-Net's float16 keeps them where a window weighs least, in the corners of a
#: volume; eight windows of its largest weight, 10, stay below what float16 can hold.
_UNITS = 256.0


class _DifferenceWindow(nn.Module):
    """Difference of one window, and the anomaly map behind it where that is more than the difference's square."""

    def __init__(self, detector: Detector, with_error: bool) -> None:
        super().__init__()
        self.detector = detector
        self.with_error = with_error

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *window) -> (B, E or 2 E, *window)."""
        difference, error = self.detector.maps(image)
        return _UNITS * (torch.cat((difference, error), dim=1) if self.with_error else difference)


@torch.no_grad()
def predict_maps(detector: Detector, image: Tensor, windows: Windows, bones: Tensor | None = None) -> Maps:
    """A detector's maps of a preprocessed volume, kept to bones where these are given.

    The error image is that of the blended difference, so that the maps fit each other, unless the family has a score
    of its own, which is then blended itself. A detector with a bone model inside first segments the whole volume.

    Args: image: (C, X, Y, Z), as nnU-Net normalised it. bones: (X, Y, Z), 0 outside, another number for each bone.
    """
    finder = detector.bone_model
    if bones is None and finder is not None:
        bones = finder.numbers(windows.predict(finder.network, image, len(finder.bone_of_label))[None])[0]
    if bones is not None and detector.takes_bones:
        return _maps_in(detector, image, windows, bones)
    num_maps = detector.contract.num_error_channels(len(image))
    own_score = type(detector).error is not Detector.error
    num_blended = num_maps * (2 if own_score else 1)
    blended = windows.predict(_DifferenceWindow(detector, own_score), image, num_blended) / _UNITS
    difference = blended[:num_maps]
    rescaled = detector.rescale(image[None].to(windows.device))[0].cpu()
    error = blended[num_maps:] if own_score else detector.error(image, difference)
    if bones is not None:
        difference, error = difference * (bones > 0), error * (bones > 0)
    return _maps(detector, rescaled, difference, error, bones)


def _maps_in(detector: Detector, image: Tensor, windows: Windows, bones: Tensor) -> Maps:
    """Maps of a detector that is told where bones are, slice by slice where it has to be."""
    volume, numbers = image[None].to(windows.device), bones[None].to(windows.device)
    slice_wise = len(windows.configuration_manager.patch_size) == 2 or 3 not in detector.contract.dimensions
    if slice_wise:
        volume, numbers = volume[0].transpose(0, 1), numbers[0]
    maps = detector.maps_in(volume, numbers)
    difference, error = ((of.transpose(0, 1) if slice_wise else of[0]).cpu() for of in maps)
    return _maps(detector, detector.rescale(image[None].to(windows.device))[0].cpu(), difference, error, bones)
