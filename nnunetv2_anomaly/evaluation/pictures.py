"""Pictures of an evaluation's worst, median and best cases: labels, disagreement, error image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_anomaly.evaluation.figures import figure_legend, plain, wrapped
from nnunetv2_anomaly.evaluation.pairing import Pairs
from nnunetv2_anomaly.evaluation.results import CLEANED, Evaluation
from nnunetv2_anomaly.images.beside import ERROR_IMAGE, IMAGE, image_beside
from nnunetv2_anomaly.images.dataset_description import DatasetDescription
from nnunetv2_anomaly.images.segmentations import SegmentationFiles, read_known
from nnunetv2_anomaly.reporting.drawing import label_handles, label_palette, number_labels, own_style

#: colours of a case's disagreement -> in words, and what fills them
_MISSED, _EXTRA, _OTHER = "#4DB2FF", "#FF9A1F", "#E765D6"
_DISAGREEMENTS = {
    _MISSED: ("reference alone", "\\\\\\\\\\\\"),
    _EXTRA: ("prediction alone", "//////"),
    _OTHER: ("another label", "xxxxxx"),
}

#: outline of what is marked beside the labels
_MARKED = "#FF2A2A"

_MODELS_PER_ROW = 4
_MARGIN_MM = 12.0


@dataclass(frozen=True)
class Choice:
    """A model's "worst", "median", "best" or "only" case; mean_dsc: of its labels after post-processing, in [0, 1]."""

    model: str
    rank: str
    case: str
    mean_dsc: float

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.rank} of {self.model}, mean DSC {100 * self.mean_dsc:.1f} %"


