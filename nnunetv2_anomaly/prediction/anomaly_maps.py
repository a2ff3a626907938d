"""Reconstructions and error images of new images, from a pre-stage or an anomaly-aware model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.detectors.artefact import detector_of
from nnunetv2_anomaly.detectors.base import Detector
from nnunetv2_anomaly.environment import environment_folder
from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.files import is_half_written, write_failures_as_user_errors, write_text
from nnunetv2_anomaly.images.files import check_whole, only_files
from nnunetv2_anomaly.images.sliding_window import Windows
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.plans.dataset_name import dataset_name
from nnunetv2_anomaly.prediction.case_files import output_files, write_case
from nnunetv2_anomaly.prediction.models import each_fold, load_model
from nnunetv2_anomaly.prediction.windows import mean_maps, predict_maps
from nnunetv2_anomaly.registry import DEFAULT_DETECTOR, DETECTORS

#: searched in this order when no trainer is named
DEFAULT_TRAINERS = ("AnomalyAwareTrainer", DETECTORS[DEFAULT_DETECTOR].trainer)


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
    results = environment_folder("nnUNet_results")
    trainers = DEFAULT_TRAINERS if trainer is None else (trainer,)
    folders = [results / dataset_name(dataset) / f"{name}__{plans}__{configuration}" for name in trainers]
    for folder in folders:
        names = [path.parent.name.removeprefix("fold_") for path in sorted(folder.glob(f"fold_*/{checkpoint}"))]
        there = [int(name) for name in names if name.isdecimal()] or names
        if there and (folds is None or all(f"{fold}" in names for fold in folds)):
            return folder, folds or there
    wanted = " and ".join(f"fold_{fold}/{checkpoint}" for fold in folds or (0,))
    fault = f"no model with {wanted} in {' or '.join(str(folder) for folder in folders)}"
    fold = next((fold for fold in folds or () if not (folders[-1] / f"fold_{fold}" / checkpoint).is_file()), 0)
    advice = f"nnUNetv2_train {dataset} {configuration} {fold} -tr {trainers[-1]}, or name another with -p, -c, -f, -tr"
    raise UserError(f"{fault}; train one with {advice}")


def predict_error_images(
    input_folder: Path,
    output_folder: Path,
    model_folder: Path,
    *,
    folds: Sequence[int | str] = (0,),
    checkpoint: str = "checkpoint_final.pth",
    device: torch.device,
    continue_prediction: bool = False,
) -> list[str]:
    """Write reconstruction, error image and a picture of every image in a folder, by nnU-Net's sliding window.

    The error image is that of the blended reconstruction, E = (x - A(x))^2, so that the files fit each other; it is
    0 where nnU-Net crops the image away. Of several folds both are the means of what each fold's detector makes, so
    that the error holds the folds' disagreement as well. Both are in the original geometry, in [0, 1] but for the
    rounding of float16 windows, unitless, float32.

    Args:
        input_folder: images named as nnU-Net wants them, case_0000.nii.gz and so on, with the data set's file ending.
            A file may hold several channels, as colour images do.
        output_folder: made if need be; gets <case>_reconstruction.nii.gz, <case>_error.nii.gz, <case>.png and
            error_images.json, whatever the data set's file ending. With several channels there is a file for each,
            which carries its number, _0000 and so on, however many files the image has.
        model_folder: of a pre-stage or an anomaly-aware trainer. folds: of it, numbers or "all".
        continue_prediction: leave cases alone whose files are all there.
    Returns: the cases that were written.
    Raises: UserError for a folder without images, a model without a detector, or an output folder that cannot be
        written to; after the others are written, for cases that lack a channel or hold a damaged file or NaN.
    """
    predictor = load_model(model_folder, folds=folds, device=device, checkpoint=checkpoint)
    detector = detector_of(predictor.network)
    if detector is None:
        model = f"the model in {model_folder} ({predictor.trainer_name})"
        raise UserError(f"{model} has no detector; expected one of {' or '.join(DEFAULT_TRAINERS)}")
    with write_failures_as_user_errors(output_folder):
        output_folder.mkdir(parents=True, exist_ok=True)
        cases, written, failed = _predict_cases(predictor, detector, input_folder, output_folder, continue_prediction)
        record = {
            "version": __version__,
            "input_folder": str(input_folder),
            "model_folder": str(model_folder),
            "folds": list(folds),
            "checkpoint": checkpoint,
            "trainer": predictor.trainer_name,
            "detector": detector.contract.family,
            "cases": cases,
        }
        if failed:
            raise UserError(failed)
        write_text(output_folder / "error_images.json", json.dumps(record, indent=2))
    return written


def _predict_cases(
    predictor: nnUNetPredictor, detector: Detector, input_folder: Path, output_folder: Path, continue_prediction: bool
) -> tuple[list[str], list[str], str]:
    """Names of all cases of the folder, and of those that were written; what was wrong with others, if anything."""
    plans_manager, configuration_manager = predictor.plans_manager, predictor.configuration_manager
    dataset_json = predictor.dataset_json
    windows = Windows(plans_manager, configuration_manager, dataset_json, predictor.device)
    num_channels = determine_num_input_channels(plans_manager, configuration_manager, dataset_json)
    num_maps = detector.contract.num_error_channels(num_channels)
    reader = plans_manager.image_reader_writer_class()
    cases = list_cases(input_folder, dataset_json["file_ending"])
    preprocessor = configuration_manager.preprocessor_class(verbose=False)

    def write(job: CaseFiles) -> None:
        voxels, properties = read_case(reader, job, num_channels)
        voxels, _, properties = preprocessor.run_case_npy(
            voxels, None, properties, plans_manager, configuration_manager, dataset_json
        )
        if not np.isfinite(voxels).all():
            fault = f"{_names(job.files)} holds NaN or infinite voxels"
            raise UserError(f"{fault}; expected finite intensities, so fix the image")
        image = torch.from_numpy(np.asarray(voxels, dtype=np.float32))
        maps = mean_maps([predict_maps(detector, image, windows) for _ in each_fold(predictor)])
        write_case(output_folder, job.case, maps, properties, windows)

    missing = [
        job for job in cases
        if not (continue_prediction and _is_complete(output_folder, job.case, num_channels, num_maps))
    ]  # fmt: skip
    written, failed = run_cases(write, missing, 1, "predicting", "predicted")
    return [job.case for job in cases], list(written), failed


@dataclass(frozen=True)
class CaseFiles:
    """A case, and its image's files in the order of their channels."""

    case: str
    files: tuple[str, ...]


