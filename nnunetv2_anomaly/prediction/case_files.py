"""Files written per case: reconstruction, error image, picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_anomaly.detectors.thresholds import lesions_in
from nnunetv2_anomaly.images.geometry import preprocessed_spacing, to_original_grid, write_volume
from nnunetv2_anomaly.images.sliding_window import Windows
from nnunetv2_anomaly.prediction.windows import Maps
from nnunetv2_anomaly.reporting.drawing import save_reconstruction_figure


def output_files(folder: Path, case: str, kind: str, num_channels: int) -> list[Path]:
    """File per image channel: <case>_<kind>.nii.gz, with several channels <case>_<kind>_0000.nii.gz and so on."""
    if num_channels == 1:
        return [folder / f"{case}_{kind}.nii.gz"]
    return [folder / f"{case}_{kind}_{channel:04d}.nii.gz" for channel in range(num_channels)]


def write_case(
    folder: Path,
    case: str,
    maps: Maps,
    properties: dict,
    windows: Windows,
    *,
    outlines: np.ndarray | None = None,
    fit: Mapping[str, Any] | None = None,
) -> None:
    """Write what the detector expected, its error image and its lesions in the original geometry, and last a picture.

    What was expected is left out where the detector has one map for several image channels.

    Args: folder: exists. maps: on the preprocessed grid. properties: nnU-Net's properties of the case. outlines:
        (X, Y, Z) mask whose outline the picture shows beside that of the bones. fit: how the map becomes lesions, where
        bones are known; None: no lesions are written.
    """
    expected, plans = maps.expected, (windows.plans_manager, windows.configuration_manager)
    for kind, volume in (("reconstruction", expected), ("error", maps.error)):
        if volume is not None:
            restored = to_original_grid(volume.numpy(), properties, *plans)
            for channel, path in zip(restored, output_files(folder, case, kind, len(volume)), strict=True):
                write_volume(channel, properties, path)
    spacing = preprocessed_spacing(properties, *plans)
    if fit is not None and maps.bones is not None:
        outlines = lesions_in(maps.error.mean(dim=0).numpy(), maps.bones.numpy(), spacing, fit) > 0
        mask = to_original_grid(outlines[None].astype(np.float32), properties, *plans)[0]
        write_volume((mask >= 0.5).astype(np.uint8), properties, folder / f"{case}_lesions.nii.gz")
    image = maps.image[0]
    save_reconstruction_figure(
        folder / f"{case}.png",
        title=case,
        image=image.numpy(),
        reconstruction=None if expected is None else expected[0].numpy(),
        error=maps.error.mean(dim=0).numpy(),
        spacing=spacing,
        outlines=outlines,
        bones=None if maps.bones is None else maps.bones.numpy(),
    )
