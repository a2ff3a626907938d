"""An evaluation's figures: box plots, ROC, volumes and sizes of lesions."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from nnunetv2_anomaly.evaluation import detection
from nnunetv2_anomaly.evaluation.lesion_tables import size_in_words
from nnunetv2_anomaly.evaluation.results import INVENTED, MISSED, Evaluation
from nnunetv2_anomaly.evaluation.tables import MEASURES, Measure
from nnunetv2_anomaly.measurements.lesions import PROBABILITY, SIZE
from nnunetv2_anomaly.measurements.surface import DISTANCES
from nnunetv2_anomaly.reporting.drawing import bland_altman_lines, own_style
from nnunetv2_anomaly.reporting.page import Picture
from nnunetv2_anomaly.reporting.table import in_words

# Okabe and Ito's colours, which people of any colour vision can distinguish, without the yellow: too pale on white.
# The same darker, for more than seven models.
_MODEL_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D"),
    *("#00446B", "#803800", "#005F45", "#8D3666", "#8A5F00", "#1674A9", "#2E2E2E"),
)

_MARKERS = "osD^vP*Xp<>hd8"
# Beside the colours, for print and for who sees none: of boxes, and of lines.
_HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\", "oo")
_LINES = ("-", (0, (6, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (10, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)))

#: a logarithmic axis where values differ by more than this factor
_LOGARITHMIC_FROM = 30.0


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """Model -> "#rrggbb", the same in every figure; beyond seven models the colours repeat, darker."""
    return dict(zip(models, itertools.cycle(_MODEL_COLOURS), strict=False))


def line_of(place: int) -> Any:
    """How the line of a model in that place is dashed."""
    return _LINES[place % len(_LINES)]


def marker_of(place: int) -> str:
    """The marker of a model in that place."""
    return _MARKERS[place % len(_MARKERS)]


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: no formula between dollars, and not hidden in a legend for an underscore."""
    return text.replace("$", r"\$").replace("_", " _", text.startswith("_"))


def evaluation_figures(evaluation: Evaluation) -> list[Picture]:
    """Every figure that the evaluation has data for."""
    shown = "Box plots of {} for each label, models side by side; the numbers are in the tables."
    drawings = [
        Picture(box_figure(evaluation, of), shown.format(of.title), f"{of.title} of each label", f"box_{of.name}")
        for of in MEASURES
    ]
    counts = detection.distinct(detection.counts(evaluation.bones))
    if bones := detection.bones_with_curve(counts):
        shown = "Sensitivity over 1 - specificity, a panel per bone, a curve per model; areas in the legends."
        caption = "ROC of lesion detection: the nearer a curve comes to the upper left corner, the better"
        if without := [in_words(bone) for bone in counts["bone"].unique() if bone not in bones]:
            caption += f". No curve of {', '.join(without)}, which takes bones with and without a lesion"
        drawings.append(Picture(roc_figure(counts, evaluation.models), shown, caption, "roc"))
    if len(_with_lesion(evaluation)):
        shown = "Difference of lesion volumes, prediction - reference, over their mean, a panel per model."
        caption = "Lesion volumes (Bland-Altman plot): above 0 the prediction is larger; solid line: mean difference, "
        caption += "dashed: 95 % limits of agreement"
        drawings.append(Picture(volume_figure(evaluation), shown, caption, "lesion_volumes"))
    if len(evaluation.lesions):
        figure = lesion_size_figure(detection.lesion_wise(evaluation.lesions), evaluation.models)
        shown = "Bars of the number of lesions by volume: found and missed of the reference, true and false of the "
        shown += "prediction, for each model."
        caption = "Lesions found and missed, by size; bars stand in the legend's order, found of all above them"
        drawings.append(Picture(figure, shown, caption, "lesion_sizes"))
    return drawings


