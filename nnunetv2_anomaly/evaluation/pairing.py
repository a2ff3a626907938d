"""Pair predictions with references: folders of predictions, and nnU-Net's results folders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2_anomaly.errors import UserError, counted, listed
from nnunetv2_anomaly.files import read_json
from nnunetv2_anomaly.images.dataset_description import DatasetDescription, segmentation_files
from nnunetv2_anomaly.postprocessing.run import MARKER as CLEANED_MARKER


@dataclass(frozen=True)
class Model:
    """Predictions of one model."""

    name: str
    folder: Path
    is_results_folder: bool  # nnU-Net's, of a trained model: the predictions are those of its folds' validation
    files: Mapping[str, Path]  # case -> prediction
    probabilities: Mapping[str, Path]  # case -> softmax output (.npz), where there is one
    folds: Mapping[str, str]  # case -> fold, only of a results folder


@dataclass(frozen=True)
class Pairs:
    """Which cases are evaluated, and where their files are."""

    references: dict[str, Path]  # case -> reference
    models: tuple[Model, ...]
    folds: dict[tuple[str, str], str]  # (model, case) -> fold, where known
    notes: tuple[str, ...]  # sentences on what was left out
    without: str = ""  # which cases were left out as a model has no prediction of them; empty if none

    @property
    def files(self) -> list[Path]:
        """References and predictions of all cases."""
        return [*self.references.values(), *(model.files[case] for model in self.models for case in self.references)]

    def only(self, cases: Collection[str]) -> Pairs:
        """Without other cases."""
        return replace(self, references={case: of for case, of in self.references.items() if case in cases})


def find_pairs(
    model_folders: dict[str, Path],
    dataset: DatasetDescription,
    *,
    reference_folder: Path | None = None,
    folds: Sequence[str] | None = None,
    splits_file: Path | None = None,
    ignore_extra: bool = False,
    ignore_missing: bool = False,
) -> Pairs:
    """Pair predictions with references.

    Args:
        model_folders: name -> folder of predictions, or nnU-Net's results folder, whose folds' validation is gathered.
        reference_folder: None takes that of a results folder's data set.
        folds: the cases of these folds alone.
        splits_file: nnU-Net's splits_final.json; None takes that of a results folder's data set, if there is one.
        ignore_extra: whether predictions without a reference are ignored.
        ignore_missing: whether references are ignored of which a model has no prediction.
    Raises: UserError for missing and unexpected files.
    """
    models = tuple(find_model(name, folder, dataset.file_ending, folds) for name, folder in model_folders.items())
    reference_folder = reference_folder or default_reference_folder(models)
    references = segmentation_files(reference_folder, dataset.file_ending)
    if all(re.search(r"_\d{4}$", case) and not any(case in model.files for model in models) for case in references):
        fault = f"the files of {reference_folder} are images, by their names such as {next(iter(references))}"
        raise UserError(f"{fault}; expected references; give the folder of label maps with -ref, such as labelsTs")
    splits_file = splits_file or default_splits(models)
    splits = read_splits(splits_file) if splits_file is not None else {}
    if folds and not splits and not all(model.is_results_folder for model in models):
        raise UserError("--folds was given, but the folds of the cases are unknown; give splits_final.json (--splits)")
    cases = expected_cases(references, models, splits, folds)
    predicted = [case for case in cases if all(case in model.files for model in models)]
    without = sorted(set(cases) - set(predicted)) if ignore_missing and predicted else []
    cases = predicted if without else cases
    notes = check_complete(cases, models, reference_folder, ignore_extra=ignore_extra, others=references)
    cleaned = "was cleaned by postprocess, so its HD* is not that of the raw prediction; give what it was made from."
    notes += [f"{of.name}: {of.folder} {cleaned}" for of in models if (of.folder / CLEANED_MARKER).is_file()]
    lacking = ""
    if without:
        lacking = f"{counted(len(without), 'case')} without a prediction of every model: {listed(without)}"
        notes.append(f"Left out: {lacking}.")
    of_fold = {
        (model.name, case): fold
        for model in models
        for case in cases
        if (fold := model.folds.get(case, splits.get(case)))
    }
    return Pairs({case: references[case] for case in cases}, models, of_fold, tuple(notes), lacking)


def is_results_folder(folder: Path) -> bool:
    """Whether it is nnU-Net's results folder of a trained model: folds, and the plans they were trained with."""
    # Plans stand beside predictions as well, and their cases may have such names.
    return (folder / "plans.json").is_file() and any(entry.is_dir() for entry in folder.glob("fold_*"))


