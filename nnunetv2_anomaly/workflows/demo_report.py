"""Folders of the demonstration, and its report: the evaluation's, with error images, trainings and commands added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.figure import Figure

from nnunetv2_anomaly.detectors.quality import ERROR_AND_BASELINES
from nnunetv2_anomaly.environment import FOLDER_VARIABLES
from nnunetv2_anomaly.evaluation.pictures import case_figure
from nnunetv2_anomaly.evaluation.report import Findings, write_report
from nnunetv2_anomaly.evaluation.results import Evaluation
from nnunetv2_anomaly.evaluation.run import load_evaluation
from nnunetv2_anomaly.files import read_json
from nnunetv2_anomaly.images.grids import oriented
from nnunetv2_anomaly.labels import ANATOMY
from nnunetv2_anomaly.prediction.validation import AUC_KEYS, MEASURED
from nnunetv2_anomaly.registry import DEFAULT_DETECTOR, DETECTORS
from nnunetv2_anomaly.reporting.drawing import own_style
from nnunetv2_anomaly.reporting.page import Picture, Section
from nnunetv2_anomaly.reporting.table import Cell, Table, number
from nnunetv2_anomaly.training.safe_loading import load_file

DATASET_NAME = "Dataset500_SimulatedKnees"
PLANS = "nnUNetDemoPlans"
CONFIGURATION = "3d_demo"
TRAINERS = {
    "prestage": DETECTORS[DEFAULT_DETECTOR].trainer,
    "naive": "SegmentationTrainer",
    "aware": "AnomalyAwareTrainer",
}
MODELS = {"naive": "naive nnU-Net", "aware": "anomaly-aware"}
NUM_PICTURES = 4


class DemoFolders:
    """The folders below that of a demonstration."""

    trainers = TRAINERS

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.raw, self.preprocessed, self.results = (folder / name / DATASET_NAME for name in FOLDER_VARIABLES)
        of_steps = ("simulated", "detector", "error_images", "evaluation")
        self.simulated, self.detector, self.error_images, self.evaluation = (folder / name for name in of_steps)
        self.lesions = folder / "lesions.csv"  # which case holds a lesion, for the evaluation's groups

    def model(self, trainer: str) -> Path:
        """A trainer's model folder."""
        return self.results / f"{trainer}__{PLANS}__{CONFIGURATION}"

    def predictions(self, trainer: str) -> Path:
        """A trainer's predictions of the test cases."""
        return self.folder / "predictions" / trainer


def write_demo_report(path: Path, demo: DemoFolders, records: Sequence[Mapping[str, Any]], *, quick: bool) -> Path:
    """Write the report of a demonstration whose steps are done; returns its path.

    Args: records: of the steps: title, command and seconds. quick: whether to warn that networks are hardly trained.
    """
    evaluation = load_evaluation(demo.evaluation)
    manifest = read_json(demo.simulated / "manifest.json")
    detector = _detector_table(read_json(demo.detector / "summary.json")["mean"])
    curves = Picture(_training_curves(demo), "Losses and scores of the three trainings, epoch by epoch")
    return write_report(
        path,
        Findings.of(evaluation),
        _pictures(demo),
        title="Anomaly-aware segmentation: demonstration",
        notes=_introduction(manifest, evaluation, quick),
        more_sections=[
            Section("Does the error image find the lesions?", [detector]),
            Section("Training", [curves]),
            Section("What was run", [_commands_table(records)]),
        ],
    )


def _introduction(manifest: Mapping[str, Any], evaluation: Evaluation, quick: bool) -> list[str]:
    num_test = evaluation.cases["case"].nunique()
    size, spacing = manifest["arguments"]["size"], manifest["arguments"]["spacing_mm"]
    notes = [
        f"Simulated knees of {' x '.join(map(str, size))} voxels of {' x '.join(map(str, spacing))} mm: "
        f"{len(manifest['cases']) - num_test} for training, {num_test} for testing. The training labels are the "
        "anatomy, lesions counted as bone; no network was given the lesions.",
        "Both segmenters have the same planned network, data and number of iterations. The naive one is nnU-Net's own "
        "trainer, which mirrors images in training and at prediction; the anomaly-aware one does not. Both were "
        "trained for a fraction of nnU-Net's 1000 epochs, and the heavier loss of Eq. 5 alone lets a network learn "
        "faster at first: the tables show what each has learnt in this time, not what either is worth in the end. "
        "Results are reported whatever they are.",
    ]
    hardly = "This was the quick run: its networks have hardly been trained, and it only shows that the chain works."
    return [*notes, hardly] if quick else notes


