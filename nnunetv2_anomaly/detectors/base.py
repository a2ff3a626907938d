"""The interface of a detector: image in, anomaly map out. The segmentation side knows detectors through it alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn
from torch.nn.functional import pad

from nnunetv2_anomaly.detectors.error import squared
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.registry import detector_families, load

if TYPE_CHECKING:
    from typing_extensions import Self

    from nnunetv2_anomaly.detectors.bone_finder import BoneFinder


@dataclass(frozen=True)
class Contract:
    """What a family of detectors promises and needs; stored with a trained detector, checked at start."""

    family: str
    error_channels: int | None  # None: one per image channel; else 1
    #: spatial axes that it takes; a family with (2,) alone is applied slice by slice in a 3D window
    dimensions: tuple[int, ...]
    #: the window that it must be given: the planned patch, any, or whole slices
    window: Literal["planned", "any", "whole"]
    multiple_of: int = 1  # windows are padded to a multiple of so many voxels, and its maps cropped

    def num_error_channels(self, num_channels: int) -> int:
        """Channels of the anomaly map of an image with ``num_channels`` channels."""
        return num_channels if self.error_channels is None else self.error_channels


class Detector(nn.Module):
    """A self-contained detector: plain normalised image in, anomaly out.

    Whatever it needs (bone model, teacher weights, thresholds, intensity range) is part of its state dict, so that
    ``nnUNetv2_predict`` needs nothing but the model folder. It builds without data and knows no files.
    """

    contract: Contract
    #: whether ``maps_in`` takes bones that are known
    takes_bones: bool = False
    #: whether it cannot do without, as no bone model is in it
    needs_bones: bool = False
    #: whether it has nothing to learn where it is told which voxels are bones
    learns_bones_alone: bool = False
    #: whether image minus difference is what was expected
    reconstructs: bool = True
    #: external weights -> SHA-256
    sources: Mapping[str, str] = {}
    #: False where a part is random or a stand-in, so that its results say nothing of the method
    comparable: bool = True

    @property
    def bone_model(self) -> BoneFinder | None:
        """The bone model inside, for a family that may hold one."""
        return None

    @classmethod
    @abstractmethod
    def build(cls, configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]) -> Self:
        """The untrained detector for a configuration's windows of ``num_channels`` image channels.

        Args: settings: of the trainer, and ``num_labels``, how many the data set has with the background.
        Raises: UserError if nothing can be built from the plans.
        """

    @abstractmethod
    def difference(self, image: Tensor) -> Tensor:
        """How much brighter each voxel is than expected.

        Args: image: (B, C, *window) as nnU-Net normalised it, with axes and size of the contract.
        Returns: (B, error channels, *window), float32, above 0 where brighter, unitless.
        """

    def maps_in(self, image: Tensor, bones: Tensor) -> tuple[Tensor, Tensor]:
        """``maps`` where the bones are known, of images of any size; for a family that ``takes_bones``.

        Args: image: (B, C, *axes), as nnU-Net normalised it. bones: (B, *axes), 0 outside, a number for each bone.
        Returns: two tensors (B, error channels, *axes), float32, unitless.
        """
        raise NotImplementedError(f"{type(self).__name__} does not take bones")

    def error(self, image: Tensor, difference: Tensor) -> Tensor:
        """The anomaly map; the square of the difference unless a family has a score of its own.

        Args:
            image: (B, C, *window), as nnU-Net normalised it.
            difference: (B, error channels, *window), what ``difference`` returned of it.
        Returns: (B, error channels, *window), float32, larger where more anomalous, unitless.
        """
        return squared(difference)

    def rescale(self, image: Tensor) -> Tensor:
        """The image on the scale of ``difference``, so that image minus difference is what was expected.

        Args: image: (B, C, ...), as nnU-Net normalised it.
        Returns: (B, C, ...), float32; here the image as it is.
        """
        return image.float()

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Difference and anomaly map of a window with two or three axes of any size that the contract allows.

        Args: image: (B, C, *window), as nnU-Net normalised it.
        Returns: two tensors (B, error channels, *window), float32, unitless.
        """
        spatial = image.ndim - 2
        if spatial not in self.contract.dimensions and spatial == 3:
            of_slices = self.maps(image.transpose(1, 2).flatten(0, 1))
            difference, error = (m.unflatten(0, (len(image), -1)).transpose(1, 2) for m in of_slices)
            return difference, error
        inside: tuple[Any, ...] = (..., *(slice(size) for size in image.shape[2:]))
        difference, error = (m[inside] for m in self._plain_maps(self.padded(image)))
        return difference, error

    def padded(self, image: Tensor) -> Tensor:
        """An image (B, C, *window) whose last voxels go on up to the contract's multiple along each axis."""
        missing = [-size % self.contract.multiple_of for size in image.shape[2:]]
        padding = [voxels for axis in reversed(missing) for voxels in (0, axis)]
        return pad(image, padding, mode="replicate") if any(missing) else image

    def _plain_maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        difference = self.difference(image)
        return difference, self.error(image, difference)

    def forward(self, image: Tensor) -> Tensor:
        """The anomaly map of a window: (B, C, *window) -> (B, error channels, *window)."""
        return self.maps(image)[1]


def refuse_to_segment(detector: Detector) -> UserError:
    """What nnUNetv2_predict is answered, which would segment with a network that makes anomaly maps."""
    trainer = detector_families()[detector.contract.family].trainer
    fault = f"{trainer} makes anomaly maps and no segmentation, which nnUNetv2_predict wants"
    return UserError(
        f"{fault}; run nnUNetv2_anomaly anomaly_maps -i IMAGES -o OUT -d ID -c CONFIGURATION -tr {trainer}"
    )


def detector_class(name: str) -> type[Detector]:
    """The detector of a family. Raises: UserError if no installed package has a family of that name."""
    families = detector_families()
    if name not in families:
        fault = f"the detector family '{name}' is not installed; known are {', '.join(families)}"
        advice = "set 'detector' in the section 'anomaly' of plans.json to one of them"
        raise UserError(f"{fault}, so {advice}, or install the package that brings it")
    return load(families[name].detector)


def check_fits_configuration(contract: Contract, configuration_manager: ConfigurationManager) -> None:
    """Check that a family's detector can be applied to a configuration's windows.

    Raises: UserError if it has other axes, or needs whole slices and the patch is smaller.
    """
    patch_size = configuration_manager.patch_size
    if len(patch_size) not in contract.dimensions and not (len(patch_size) == 3 and 2 in contract.dimensions):
        takes = f"the detector family '{contract.family}' takes {' or '.join(map(str, contract.dimensions))} axes"
        fault = f"{takes}, and patches of this configuration have {len(patch_size)}"
        raise UserError(f"{fault}; use another configuration or another detector")
    median = configuration_manager.configuration.get("median_image_size_in_voxels") or patch_size
    sizes = [round(size) for size in median]
    if contract.window == "whole" and any(p < m for p, m in zip(patch_size[-2:], sizes[-2:], strict=True)):
        needs = f"the detector family '{contract.family}' needs whole slices"
        fault = f"{needs}, and the patch {list(patch_size)} is smaller than the images ({sizes})"
        raise UserError(f"{fault}; plan them with nnUNetv2_anomaly plan_whole_image")
