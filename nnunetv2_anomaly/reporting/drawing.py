"""Figures of volumes and of the pre-stage's progress."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nnunetv2_anomaly.files import written_beside
from nnunetv2_anomaly.images.colours import label_colours
from nnunetv2_anomaly.reporting.table import in_words, number

#: Decorates what draws: a figure looks as it was made to, whatever fonts and sizes the user's matplotlibrc or another
#: library set. nnU-Net's own progress plot enlarges all text of what its process draws afterwards. For one thread at a
#: time: matplotlib's settings are those of the process.
own_style = matplotlib.style.context(["default", {"hatch.linewidth": 0.6}])


@own_style
def figure_bytes(figure: Figure, kind: Literal["png", "svg"], dpi: float = 90) -> bytes:
    """A figure as the content of a PNG or SVG file, without a display.

    The same figure gives the same bytes in every run, whatever was made of it before: it is laid out once, an SVG has
    no date and no random names in it. The text of an SVG is text.
    """
    FigureCanvasAgg(figure)
    if figure.get_layout_engine() is not None:
        # A layout per resolution would move the parts by fractions of a pixel, and names are made of places.
        figure.draw_without_rendering()
        figure.set_layout_engine(None)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "nnunetv2_anomaly", "svg.fonttype": "none"}):
        figure.savefig(buffer, dpi=dpi, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path, dpi: float = 90) -> None:
    """Write a figure as PNG, or as SVG where the path ends so, beside and renamed."""
    content = figure_bytes(figure, "svg" if path.suffix.lower() == ".svg" else "png", dpi)
    with written_beside(path) as temporary:
        temporary.write_bytes(content)


def label_palette(names: Mapping[str, int], present: Collection[int]) -> dict[int, tuple[float, float, float]]:
    """Value -> red, green and blue, each 0 to 1, of the named labels and of those that are present without a name."""
    unnamed = {f"label {value}": value for value in present if value not in names.values()}
    colours = label_colours({**names, **unnamed})
    return {value: (red / 255, green / 255, blue / 255) for value, (red, green, blue) in colours.items()}


def bland_altman_lines(axis: Axes, bias: float, lower: float, upper: float, unit: str) -> str:
    """Draw bias and limits of agreement, in a unit, behind an axis's points. Returns: their numbers, in words.

    Numbers that are not defined are not drawn.
    """
    axis.axhline(0, color="0.75", linewidth=0.8, zorder=0)
    for value, style in ((bias, "-"), (lower, "--"), (upper, "--")):
        if math.isfinite(value):
            axis.axhline(value, color="0.2", linewidth=1.1, linestyle=style, zorder=0)
    limits = f", limits {number(lower, 1)} to {number(upper, 1)}" if math.isfinite(lower) else ""
    return f"bias {number(bias, 1)}{limits} {unit}"


def label_handles(palette: Mapping[int, Any], names: Mapping[str, int], values: Collection[int]) -> list[Patch]:
    """A legend's entries of labels: colour, value as ``number_labels`` writes it, name. Args: names: name -> value."""
    of = {value: name for name, value in names.items()}
    return [Patch(color=palette[v], label=f"{v} {in_words(of.get(v, '(no name)'))}") for v in values]


def number_labels(axis: Axes, plane: NDArray[np.integer], values: Collection[int]) -> None:
    """Write each label's value where a picture of labels, (rows, columns), has most of it, for who sees no colour."""
    for value in values:
        if (mask := plane == value).any():
            depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            text = axis.annotate(str(value), (column, row), color="white", weight="bold", ha="center", va="center")
            text.set_path_effects([withStroke(linewidth=2, foreground="black")])


