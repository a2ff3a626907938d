"""Tables and a figure of the stress tests: what decides between models."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from benchmarks.cells import over_trainings
from benchmarks.experiment import Experiment
from benchmarks.stress import FAR_MM, KINDS, lesion_in_bone, measure_files, with_lesions_as_bone
from nnunetv2_anomaly.evaluation import statistics
from nnunetv2_anomaly.evaluation.results import RAW
from nnunetv2_anomaly.evaluation.tables import Measure
from nnunetv2_anomaly.images.grids import oriented
from nnunetv2_anomaly.labels import ANATOMY, BONES, LABELS, NAMES
from nnunetv2_anomaly.reporting.drawing import label_handles, label_palette, own_style
from nnunetv2_anomaly.reporting.page import Picture
from nnunetv2_anomaly.reporting.table import Cell, Table, number, word_cell
from nnunetv2_anomaly.simulation.dess import STRESS

AS_THEY_ARE = "as they are"
SETS = (KINDS[0], AS_THEY_ARE, *KINDS[1:])
_LESION_COLOUR = "#C1121F"
#: a kind of ``STRESS``
_BRIGHT = "bright"
#: headings that are no model's name
_TITLES = {"labels": "reference", "nnunet": "nnU-Net, no mirroring", "default": "AnomalyAwareTrainer"}
_BONES, _CARTILAGES = "bones", "cartilages"

_DSC = {"factor": 100.0, "digits": 1, "larger_is_better": True}
_SHARE = {"factor": 100.0, "digits": 1, "larger_is_better": False}
#: group of labels and what is measured of it
QUANTITIES: tuple[tuple[str, Measure], ...] = (
    (_BONES, Measure("covered", "lesion given to its bone [%]", "covered", RAW, **_DSC)),
    (_BONES, Measure("bones_dsc", "bones: DSC [%]", "dsc", RAW, **_DSC)),
    (_BONES, Measure("bones_hd", "HD* [mm]", "hd_mm", RAW, factor=1.0, digits=1, larger_is_better=False)),
    (_BONES, Measure("parts", "with stray parts [%]", "parts", RAW, **_SHARE)),
    (_BONES, Measure("far", f"HD* above {FAR_MM:g} mm [%]", "far", RAW, **_SHARE)),
    (_BONES, Measure("holes", "holes [%]", "holes", RAW, **{**_SHARE, "digits": 2})),
    (_CARTILAGES, Measure("cartilages_dsc", "cartilages: DSC [%]", "dsc", RAW, **_DSC)),
    (_CARTILAGES, Measure("cartilages_hd", "HD* [mm]", "hd_mm", RAW, factor=1.0, digits=1, larger_is_better=False)),
)


def stress_rows(experiment: Experiment, num_processes: int) -> pd.DataFrame:
    """A row per set, knee, label, model and training: columns set, knee, label, model, repeat, and of ``measure``."""
    keys, jobs = [], []
    for kind, model, repeat, knee, *files in _predictions(experiment):
        keys.append({"set": kind, "model": model, "repeat": repeat, "knee": knee})
        jobs.append(joblib.delayed(measure_files)(*files))
    found = joblib.Parallel(n_jobs=num_processes)(jobs)
    return pd.DataFrame([{**key, **row} for key, rows in zip(keys, found, strict=True) for row in rows])


def _predictions(experiment: Experiment) -> Iterator[tuple[str, str, str, str, Path, Path, Path]]:
    """Set, model, training, knee; prediction, reference, anomalies."""
    for repeat in experiment.repeats:
        head = repeat.model.name, f"seed{repeat.seed}-fold{repeat.fold}"
        for knee in experiment.cases(repeat):
            name = f"{knee}.nii.gz"
            files = (experiment.predictions(repeat), experiment.references, experiment.anomalies)
            yield AS_THEY_ARE, *head, knee, *(folder / name for folder in files)
            for kind in KINDS if not repeat.model.mask_known else ():
                predicted = experiment.stress_predictions(repeat) / f"{knee}_{kind}.nii.gz"
                folders = (experiment.stress / kind / part for part in ("labels", "anomalies"))
                yield kind, *head, knee, predicted, *(folder / name for folder in folders)


def by_group(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the labels of a group: columns set, group, model, repeat, knee, and the quantities."""
    bones = {NAMES[bone] for bone in BONES}
    grouped = rows.assign(group=[_BONES if label in bones else _CARTILAGES for label in rows["label"]])
    metrics = list(dict.fromkeys(measure.metric for _, measure in QUANTITIES))
    keys = ["set", "group", "model", "repeat", "knee"]
    return grouped.groupby(keys, sort=False)[metrics].mean().reset_index()