def select_cases(evaluation: Evaluation) -> list[Choice]:
    """Each model's worst, median and best case by the mean DSC over its labels, after post-processing.

    A label that is in neither map does not count; a case without any other is not chosen. Of equal cases the one whose
    name comes first is better; of an even number, the median is the worse one of the two in the middle. Two cases
    have no median, and one is the only one.
    """
    choices = []
    cleaned = evaluation.cases[evaluation.cases["processing"] == CLEANED]
    for model in evaluation.models:
        means = cleaned[cleaned["model"] == model].groupby("case", observed=True)["dsc"].mean().dropna()
        named = [(str(case), float(mean)) for case, mean in means.items()]
        ranked = sorted(named, key=lambda entry: (-entry[1], entry[0]), reverse=True)
        middle = [("median", (len(ranked) - 1) // 2)] if len(ranked) > 2 else []
        places = [("worst", 0), *middle, ("best", -1)] if len(ranked) > 1 else [("only", 0)][: len(ranked)]
        choices += [Choice(model, rank, *ranked[place]) for rank, place in places]
    return choices


def case_pictures(
    evaluation: Evaluation, pairs: Pairs, dataset: DatasetDescription, images: Path | None, error_images: Path | None
) -> list[tuple[str, str, Figure]]:
    """(case, title, figure) of each case that ``select_cases`` chooses; one that several models chose comes once.

    First comes the most typical one, the first model's median.
    """
    files = SegmentationFiles(dataset.file_ending, dataset.reader)
    titles: dict[str, list[str]] = {}
    choices = select_cases(evaluation)
    for of in sorted(choices, key=lambda of: (of.model, of.rank) != (evaluation.models[0], "median")):
        titles.setdefault(of.case, []).append(of.title)
    pictures = []
    for case, reasons in titles.items():
        reference = read_known(files, pairs.references[case], dataset)
        predictions = {model.name: files.read(model.files[case]).voxels for model in pairs.models}
        figure = case_figure(
            case,
            image_beside(images, case, IMAGE, reference, files),
            reference.voxels,
            predictions,
            image_beside(error_images, case, ERROR_IMAGE, reference, files),
            reference.spacing_mm,
            dataset.single_values,
        )
        pictures.append((case, f"{case}: {'; '.join(reasons)}", figure))
    return pictures


@own_style
def case_figure(
    title: str,
    image: NDArray | None,
    reference: NDArray,
    predictions: Mapping[str, NDArray],
    error_image: NDArray | None,
    spacing_mm: Sequence[float],
    labels: Mapping[str, int],
    *,
    marked: tuple[str, NDArray] | None = None,
) -> Figure:
    """A case on the sagittal slice on which the predictions, all together, disagree most with the reference.

    With ``marked``, on the slice with most of that, and with its outline in every panel.

    Reference and predictions with filled labels and outlines; beneath each prediction where it disagrees, and the
    outlines of the reference; beneath the reference the error image, or else the image by itself. Superior is up and
    anterior to the right; in a volume of a single axial slice anterior is up. (Y, X) is shown as pictures are stored,
    its first row on top.

    Args:
        image: (Z superior, Y anterior, X right), any unit; without one the labels are shown on black.
        reference: same shape, integers; 0 is background.
        predictions: model -> same shape, integers; at least one.
        error_image: same shape, squared error, unitless; or None.
        spacing_mm: one per axis, in the arrays' axis order.
        labels: name -> value, for colours and legend.
        marked: name and mask, of the same shape, of what is no label; without a voxel it chooses no slice.
    """
    planes = _planes(image, reference, predictions, error_image, spacing_mm, None if marked is None else marked[1])
    shown = (planes.reference, *planes.predictions.values())
    present = sorted({int(value) for plane in shown for value in np.unique(plane) if value != 0})
    palette = label_palette(labels, present)
    white = dict.fromkeys(palette, "white")
    per_row = min(len(predictions), _MODELS_PER_ROW)
    blocks = math.ceil(len(predictions) / _MODELS_PER_ROW)
    width = (3.3, 3.3, 3.0, 2.7)[per_row - 1]
    height = width * float(np.clip(planes.height_over_width, 0.35, 2.0))
    figure = Figure(figsize=((1 + per_row) * width, 2 * blocks * (height + 0.35) + 1.2), layout="constrained")
    where = "" if planes.index is None else f", sagittal slice {planes.index}"
    figure.suptitle(plain(f"{title}{where}"), fontsize=11)
    axes = figure.subplots(2 * blocks, 1 + per_row, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis in axes[::2, 0]:
        _overlay(axis, planes, "reference", planes.reference, palette)
    places = itertools.product(range(0, 2 * blocks, 2), range(1, 1 + per_row))
    for (row, column), (model, predicted) in zip(places, planes.predictions.items(), strict=False):
        _overlay(axes[row, column], planes, model, predicted, palette)
        _show(axes[row + 1, column], planes, "disagreement", brightness=0.75)
        _show_disagreement(axes[row + 1, column], planes, predicted)
        _outlines(axes[row + 1, column], planes.reference, white, 0.5)
    if planes.error is not None:
        axes[1, 0].set_title("error image", fontsize=9)
        limit = max(float(np.nanquantile(planes.error, 0.999)), 1e-6)
        drawn = axes[1, 0].imshow(planes.error, cmap="inferno", vmin=0, vmax=limit, **planes.view)
        _outlines(axes[1, 0], planes.reference, white, 0.5)
        bar = figure.colorbar(drawn, ax=axes[1, 0], location="left", fraction=0.05, pad=0.03)
        bar.ax.tick_params(labelsize=7)
    elif planes.grey is not None:
        _show(axes[1, 0], planes, "image")
    if planes.marked is not None:
        for axis in axes.flat:
            if axis.images:
                _outlines(axis, planes.marked, {1: _MARKED}, 1.4, "dashed")
    figure_legend(
        figure, _handles({value: palette[value] for value in present}, labels, marked), "outside lower center"
    )
    return figure


def _handles(palette: Mapping[int, Any], labels: Mapping[str, int], marked: tuple[str, NDArray] | None) -> list[Patch]:
    """Of the legend: labels by colour and number, disagreements by colour and hatch."""
    handles = label_handles(palette, labels, palette)
    for handle in handles:
        handle.set_label(plain(str(handle.get_label())))
    for colour, (name, hatch) in _DISAGREEMENTS.items():
        handles.append(Patch(facecolor=colour, hatch=hatch, label=f"disagreement: {name}"))
    if marked is not None:
        handles.append(Patch(facecolor="none", edgecolor=_MARKED, linestyle="dashed", label=plain(marked[0])))
    return handles


@dataclass(frozen=True)
class _Planes:
    """One slice of a case, cut to its labels: (rows, columns) each."""

    index: int | None  # of the sagittal slice; None in 2D
    reference: NDArray
    predictions: dict[str, NDArray]
    grey: NDArray | None  # in [0, 1]
    error: NDArray | None
    marked: NDArray | None
    height_over_width: float  # in mm
    view: dict[str, Any]  # for imshow


def _planes(
    image: NDArray | None,
    reference: NDArray,
    predictions: Mapping[str, NDArray],
    error_image: NDArray | None,
    spacing_mm: Sequence[float],
    marked: NDArray | None,
) -> _Planes:
    flat = reference.ndim == 2 or reference.shape[0] == 1
    index = None if flat else _slice_of_most(marked, reference, list(predictions.values()))
    vertical, horizontal = spacing_mm[-2:] if flat else spacing_mm[:2]

    def sliced(volume: NDArray) -> NDArray:
        return np.asarray(volume).reshape(volume.shape[-2:]) if index is None else np.asarray(volume[:, :, index])

    target, predicted = sliced(reference), {model: sliced(volume) for model, volume in predictions.items()}
    box = _box_around([target, *predicted.values()], (vertical, horizontal))
    target, origin = target[box], "upper" if reference.ndim == 2 else "lower"
    grey = None
    if image is not None:
        # Every fourth voxel of the volume is enough for its range.
        sample = np.asarray(image[..., ::4, ::4] if flat else image[::4, ::4, ::4], dtype=float)
        sample = sample[np.isfinite(sample)]
        low, high = np.percentile(sample, (1, 99.5)) if sample.size else (0.0, 1.0)
        grey = np.clip((sliced(image)[box].astype(float) - low) / max(high - low, 1e-12), 0, 1)
    return _Planes(
        index,
        target,
        {model: plane[box] for model, plane in predicted.items()},
        grey,
        None if error_image is None else sliced(error_image)[box],
        None if marked is None else (sliced(marked)[box] != 0).astype(np.uint8),
        target.shape[0] * vertical / (target.shape[1] * horizontal),
        {"origin": origin, "aspect": vertical / horizontal, "interpolation": "nearest"},
    )


def _slice_of_most(marked: NDArray | None, reference: NDArray, predictions: Sequence[NDArray]) -> int:
    """Index along X with most of what is marked, or disagreement, or reference; the middle where there is nothing."""
    differing = sum(np.count_nonzero(prediction != reference, axis=(0, 1)) for prediction in predictions)
    amounts = [differing, np.count_nonzero(reference, axis=(0, 1))]
    amounts = amounts if marked is None else [np.count_nonzero(marked, axis=(0, 1)), *amounts]
    return next((int(of.argmax()) for of in amounts if of.any()), reference.shape[2] // 2)


def _box_around(planes: Sequence[NDArray], spacing_mm: tuple[float, float]) -> tuple[slice, slice]:
    """All labels and a margin; the whole plane without any."""
    occupied = np.any([plane != 0 for plane in planes], axis=0)
    if not occupied.any():
        return slice(None), slice(None)
    (found,) = ndimage.find_objects(occupied.view(np.uint8))
    margins = [math.ceil(_MARGIN_MM / spacing) for spacing in spacing_mm]
    rows, columns = (slice(max(0, s.start - m), s.stop + m) for s, m in zip(found, margins, strict=True))
    return rows, columns


def _show(axis: Axes, planes: _Planes, title: str, brightness: float = 1.0) -> None:
    grey = np.zeros(planes.reference.shape) if planes.grey is None else planes.grey * brightness
    axis.imshow(grey, cmap="gray", vmin=0, vmax=1, **planes.view)
    axis.set_title(wrapped(title, 30), fontsize=9)


def _overlay(axis: Axes, planes: _Planes, title: str, plane: NDArray, palette: Mapping[int, Any]) -> None:
    _show(axis, planes, title)
    filled = np.zeros((*plane.shape, 4))
    for value, colour in palette.items():
        if value != 0:
            filled[plane == value] = (*colour, 0.34)
    axis.imshow(filled, **planes.view)
    _outlines(axis, plane, palette, 0.9)
    number_labels(axis, plane, [value for value in palette if value != 0])


def _outlines(axis: Axes, plane: NDArray, palette: Mapping[int, Any], width: float, style: str = "solid") -> None:
    if min(plane.shape) < 2:
        return  # contours need two rows and two columns
    for value, colour in palette.items():
        mask = plane == value
        if value != 0 and mask.any() and not mask.all():
            axis.contour(mask, levels=[0.5], colors=[colour], linewidths=width, linestyles=style)


def _show_disagreement(axis: Axes, planes: _Planes, prediction: NDArray) -> None:
    """In colours, and hatched for who sees none."""
    coloured = _disagreement(planes.reference, prediction)
    axis.imshow(coloured, **planes.view)
    for colour, (_, hatch) in _DISAGREEMENTS.items():
        # Each voxel three by three, or a contour would cut its corners off.
        fine = np.kron((coloured == (*to_rgb(colour), 1)).all(axis=-1), np.ones((3, 3)))
        if fine.any():
            down, along = ((np.arange(size) - 1) / 3 for size in fine.shape)
            axis.contourf(along, down, fine, levels=[0.5, 2], colors="none", hatches=[hatch])


def _disagreement(reference: NDArray, prediction: NDArray) -> NDArray[np.float64]:
    """(rows, columns, 4), transparent where both agree."""
    coloured = np.zeros((*reference.shape, 4))
    differ = reference != prediction
    coloured[differ] = (*to_rgb(_OTHER), 1)
    coloured[differ & (prediction == 0)] = (*to_rgb(_MISSED), 1)
    coloured[differ & (reference == 0)] = (*to_rgb(_EXTRA), 1)
    return coloured
