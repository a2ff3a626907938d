"""report.html of the demonstration: the evaluation's report, with what the error images show and what was run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch
from matplotlib.figure import Figure

from nnunetv2_anomaly.evaluation.figures import case_figure
from nnunetv2_anomaly.evaluation.report import Findings, write_report
from nnunetv2_anomaly.evaluation.results import Evaluation
from nnunetv2_anomaly.evaluation.run import load_evaluation
from nnunetv2_anomaly.images.grids import oriented
from nnunetv2_anomaly.labels import ANATOMY
from nnunetv2_anomaly.prediction.validation import AUC_KEYS, MEASURED
from nnunetv2_anomaly.reporting.drawing import own_style
from nnunetv2_anomaly.reporting.page import Cell, Section, figure, number, table

if TYPE_CHECKING:
    from nnunetv2_anomaly.workflows.demo import DemoLayout

MODELS = {"naive": "naive nnU-Net", "aware": "anomaly-aware"}
NUM_PICTURES = 4


def write_demo_report(path: Path, layout: DemoLayout, state: Mapping[str, Any], trainers: Mapping[str, str]) -> Path:
    """Write the demonstration's report from what its steps left behind.

    Args:
        path: file to write, beside and renamed.
        layout: where the steps left their results.
        state: of the chain: arguments, and per step title, command and seconds.
        trainers: trainer class behind "prestage", "naive" and "aware".
    """
    evaluation = load_evaluation(layout.evaluation)
    detector = json.loads((layout.detector / "summary.json").read_text())
    manifest = json.loads((layout.simulated / "manifest.json").read_text())
    return write_report(
        path,
        Findings.of(evaluation),
        _pictures(layout, trainers),
        title="Anomaly-aware segmentation: demonstration",
        notes=_introduction(state, manifest, evaluation),
        more_sections=[
            Section("Does the error image find the lesions?", _detector_table(detector["mean"])),
            Section(
                "Training",
                figure(_training_curves(layout, trainers), "Losses and scores of the three trainings, epoch by epoch"),
            ),
            Section("What was run", _commands_table(state)),
        ],
    )


def _introduction(state: Mapping[str, Any], manifest: Mapping[str, Any], evaluation: Evaluation) -> list[str]:
    num_test = evaluation.cases["case"].nunique()
    size, spacing = manifest["arguments"]["size"], manifest["arguments"]["spacing_mm"]
    notes = [
        f"Simulated knees of {' x '.join(map(str, size))} voxels of {' x '.join(map(str, spacing))} mm: "
        f"{len(manifest['cases']) - num_test} for training, {num_test} for testing. The training labels are the "
        "anatomy, lesions counted as bone; no network was told where lesions are.",
        "Both segmenters have the same planned network, data and number of iterations. The naive one is nnU-Net's own "
        "trainer, which mirrors images in training and at prediction; the anomaly-aware one does not. Both have had "
        "a fraction of nnU-Net's 1000 epochs, and the weightier loss of Eq. 5 alone lets a network learn faster at "
        "first: the tables show what each has learnt in this time, not what either is worth in the end. Whatever came "
        "out is reported.",
    ]
    if state["arguments"]["quick"]:
        notes.append(
            "This was the quick run: its networks have hardly been trained, and it shows that the chain works, no more."
        )
    return notes


def _detector_table(mean: Mapping[str, Any]) -> str:
    header = [
        "test cases", "AUC for lesions in bone", "away from its surface", "MSE in erased region", "of a constant",
        "of a blurred image",
    ]  # fmt: skip
    rows = []
    for name, keys_of_auc, title in MEASURED:
        entry = mean[name]
        areas = [number(entry.get(key), 3) for key in keys_of_auc]
        keys = ("mse_erased", "mse_constant", "mse_blurred")
        errors = [number(entry[key], 5) if key in entry and keys_of_auc == AUC_KEYS else "" for key in keys]
        rows.append([title, *areas, *errors])
    note = (
        f"Voxel-wise AUC, lesion against all other bone, mean over the {mean['num_cases_with_lesion']} test cases with "
        f"a lesion. 0.5 is chance; with the sign, it is above where lesions are brighter than expected. Away from its "
        f"surface: bone at least one voxel inside, because at the surface every reconstruction is a little off."
    )
    return table(header, rows, notes=[note])


def _commands_table(state: Mapping[str, Any]) -> str:
    rows = []
    for entry in state["steps"].values():
        command = entry.get("command")
        what = Cell(command, code=True) if command else Cell("in the demo's own process")
        rows.append([entry["title"], what, f"{entry['seconds']:.0f}"])
    total = sum(entry["seconds"] for entry in state["steps"].values())
    rows.append(["total", "", f"{total:.0f}"])
    return table(["step", "command", "seconds"], rows, words=2)


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(oriented(sitk.ReadImage(str(path))))


def _pictures(layout: DemoLayout, trainers: Mapping[str, str]) -> list[tuple[str, Figure]]:
    """The test cases with the most lesion volume, each on the sagittal slice through most of it."""
    volumes = {}
    for path in sorted((layout.raw / "anomaliesTs").glob("*.nii.gz")):
        anomalies = _read(path)
        if anomalies.any():
            volumes[path.name.removesuffix(".nii.gz")] = int((anomalies > 0).sum())
    chosen = sorted(volumes, key=lambda case: -volumes[case])[:NUM_PICTURES]
    return [(f"{case}, through most of its lesions", _case_figure(layout, trainers, case)) for case in chosen]


def _case_figure(layout: DemoLayout, trainers: Mapping[str, str], case: str) -> Figure:
    reference = layout.raw / "labelsTs" / f"{case}.nii.gz"
    return case_figure(
        case,
        _read(layout.raw / "imagesTs" / f"{case}_0000.nii.gz"),
        _read(reference),
        {name: _read(layout.predictions(trainers[model]) / f"{case}.nii.gz") for model, name in MODELS.items()},
        _read(layout.error_images / f"{case}_error.nii.gz"),
        oriented(sitk.ReadImage(str(reference))).GetSpacing()[::-1],
        {name: value for name, value in ANATOMY.items() if value},
        marked=("lesion, which no network was told of", _read(layout.raw / "anomaliesTs" / f"{case}.nii.gz") > 0),
    )


@own_style
def _training_curves(layout: DemoLayout, trainers: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    prestage, loss, dice = figure.subplots(1, 3)
    logged = _logged(layout, trainers["prestage"])
    for key, style in (("mse_erased", "k-o"), ("mse_constant", "--"), ("mse_blurred", ":")):
        prestage.plot(logged[key], style, label=key.replace("_", " "))
    prestage.set_title("pre-stage: validation MSE in the erased region")
    for model, colour in (("naive", "tab:gray"), ("aware", "tab:red")):
        logged = _logged(layout, trainers[model])
        loss.plot(logged["train_losses"], "-o", color=colour, label=f"{MODELS[model]}, training")
        loss.plot(logged["val_losses"], "--o", color=colour, label=f"{MODELS[model]}, validation")
        dice.plot(logged["mean_fg_dice"], "-o", color=colour, label=MODELS[model])
    loss.set_title("segmentation loss (not comparable: Eq. 5 weighs more)")
    dice.set_title("pseudo Dice on validation patches")
    for axis in (prestage, loss, dice):
        axis.set_xlabel("epoch")
        axis.legend(fontsize=7)
    return figure


def _logged(layout: DemoLayout, trainer: str) -> dict[str, list[float]]:
    checkpoint = torch.load(
        layout.model(trainer) / "fold_0" / "checkpoint_final.pth", map_location="cpu", weights_only=False
    )
    return checkpoint["logging"]
