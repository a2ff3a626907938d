"""From the preprocessed grid back to that of the image file."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nibabel.orientations import io_orientation, ornt_transform
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_anomaly.images.files import image_written_beside, write_image


def preprocessed_spacing(
    properties: dict, plans_manager: PlansManager, configuration_manager: ConfigurationManager
) -> list[float]:
    """Spacing in mm of a preprocessed volume (X, Y, Z); 2D configurations do not resample between slices."""
    own = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
    return [*own[: len(own) - len(configuration_manager.spacing)], *configuration_manager.spacing]


def to_original_grid(
    volume: np.ndarray, properties: dict, plans_manager: PlansManager, configuration_manager: ConfigurationManager
) -> np.ndarray:
    """Undo nnU-Net's resampling, cropping and transposition, as its own export does for class scores.

    Args: volume: (C, X, Y, Z), preprocessed axes, any unit. properties: nnU-Net's, of the case.
    Returns: (C, ...) with the axes of the image reader, float32; 0 where nnU-Net had cropped the image away.
    """
    spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
    current = preprocessed_spacing(properties, plans_manager, configuration_manager)
    resampled = configuration_manager.resampling_fn_probabilities(
        torch.from_numpy(volume), properties["shape_after_cropping_and_before_resampling"], current, spacing
    )
    restored = []
    for channel in np.asarray(resampled, dtype=np.float32):
        whole = np.zeros(properties["shape_before_cropping"], dtype=np.float32)
        whole = insert_crop_into_image(whole, channel, properties["bbox_used_for_cropping"])
        restored.append(whole.transpose(plans_manager.transpose_backward))
    return np.stack(restored)


def write_volume(volume: np.ndarray, properties: dict, path: Path) -> None:
    """Write one float image as NIfTI (.nii.gz) in the geometry of the image that nnU-Net's ``properties`` came from.

    Images without a geometry (.png and the like) get their spacing alone. Written beside and renamed.

    Args: volume: axes as nnU-Net's reader gives them (slowest first), any unit.
    """
    if "nibabel_stuff" in properties:
        geometry = properties["nibabel_stuff"]
        original, reoriented = geometry["original_affine"], geometry.get("reoriented_affine")
        nifti = nibabel.Nifti1Image(volume.transpose((2, 1, 0)), affine=original if reoriented is None else reoriented)
        if reoriented is not None:  # NibabelIOWithReorient had turned the axes
            nifti = nifti.as_reoriented(ornt_transform(io_orientation(reoriented), io_orientation(original)))
        with image_written_beside(path) as temporary:
            nibabel.save(nifti, temporary)
        return
    geometry = properties.get("sitk_stuff", {})
    if len(geometry.get("spacing", ())) == 2:
        volume = volume[0]
    image = sitk.GetImageFromArray(volume)
    axes = image.GetDimension()  # without the fourth one of a file that holds several channels
    image.SetSpacing([float(step) for step in geometry.get("spacing", properties["spacing"][::-1])][:axes])
    if geometry:
        image.SetOrigin(geometry["origin"][:axes])
        direction = np.reshape(geometry["direction"], (len(geometry["origin"]), -1))
        image.SetDirection(direction[:axes, :axes].ravel().tolist())
    if "original_orientation" in geometry:  # SimpleITKIOWithReorient had turned the axes
        image = sitk.DICOMOrient(image, geometry["original_orientation"])
    write_image(image, path)
