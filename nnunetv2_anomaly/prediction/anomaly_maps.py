"""Anomaly maps and reconstructions of new images, by a detector's own model or an anomaly-aware one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.detectors.artefact import detector_of, read_artefact
from nnunetv2_anomaly.detectors.base import Detector, detector_class
from nnunetv2_anomaly.detectors.thresholds import IN_IMAGE, NUMBERS
from nnunetv2_anomaly.environment import environment_folder
from nnunetv2_anomaly.errors import CasesFailedError, UserError
from nnunetv2_anomaly.files import write_failures_as_user_errors, write_text
from nnunetv2_anomaly.images.sliding_window import Windows
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.parts import ALL, Part
from nnunetv2_anomaly.plans.dataset_name import dataset_name
from nnunetv2_anomaly.prediction.case_files import output_files, write_case
from nnunetv2_anomaly.prediction.cases import CaseFiles, GivenBones, given_bones, list_cases, preprocessed_case
from nnunetv2_anomaly.prediction.models import each_fold, load_model, trained_folds, untrained_model
from nnunetv2_anomaly.prediction.windows import Maps, mean_maps, predict_maps
from nnunetv2_anomaly.registry import DETECTORS, detector_families

#: searched in this order when no trainer is named
DEFAULT_TRAINERS = ("AnomalyAwareTrainer", *(family.trainer for family in DETECTORS.values()))


@dataclass(frozen=True)
class TrainedDetector:
    """A detector as it was trained, ready to predict."""

    predictor: nnUNetPredictor
    model_folder: Path | None  # None where nothing was trained
    folds: tuple[int | str, ...]
    checkpoint: str

    @property
    def network(self) -> Detector:
        """The detector in the network. Raises: UserError if there is none."""
        if (found := detector_of(self.predictor.network)) is None:
            model = f"the model in {self.model_folder} ({self.predictor.trainer_name})"
            raise UserError(f"{model} has no detector; expected one of {' or '.join(DEFAULT_TRAINERS)}")
        return found

    @property
    def windows(self) -> Windows:
        """Plans and device of its predictions."""
        of = self.predictor
        return Windows(of.plans_manager, of.configuration_manager, of.dataset_json, of.device)

    def maps(self, image: Tensor, bones: Tensor | None) -> Maps:
        """Of a preprocessed image, as ``predict_maps`` takes it; of several folds the means."""
        return mean_maps([predict_maps(self.network, image, self.windows, bones) for _ in each_fold(self.predictor)])

    def fit(self) -> dict[str, Any] | None:
        """How its maps become lesions, as the validation found it; of several folds the mean of each number.

        None where nothing was trained, or a fold's validation has not found any.
        """
        if self.model_folder is None:
            return None
        paths = [self.model_folder / f"fold_{fold}" / self.checkpoint for fold in self.folds]
        found = [fit for path in paths if (fit := read_artefact(path).threshold)]
        if len(found) < len(paths):
            return None
        numbers = {name: [of[name] for of in found if of[name] is not None] for name in NUMBERS if name in found[0]}
        return {**found[0], **{name: float(np.mean(of)) if of else None for name, of in numbers.items()}}

    @property
    def described(self) -> str:
        """In words."""
        if self.model_folder is None:
            return f"of {self.predictor.trainer_name}, untrained, as the bones are given"
        return f"in {self.model_folder}, fold {' '.join(map(str, self.folds))}"


def find_detector(
    dataset: str,
    *,
    configuration: str,
    plans: str = "nnUNetPlans",
    trainer: str | None = None,
    checkpoint: str = "checkpoint_final.pth",
    device: torch.device,
    needs_bones: bool = True,
    folds: Sequence[int | str] | None = None,
) -> TrainedDetector:
    """A trained detector by nnU-Net's names.

    Args: as ``find_model_folder``. needs_bones: False where bones will be given: then a detector that learns nothing
        but bones is taken untrained.
    Raises: as ``find_model_folder`` and ``load_model``.
    """
    named: dict[str, Any] = {"configuration": configuration, "plans": plans, "trainer": trainer}
    family = next((family.name for family in detector_families().values() if family.trainer == trainer), None)
    if not needs_bones and family and detector_class(family).learns_bones_alone:
        predictor = untrained_model(dataset_name(dataset), device=device, **named)
        return TrainedDetector(predictor, None, (), checkpoint)
    folder, found = find_model_folder(dataset, folds=folds, checkpoint=checkpoint, **named)
    return load_detector(folder, folds=found, checkpoint=checkpoint, device=device)


def load_detector(
    model_folder: Path,
    *,
    folds: Sequence[int | str] = (0,),
    checkpoint: str = "checkpoint_final.pth",
    device: torch.device,
) -> TrainedDetector:
    """The detector in a model folder. Raises: as ``load_model``."""
    predictor = load_model(model_folder, folds=folds, device=device, checkpoint=checkpoint)
    return TrainedDetector(predictor, model_folder, tuple(folds), checkpoint)


def find_model_folder(
    dataset: str,
    *,
    configuration: str,
    plans: str = "nnUNetPlans",
    trainer: str | None = None,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
) -> tuple[Path, Sequence[int | str]]:
    """The model folder that holds the checkpoints, of the trainer named or else of the first that has them; the folds.

    Args: dataset: number or name, as everywhere in nnU-Net. folds: None takes all that are trained, "all" where there
        is no other.
    Raises: UserError if nnUNet_results is not set, the data set is unknown, or no such model was trained.
    """
    results = environment_folder("nnUNet_results") / dataset_name(dataset)
    trainers = DEFAULT_TRAINERS if trainer is None else (trainer,)
    folders = {name: results / f"{name}__{plans}__{configuration}" for name in trainers}
    for folder in folders.values():
        there = trained_folds(folder, checkpoint)
        if there and all((folder / f"fold_{fold}" / checkpoint).is_file() for fold in folds or ()):
            return folder, folds or there
    wanted = " and ".join(f"fold_{fold}/{checkpoint}" for fold in folds or (0,))
    fault = f"no model with {wanted} in {' or '.join(map(str, folders.values()))}"
    asked = trainers[min(1, len(trainers) - 1)]  # of the defaults the first that is a detector alone
    there = [fold for fold in folds or () if not (folders[asked] / f"fold_{fold}" / checkpoint).is_file()]
    train = f"nnUNetv2_train {dataset} {configuration} {next(iter(there), 0)} -tr {asked}"
    raise UserError(f"{fault}; train one with {train}, or name another with -p, -c, -f, -tr")


def predict_anomaly_maps(
    input_folder: Path,
    output_folder: Path,
    detector: TrainedDetector,
    *,
    bones: Path | None = None,
    continue_prediction: bool = False,
    part: Part = ALL,
) -> list[str]:
    """Write anomaly map, reconstruction and a picture of every image in a folder, by nnU-Net's sliding window.

    Of a family without a score of its own the map is that of the blended reconstruction, E = (x - A(x))^2, so that the
    files fit each other; it is 0 where nnU-Net crops the image away. Of several folds both are the means of what each
    fold's detector makes, so that the error holds the folds' disagreement as well. All are in the original geometry,
    unitless, float32.

    Args:
        input_folder: images named as nnU-Net wants them. A file may hold several channels, as colour images do.
        output_folder: made if need be; gets <case>_reconstruction.nii.gz, <case>_error.nii.gz, <case>.png and
            anomaly_maps.json; where bones are known, or the data set has none, and the detector's validation found
            how, <case>_lesions.nii.gz, 1 in lesions. Of several maps each has a file, numbered _0000 and so on.
        bones: keep all maps to bones: a folder of segmentations, <case> with the data set's ending, or a model folder
            of nnU-Net, whose segmentations go to ``bones`` in the output folder.
        continue_prediction: leave cases alone whose files are all there.
        part: of the cases, while other jobs predict the others; its record is of a name of its own then.
    Returns: the cases that were written.
    Raises: UserError for a folder without images, a model without a detector, or an output folder that cannot be
        written to; after the others are written, for cases that lack a channel or hold a damaged file or NaN.
    """
    if detector.network.needs_bones and bones is None:
        fault = f"the detector {detector.described} needs bones, and no bone model is in it"
        raise UserError(f"{fault}; give segmentations or a model folder of nnU-Net with --bones")
    with write_failures_as_user_errors(output_folder):
        output_folder.mkdir(parents=True, exist_ok=True)
        given, keep = None, continue_prediction
        if bones is not None:
            of_model = output_folder / "bones"
            given = given_bones(bones, input_folder, of_model, detector.predictor, keep=keep, part=part)
        cases, written, failed = _predict_cases(detector, input_folder, output_folder, given, keep, part)
        record = {
            "version": __version__,
            "input_folder": str(input_folder),
            "model_folder": None if detector.model_folder is None else str(detector.model_folder),
            "folds": list(detector.folds),
            "checkpoint": detector.checkpoint,
            "trainer": detector.predictor.trainer_name,
            "detector": detector.network.contract.family,
            "bones": None if bones is None else str(bones),
            "comparable": detector.network.comparable,
            "cases": cases,
        }
        write_text(output_folder / part.named("anomaly_maps.json"), json.dumps(record, indent=2))
        if failed:
            raise CasesFailedError(failed)
    return written


def _predict_cases(
    trained: TrainedDetector,
    input_folder: Path,
    output_folder: Path,
    bones: GivenBones | None,
    continue_prediction: bool,
    part: Part,
) -> tuple[list[str], list[str], str]:
    """Names of the cases that are there now, and of those that were written; what was wrong with others."""
    predictor, detector, fit = trained.predictor, trained.network, trained.fit()
    plans_manager, configuration_manager = predictor.plans_manager, predictor.configuration_manager
    dataset_json = predictor.dataset_json
    num_channels = determine_num_input_channels(plans_manager, configuration_manager, dataset_json)
    num_maps = detector.contract.num_error_channels(num_channels)
    reader = plans_manager.image_reader_writer_class()
    cases = part.of(list_cases(input_folder, dataset_json["file_ending"]))
    in_image = fit is not None and bones is None and fit["within"] == IN_IMAGE
    if not (in_image or bones is not None or detector.bone_model is not None):
        fit = None
    kinds = {"error": num_maps, **({} if fit is None else {"lesions": 1})}
    if detector.reconstructs and num_maps == num_channels:
        kinds["reconstruction"] = num_maps

    def write(job: CaseFiles) -> None:
        image, numbers, properties = preprocessed_case(predictor, reader, job, bones, whole=in_image)
        write_case(output_folder, job.case, trained.maps(image, numbers), properties, trained.windows, fit=fit)

    def is_complete(case: str) -> bool:
        files = [path for kind, of in kinds.items() for path in output_files(output_folder, case, kind, of)]
        return all(path.is_file() for path in (output_folder / f"{case}.png", *files))

    missing = [job for job in cases if not (continue_prediction and is_complete(job.case))]
    written, failed = run_cases(write, missing, 1, "predicting", "predicted")
    return [job.case for job in cases if is_complete(job.case)], list(written), failed