def stress_table(rows: pd.DataFrame) -> Table:
    """Means over labels, knees and trainings by set and model, with the range over trainings beneath."""
    groups = by_group(rows)
    lines = []
    for kind in SETS:
        of_kind = groups[groups["set"] == kind]
        for model in dict.fromkeys(of_kind["model"]):
            own = of_kind[of_kind["model"] == model]
            cells = [_mean_cell(own[own["group"] == group], measure) for group, measure in QUANTITIES]
            lines.append((word_cell("set", kind), word_cell("model", model), *cells))
    return Table(
        "Held-out knees without lesions, as they are, and with lesions that training never showed",
        ("knees", "model", *(measure.title for _, measure in QUANTITIES)),
        tuple(lines),
        (
            "Before clean-up. Means over labels, knees and trainings; beneath, the smallest and the largest mean of a "
            "training, where there are several. Stray parts: the label has more than one part. Holes: share of the "
            "filled bone that it encloses without being it. large: lesions with half-axes of 12 to 20 mm (patella 6 to "
            "9) and the usual brightness; bright: 0.6 to 1 of the way to cartilage; dark: as far towards the cortex.",
        ),
        words=2,
        grouped=1,
    )


def stress_difference_table(rows: pd.DataFrame) -> Table:
    """Every model minus the first, knee by knee, with Wilcoxon's signed-rank test over knees."""
    groups = by_group(rows)
    metrics = list(dict.fromkeys(measure.metric for _, measure in QUANTITIES))
    models = list(dict.fromkeys(groups["model"]))
    lines = []
    for kind in SETS:
        own = groups[groups["set"] == kind].rename(columns={"group": "label", "knee": "case"}).assign(processing=RAW)
        knees = own.groupby(["processing", "label", "model", "case"], sort=False)[metrics].mean().reset_index()
        tests = statistics.paired(knees, metrics)
        tests = tests[tests["model_a"] == models[0]].set_index(["model_b", "label", "metric"])
        trainings = own.groupby(["label", "model", "repeat"])[metrics].mean()
        for model in dict.fromkeys(own["model"][own["model"] != models[0]]):
            cells = []
            for group, measure in QUANTITIES:
                apart = trainings.loc[group, model][measure.metric] - trainings.loc[group, models[0]][measure.metric]
                cells.append(_difference_cell(tests.loc[model, group, measure.metric], apart.dropna(), measure))
            lines.append((word_cell("set", kind), word_cell("model", model), *cells))
    return Table(
        f"The same minus {models[0]}, knee by knee (each the mean over its trainings)",
        ("knees", "model", *(measure.title for _, measure in QUANTITIES)),
        tuple(lines),
        (
            "Beneath a mean: p of Wilcoxon's signed-rank test over knees, not corrected for the number of tests; and "
            "the smallest and the largest difference of a pair of trainings of one seed and fold.",
        ),
        words=2,
        grouped=1,
    )


def stress_drawings(experiment: Experiment, rows: pd.DataFrame) -> list[Picture]:
    """Knees with stress lesions, and what first trainings make of them: all models and kinds; two models, bright ones.

    Of each kind the knee is the typical one, see ``typical_knee``, from the first model to the last.
    """
    first = {repeat.model.name: repeat for repeat in reversed(experiment.repeats) if not repeat.model.mask_known}
    models = [model.name for model in experiment.models if model.name in first]
    folders = {model: experiment.stress_predictions(first[model]) for model in models}
    cases = experiment.cases(first[models[0]])
    knees = {kind: typical_knee(rows, kind, models[0], models[-1], cases) for kind in STRESS}
    title = "Segmentations of lesions that training never showed"
    shown = (
        "Lesions that training never showed, as far as they lie in bone (red outline), and segmentations before "
        "clean-up; filled red: what was not given to its bone. Percentages are of the whole knee, and the sagittal "
        "slice is the one most like it. Knees: "
        f"{', '.join(knees.values())}."
    )
    two, bright = {name: folders[name] for name in (models[0], models[-1])}, {_BRIGHT: knees[_BRIGHT]}
    return [
        Picture(_figure(experiment, folders, knees), shown, title, "stress"),
        Picture(_figure(experiment, two, bright), shown, f"{title}, bright ones", "stress_bright"),
    ]