@own_style
def box_figure(evaluation: Evaluation, measure: Measure) -> Figure:
    """Box plots of one measure: a panel per label, models side by side, every case a point.

    A cross is a case in which just one map has the label. Where a box is not of all cases, their number stands beneath
    it. Panels share their axis: that of a distance is logarithmic where values differ by more than a factor of 30, that
    of a percentage ends at 100 and begins at 0, or at a ten above half of that.
    """
    models, labels = evaluation.models, list(evaluation.labels)
    cases = evaluation.cases[evaluation.cases["processing"] == measure.processing]
    values = cases[measure.metric].to_numpy(dtype=float) * measure.factor
    cases = cases.assign(value=values)[np.isfinite(values)]
    colours = model_colours(models)
    width = max(1.25, 0.34 * len(models) + 0.3)
    columns = max(1, min(len(labels), int(12.5 / width)))
    # As many in every row, as far as that goes.
    columns = math.ceil(len(labels) / math.ceil(len(labels) / columns))
    figure, axes = _panels(len(labels), columns, width, 3.2, sharey=True)
    num_cases = evaluation.cases["case"].nunique()
    crosses = False
    parts = dict(iter(cases.groupby(["label", "model"], observed=True)))
    for axis, label in zip(axes, labels, strict=True):
        ticks = []
        for place, model in enumerate(models):
            part = parts.get((label, model), cases.iloc[:0])
            crosses |= _box(axis, place, part, colours[model])
            ticks.append(f"n = {len(part)}" if len(part) < num_cases else "")
        axis.set_title(wrapped(in_words(label), max(14, int(11 * width))), fontsize=9)
        axis.set_xticks(range(len(models)), ticks, rotation=0 if len(models) == 1 else 90)
        axis.tick_params(axis="x", length=0)
        axis.set_xlim(-0.6, len(models) - 0.4)
        axis.grid(axis="y", color="0.88", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    (_distance_axis if measure.metric in DISTANCES else _percent_axis)(axes[0], cases["value"].to_numpy())
    figure.supylabel(measure.title, fontsize=10)
    handles: list[Line2D | Patch] = [
        Patch(facecolor=f"{colour}55", edgecolor=colour, hatch=_HATCHES[place % len(_HATCHES)], label=plain(model))
        for place, (model, colour) in enumerate(colours.items())
    ]
    if crosses:
        handles.append(Line2D([], [], color="0.3", marker="x", linestyle="none", label="label in one map alone"))
    figure_legend(figure, handles)
    return figure


def figure_legend(
    figure: Figure,
    handles: Sequence[Line2D | Patch],
    loc: Literal["outside lower center", "outside upper center"] = "outside upper center",
) -> None:
    """One for the whole figure, in as many columns as its width has room for."""
    # Inches: about what a letter takes, and what the sample before it does.
    widths = [0.078 * len(str(handle.get_label())) + 0.6 for handle in handles]
    fitting = sum(widths) <= figure.get_figwidth()
    columns = len(handles) if fitting else max(1, int(figure.get_figwidth() / max(widths)))
    figure.legend(handles=list(handles), loc=loc, ncols=columns, frameon=False, fontsize=9)


def _box(axis: Axes, at: int, part: pd.DataFrame, colour: str) -> bool:
    """Draw one box and its points. Returns: whether there is a cross among them."""
    if not len(part):
        return False
    values = part["value"].to_numpy()
    line = {"color": colour, "linewidth": 1.0}
    axis.boxplot(
        [values], positions=[at], widths=[0.72], patch_artist=True, showfliers=False, manage_ticks=False,
        boxprops={**line, "facecolor": f"{colour}33", "hatch": _HATCHES[at % len(_HATCHES)]},
        whiskerprops=line, capprops=line, medianprops={"color": colour, "linewidth": 2.0}, zorder=2,
    )  # fmt: skip
    # Spread over the box by the order of the cases, which has nothing to do with the values; the same in every run.
    spread = ((0.5 + np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.56
    crossed = part["status"].isin((MISSED, INVENTED)).to_numpy()
    size = float(np.clip(200 / len(values), 2.5, 14))
    axis.scatter((at + spread)[~crossed], values[~crossed], size, colour, alpha=0.6, linewidths=0, zorder=3)
    axis.scatter((at + spread)[crossed], values[crossed], 1.6 * size + 4, colour, marker="x", linewidths=0.8, zorder=3)
    return bool(crossed.any())


def _percent_axis(axis: Axes, values: NDArray[np.float64]) -> None:
    lowest = float(values.min()) if values.size else 0.0
    bottom = min(10.0 * math.floor(lowest / 10), 90.0) if lowest >= 50 else 0.0
    margin = 0.03 * (100 - bottom)
    axis.set_ylim(bottom - margin, 100 + margin)


def _distance_axis(axis: Axes, values: NDArray[np.float64]) -> None:
    positive = values[values > 0]
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (1.0, 1.0)
    if high / low <= _LOGARITHMIC_FROM:
        if values.size:
            axis.set_ylim(bottom=0, top=None if positive.size else 1.0)
        return
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in ((1, 2, 5) if len(decades) < 6 else (1,))]
    if positive.size == values.size:
        axis.set_yscale("log")
    else:
        # Zero has no logarithm: below the smallest distance the axis is linear down to it.
        axis.set_yscale("symlog", linthresh=low)
        axis.set_ylim(bottom=-0.1 * low)  # or the mirror image of the axis would take its room below 0
        ticks = [0.0, *(tick for tick in ticks if tick >= low)]
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


@own_style
def roc_figure(counts: pd.DataFrame, models: Sequence[str]) -> Figure:
    """ROC of every bone that has one, and of all: a curve per model, its thresholds marked, its area in a legend.

    The large mark, of another shape for each model, is the prediction as it is; small discs are thresholds of size,
    small squares of softmax output. ``counts`` is of ``detection.counts``.
    """
    bones = sorted(detection.bones_with_curve(counts), key=lambda bone: bone == detection.ALL)
    figure, axes = _panels(len(bones), min(4, max(1, len(bones))), 3.3, 3.4)
    colours = model_colours(models)
    for axis, bone in zip(axes, bones, strict=True):
        axis.plot([0, 1], [0, 1], color="0.75", linewidth=0.8, linestyle=":")
        curves = []
        for place, model in enumerate(models):
            points = counts[(counts["bone"] == bone) & (counts["model"] == model)]
            # Curves that lie on each other still show both colours.
            width = 2.4 - 0.9 * place / max(1, len(models) - 1)
            if len(points):
                style: dict[str, Any] = {"color": colours[model], "linestyle": line_of(place)}
                curves.append(_roc_curve(axis, points, style | {"linewidth": width}, marker_of(place)))
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xlabel="1 - specificity", ylabel="sensitivity")
        axis.set_title(plain(in_words(bone)), fontsize=10)
        axis.grid(color="0.9", linewidth=0.6)
        axis.legend(handles=curves, loc="lower right", fontsize=7.5, framealpha=0.8, edgecolor="none")
    grey: dict[str, Any] = {"color": "0.3", "linestyle": "none"}
    handles = [
        Line2D([], [], color=colour, linewidth=2, linestyle=line_of(place), label=plain(model))
        for place, (model, colour) in enumerate(colours.items())
    ]
    handles.append(Line2D([], [], marker="o", markersize=7, markerfacecolor="white", label="as predicted", **grey))
    handles.append(Line2D([], [], marker="o", markersize=4, label="threshold of size", **grey))
    if (counts["rule"] == PROBABILITY).any():
        handles.append(Line2D([], [], marker="s", markersize=4, label="threshold of softmax output", **grey))
    figure_legend(figure, handles)
    return figure


def _roc_curve(axis: Axes, points: pd.DataFrame, line: dict[str, Any], marker: str) -> Line2D:
    """Draw one model's curve and thresholds. Returns: its line for the legend."""
    along, up = detection.roc(points)
    area, colour = detection.auc(along, up), line["color"]
    axis.plot(along, up, alpha=0.9, **line)
    for rule, sign in ((SIZE, "o"), (PROBABILITY, "s")):
        of_rule = points[points["rule"] == rule]
        axis.plot(1 - of_rule["specificity"], of_rule["sensitivity"], sign, markersize=3.2, color=colour)
    as_it_is = points[(points["rule"] == SIZE) & (points["threshold"] == 0)]
    style: dict[str, Any] = {"marker": marker, "markersize": 7, "markerfacecolor": "white", "markeredgewidth": 1.8}
    axis.plot(1 - as_it_is["specificity"], as_it_is["sensitivity"], linestyle="", color=colour, zorder=4, **style)
    return Line2D([], [], label="no curve" if math.isnan(area) else f"AUC {area:.3f}", **line, **style)


def _with_lesion(evaluation: Evaluation) -> pd.DataFrame:
    """Of ``Evaluation.bones``, as predicted, those in which at least one of the maps has a lesion."""
    bones = evaluation.bones[(evaluation.bones["rule"] == SIZE) & (evaluation.bones["threshold"] == 0)]
    return bones[(bones["reference_mm3"] > 0) | (bones["prediction_mm3"] > 0)]


@own_style
def volume_figure(evaluation: Evaluation) -> Figure:
    """Bland and Altman's plot of lesion volumes per model: difference over mean, bias, and limits of agreement.

    A point is a bone of a case in which at least one of the maps has a lesion, of the predictions as they are.
    """
    bones = _with_lesion(evaluation)
    agreement = detection.volume_agreement(evaluation.bones)
    agreement = agreement[agreement["bone"] == detection.ALL].set_index("model")
    markers = dict(zip(evaluation.bones["bone"].unique(), _MARKERS, strict=False))
    models, colours = evaluation.models, model_colours(evaluation.models)
    figure, axes = _panels(len(models), min(3, len(models)), 3.9, 3.4, sharex=True, sharey=True)
    for axis, model in zip(axes, models, strict=True):
        own = bones[bones["model"] == model]
        for bone, part in own.groupby("bone", sort=False):
            reference, prediction = part["reference_mm3"].to_numpy(), part["prediction_mm3"].to_numpy()
            axis.scatter(
                (reference + prediction) / 2, prediction - reference, s=16, alpha=0.6, linewidths=0,
                color=colours[model], marker=markers.get(bone, "."),
            )  # fmt: skip
        title = wrapped(f"{model} (n = {len(own)})", 44)
        if model in agreement.index:
            # In the title and not beside the lines, where it would hide points.
            bias, lower, upper = agreement.loc[model, ["bias_mm3", "lower_mm3", "upper_mm3"]]
            title += f"\n{wrapped(bland_altman_lines(axis, bias, lower, upper, 'mm³'), 44)}"
        axis.set_title(title, fontsize=9)
        axis.grid(color="0.92", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    means = bones[["reference_mm3", "prediction_mm3"]].mean(axis=1)
    if len(means) and means.max() / means.min() > _LOGARITHMIC_FROM:
        axes[0].set_xscale("log")
        # Up to three numbers a decade, and one where they would touch each other.
        axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if means.max() / means.min() < 200 else (1,)))
        axes[0].xaxis.set_major_formatter("{x:g}")
        axes[0].xaxis.set_minor_locator(NullLocator())
    figure.supxlabel("mean of reference and prediction [mm³]", fontsize=10)
    figure.supylabel("prediction - reference [mm³]", fontsize=10)
    handles = [
        Line2D([], [], linestyle="none", marker=marker, color="0.3", label=plain(in_words(bone)))
        for bone, marker in markers.items()
    ]
    figure_legend(figure, handles)
    return figure


