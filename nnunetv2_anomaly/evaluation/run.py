"""Evaluates models on the cases of a reference folder: pairs, cases in parallel, tables, figures, report."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.evaluation.case import CaseTask, EvaluationSettings, evaluate_one, read_known
from nnunetv2_anomaly.evaluation.figures import case_figure
from nnunetv2_anomaly.evaluation.groups import Groups
from nnunetv2_anomaly.evaluation.pairing import (
    Model,
    check_complete,
    default_reference_folder,
    default_splits,
    expected_cases,
    find_model,
    read_splits,
)
from nnunetv2_anomaly.evaluation.report import Findings, select_cases, write_report, write_tables_and_figures
from nnunetv2_anomaly.evaluation.results import BONE_COLUMNS, CASE_COLUMNS, LESION_COLUMNS, Evaluation
from nnunetv2_anomaly.files import read_json, take_output_folder, write_failures_as_user_errors, write_text
from nnunetv2_anomaly.images.colours import write_colour_tables
from nnunetv2_anomaly.images.dataset_description import DatasetDescription, segmentation_files
from nnunetv2_anomaly.images.files import read_image
from nnunetv2_anomaly.images.grids import Grid, oriented, same_grid
from nnunetv2_anomaly.images.segmentations import Segmentation, SegmentationFiles
from nnunetv2_anomaly.measurements.surface import METRICS
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.postprocessing.run import MARKER as CLEANED_MARKER
from nnunetv2_anomaly.reporting.drawing import save_figure
from nnunetv2_anomaly.reporting.page import Section

#: what stands between a case's name and the file ending in the names of the images that pictures show
_IMAGE, _ERROR_IMAGE = "_0000", "_error"

#: tells in an output folder that an evaluation wrote it, and which one
MARKER = "evaluation.json"

#: table of ``Evaluation`` -> its columns
_COLUMNS = {
    "cases": (*CASE_COLUMNS, *METRICS, "components"),
    "bones": BONE_COLUMNS,
    "lesions": LESION_COLUMNS,
}


@dataclass(frozen=True)
class Pairs:
    """Which cases are evaluated, and where their files are.

    Attributes:
        references: case -> reference.
        models: with a prediction of each.
        folds: (model, case) -> fold, where known.
        told: sentences on what was left out.
    """

    references: dict[str, Path]
    models: tuple[Model, ...]
    folds: dict[tuple[str, str], str]
    told: tuple[str, ...]


def find_pairs(
    model_folders: dict[str, Path],
    dataset: DatasetDescription,
    *,
    reference_folder: Path | None = None,
    folds: Sequence[str] | None = None,
    splits_file: Path | None = None,
    ignore_extra: bool = False,
) -> Pairs:
    """Pair predictions with references.

    Args:
        model_folders: name -> folder of predictions, or nnU-Net's results folder, of which the validation of the folds
            is gathered.
        dataset: of the references.
        reference_folder: None takes that of a results folder's data set.
        folds: the cases of these folds alone.
        splits_file: nnU-Net's splits_final.json; None takes that of a results folder's data set, if there is one.
        ignore_extra: whether predictions without a reference are left alone.
    Raises: UserError for whatever is missing or too much.
    """
    models = tuple(find_model(name, folder, dataset.file_ending, folds) for name, folder in model_folders.items())
    reference_folder = reference_folder or default_reference_folder(models)
    references = segmentation_files(reference_folder, dataset.file_ending)
    splits_file = splits_file or default_splits(models)
    splits = read_splits(splits_file) if splits_file is not None else {}
    if folds and not splits and not all(model.is_results_folder for model in models):
        raise UserError(
            "--folds was given, and nothing tells the folds of the cases; give splits_final.json (--splits)."
        )
    cases = expected_cases(references, models, splits, folds)
    told = check_complete(cases, models, reference_folder, ignore_extra=ignore_extra, elsewhere=references)
    told += [
        f"{model.name}: {model.folder} was cleaned by postprocess, so that its HD* is not that of the prediction as it "
        "is; give the predictions that it was made from."
        for model in models
        if (model.folder / CLEANED_MARKER).is_file()
    ]
    of_fold = {}
    for model in models:
        of_fold.update(
            {(model.name, case): fold for case in cases if (fold := model.folds.get(case, splits.get(case)))}
        )
    return Pairs({case: references[case] for case in cases}, models, of_fold, tuple(told))


def evaluate_models(
    pairs: Pairs,
    output: Path,
    settings: EvaluationSettings,
    *,
    groups: Groups | None = None,
    num_processes: int = 2,
) -> Evaluation:
    """Measure every case, several at a time, and remember each.

    Args:
        pairs: from ``find_pairs``.
        output: folder; what was found of each case is kept in ``output/cases``.
        settings: what is measured.
        groups: of the cases.
        num_processes: cases at a time; each takes about ten times the memory of a case's label map, and a softmax
            output's lesion channels on top.
    Raises: UserError that lists the cases that could not be evaluated; the others are kept for the next run. Or at
        once, if ``output`` cannot be written to.
    """
    names = tuple(model.name for model in pairs.models)
    tasks = []
    for case, reference in pairs.references.items():
        tasks.append(
            CaseTask(
                case=case,
                reference=reference,
                predictions={model.name: model.files[case] for model in pairs.models},
                probabilities={
                    model.name: model.probabilities[case] for model in pairs.models if case in model.probabilities
                }
                if _wants_probabilities(settings)
                else {},
                settings=settings,
                record=output / "cases" / f"{case}.json",
            )
        )
    if _wants_probabilities(settings):
        _check_probabilities(pairs, settings)
    # What cannot be kept ends the run at once: a full disk is better told now than after the last case.
    with write_failures_as_user_errors(output):
        found, failed = run_cases(evaluate_one, tasks, num_processes, "evaluating", "evaluated")
    if failed:
        raise UserError(failed)
    tables = {
        kind: _table([row for case in pairs.references for row in found[case][kind]], columns, pairs, groups)
        for kind, columns in _COLUMNS.items()
    }
    return Evaluation(names, dict(settings.dataset.labels), groups.names if groups else (), **tables)


def _wants_probabilities(settings: EvaluationSettings) -> bool:
    clean_up = settings.clean_up
    return bool(clean_up.bone_of_lesion) and (settings.with_probabilities or clean_up.lesion_probability is not None)


def _check_probabilities(pairs: Pairs, settings: EvaluationSettings) -> None:
    for model in pairs.models:
        without = [case for case in pairs.references if case not in model.probabilities]
        if without and settings.clean_up.lesion_probability is not None:
            raise UserError(
                f"{model.name} ({model.folder}) has no softmax output (.npz) of {listed(without)}, which "
                "--lesion_probability needs; predict with --save_probabilities."
            )
        if without and len(without) < len(pairs.references):
            raise UserError(
                f"{model.name} ({model.folder}) has softmax outputs (.npz), but not of {listed(without)}; predict all "
                "with --save_probabilities, or leave them out with --without_probabilities."
            )


def _table(rows: list[dict[str, Any]], columns: Sequence[str], pairs: Pairs, groups: Groups | None) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(columns))
    table["fold"] = [pairs.folds.get(key) for key in zip(table["model"], table["case"], strict=True)]
    table["group"] = [groups.of_case.get(case) if groups else None for case in table["case"]]
    order = {model.name: place for place, model in enumerate(pairs.models)}
    # Model by model, so that the first one given is the first one met.
    return table.sort_values("model", key=lambda names: names.map(order), kind="stable").reset_index(drop=True)


def prepare_output(output: Path, arguments: dict[str, Any]) -> None:
    """Make the output folder, or take that of an earlier evaluation.

    Raises: UserError if it holds something else, or cannot be written to.
    """
    with write_failures_as_user_errors(output):
        take_output_folder(output, MARKER, "evaluation")
        content = {"version": __version__, "finished": False, "arguments": arguments}
        write_text(output / MARKER, json.dumps(content, indent=2))


def write_evaluation(
    output: Path,
    evaluation: Evaluation,
    pairs: Pairs,
    settings: EvaluationSettings,
    arguments: dict[str, Any],
    *,
    images: Path | None = None,
    error_images: Path | None = None,
    notes: Sequence[str] = (),
    title: str = "Evaluation",
    more_sections: Sequence[Section] = (),
    tested: Evaluation | None = None,
) -> Path:
    """Write tables, figures, colour tables and the report.

    Args:
        images, error_images: as ``check_images`` takes them; the pictures of cases show them.
        notes: sentences that the report tells at its beginning.
        title, more_sections: of the report.
        tested: as ``Findings.of`` takes it.
    Returns: the report.
    Raises: UserError for pictures that are missing or of another grid, or if ``output`` cannot be written to.
    """
    findings = Findings.of(evaluation, tested)
    with write_failures_as_user_errors(output):
        write_tables_and_figures(output, findings)
        for name in _COLUMNS:
            write_text(output / "tables" / f"{name}.csv", getattr(evaluation, name).to_csv(index=False))
        write_colour_tables(output, settings.dataset.single_values)
    pictures = case_pictures(evaluation, pairs, settings.dataset, images, error_images)
    with write_failures_as_user_errors(output):
        for case, _, figure in pictures:
            save_figure(figure, output / "figures" / f"case_{case}.png", dpi=130)
        report = write_report(
            output / "report.html",
            findings,
            [(caption, figure) for _, caption, figure in pictures],
            title=title,
            missing=settings.missing,
            notes=notes,
            more_sections=more_sections,
        )
        content = {
            "version": __version__,
            "finished": True,
            "arguments": arguments,
            "dataset": str(settings.dataset.source),
            "models": {model.name: str(model.folder) for model in pairs.models},
            "groups": list(evaluation.groups),
            "num_cases": len(pairs.references),
            "settings": dataclasses.asdict(settings),
        }
        write_text(output / MARKER, json.dumps(content, indent=2, default=str))
    return report


def load_evaluation(output: Path) -> Evaluation:
    """Read back what ``write_evaluation`` wrote.

    Raises: UserError if the folder holds no finished evaluation.
    """
    content = read_json(output / MARKER)
    if not content.get("finished"):
        raise UserError(f"{output} holds an evaluation that is not finished; run nnUNetv2_anomaly evaluate again.")
    tables = {}
    for kind in _COLUMNS:
        file = output / "tables" / f"{kind}.csv"
        texts = dict.fromkeys(("case", "model", "fold", "group", "label", "bone", "lesion"), str)
        # Names such as "nan" or "None" are names: only what is empty is missing.
        tables[kind] = pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=[""])
    return Evaluation(
        models=tuple(content["models"]),
        labels={name: tuple(values) for name, values in content["settings"]["dataset"]["labels"].items()},
        groups=tuple(content["groups"]),
        **tables,
    )


def case_pictures(
    evaluation: Evaluation,
    pairs: Pairs,
    dataset: DatasetDescription,
    images: Path | None,
    error_images: Path | None,
) -> list[tuple[str, str, Figure]]:
    """(case, title, figure) of each model's worst, median and best case; one that is several of them comes once."""
    files = SegmentationFiles(dataset.file_ending, dataset.reader)
    titles: dict[str, list[str]] = {}
    for choice in select_cases(evaluation):
        titles.setdefault(choice.case, []).append(choice.title)
    pictures = []
    for case, reasons in titles.items():
        reference = read_known(files, pairs.references[case], dataset)
        predictions = {model.name: files.read(model.files[case]).voxels for model in pairs.models}
        figure = case_figure(
            case,
            _beside(images, case, _IMAGE, reference, files),
            reference.voxels,
            predictions,
            _beside(error_images, case, _ERROR_IMAGE, reference, files),
            reference.spacing_mm,
            dataset.single_values,
        )
        pictures.append((case, f"{case}: {'; '.join(reasons)}", figure))
    return pictures


