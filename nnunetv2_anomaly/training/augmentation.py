"""The augmentation of transfer learning (method paper, Section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import Any

import numpy as np
from batchgenerators.augmentations.utils import rotate_coords_2d, rotate_coords_3d
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

SCALING = (0.9, 1.1)
ROTATION_DEGREES = 10.0
TRANSLATION_VOXELS = 10


class RotationAboutOneAxis:
    """An angle in [-10, 10] degrees about one axis, drawn for every image; 0 about the others.

    batchgeneratorsv2 asks for the angles axis by axis.
    """

    def __init__(self) -> None:
        self._axis = 0

    def __call__(self, image: Any, dim: int) -> float:
        """Angle in radians about axis ``dim``."""
        dimensions = image.ndim - 1
        if dimensions == 2:  # one angle, the last that is asked for
            self._axis = 1
        elif dim == 0:
            self._axis = int(np.random.randint(dimensions))
        return np.random.uniform(-ROTATION_DEGREES, ROTATION_DEGREES) * pi / 180 if dim == self._axis else 0.0


def transforms_without_augmentation(
    patch_size: Any, rotation: Any, deep_supervision_scales: Any, mirror_axes: Any, *_: Any, **keywords: Any
) -> BasicTransform:
    """nnU-Net's validation transforms, for what nnU-Net hands its training transforms; labels stay labels."""
    keywords = {name: value for name, value in {**keywords, "regions": None}.items() if name != "use_mask_for_norm"}
    return nnUNetTrainer.get_validation_transforms(deep_supervision_scales, **keywords)


def loaded_patch_size(patch_size: Sequence[int]) -> list[int]:
    """Voxels to load so that a rotated, enlarged, shifted patch lies within: its box after rotation and scaling, and
    the way of the shift on either side.

    Args: patch_size: two or three axes.
    """
    half = np.array(patch_size) / 2
    largest = half.copy()
    angle = ROTATION_DEGREES * pi / 180
    corners = np.array(np.meshgrid(*[(-h, h) for h in half], indexing="ij")).reshape(len(half), -1)
    for axis in range(3 if len(half) == 3 else 1):
        angles = [angle if axis == a else 0.0 for a in range(3)]
        turned = rotate_coords_3d(corners, *angles) if len(half) == 3 else rotate_coords_2d(corners, angle)
        largest = np.maximum(largest, np.abs(turned).max(axis=1))
    # Even, so that the middle lies between two voxels, and the way of the shift is the same on either side.
    return [2 * int(np.ceil(n / SCALING[0])) + 2 * TRANSLATION_VOXELS for n in largest]


def published_spatial_transform(patch_size: Sequence[int]) -> SpatialTransform:
    """Scaling in [0.9, 1.1], rotation within 10 degrees about one axis, translation within 10 voxels along each.

    Args: patch_size: what comes out; what goes in is of ``loaded_patch_size``.
    """
    border = [(loaded - 2 * TRANSLATION_VOXELS) // 2 for loaded in loaded_patch_size(patch_size)]
    return SpatialTransform(
        tuple(patch_size),
        # The patch's centre is drawn this far from the loaded region's border, so at most 10 voxels from its middle.
        patch_center_dist_from_border=border,
        random_crop=True,
        p_rotation=1.0,
        rotation=RotationAboutOneAxis(),
        p_scaling=1.0,
        scaling=SCALING,
        p_synchronize_scaling_across_axes=1.0,
    )