def list_cases(folder: Path, file_ending: str) -> list[CaseFiles]:
    """Cases of a folder of images.

    Args: file_ending: of the data set.
    Raises: UserError if the folder is missing or empty, a file has no channel number, or a number is left out.
    """
    if not folder.is_dir():
        raise UserError(f"the input folder {folder} does not exist; expected a folder with images")
    named = re.compile(r".+_\d{4}" + re.escape(file_ending))
    entries = (entry for entry in folder.glob(f"*{file_ending}") if not is_half_written(entry.name))
    names = [entry.name for entry in only_files(entries)]
    unnumbered = [name for name in names if not named.fullmatch(name)]
    example = f"case_0000{file_ending}"
    if len(unnumbered) == len(names):
        expected = f"the data set's own file ending and a channel number, for example {example}"
        raise UserError(f"no image in {folder} ends with _0000{file_ending}; expected {expected}")
    if unnumbered:  # of which nnU-Net's own list makes nothing
        fault = f"{folder} holds files without a channel number: {listed(unnumbered)}"
        raise UserError(f"{fault}; expected names like {example}, so rename them or move them away")
    lists: Sequence[list[str]] = create_lists_from_splitted_dataset_folder(str(folder), file_ending)
    lists = [files for files in lists if not is_half_written(os.path.basename(files[0]))]
    cases = [CaseFiles(os.path.basename(files[0])[: -len(f"_0000{file_ending}")], tuple(files)) for files in lists]
    for case in cases:
        wanted = ", ".join(f"{case.case}_{channel:04d}{file_ending}" for channel in range(len(case.files)))
        if _names(case.files) != wanted:
            raise UserError(f"case {case.case} in {folder} has the files {_names(case.files)}; expected {wanted}")
    return cases


def _is_complete(output_folder: Path, case: str, num_channels: int, num_maps: int) -> bool:
    files = [output_folder / f"{case}.png", *output_files(output_folder, case, "error", num_maps)]
    if num_maps == num_channels:
        files += output_files(output_folder, case, "reconstruction", num_maps)
    return all(path.is_file() for path in files)


def read_case(reader: BaseReaderWriter, case: CaseFiles, num_channels: int) -> tuple[np.ndarray, dict[str, Any]]:
    """All channels of an image, (C, X, Y, Z), and nnU-Net's properties of it.

    Args: num_channels: that it has to have, in as many files or in fewer.
    Raises: UserError if a file cannot be read, or it has another number of channels.
    """
    for name in case.files:
        check_whole(Path(name))  # ITK reads what is missing or not finite in a NIfTI file as 0
    try:
        voxels, properties = reader.read_images(case.files)
    # Each of nnU-Net's readers fails in ways of its own (ITK, skimage, tifffile); the files are at fault.
    except Exception as error:
        fault = f"{_names(case.files)} cannot be read as one image ({str(error) or 'see above'})"
        raise UserError(f"{fault}; expected readable files, all channels with one size and spacing") from error
    if len(voxels) != num_channels:
        fault = f"case {case.case} in {Path(case.files[0]).parent} has {len(voxels)} channel(s)"
        raise UserError(f"{fault}; expected {num_channels}, in files numbered from _0000 on")
    return voxels, properties


def _names(files: Sequence[str]) -> str:
    return ", ".join(os.path.basename(name) for name in files)