def _detector_table(mean: Mapping[str, Any]) -> Table:
    header = [
        "test cases", "AUC for lesions in bone", "away from its surface", "MSE in erased region", "of a constant",
        "of a blurred image",
    ]  # fmt: skip
    rows = []
    for name, keys_of_auc, title in MEASURED:
        entry = mean[name]
        areas = [number(entry.get(key), 3) for key in keys_of_auc]
        known = entry if keys_of_auc == AUC_KEYS else {}
        errors = [number(known[key], 5) if key in known else "" for key in ERROR_AND_BASELINES]
        rows.append([Cell(text) for text in (title, *areas, *errors)])
    note = (
        f"Voxel-wise AUC, lesion against all other bone, mean over the {mean['num_cases_with_lesion']} test cases with "
        f"a lesion. 0.5 is chance; with the sign, it is above where lesions are brighter than expected. Away from its "
        f"surface: bone at least one voxel inside, because at the surface every reconstruction is a little off."
    )
    return Table("", header, rows, [note])


def _commands_table(records: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for record in records:
        what = Cell(record["command"], code=True) if record["command"] else Cell("in the demo's own process")
        rows.append([Cell(record["title"]), what, Cell(f"{record['seconds']:.0f}")])
    total = sum(record["seconds"] for record in records)
    rows.append([Cell("total"), Cell(""), Cell(f"{total:.0f}")])
    return Table("", ["step", "command", "seconds"], rows, words=2)


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(oriented(sitk.ReadImage(str(path))))


def _pictures(demo: DemoFolders) -> list[tuple[str, Figure]]:
    """The test cases with the most lesion volume, each on the sagittal slice through most of it."""
    paths = {path.name.removesuffix(".nii.gz"): path for path in sorted((demo.raw / "anomaliesTs").glob("*.nii.gz"))}
    volumes = {case: np.count_nonzero(_read(path) > 0) for case, path in paths.items()}
    chosen = sorted((case for case in volumes if volumes[case]), key=lambda case: -volumes[case])[:NUM_PICTURES]
    return [(f"{case}, through most of its lesions", _case_figure(demo, case)) for case in chosen]


def _case_figure(demo: DemoFolders, case: str) -> Figure:
    reference = demo.raw / "labelsTs" / f"{case}.nii.gz"
    return case_figure(
        case,
        _read(demo.raw / "imagesTs" / f"{case}_0000.nii.gz"),
        _read(reference),
        {name: _read(demo.predictions(demo.trainers[model]) / f"{case}.nii.gz") for model, name in MODELS.items()},
        _read(demo.error_images / f"{case}_error.nii.gz"),
        oriented(sitk.ReadImage(str(reference))).GetSpacing()[::-1],
        {name: value for name, value in ANATOMY.items() if value},
        marked=("lesion, which no network was given", _read(demo.raw / "anomaliesTs" / f"{case}.nii.gz") > 0),
    )


@own_style
def _training_curves(demo: DemoFolders) -> Figure:
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    prestage, loss, dice = figure.subplots(1, 3)
    logged = _logged(demo, "prestage")
    for key, style in zip(ERROR_AND_BASELINES, ("k-o", "--", ":"), strict=True):
        prestage.plot(logged[key], style, label=key.replace("_", " "))
    prestage.set_title("pre-stage: validation MSE in the erased region")
    for model, colour in (("naive", "tab:gray"), ("aware", "tab:red")):
        logged = _logged(demo, model)
        loss.plot(logged["train_losses"], "-o", color=colour, label=f"{MODELS[model]}, training")
        loss.plot(logged["val_losses"], "--o", color=colour, label=f"{MODELS[model]}, validation")
        dice.plot(logged["mean_fg_dice"], "-o", color=colour, label=MODELS[model])
    loss.set_title("segmentation loss (not comparable: Eq. 5 weighs more)")
    dice.set_title("pseudo Dice on validation patches")
    for axis in (prestage, loss, dice):
        axis.set_xlabel("epoch")
        axis.legend(fontsize=7)
    return figure


def _logged(demo: DemoFolders, model: str) -> dict[str, list[float]]:
    file = demo.model(demo.trainers[model]) / "fold_0" / "checkpoint_final.pth"
    return load_file(file, "remove it and run the demo again")["logging"]
