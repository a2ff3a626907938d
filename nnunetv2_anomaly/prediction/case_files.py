"""Files written per case: reconstruction, error image, picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
    folder: Path, case: str, maps: Maps, properties: dict, windows: Windows, outlines: np.ndarray | None = None
) -> None:
    """Write what the detector expected and its error image in the original geometry, and last a picture.

    The first of the two is left out where the detector has one map for several image channels.

    Args: folder: exists. maps: on the preprocessed grid. properties: nnU-Net's properties of the case. outlines:
        (X, Y, Z) mask or label map whose outline the picture shows.
    """
    expected, plans = maps.expected, (windows.plans_manager, windows.configuration_manager)
    for kind, volume in (("reconstruction", expected), ("error", maps.error)):
        if volume is not None:
            restored = to_original_grid(volume.numpy(), properties, *plans)
            for channel, path in zip(restored, output_files(folder, case, kind, len(volume)), strict=True):
                write_volume(channel, properties, path)
    image = maps.image[0]
    save_reconstruction_figure(
        folder / f"{case}.png",
        title=case,
        image=image.numpy(),
        reconstruction=(image if expected is None else expected[0]).numpy(),
        error=maps.error.mean(dim=0).numpy(),
        spacing=preprocessed_spacing(properties, windows.plans_manager, windows.configuration_manager),
        outlines=outlines,
    )
