"""How a detector and segmenters were trained, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_anomaly.detectors.quality import ERROR_AND_BASELINES
from nnunetv2_anomaly.evaluation.figures import line_of, marker_of, model_colours, plain, wrapped
from nnunetv2_anomaly.reporting.drawing import own_style
from nnunetv2_anomaly.reporting.page import Picture

#: what nnU-Net's checkpoints keep of a training: name -> a value per epoch
_Logged = Mapping[str, Sequence[float]]


@own_style
def training_picture(detector: _Logged, segmenters: Mapping[str, _Logged]) -> Picture:
    """Curves of trainings, from the ``logging`` of their checkpoints; losses of segmenters in a panel each.

    Args: detector: its errors in the erased region, unitless; a family that has none has no panel. segmenters: by the
        name that readers know.
    """
    errors = {name: detector[name] for name in ERROR_AND_BASELINES if name in detector}
    count = len(segmenters) + 1 + bool(errors)
    rows = -(-count // 2)
    figure = Figure(figsize=(9.5, 3.1 * rows), layout="constrained")
    panels = iter(figure.subplots(rows, 2, squeeze=False).flat)
    if errors:
        axis = next(panels)
        titles = ("detector", "a constant image", "a blurred image")
        for place, (name, title) in enumerate(zip(ERROR_AND_BASELINES, titles, strict=True)):
            axis.plot(errors[name], color=str(0.25 * place), **_marks(place), label=title)
        axis.set_title("detector: MSE in the erased region", fontsize=10)
        axis.set_ylim(bottom=0)
    for name, logged in segmenters.items():
        axis = next(panels)
        for place, (key, title) in enumerate({"train_losses": "training", "val_losses": "validation"}.items()):
            axis.plot(logged[key], color=("#0072B2", "#D55E00")[place], **_marks(place), label=title)
        axis.set_title(wrapped(f"loss of {name}", 50), fontsize=10)
    axis = next(panels)
    for place, (name, colour) in enumerate(model_colours(list(segmenters)).items()):
        dice = 100 * np.asarray(segmenters[name]["mean_fg_dice"], dtype=float)
        axis.plot(dice, color=colour, **_marks(place), label=plain(name))
    axis.set(ylim=(-3, 103))
    axis.set_title("pseudo Dice of validation patches [%]", fontsize=10)
    for drawn in figure.axes[:count]:
        drawn.set_xlabel("epoch")
        drawn.set_xlim(-0.5, max(np.size(line.get_xdata()) for line in drawn.lines) - 0.5)
        drawn.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawn.grid(color="0.9", linewidth=0.6)
        drawn.legend(fontsize=8)
    for empty in panels:
        empty.set_axis_off()
    caption = "Trainings, epoch by epoch; losses of trainers weigh voxels in their own ways and are not comparable"
    return Picture(
        figure, "Errors, losses and scores of the trainings over epochs; the numbers are in their logs", caption
    )


def _marks(place: int) -> dict:
    return {"linestyle": line_of(place), "marker": marker_of(place), "markersize": 4 + place, "markerfacecolor": "none"}