def named_folders(texts: Sequence[str]) -> dict[str, Path]:
    """Model name -> folder, from words like ``FOLDER``, named after its trainer or itself, or ``NAME=FOLDER``.

    Raises: UserError if a name comes twice, is empty, or a folder is missing.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, separator, place = text.partition("=")
        if not separator or Path(text).is_dir():
            place = text
            name = Path(os.path.abspath(text)).name  # also of . and ..
            name = name.split("__")[0] if is_results_folder(Path(text)) else name
        folder = Path(place)
        if not name.strip() or not place or not folder.is_dir():
            raise UserError(f"{text} names no folder that exists; give -pred FOLDER or -pred NAME=FOLDER")
        if name in found:
            both = f"{found[name]} and {folder}"
            raise UserError(f"two models are called {name} ({both}); give each its name: -pred NAME=FOLDER")
        found[name] = folder
    return found


def find_model(name: str, folder: Path, file_ending: str, folds: Sequence[str] | None = None) -> Model:
    """The predictions of a folder, or of the given folds of a results folder: None takes all but "all".

    Raises: UserError if nothing is there, a fold has no validation, or a case is in two of them.
    """
    if not is_results_folder(folder):
        files = segmentation_files(folder, file_ending)
        return Model(name, folder, False, files, _probabilities(files, file_ending), {})
    found = (entry.name.removeprefix("fold_") for entry in folder.glob("fold_*") if entry.name != "fold_all")
    chosen = list(dict.fromkeys(folds)) if folds else sorted(found, key=lambda fold: (len(fold), fold))
    if not chosen:
        raise UserError(f"{folder} has no fold but fold_all; give --folds all, or predict and give the predictions")
    files = {}
    of_fold: dict[str, str] = {}
    for fold in chosen:
        validation = folder / f"fold_{fold}" / "validation"
        if not validation.is_dir():
            advice = f"validate it (nnUNetv2_train ... {fold} --val), or choose others with --folds"
            raise UserError(f"{validation} does not exist; {advice}")
        for case, file in segmentation_files(validation, file_ending).items():
            if case in files:
                raise UserError(
                    f"{case} is in the validation of folds {of_fold[case]} and {fold} of {folder}; expected one"
                )
            files[case], of_fold[case] = file, fold
    return Model(name, folder, True, files, _probabilities(files, file_ending), of_fold)


def _probabilities(files: Mapping[str, Path], file_ending: str) -> dict[str, Path]:
    beside = {case: file.with_name(file.name[: -len(file_ending)] + ".npz") for case, file in files.items()}
    return {case: file for case, file in beside.items() if file.is_file()}


def _dataset_name(results: Path) -> str:
    return read_json(results / "plans.json").get("dataset_name", results.absolute().parent.name)


def default_reference_folder(models: Sequence[Model]) -> Path:
    """Where the references of a results folder's data set lie, as nnU-Net looks for them.

    Raises: UserError if no model is a results folder, or neither place is there.
    """
    results = next((model.folder for model in models if model.is_results_folder), None)
    if results is None:
        raise UserError("no reference folder was given; give it with -ref")
    places = [
        Path(os.environ[variable], _dataset_name(results), folder)
        for variable, folder in (("nnUNet_raw", "labelsTr"), ("nnUNet_preprocessed", "gt_segmentations"))
        if os.environ.get(variable)
    ]
    if (found := next(filter(Path.is_dir, places), None)) is None:
        searched = " and ".join(map(str, places)) or "nnUNet_raw and nnUNet_preprocessed are not set"
        raise UserError(f"the references of {results} were not found ({searched}); give their folder with -ref")
    return found


def read_splits(file: Path) -> dict[str, str]:
    """Case -> fold that validates it, from nnU-Net's splits_final.json.

    Raises: UserError if it cannot be read, or a case is validated twice.
    """
    try:
        splits = json.loads(file.read_text(encoding="utf-8"))
        validated = [(case, str(fold)) for fold, split in enumerate(splits) for case in split["val"]]
        if not all(
            isinstance(split["val"], list) and isinstance(case, str) for split in splits for case in split["val"]
        ):
            raise ValueError("val is no list of cases")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read as nnU-Net's splits_final.json ({error})") from error
    of_fold: dict[str, str] = {}
    for case, fold in validated:
        if of_fold.setdefault(case, fold) != fold:
            raise UserError(f"{file}: {case} is validated by folds {of_fold[case]} and {fold}; expected one")
    return of_fold


def default_splits(models: Sequence[Model]) -> Path | None:
    """splits_final.json of a results folder's data set, where it is found."""
    folder = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112
    results = [model.folder for model in models if model.is_results_folder and folder]
    files = (Path(str(folder), _dataset_name(result), "splits_final.json") for result in results)
    return next(filter(Path.is_file, files), None)


def expected_cases(
    references: Collection[str], models: Sequence[Model], splits: Mapping[str, str], folds: Sequence[str] | None
) -> list[str]:
    """The cases that every model has to predict: all references, or those that the given folds validate.

    Args: splits: case -> fold; where it is empty, the results folders tell.
    Raises: UserError if none is left.
    """
    expected = set(references)
    if folds:
        expected &= {case for case, fold in splits.items() if fold in folds} or {
            case for model in models for case in model.folds
        }
        if not expected:
            raise UserError(f"none of the references is of the folds {', '.join(folds)}")
    return sorted(expected)


def check_complete(
    expected: Sequence[str], models: Sequence[Model], folder: Path, *, ignore_extra: bool, others: Collection[str] = ()
) -> list[str]:
    """Check that every expected case has a prediction of every model, and that there are no others.

    Args: folder: of the references. others: cases that have a reference but are not wanted; their predictions are
        not extra.
    Returns: sentences on what was ignored.
    Raises: UserError that lists what is missing or too much.
    """
    ignored = []
    for model in models:
        named = f"{model.name} ({model.folder}) has"
        if missing := sorted(set(expected) - set(model.files)):
            of = counted(len(expected), "case")
            none = f"no prediction of {len(missing)} of {of} of {folder}: {listed(missing)}"
            raise UserError(f"{named} {none}; {_advice_on_missing(model, len(missing) == len(expected))}")
        if extra := sorted(set(model.files) - set(expected) - set(others)):
            without = f"{counted(len(extra), 'prediction')} without a reference"
            if not ignore_extra:
                advice = "check the folders, or leave these out with --ignore_extra"
                raise UserError(f"{named} {without} in {folder}: {listed(extra)}; {advice}")
            ignored.append(f"{model.name}: left out: {without}: {listed(extra)}")
    return ignored


def _advice_on_missing(model: Model, all_missing: bool) -> str:
    if not model.is_results_folder:
        return "predict them, or take their references away"
    if all_missing:
        return "give the results of a trainer that segments, validated on cases of this data set"
    known = " ".join(dict.fromkeys(model.folds.values()))
    return f"let nnU-Net train and validate all folds, or take the cases of some: --folds {known}"
