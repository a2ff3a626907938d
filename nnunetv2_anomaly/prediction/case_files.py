"""What is written for a case of which the detector made an error image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_anomaly.images.geometry import to_original_grid, write_volume
from nnunetv2_anomaly.reporting.drawing import save_reconstruction_figure


def output_files(folder: Path, case: str, kind: str, num_channels: int) -> list[Path]:
    """File per image channel: <case>_<kind>.nii.gz, with several channels <case>_<kind>_0000.nii.gz and so on."""
    if num_channels == 1:
        return [folder / f"{case}_{kind}.nii.gz"]
    return [folder / f"{case}_{kind}_{channel:04d}.nii.gz" for channel in range(num_channels)]


def write_case(
    folder: Path,
    case: str,
    *,
    image: np.ndarray,
    reconstruction: np.ndarray,
    properties: dict,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    outlines: np.ndarray | None = None,
) -> None:
    """Write reconstruction and error image in the original geometry, and last a picture.

    Args:
        folder: exists.
        image, reconstruction: (C, X, Y, Z) on the preprocessed grid, in [0, 1], unitless.
        properties: nnU-Net's properties of the case.
        outlines: (X, Y, Z) mask or label map whose outline the picture shows.
    """
    error = np.square(image - reconstruction)
    for kind, volume in (("reconstruction", reconstruction), ("error", error)):
        restored = to_original_grid(volume, properties, plans_manager, configuration_manager)
        for channel, path in zip(restored, output_files(folder, case, kind, len(volume)), strict=True):
            write_volume(channel, properties, path)
    spacing = configuration_manager.spacing
    if len(spacing) < image.ndim - 1:
        spacing = [properties["spacing"][plans_manager.transpose_forward[0]], *spacing]
    save_reconstruction_figure(
        folder / f"{case}.png",
        title=case,
        image=image[0],
        reconstruction=reconstruction[0],
        error=error.mean(axis=0),
        spacing=spacing,
        outlines=outlines,
    )