@own_style
def lesion_size_figure(lesion_wise: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Lesions by volume, of bone "all" in ``detection.lesion_wise``: found or missed ones of the reference, true or
    false ones of the prediction.
    """
    own = lesion_wise[lesion_wise["bone"] == detection.ALL].set_index(["from_mm3", "to_mm3", "model"])
    bins = list(own.index.droplevel("model").unique())
    colours = model_colours(models)
    width = min(13.0, max(8.0, 3.0 + 0.25 * 2 * len(bins) * (len(models) + 1)))
    figure = Figure(figsize=(width, 3.9), layout="constrained")
    panels = (("reference", "reference", "found"), ("prediction", "predicted", "true"))
    for axis, (title, whole, part) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for (place, bounds), (turn, model) in itertools.product(enumerate(bins), enumerate(models)):
            key = (*bounds, model)
            if key not in own.index or not own.loc[key, whole]:
                continue
            every, met = int(own.loc[key, whole]), int(own.loc[key, part])
            at, size = place + (turn - (len(models) - 1) / 2) * 0.84 / len(models), 0.76 / len(models)
            axis.bar(at, met, size, color=colours[model])
            axis.bar(
                at, every - met, size, bottom=met, facecolor=f"{colours[model]}22", edgecolor=colours[model],
                linewidth=0.8, hatch="////",
            )  # fmt: skip
            axis.annotate(
                f"{met}/{every}", (at, every), (0, 2), textcoords="offset points", ha="center", va="bottom",
                fontsize=7, rotation=90 if len(models) > 2 else 0,
            )  # fmt: skip
        axis.set_xticks(range(len(bins)), [size_in_words(*bounds) for bounds in bins])
        axis.set_xlim(-0.5, len(bins) - 0.5)
        axis.margins(y=0.18)
        axis.tick_params(axis="x", length=0)
        axis.set_title(f"lesions of the {title}", fontsize=10)
        axis.set_xlabel("volume [mm³]")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("number of lesions")
    handles = [Patch(color=colours[model], label=plain(model)) for model in models]
    handles.append(Patch(color="0.4", label="found, or true"))
    handles.append(Patch(facecolor="0.95", edgecolor="0.4", hatch="////", label="missed, or false"))
    figure_legend(figure, handles)
    return figure


def _panels(number: int, columns: int, width: float, height: float, **share: Any) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, in rows of ``columns``; the places that are left over stay empty."""
    rows = max(1, math.ceil(number / columns))
    figure = Figure(figsize=(max(5.5, columns * width + 0.4), rows * height + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **share).flat)
    for axis in axes[number:]:
        axis.set_axis_off()
    return figure, axes[:number]


def wrapped(text: str, width: int) -> str:
    """Text as ``plain`` has it, in lines of so many letters."""
    return plain("\n".join(textwrap.wrap(text, width, break_long_words=True)))
