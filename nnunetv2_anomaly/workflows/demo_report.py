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
from nnunetv2_anomaly.errors import counted
from nnunetv2_anomaly.evaluation.pictures import case_figure
from nnunetv2_anomaly.evaluation.report import Findings, write_report
from nnunetv2_anomaly.evaluation.results import Evaluation
from nnunetv2_anomaly.evaluation.run import load_evaluation
from nnunetv2_anomaly.evaluation.statistics import fewest_cases
from nnunetv2_anomaly.evaluation.summary import dsc_sentence, significance_sentence
from nnunetv2_anomaly.files import read_json
from nnunetv2_anomaly.images.grids import oriented
from nnunetv2_anomaly.labels import ANATOMY
from nnunetv2_anomaly.prediction.validation import AUC_KEYS, MEASURED
from nnunetv2_anomaly.registry import DEFAULT_DETECTOR, DETECTORS
from nnunetv2_anomaly.reporting.drawing import save_figure
from nnunetv2_anomaly.reporting.page import Content, Section
from nnunetv2_anomaly.reporting.table import Cell, Table, number
from nnunetv2_anomaly.training.safe_loading import load_file
from nnunetv2_anomaly.workflows.training_figure import training_picture

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
TERMS = {
    "Error image": "E = (x - A(x))²: where an image x differs from what the detector A expects of a healthy knee.",
    "Pre-stage": "The detector's training: G learns to inpaint erased anatomy, A to do the same without a mask.",
    "AUC of a map": "How likely a voxel of a lesion has a higher value than one of other bone; 0.5 is chance, 1 best.",
    "MSE": "Mean squared error; lower is better, and the detector's should be below that of the two plain images.",
    "Epoch": "Some hundred iterations of a training, after which it is validated.",
    "Pseudo Dice": "DSC of validation patches, by which nnU-Net follows a training.",
}


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
    """Write the report of a demonstration whose steps are done, and its first picture as case.png; returns its path.

    Args: records: of the steps: title, command and seconds. quick: whether to warn that networks are hardly trained.
    """
    findings = Findings.of(load_evaluation(demo.evaluation))
    manifest = read_json(demo.simulated / "manifest.json")
    detector = read_json(demo.detector / "summary.json")["mean"]
    logged = {model: _logged(demo, model) for model in demo.trainers}
    curves = training_picture(logged["prestage"], {name: logged[model] for model, name in MODELS.items()})
    pictures = _pictures(demo)
    save_figure(pictures[0][1], demo.folder / "case.png", dpi=110)
    return write_report(
        path,
        findings,
        pictures,
        title="Anomaly-aware segmentation: demonstration",
        sentences=_sentences(findings, quick=quick),
        notes=_introduction(manifest, findings.evaluation, {model: len(of["lrs"]) for model, of in logged.items()}),
        chosen="The test knees with most lesion volume, each on the sagittal slice through most of it; superior is up "
        "and anterior to the right. The first picture stands at the top of the page.",
        terms=TERMS,
        more_sections=[
            Section("Does the error image find the lesions?", _detector_content(detector), folded=True),
            Section("Training", [curves], folded=True),
            Section("What was run", [_commands_table(records)], folded=True),
        ],
    )


def _sentences(findings: Findings, *, quick: bool) -> list[str]:
    """What was compared, with which result, and what that is worth."""
    evaluation = findings.evaluation
    num_test = evaluation.cases["case"].nunique()
    compared = (
        f"{MODELS['naive'][0].upper()}{MODELS['naive'][1:]} and the {MODELS['aware']} network segmented "
        f"{counted(num_test, 'simulated knee')} that no training had seen; both have the same layers, first weights, "
        "training knees and number of iterations, neither mirrors, and the second alone sees a detector's error image."
    )
    worth = significance_sentence(evaluation, findings.paired)
    if quick:
        few = num_test < fewest_cases(len(MODELS))
        tested = f", and {counted(num_test, 'knee')} are too few to test a difference" if few else ""
        worth = f"This quick run shows that the chain works and nothing else: its networks are hardly trained{tested}."
    return [compared, dsc_sentence(evaluation), worth]


def _introduction(manifest: Mapping[str, Any], evaluation: Evaluation, epochs: Mapping[str, int]) -> list[str]:
    num_test = evaluation.cases["case"].nunique()
    size, spacing = manifest["arguments"]["size"], manifest["arguments"]["spacing_mm"]
    return [
        f"Simulated knees of {' x '.join(map(str, size))} voxels of {' x '.join(map(str, spacing))} mm: "
        f"{len(manifest['cases']) - num_test} for training, {num_test} for testing. The training labels are the "
        "anatomy, lesions counted as bone; no network was given the lesions.",
        f"Both segmenters were trained for {counted(epochs['aware'], 'epoch')} of nnU-Net's 1000, from one seed and "
        "without mirroring, in training or at prediction. What the anomaly-aware one has besides is the method: the "
        "error image as a further channel and as weight of its loss, and anomalies that are pasted into bones while it "
        f"trains. Its detector was trained before, for {counted(epochs['prestage'], 'epoch')} on the same knees, which "
        "nnU-Net has no use for. So the tables show what each has learnt in a short time, not what either is worth in "
        "the end. Results are reported whatever they are.",
    ]


def _detector_content(mean: Mapping[str, Any]) -> list[Content]:
    """A sentence and the table that it is true of."""
    header = [
        "test knees", "AUC for lesions in bone", "AUC away from its surface", "MSE in the erased region",
        "MSE of a constant image", "MSE of a blurred image",
    ]  # fmt: skip
    rows = []
    for name, keys_of_auc, title in MEASURED:
        entry = mean[name]
        areas = [number(entry.get(key), 3) for key in keys_of_auc]
        known = entry if keys_of_auc == AUC_KEYS else {}
        errors = [number(known[key], 5) if key in known else "" for key in ERROR_AND_BASELINES]
        rows.append([Cell(text) for text in (title, *areas, *errors)])
    num_cases = mean["num_cases_with_lesion"]
    note = (
        f"Mean over {counted(num_cases, 'test knee')} with a lesion, lesion against all other bone. With the sign, AUC "
        "is above 0.5 where lesions are brighter than expected. Away from its surface: bone at least one voxel inside, "
        "because at the surface every reconstruction is a little off."
    )
    table = Table(
        "How well a map points to lesions, and how well the erased region is reconstructed", header, rows, [note]
    )
    if not num_cases:
        return ["No test knee has a lesion, so there is nothing to find.", table]
    error, intensity = (round(mean[name]["lesion_auc"], 3) for name in ("detector", "intensity"))
    verdict = "better than" if error > intensity else "worse than" if error < intensity else "as well as"
    chance = "" if error > 0.5 else ", no better than chance"
    told = f"The error image of the detector A points to lesions {verdict} the image's own intensity does"
    return [f"{told}: AUC {error:.3f}{chance}, against {intensity:.3f}.", table]


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
    chosen = sorted(volumes, key=lambda case: -volumes[case])[:NUM_PICTURES]
    titles = [f"{case}, {'through most of its lesions' if volumes[case] else 'without a lesion'}" for case in chosen]
    return [(title, _case_figure(demo, case)) for title, case in zip(titles, chosen, strict=True)]


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


def _logged(demo: DemoFolders, model: str) -> dict[str, list[float]]:
    file = demo.model(demo.trainers[model]) / "fold_0" / "checkpoint_final.pth"
    return load_file(file, "remove it and run the demo again")["logging"]
