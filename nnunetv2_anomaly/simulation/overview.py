"""A picture of simulated knees: image, labels and anomalies side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from nnunetv2_anomaly.images.grids import oriented
from nnunetv2_anomaly.labels import BONES, LABELS
from nnunetv2_anomaly.reporting.drawing import label_handles, label_palette, number_labels, own_style, save_figure


@own_style
def save_overview(
    file: Path, cases: Mapping[str, tuple[tuple[Path, Path, Path], float | None]], brightest: float
) -> None:
    """Draw a sagittal slice of each case, through the largest lesion area where there is one, labels numbered.

    Args: cases: name -> files of image, labels and anomalies, and the AUC of intensity (None where there is none).
        brightest: intensity drawn white.
    """
    palette = label_palette(LABELS, LABELS.values())
    colours = ListedColormap([palette[value] for value in sorted(palette)])
    present: set[int] = set()
    figure = Figure(figsize=(10, 3.4 * len(cases)), layout="constrained")
    axes = figure.subplots(len(cases), 3, squeeze=False)
    for row, (case, (files, area)) in zip(axes, cases.items(), strict=True):
        images = [oriented(sitk.ReadImage(str(path))) for path in files]
        image, labels, anomalies = (sitk.GetArrayFromImage(i) for i in images)
        spacing = images[0].GetSpacing()[::-1]
        interesting = anomalies if anomalies.any() else np.isin(labels, BONES)
        index = int(np.argmax((interesting > 0).sum((0, 1))))
        place = {"origin": "lower", "aspect": spacing[0] / spacing[1]}
        for axis in row:
            axis.imshow(image[:, :, index], cmap="gray", vmin=0, vmax=brightest, **place)
            axis.set(xticks=[], yticks=[])
        for axis, overlay in ((row[1], labels), (row[2], anomalies)):
            shown = np.ma.masked_equal(overlay[:, :, index], 0)
            present |= {int(value) for value in np.unique(shown.compressed())}
            number_labels(axis, overlay[:, :, index], sorted(palette.keys() - {0}))
            axis.imshow(shown, cmap=colours, vmin=-0.5, vmax=9.5, alpha=0.45, interpolation="nearest", **place)
        row[0].set_ylabel(case + ("" if area is None else f"\nAUC of intensity {area:.2f}"))
    for axis, name in zip(axes[0], ("image", "labels", "anomalies, unlabelled ones included"), strict=True):
        axis.set_title(name)
    figure.legend(handles=label_handles(palette, LABELS, sorted(present)), loc="outside lower center", ncols=3)
    save_figure(figure, file)