@own_style
def save_reconstruction_figure(
    path: Path,
    *,
    title: str,
    image: np.ndarray,
    reconstruction: np.ndarray | None,
    error: np.ndarray,
    spacing: Sequence[float],
    outlines: np.ndarray | None = None,
    bones: np.ndarray | None = None,
) -> None:
    """Image, reconstruction and anomaly map of a case, on slices of the first axis with much of it.

    Args: image, reconstruction: (X, Y, Z), of one unit; None where there is none. error: (X, Y, Z), from 0, unitless.
        spacing: mm, one per axis, for the aspect ratio.
        outlines, bones: (X, Y, Z) masks of lesions, and masks or label maps of bones, drawn as contours; without either
            the strongest hundredth of the map is outlined.
    """
    if outlines is not None and not outlines.any():
        outlines = None
    slices = _slices_of(error, bones if outlines is None else outlines)
    num_slices = len(slices)
    drawn = _outlined(error, outlines, bones)
    aspect = spacing[1] / spacing[2]
    height = 2.6 * max(0.4, min(2.5, image.shape[1] * spacing[1] / (image.shape[2] * spacing[2])))
    figure = Figure(figsize=(9.5, num_slices * height + 0.6), layout="constrained")
    figure.suptitle(title)
    expected = {} if reconstruction is None else {"expected": reconstruction}
    pictures = {"image": image, **expected, "anomaly map": error}
    axes = figure.subplots(num_slices, len(pictures), squeeze=False)
    error_limit = max(float(np.quantile(error, 0.999)), 1e-6)
    low, high = np.percentile(image, (0.5, 99.8))
    grey: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high, "aspect": aspect, "origin": "lower"}
    for row, index in zip(axes, slices, strict=True):
        for axis, volume in zip(row[:-1], pictures.values(), strict=False):
            axis.imshow(volume[index], **grey)
        shown = row[-1].imshow(error[index], cmap="inferno", vmin=0, vmax=error_limit, aspect=aspect, origin="lower")
        figure.colorbar(shown, ax=row[-1], fraction=0.046)
        for axis in row:
            axis.set(xticks=[], yticks=[])
        for mask, line in drawn:
            if mask[index].any() and not mask[index].all():
                style: dict[str, Any] = {"colors": line.get_color(), "linestyles": line.get_linestyle()}
                for axis in (row[0], row[-1]):
                    axis.contour(mask[index], levels=[0.5], linewidths=0.9, **style)
        row[0].set_ylabel(f"slice {index}")
    for axis, name in zip(axes[0], pictures, strict=True):
        axis.set_title(name)
    if drawn:
        handles = [line for _, line in drawn]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, facecolor="0.5", labelcolor="white")
    save_figure(figure, path)


def _outlined(error: NDArray, outlines: NDArray | None, bones: NDArray | None) -> list[tuple[NDArray, Line2D]]:
    """What has an outline, (X, Y, Z), and how the line looks."""
    lines = Line2D([], [], color="deepskyblue"), Line2D([], [], color="orange", linestyle="dashed")
    found = [("bones", bones, lines[0]), ("lesions", outlines, lines[1])]
    if bones is None and outlines is None:
        least = np.quantile(error, 0.99)
        strongest = error >= least if least > 0 else error > 0
        found = [("strongest hundredth of the map", strongest, lines[1])]
    for name, _, line in found:
        line.set_label(name)
    return [(of > 0, line) for _, of, line in found if of is not None and (of > 0).any() and not (of > 0).all()]


def _slices_of(error: NDArray[np.floating], within: NDArray | None) -> list[int]:
    """One from each third of the first axis, with the strongest map: (X, Y, Z), within a mask where that has voxels.

    Not from the outermost tenths without a mask: every reconstruction is off at the image's edge.
    """
    edge = max(len(error) // 10, 1 if len(error) > 2 else 0)
    places = np.arange(len(error))[edge : len(error) - edge]
    if within is not None and within.any():
        error = np.where(within > 0, error, 0)
        places = np.flatnonzero((within > 0).any(axis=(1, 2)))
    strength = error.reshape(len(error), -1).mean(axis=1)
    return [int(third[np.argmax(strength[third])]) for third in np.array_split(places, min(3, len(places)))]


@own_style
def save_pasting_figure(
    path: Path, patches: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], spacing: Sequence[float]
) -> None:
    """Training patches with pasted anomalies, and below each the same with outlines: labels blue, anomalies orange.

    Args: patches: pasted image (any unit), labels, and share of an anomaly in each pixel, (X, Y). spacing: mm, of these
        axes, for the aspect ratio.
    """
    figure = Figure(figsize=(2.4 * len(patches), 5.2), layout="constrained")
    figure.suptitle("Training patches with pasted anomalies (orange, dashed); the labels (blue) stay as they are")
    for column, (image, labels, weight) in zip(figure.subplots(2, len(patches), squeeze=False).T, patches, strict=True):
        low, high = np.percentile(image, (1, 99.5))
        for plot in column:
            plot.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=spacing[0] / spacing[1], origin="lower")
            plot.set(xticks=[], yticks=[])
        lines = ((labels > 0, 0.5, "deepskyblue", "solid"), (weight, 0.25, "orange", "dashed"))
        for picture, level, colour, line in lines:
            if picture.min() < level < picture.max():
                column[1].contour(picture, levels=[level], colors=colour, linestyles=line, linewidths=0.8)
    save_figure(figure, path)


@own_style
def save_cuts_figure(path: Path, rows: Sequence[tuple[str, Sequence[np.ndarray]]], spacing: Sequence[float]) -> None:
    """Slices beside their fence cut, wild cut and reconstruction. Args: rows: case, and its pictures (Y, X), 0 to 1."""
    figure = Figure(figsize=(9.5, 2.5 * len(rows) + 0.4), layout="constrained")
    for plots, (case, pictures) in zip(figure.subplots(len(rows), 4, squeeze=False), rows, strict=True):
        for plot, picture in zip(plots, pictures, strict=True):
            plot.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=spacing[0] / spacing[1], origin="lower")
            plot.set(xticks=[], yticks=[])
        plots[0].set_ylabel(case)
    for plot, title in zip(figure.axes[:4], ("image", "fence cut", "wild cut", "reconstruction"), strict=True):
        plot.set_title(title)
    save_figure(figure, path)


