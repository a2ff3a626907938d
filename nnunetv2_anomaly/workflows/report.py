"""The report of a cohort: its evaluation and measurements, with anomaly maps, trainings and commands added."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.figure import Figure

from nnunetv2_anomaly.detectors.quality import ERROR_AND_BASELINES
from nnunetv2_anomaly.errors import UserError, counted
from nnunetv2_anomaly.evaluation.pictures import case_figure
from nnunetv2_anomaly.evaluation.report import Findings, lead_of, report_sections
from nnunetv2_anomaly.evaluation.run import load_evaluation
from nnunetv2_anomaly.evaluation.summary import summary_sentences
from nnunetv2_anomaly.files import read_json, write_failures_as_user_errors, write_text
from nnunetv2_anomaly.images.dataset_description import find_dataset_description
from nnunetv2_anomaly.images.grids import oriented
from nnunetv2_anomaly.prediction.validation import AUC_KEYS, CASES_KEY, MEASURED
from nnunetv2_anomaly.reporting.drawing import save_figure
from nnunetv2_anomaly.reporting.page import Content, Section, page
from nnunetv2_anomaly.reporting.table import Cell, Table, number
from nnunetv2_anomaly.training.safe_loading import load_file
from nnunetv2_anomaly.workflows.configuration import (
    CONFIG,
    Cohort,
    detector_trainer,
    parsed,
    read_configuration,
)
from nnunetv2_anomaly.workflows.steps import Step, left_out
from nnunetv2_anomaly.workflows.table import steps_of
from nnunetv2_anomaly.workflows.training_figure import training_picture

#: cases that are shown with their lesions
NUM_PICTURES = 4
TERMS = {
    "Error image": "E = (x - A(x))²: where an image x differs from what the detector A expects of a healthy knee.",
    "Pre-stage": "The detector's training: G learns to inpaint erased anatomy, A to do the same without a mask.",
    "AUC of a map": "How likely a voxel of a lesion has a higher value than one of other bone; 0.5 is chance, 1 best.",
    "MSE": "Mean squared error; lower is better, and the detector's should be below that of the two plain images.",
    "Epoch": "Some hundred iterations of a training, after which it is validated.",
    "Pseudo Dice": "DSC of validation patches, by which nnU-Net follows a training.",
}


def write_cohort_report(folder: Path) -> Path:
    """Write report.html of a cohort whose other steps are done. Returns: its path.

    Raises: UserError if the folder is no cohort's, or results are missing.
    """
    config = read_configuration(folder)
    settings = parsed(config)
    if not isinstance(settings, Cohort):
        raise UserError(f"{folder / CONFIG} is no cohort's; expected workflow: cohort, which has a report")
    sections, lead = _evaluated(folder, settings)
    if without := left_out(folder, steps_of(config)):
        said = [sentence.splitlines() for sentence in without.values()]
        rows = [[Cell(lines[0]), Cell(line.strip())] for lines in said for line in lines[1:]]
        table = Table("", ["step", "case, and what is wrong with it"], rows, words=2, grouped=1)
        sections.insert(0, Section("Cases that were left out", [table]))
    if measures := _measures(folder, settings):
        sections.append(Section("Measurements", [measures], folded=bool(lead)))
    if (folder / "detector" / "summary.json").is_file():
        detector = _detector_content(read_json(folder / "detector" / "summary.json")["mean"])
        sections.append(Section("Does the anomaly map find the lesions?", detector, folded=True))
    detector_log = _logged(folder, settings, detector_trainer(settings.detector))
    logged = {name: _logged(folder, settings, trainer) for name, trainer in settings.trainers.items()}
    if all(logged.values()):
        shown = training_picture(detector_log, logged)
        sections.append(Section("Training", [f"Fold {settings.folds[0]}.", shown], folded=True))
    sections.append(Section("What was run", [commands_table(folder, steps_of(config))], folded=True))
    with write_failures_as_user_errors(folder):
        write_text(folder / "report.html", page(settings.title, sections, lead))
    return folder / "report.html"


def _evaluated(folder: Path, settings: Cohort) -> tuple[list[Section], list[Content]]:
    """Sections of the evaluation, and what the page begins with; of a cohort without references its notes alone."""
    if not (folder / "evaluation" / "report.html").is_file():
        return ([Section(settings.title, list(settings.notes))] if settings.notes else []), []
    findings = Findings.of(load_evaluation(folder / "evaluation"))
    usable = set(findings.evaluation.cases["case"])
    if (measured := folder / "detector" / "summary.json").is_file():  # its lesions could be read
        usable &= {of["case"] for of in read_json(measured)[CASES_KEY]}
    pictures = _pictures(folder, settings, usable) if settings.anomalies is not None else []
    if pictures:
        save_figure(pictures[0][1], folder / "case.png", dpi=110)
    compared, result, worth = summary_sentences(findings.evaluation, findings.paired)
    sentences = [settings.compared or compared, result, settings.worth or worth]
    chosen = (
        "The test cases with most lesion volume, each on the sagittal slice through most of it; superior is up and "
        "anterior to the right. The first picture stands at the top of the page."
    )
    sections = report_sections(findings, pictures, notes=settings.notes, chosen=chosen if pictures else "", terms=TERMS)
    return sections, lead_of(findings, pictures, sentences)


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


def _detector_content(mean: Mapping[str, Any]) -> list[Content]:
    """A sentence and the table that it is true of."""
    header = [
        "test cases", "AUC for lesions in bone", "AUC away from its surface", "MSE in the erased region",
        "MSE of a constant image", "MSE of a blurred image",
    ]  # fmt: skip
    rows = []
    for name, keys_of_auc, title in MEASURED:
        if (entry := mean.get(name)) is None:  # another family of detectors
            continue
        areas = [number(entry.get(key), 3) for key in keys_of_auc]
        known = entry if keys_of_auc == AUC_KEYS else {}
        errors = [number(known[key], 5) if key in known else "" for key in ERROR_AND_BASELINES]
        rows.append([Cell(text) for text in (title, *areas, *errors)])
    num_cases = mean["num_cases_with_lesion"]
    note = (
        f"Mean over {counted(num_cases, 'test case')} with a lesion, lesion against all other bone. With the sign, AUC "
        "is above 0.5 where lesions are brighter than expected. Away from its surface: bone at least one voxel inside, "
        "because at the surface every reconstruction is a little off."
    )
    table = Table(
        "How well a map points to lesions, and how well the erased region is reconstructed", header, rows, [note]
    )
    if not num_cases:
        return ["No test case has a lesion, so there is nothing to find.", table]
    error, intensity = (round(mean[name]["lesion_auc"], 3) for name in ("detector", "intensity"))
    verdict = "better than" if error > intensity else "worse than" if error < intensity else "as well as"
    chance = "" if error > 0.5 else ", no better than chance"
    told = f"The error image of the detector A points to lesions {verdict} the image's own intensity does"
    return [f"{told}: AUC {error:.3f}{chance}, against {intensity:.3f}.", table]


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(oriented(sitk.ReadImage(str(path))))


def _pictures(folder: Path, settings: Cohort, usable: Collection[str]) -> list[tuple[str, Figure]]:
    """The test cases with the most lesion volume, each on the sagittal slice through most of it."""
    assert settings.anomalies is not None
    paths = sorted((folder / settings.anomalies).glob("*.nii.gz"))
    cases = {path.name.removesuffix(".nii.gz"): path for path in paths}
    volumes = {case: np.count_nonzero(_read(path) > 0) for case, path in cases.items() if case in usable}
    chosen = sorted(volumes, key=lambda case: -volumes[case])[:NUM_PICTURES]
    titles = [f"{case}, {'through most of its lesions' if volumes[case] else 'without a lesion'}" for case in chosen]
    return [(title, _case_figure(folder, settings, case)) for title, case in zip(titles, chosen, strict=True)]


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


def _logged(folder: Path, settings: Cohort, trainer: str) -> dict[str, list[float]]:
    data = settings.data_set(settings.dataset)
    fold = data.model(trainer, settings.plans, settings.configuration) / f"fold_{settings.folds[0]}"
    file = folder / fold / "checkpoint_final.pth"
    return load_file(file, "remove it and run the workflow again")["logging"] if file.is_file() else {}