def check_images(pairs: Pairs, dataset: DatasetDescription, images: Path | None, error_images: Path | None) -> None:
    """See that every case has the images that pictures could show; which cases these are, only measuring tells.

    Args:
        pairs: from ``find_pairs``.
        dataset: of the cases.
        images: folder with CASE_0000 of the data set's file ending or .nii.gz, or None.
        error_images: folder with CASE_error of these endings, or with several channels CASE_error_0000 and so on; or
            None.
    Raises: UserError that lists the cases without, or for a folder that does not exist.
    """
    for option, folder, kind in (("--images", images, _IMAGE), ("--error_images", error_images, _ERROR_IMAGE)):
        if folder is None:
            continue
        if not folder.is_dir():
            raise UserError(f"{option} {folder} is no folder; give one, or leave it out.")
        without = [case for case in pairs.references if not _files_beside(folder, case, kind, dataset.file_ending)]
        if without:
            endings = " or ".join(f"CASE{kind}{ending}" for ending in _endings(dataset.file_ending))
            raise UserError(
                f"{option} {folder} has no {endings} of {len(without)} of {len(pairs.references)} cases: "
                f"{listed(without)}; complete it, or leave it out."
            )


def _endings(file_ending: str) -> tuple[str, ...]:
    """Error images are NIfTI files whatever the data set's file ending."""
    return tuple(dict.fromkeys((file_ending, ".nii.gz")))