@own_style
def label_figure(
    image: np.ndarray | None, labels: np.ndarray, spacing: Sequence[float], names: Mapping[str, int], title: str = ""
) -> Figure:
    """An image in three planes through its labels, and beside each the same with the labels' outlines.

    Args:
        image, labels: (Z superior, Y anterior, X right), any unit; 0 is background. Without an image the outlines
            stand alone.
        spacing: mm, same order, for the aspect ratio.
        names: name -> value of the labels, for the legend.
    """
    low, high = (0, 1) if image is None else np.percentile(image[::4, ::4, ::4], (1, 99.5))
    values = [int(value) for value in np.unique(labels[::2, ::2, ::2]) if value > 0]
    palette = label_palette(names, values)
    figure = Figure(figsize=(9.5, 13.5) if image is not None else (13.5, 5), layout="constrained")
    figure.suptitle(title)
    plots = figure.subplots(3, 2) if image is not None else figure.subplots(1, 3)[:, None]
    planes = (("sagittal", 2), ("coronal", 1), ("axial", 0))
    for row, (name, axis) in zip(plots, planes, strict=True):
        # The slice with the most kinds of labels, and of these the one with the most of them.
        columns = np.moveaxis(labels, axis, 0)
        present = ((columns == value).any(axis=(1, 2)).astype(int) for value in values)
        kinds = sum(present, start=np.zeros(len(columns), int))
        amount = np.count_nonzero(columns.reshape(len(columns), -1), axis=1)
        index = int(np.lexsort((amount, kinds))[-1])
        outlined = np.take(labels, index, axis)
        picture = np.zeros(outlined.shape) if image is None else np.take(image, index, axis)
        vertical, horizontal = (spacing[a] for a in range(3) if a != axis)
        for plot in row:
            plot.imshow(picture, cmap="gray", vmin=low, vmax=high, aspect=vertical / horizontal, origin="lower")
            plot.set(xticks=[], yticks=[])
        for value in values:
            if (outlined == value).any():
                row[-1].contour(outlined == value, levels=[0.5], colors=[palette[value]], linewidths=0.8)
        number_labels(row[-1], outlined, values)
        row[0].set_ylabel(f"{name}, slice {index}")
    figure.legend(handles=label_handles(palette, names, values), loc="outside lower center", ncols=4)
    return figure


@own_style
def save_prestage_progress(path: Path, logged: Mapping[str, Sequence[float]], phases: Mapping[int, str]) -> None:
    """progress.png of a pre-stage: losses, the family's validation numbers, times, learning rates; phases shaded.

    Args: logged: one value per epoch for train_losses, val_losses, lrs, epoch_start_timestamps and epoch_end_timestamps
        (s); all others are drawn together as the family's numbers. phases: first epoch of each phase -> its name.
    """
    epochs = np.arange(min(len(values) for values in logged.values()))
    values = {name: np.asarray(series, dtype=float)[: len(epochs)] for name, series in logged.items()}
    starts, ends = values.pop("epoch_start_timestamps"), values.pop("epoch_end_timestamps")
    training, validation, rates = values.pop("train_losses"), values.pop("val_losses"), values.pop("lrs")
    num_panels = 4 if values else 3
    figure = Figure(figsize=(12, 4 * num_panels), layout="constrained")
    axes = figure.subplots(num_panels, 1, sharex=True)
    axes[0].plot(epochs, training, "b-o", markersize=3, label="training loss")
    axes[0].plot(epochs, validation, "r--s", markersize=3, label="validation loss")
    axes[0].set_ylabel("loss")
    for style, (name, series) in zip(("k-o", "--", ":", "-."), values.items(), strict=False):
        axes[1].plot(epochs, series, style, markersize=3, label=name.replace("_", " "))
        axes[1].set_ylabel("validation")
    axes[-2].plot(epochs, ends - starts, "b-")
    axes[-2].set_ylim(bottom=0)
    axes[-2].set_ylabel("epoch time [s]")
    axes[-1].plot(epochs, rates, "b-")
    axes[-1].set(xlabel="epoch", ylabel="learning rate at epoch start")
    ends_of_phases = [*list(phases)[1:], len(epochs)]
    for axis in axes:
        if axis is not axes[-2]:
            axis.set_yscale("log")
        for place, (start, name) in enumerate(phases.items()):
            end = min(ends_of_phases[place], len(epochs))
            if end > start:
                axis.axvspan(start - 0.5, end - 0.5, color=f"C{place}", alpha=0.08, label=name)
        axis.legend(loc="upper right")
    save_figure(figure, path)