def typical_knee(rows: pd.DataFrame, kind: str, baseline: str, model: str, knees: Collection[str]) -> str:
    """Of some knees the one whose gain of a model over another in what is covered is the median; of two the lower."""
    groups = by_group(rows)
    own = groups[(groups["set"] == kind) & (groups["group"] == _BONES) & groups["knee"].isin([*knees])]
    covered = own.pivot_table(index="knee", columns="model", values="covered")
    gains = (covered[model] - covered[baseline]).sort_values(kind="stable")
    return str(gains.index[(len(gains) - 1) // 2])


def typical_slice(lesion: NDArray, predictions: Sequence[NDArray]) -> int:
    """The slice along the last axis whose shares of lesion given to its bone are most like the whole knee's.

    Args: lesion: (Z, Y, X), the bone's label where a lesion lies in it, else 0. predictions: label maps of that shape.
    Only slices with at least half as much lesion as the one with most count.
    """
    sizes = (lesion > 0).sum((0, 1))
    places = np.flatnonzero(sizes >= sizes.max() / 2)
    wholes = [_covered(of, lesion) for of in predictions]
    off = [
        sum(
            abs(_covered(of[:, :, place], lesion[:, :, place]) - whole)
            for of, whole in zip(predictions, wholes, strict=True)
        )
        for place in places
    ]
    return int(places[np.argmin(off)])


def _covered(labels: NDArray, lesion: NDArray) -> float:
    return float((with_lesions_as_bone(labels)[lesion > 0] == lesion[lesion > 0]).mean())


@own_style
def _figure(experiment: Experiment, predictions: dict[str, Path], knees: dict[str, str]) -> Figure:
    columns = len(predictions) + 2
    figure = Figure(figsize=(2.0 * columns, 2.3 * len(knees) + 0.4), layout="constrained")
    for row, (kind, knee) in zip(figure.subplots(len(knees), columns, squeeze=False), knees.items(), strict=True):
        parts = {part: experiment.stress / kind / part for part in ("images", "anomalies", "labels")}
        files = {part: folder / f"{knee}.nii.gz" for part, folder in parts.items()}
        files["images"] = parts["images"] / f"{knee}_0000.nii.gz"
        files |= {model: folder / f"{knee}_{kind}.nii.gz" for model, folder in predictions.items()}
        images = {name: oriented(sitk.ReadImage(str(file))) for name, file in files.items()}
        volumes = {name: sitk.GetArrayFromImage(image) for name, image in images.items()}
        lesion = lesion_in_bone(volumes.pop("anomalies"), volumes["labels"])
        place = typical_slice(lesion, [volumes[model] for model in predictions])
        slices = {name: volume[:, :, place] for name, volume in volumes.items()}
        image, bone = slices.pop("images"), lesion[:, :, place]
        whole = {name: _covered(volumes[name], lesion) for name in slices}
        spacing = images["labels"].GetSpacing()
        grid = {"origin": "lower", "aspect": spacing[2] / spacing[1]}
        for axis, (name, labels) in zip(row, {kind: None, **slices}.items(), strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=np.percentile(image, 99.5), **grid)
            if labels is not None:
                _draw_labels(axis, labels, bone, grid)
                axis.set_xlabel(f"{100 * whole[name]:.0f} % given to its bone", fontsize=8)
            axis.contour(bone > 0, levels=[0.5], colors=_LESION_COLOUR, linewidths=0.9)
            axis.set(xticks=[], yticks=[])
            axis.set_title(
                f"{kind} lesion" if labels is None else _TITLES.get(name, name.replace("_", " ")), fontsize=9
            )
    palette = label_palette(LABELS, LABELS.values())
    shown = label_handles(palette, LABELS, sorted(ANATOMY.values())[1:])  # without the background
    shown.append(Patch(facecolor=_LESION_COLOUR, alpha=0.8, label="lesion not given to its bone"))
    figure.legend(handles=shown, loc="outside lower center", ncols=2 * columns - 4, fontsize=8, frameon=False)
    return figure


def _draw_labels(axis: Axes, labels: NDArray, bone: NDArray, grid: dict[str, Any]) -> None:
    """Labels in colour; red what of a lesion is not its bone. Args: bone: label of it there, else 0."""
    palette = label_palette(LABELS, LABELS.values())
    colours = ListedColormap([palette[value] for value in sorted(palette)])
    shown = np.ma.masked_equal(labels, 0)
    axis.imshow(shown, cmap=colours, vmin=-0.5, vmax=9.5, alpha=0.6, interpolation="nearest", **grid)
    missed = (bone > 0) & (with_lesions_as_bone(labels) != bone)
    axis.imshow(np.ma.masked_equal(missed, False), cmap=ListedColormap([_LESION_COLOUR]), alpha=0.8, **grid)


def _mean_cell(rows: pd.DataFrame, measure: Measure) -> Cell:
    values = measure.factor * rows[measure.metric]
    if not values.notna().any():
        return Cell("")
    mean, beneath, kept = over_trainings(values, rows["repeat"], measure)
    return Cell(number(mean, measure.digits), beneath="\n".join(beneath), values=kept)


def _difference_cell(test: pd.Series, apart: pd.Series, measure: Measure) -> Cell:
    if not test["n"]:
        return Cell("")
    mean, digits = -measure.factor * test["difference"], max(measure.digits, 2 if measure.metric == "dsc" else 1)
    low, high = (measure.factor * float(value) for value in (np.min(apart), np.max(apart)))
    beneath = f"p {number(test['p'], 3)}" + (f"\n{number(low, digits)} to {number(high, digits)}" * (len(apart) > 1))
    kept = {
        measure.name: mean,
        f"{measure.name}_p": test["p"],
        f"{measure.name}_low": low,
        f"{measure.name}_high": high,
    }
    return Cell(f"{'+' if mean > 0 else ''}{number(mean, digits)}", beneath=beneath, values=kept)
