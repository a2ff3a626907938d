"""The comparison's figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from nnunetv2_anomaly.evaluation.figures import plain
from nnunetv2_anomaly.evaluation.tables import Measure
from nnunetv2_anomaly.reporting.drawing import own_style
from nnunetv2_anomaly.reporting.page import Picture
from nnunetv2_anomaly.reporting.table import in_words

_PANELS_PER_ROW = 6

#: of a knee whose bone holds a lesion, and of the others
_LESION, _OTHER = "#C1121F", "0.5"

#: a symmetric logarithmic axis where differences reach farther than this, in the measure's unit
_LINEAR_TO = 10.0


def difference_drawing(
    knees: pd.DataFrame, lesions: pd.DataFrame, models: tuple[str, ...], measure: Measure
) -> Picture:
    """Every model minus the first, a point for each knee, a panel for each label.

    Args:
        knees: columns model, processing, label, case and metrics; one row for each knee, as ``comparison.by_knee``.
        lesions: columns knee, label, lesion: whether the bone holds one in the image.
        models: in order, the baseline first; at least two.
        measure: what is drawn.
    """
    baseline = models[0]
    title = f"{measure.title}, minus {in_words(baseline)}"
    better = "right" if measure.larger_is_better else "left"
    return Picture(
        _figure(knees, lesions, models, measure, f"{title}  ({better}: better)"),
        f"Differences of {measure.title} from {baseline} by label and model; a point is a knee, the bar the mean over "
        f"knees; what lies to the {better} of the line is better. Red triangles: the bone holds a lesion.",
        f"{title}, knee by knee",
        f"differences_{measure.name}",
    )


@own_style
def _figure(
    knees: pd.DataFrame, lesions: pd.DataFrame, models: tuple[str, ...], measure: Measure, title: str
) -> Figure:
    own = knees[knees["processing"] == measure.processing]
    labels, others = list(dict.fromkeys(own["label"])), models[1:]
    holding = {(row.knee, row.label) for row in lesions.itertuples() if row.lesion}
    columns = max(1, min(len(labels), _PANELS_PER_ROW))
    rows = max(1, math.ceil(len(labels) / columns))
    size = (2.0 * columns + 1.6, rows * (0.36 * len(others) + 0.7) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    farthest = 0.0
    for axis, label in zip(axes.flat, labels, strict=False):
        wide = own[own["label"] == label].pivot(index="case", columns="model", values=measure.metric)
        red = np.array([(knee, label) in holding for knee in wide.index], dtype=bool)
        for place, model in enumerate(others):
            values = measure.factor * (wide[model] - wide[models[0]]).to_numpy(dtype=float)
            _draw(axis, place, values, red)
            farthest = max(farthest, float(np.nanmax(np.abs(values), initial=0.0)))
        axis.set_title(plain(in_words(label)), fontsize=9)
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.grid(axis="x", color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(labels) :]:
        axis.set_axis_off()
    shared = axes[0, 0]
    shared.set_yticks(range(len(others)), [plain(in_words(model)) for model in others])
    shared.set_ylim(len(others) - 0.5, -0.5)  # the first on top
    if farthest > _LINEAR_TO:
        # A few far islands would press all else into the line.
        shared.set_xscale("symlog", linthresh=2.0, linscale=0.7)
        reached = [value for value in (2.0, 10.0, 100.0, 1000.0) if value <= 1.2 * farthest]
        shared.set_xticks([*(-value for value in reversed(reached)), 0.0, *reached])
        shared.xaxis.set_major_formatter("{x:g}")
        shared.xaxis.set_minor_locator(NullLocator())
    if farthest:
        shared.set_xlim(-1.2 * farthest, 1.2 * farthest)
    figure.supxlabel(plain(title), fontsize=9)
    dot: dict[str, Any] = {"linestyle": "none", "markersize": 4}
    handles = [
        Line2D([], [], color=_OTHER, marker="o", label="a knee", **dot),
        Line2D([], [], color=_LESION, marker="^", label="a knee whose bone holds a lesion", **dot),
        Line2D([], [], color="0.1", marker="|", markersize=10, markeredgewidth=2, linestyle="none", label="mean"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def _draw(axis: Axes, place: int, values: np.ndarray, red: np.ndarray) -> None:
    # Spread by the order of the knees, which has nothing to do with the values; the same in every run.
    spread = ((0.5 + np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.5
    for chosen, colour, marker in ((~red, _OTHER, "o"), (red, _LESION, "^")):
        axis.scatter(
            values[chosen],
            place + spread[chosen],
            s=12,
            color=colour,
            marker=marker,
            alpha=0.65,
            linewidths=0,
            zorder=3,
        )
    if np.isfinite(values).any():
        mean = float(np.nanmean(values))
        axis.plot([mean, mean], [place - 0.36, place + 0.36], color="0.1", linewidth=2, zorder=4)
