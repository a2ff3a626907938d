"""The report of a cohort: its evaluation and measurements, with anomaly maps, trainings and commands added."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.figure import Figure

from nnunetv2_anomaly.detectors.quality import ERROR_AND_BASELINES
from nnunetv2_anomaly.errors import UserError, counted
from nnunetv2_anomaly.evaluation.pictures import case_figure
from nnunetv2_anomaly.evaluation.report import Findings, report_sections
from nnunetv2_anomaly.evaluation.run import load_evaluation
from nnunetv2_anomaly.files import read_json, write_failures_as_user_errors, write_text
from nnunetv2_anomaly.images.dataset_description import find_dataset_description
from nnunetv2_anomaly.images.grids import oriented
from nnunetv2_anomaly.prediction.validation import AUC_KEYS, MEASURED
from nnunetv2_anomaly.reporting.drawing import own_style
from nnunetv2_anomaly.reporting.page import Picture, Section, page
from nnunetv2_anomaly.reporting.table import Cell, Table, number
from nnunetv2_anomaly.training.safe_loading import load_file
from nnunetv2_anomaly.workflows.configuration import (
    CONFIG,
    Cohort,
    detector_trainer,
    parsed,
    read_configuration,
)
from nnunetv2_anomaly.workflows.steps import Step
from nnunetv2_anomaly.workflows.table import steps_of

#: cases that are shown with their lesions
NUM_PICTURES = 4


def write_cohort_report(folder: Path) -> Path:
    """Write report.html of a cohort whose other steps are done. Returns: its path.

    Raises: UserError if the folder is no cohort's, or results are missing.
    """
    config = read_configuration(folder)
    settings = parsed(config)
    if not isinstance(settings, Cohort):
        raise UserError(f"{folder / CONFIG} is no cohort's; expected workflow: cohort, which has a report")
    sections = [Section(settings.title, list(settings.notes))] if settings.notes else []
    if (folder / "evaluation" / "report.html").is_file():
        pictures = _pictures(folder, settings) if settings.anomalies is not None else []
        sections += report_sections(Findings.of(load_evaluation(folder / "evaluation")), pictures)
    if measures := _measures(folder, settings):
        sections.append(Section("Measurements", [measures]))
    if (folder / "detector" / "summary.json").is_file():
        detector = _detector_table(read_json(folder / "detector" / "summary.json")["mean"])
        sections.append(Section("Does the anomaly map find the lesions?", [detector]))
    curves = Picture(_training_curves(folder, settings), "Losses and scores of the trainings, epoch by epoch")
    sections.append(Section("Training", [f"Fold {settings.folds[0]}.", curves]))
    sections.append(Section("What was run", [commands_table(folder, steps_of(config))]))
    with write_failures_as_user_errors(folder):
        write_text(folder / "report.html", page(settings.title, sections))
    return folder / "report.html"


def commands_table(folder: Path, steps: Sequence[Step]) -> Table:
    """The command of every step that has run, its seconds and its memory, as Snakemake took them."""
    rows, total = [], 0.0
    for one in steps:
        if (record := read_record(folder, one.name)) is None:
            continue
        total += record["s"]
        cells = [Cell(number(record["s"], 0)), Cell(number(record["max_rss"], 0))]
        rows.append([Cell(one.title or one.name), Cell(one.command, code=True), *cells])
    rows.append([Cell("total"), Cell(""), Cell(number(total, 0)), Cell("")])
    note = "Seconds and memory are of a step's last run, all its processes together."
    return Table("", ["step", "command", "seconds", "peak memory [MiB]"], rows, [note], words=2)


def read_record(folder: Path, name: str) -> dict[str, float] | None:
    """Seconds (s) and peak memory in MiB (max_rss, nan if it ended at once) of a step; None if it has not run."""
    file = folder / "records" / f"{name}.tsv"
    if not file.is_file():
        return None
    with file.open(newline="") as stream:
        (row,) = csv.DictReader(stream, delimiter="\t")
    return {key: float(row[key]) if row[key] not in ("-", "NA") else float("nan") for key in ("s", "max_rss")}


def _measures(folder: Path, settings: Cohort) -> Table | None:
    rows = []
    for name, trainer in settings.trainers.items():
        for page_of in ("report.html", "measurements.csv"):
            file = folder / "measures" / trainer / page_of
            if file.is_file():
                cases = len(list((file.parent / "cases").glob("*.json")))
                rows.append([Cell(name), Cell(page_of, link=f"measures/{trainer}/{page_of}"), Cell(str(cases))])
    return Table("", ["model", "measurements", "cases"], rows, words=2, grouped=1) if rows else None


def _detector_table(mean: Mapping[str, Any]) -> Table:
    header = [
        "test cases", "AUC for lesions in bone", "away from its surface", "MSE in erased region", "of a constant",
        "of a blurred image",
    ]  # fmt: skip
    rows = []
    for name, keys_of_auc, title in MEASURED:
        if (entry := mean.get(name)) is None:  # another family of detectors
            continue
        areas = [number(entry.get(key), 3) for key in keys_of_auc]
        known = entry if keys_of_auc == AUC_KEYS else {}
        errors = [number(known[key], 5) if key in known else "" for key in ERROR_AND_BASELINES]
        rows.append([Cell(text) for text in (title, *areas, *errors)])
    note = (
        "Voxel-wise AUC, lesion against all other bone, mean over "
        f"{counted(mean['num_cases_with_lesion'], 'test case')} with a lesion. 0.5 is chance; with the sign, it is "
        "above where lesions are brighter than expected. Away from its surface: bone at least one voxel inside, "
        "because at the surface every reconstruction is a little off."
    )
    return Table("", header, rows, [note])


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(oriented(sitk.ReadImage(str(path))))


def _pictures(folder: Path, settings: Cohort) -> list[tuple[str, Figure]]:
    """The test cases with the most lesion volume, each on the sagittal slice through most of it."""
    assert settings.anomalies is not None
    paths = sorted((folder / settings.anomalies).glob("*.nii.gz"))
    volumes = {path: np.count_nonzero(_read(path) > 0) for path in paths}
    chosen = sorted((path for path in paths if volumes[path]), key=lambda path: -volumes[path])[:NUM_PICTURES]
    named = [path.name.removesuffix(".nii.gz") for path in chosen]
    return [(f"{case}, through most of its lesions", _case_figure(folder, settings, case)) for case in named]


def _case_figure(folder: Path, settings: Cohort, case: str) -> Figure:
    images, references, anomalies = (
        folder / str(of) for of in (settings.images, settings.references, settings.anomalies)
    )
    maps = folder / "anomaly_maps" / f"{case}_error.nii.gz"
    cleaned = "predictions" if settings.postprocess is None else "cleaned"
    labels = find_dataset_description(None, [references, folder / "predictions"], references).single_values
    return case_figure(
        case,
        _read(images / f"{case}_0000.nii.gz"),
        _read(references / f"{case}.nii.gz"),
        {name: _read(folder / cleaned / of / f"{case}.nii.gz") for name, of in settings.trainers.items()},
        _read(maps) if maps.is_file() else None,
        oriented(sitk.ReadImage(str(references / f"{case}.nii.gz"))).GetSpacing()[::-1],
        {name: value for name, value in labels.items() if value},
        marked=("lesion, which no network was given", _read(anomalies / f"{case}.nii.gz") > 0),
    )


@own_style
def _training_curves(folder: Path, settings: Cohort) -> Figure:
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    prestage, loss, dice = figure.subplots(1, 3)
    logged = _logged(folder, settings, detector_trainer(settings.detector))
    for key, style in zip(ERROR_AND_BASELINES, ("k-o", "--", ":"), strict=True):
        if key in logged:
            prestage.plot(logged[key], style, label=key.replace("_", " "))
    prestage.set_title("detector: validation MSE in the erased region")
    for place, (name, trainer) in enumerate(settings.trainers.items()):
        logged, colour = _logged(folder, settings, trainer), f"C{place}"
        loss.plot(logged["train_losses"], "-o", color=colour, label=f"{name}, training")
        loss.plot(logged["val_losses"], "--o", color=colour, label=f"{name}, validation")
        dice.plot(logged["mean_fg_dice"], "-o", color=colour, label=name)
    loss.set_title("segmentation loss (not comparable between trainers)")
    dice.set_title("pseudo Dice on validation patches")
    for axis in (prestage, loss, dice):
        axis.set_xlabel("epoch")
        if axis.has_data():
            axis.legend(fontsize=7)
    return figure


def _logged(folder: Path, settings: Cohort, trainer: str) -> dict[str, list[float]]:
    data = settings.data_set(settings.dataset)
    fold = data.model(trainer, settings.plans, settings.configuration) / f"fold_{settings.folds[0]}"
    file = folder / fold / "checkpoint_final.pth"
    return load_file(file, "remove it and run the workflow again")["logging"] if file.is_file() else {}