def _files_beside(folder: Path, case: str, kind: str, file_ending: str) -> list[Path]:
    """The file of a case's image, or one for each of its channels; empty where there is none."""
    for ending in _endings(file_ending):
        whole = folder / f"{case}{kind}{ending}"
        if whole.is_file():
            return [whole]
        numbered = (folder / f"{case}{kind}_{channel:04d}{ending}" for channel in itertools.count())
        channels = list(itertools.takewhile(Path.is_file, numbered))
        if channels:
            return channels
    return []


def _beside(
    folder: Path | None, case: str, kind: str, reference: Segmentation, files: SegmentationFiles
) -> NDArray[np.floating] | None:
    """The image of a case on its reference's grid, of several files their mean; None where there is no folder."""
    if folder is None:
        return None
    found = _files_beside(folder, case, kind, files.file_ending)
    if not found:
        raise UserError(f"{folder} no longer holds {case}{kind}; complete it, or leave it out.")
    return np.mean([_image(file, reference, files) for file in found], axis=0)


def _image(file: Path, reference: Segmentation, files: SegmentationFiles) -> NDArray[np.floating]:
    """An image on its reference's grid; the first channel of a file with several."""
    if reference.grid is not None:
        image = read_image(file)
        if not same_grid(reference.grid, Grid.of(image)):
            raise UserError(f"{file} lies on another grid than {reference.path}; give the images of these cases.")
        return sitk.GetArrayFromImage(oriented(image)).astype(np.float32)
    reader = files.reader_class
    known = (files.file_ending, *reader.supported_file_endings)
    if not file.name.endswith(known):  # an error image of a data set of pictures
        reader = SegmentationFiles(".nii.gz").reader_class
    try:
        voxels, _ = reader().read_images([str(file)])
    # Whatever nnU-Net's reader fails with, the file is at fault, as in SegmentationFiles.
    except Exception as error:
        raise UserError(f"{file} cannot be read as an image ({error}); check that it is complete.") from error
    found = voxels[0, 0] if reference.voxels.ndim == 2 else voxels[0]
    if found.shape != reference.voxels.shape:
        raise UserError(f"{file} has another size than {reference.path}; give the images of these cases.")
    return found
