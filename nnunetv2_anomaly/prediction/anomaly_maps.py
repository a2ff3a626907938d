"""Reconstructions and error images of new images, from a pre-stage or an anomaly-aware model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder
from tqdm import tqdm

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.detectors.artefact import detector_of
from nnunetv2_anomaly.detectors.base import Detector
from nnunetv2_anomaly.environment import environment_folder
from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.files import write_failures_as_user_errors, write_text
from nnunetv2_anomaly.images.files import check_whole, only_files
from nnunetv2_anomaly.images.sliding_window import Windows
from nnunetv2_anomaly.plans.dataset_name import dataset_name
from nnunetv2_anomaly.prediction.case_files import output_files, write_case
from nnunetv2_anomaly.prediction.models import load_model
from nnunetv2_anomaly.prediction.windows import predict_maps
from nnunetv2_anomaly.registry import DEFAULT_DETECTOR, DETECTORS

#: searched in this order when no trainer is named
DEFAULT_TRAINERS = ("AnomalyAwareTrainer", DETECTORS[DEFAULT_DETECTOR].trainer)


def find_model_folder(
    dataset: str,
    *,
    configuration: str,
    plans: str = "nnUNetPlans",
    trainer: str | None = None,
    fold: int | str = 0,
    checkpoint: str = "checkpoint_final.pth",
) -> Path:
    """The model folder that holds the checkpoint, of the trainer named or else of the first that has one.

    Args: dataset: number or name, as everywhere in nnU-Net.
    Raises: UserError if nnUNet_results is not set, the data set is unknown, or no such model was trained.
    """
    results = environment_folder("nnUNet_results")
    trainers = DEFAULT_TRAINERS if trainer is None else (trainer,)
    folders = [results / dataset_name(dataset) / f"{name}__{plans}__{configuration}" for name in trainers]
    for folder in folders:
        if (folder / f"fold_{fold}" / checkpoint).is_file():
            return folder
    fault = f"no model with fold_{fold}/{checkpoint} in {' or '.join(str(folder) for folder in folders)}"
    advice = f"nnUNetv2_train {dataset} {configuration} {fold} -tr {trainers[-1]}, or name another with -p, -c, -f, -tr"
    raise UserError(f"{fault}; train one with {advice}")


def predict_error_images(
    input_folder: Path,
    output_folder: Path,
    model_folder: Path,
    *,
    fold: int | str = 0,
    checkpoint: str = "checkpoint_final.pth",
    device: torch.device,
    continue_prediction: bool = False,
    show_progress: bool = True,
) -> list[str]:
    """Write reconstruction, error image and a picture of every image in a folder, by nnU-Net's sliding window.

    The error image is that of the blended reconstruction, E = (x - A(x))^2, so that the files fit each other; it is
    0 where nnU-Net crops the image away. Both are in the original geometry, in [0, 1] but for the rounding of float16
    windows, unitless, float32.

    Args:
        input_folder: images named as nnU-Net wants them, case_0000.nii.gz and so on, with the data set's file ending.
            A file may hold several channels, as colour images do.
        output_folder: made if need be; gets <case>_reconstruction.nii.gz, <case>_error.nii.gz, <case>.png and
            error_images.json, whatever the data set's file ending. With several channels there is a file for each,
            which carries its number, _0000 and so on, however many files the image has.
        model_folder: of a pre-stage or an anomaly-aware trainer.
        continue_prediction: leave cases alone whose files are all there.
    Returns: the cases that were written.
    Raises: UserError for a folder without images, a missing channel, a damaged file, NaN, a model without a detector,
        or an output folder that cannot be written to.
    """
    predictor = load_model(model_folder, fold=fold, device=device, checkpoint=checkpoint)
    detector = detector_of(predictor.network)
    if detector is None:
        model = f"the model in {model_folder} ({predictor.trainer_name})"
        raise UserError(f"{model} has no detector; expected one of {' or '.join(DEFAULT_TRAINERS)}")
    with write_failures_as_user_errors(output_folder):
        output_folder.mkdir(parents=True, exist_ok=True)
        cases, written = _predict_cases(
            predictor, detector, input_folder, output_folder, continue_prediction, show_progress
        )
        record = {
            "version": __version__,
            "input_folder": str(input_folder),
            "model_folder": str(model_folder),
            "fold": fold,
            "checkpoint": checkpoint,
            "trainer": predictor.trainer_name,
            "detector": detector.contract.family,
            "cases": cases,
        }
        write_text(output_folder / "error_images.json", json.dumps(record, indent=2))
    return written


def _predict_cases(
    predictor: nnUNetPredictor,
    detector: Detector,
    input_folder: Path,
    output_folder: Path,
    continue_prediction: bool,
    show_progress: bool,
) -> tuple[list[str], list[str]]:
    """Names of all cases of the folder, and of those that were written."""
    plans_manager, configuration_manager = predictor.plans_manager, predictor.configuration_manager
    dataset_json = predictor.dataset_json
    windows = Windows(plans_manager, configuration_manager, dataset_json, predictor.device)
    num_channels = determine_num_input_channels(plans_manager, configuration_manager, dataset_json)
    num_maps = detector.contract.num_error_channels(num_channels)
    reader = plans_manager.image_reader_writer_class()
    cases = list_cases(input_folder, dataset_json["file_ending"], num_channels, reader)
    preprocessor = configuration_manager.preprocessor_class(verbose=False)
    written = []
    for case, files in tqdm(cases.items(), desc="Error images", disable=not show_progress):
        if continue_prediction and _is_complete(output_folder, case, num_channels, num_maps):
            continue
        voxels, properties = _read(reader, files)
        _check_channels(case, input_folder, len(voxels), num_channels)
        voxels, _, properties = preprocessor.run_case_npy(
            voxels, None, properties, plans_manager, configuration_manager, dataset_json
        )
        if not np.isfinite(voxels).all():
            fault = f"{_names(files)} holds NaN or infinite voxels"
            raise UserError(f"{fault}; expected finite intensities, so fix the image")
        image = torch.from_numpy(np.asarray(voxels, dtype=np.float32))
        write_case(output_folder, case, predict_maps(detector, image, windows), properties, windows)
        written.append(case)
    return list(cases), written


def list_cases(folder: Path, file_ending: str, num_channels: int, reader: BaseReaderWriter) -> dict[str, list[str]]:
    """Cases of a folder of images: name -> its files, in the order of their channels.

    Args: file_ending: of the data set. num_channels: that each case has to have, in as many files or in fewer. reader:
        nnU-Net's for the data set; what has fewer files than channels is read, to count what is in them.
    Raises: UserError if the folder is missing or empty, a file has no channel number or cannot be read, or a case lacks
        a channel or has one too many.
    """
    if not folder.is_dir():
        raise UserError(f"the input folder {folder} does not exist; expected a folder with images")
    named = re.compile(r".+_\d{4}" + re.escape(file_ending))
    names = [entry.name for entry in only_files(folder.glob(f"*{file_ending}"))]
    unnumbered = [name for name in names if not named.fullmatch(name)]
    example = f"case_0000{file_ending}"
    if len(unnumbered) == len(names):
        expected = f"the data set's own file ending and a channel number, for example {example}"
        raise UserError(f"no image in {folder} ends with _0000{file_ending}; expected {expected}")
    if unnumbered:  # of which nnU-Net's own list makes nothing
        fault = f"{folder} holds files without a channel number: {listed(unnumbered)}"
        raise UserError(f"{fault}; expected names like {example}, so rename them or move them away")
    lists: Sequence[list[str]] = create_lists_from_splitted_dataset_folder(str(folder), file_ending)
    cases = {os.path.basename(files[0])[: -len(f"_0000{file_ending}")]: files for files in lists}
    for case, files in cases.items():
        wanted = ", ".join(f"{case}_{channel:04d}{file_ending}" for channel in range(len(files)))
        if _names(files) != wanted:
            raise UserError(f"case {case} in {folder} has the files {_names(files)}; expected {wanted}")
        found = len(files) if len(files) >= num_channels else len(_read(reader, files)[0])
        _check_channels(case, folder, found, num_channels)
    return cases


def _check_channels(case: str, folder: Path, found: int, expected: int) -> None:
    if found != expected:
        fault = f"case {case} in {folder} has {found} channel(s)"
        raise UserError(f"{fault}; expected {expected}, in files numbered from _0000 on")


def _is_complete(output_folder: Path, case: str, num_channels: int, num_maps: int) -> bool:
    files = [output_folder / f"{case}.png", *output_files(output_folder, case, "error", num_maps)]
    if num_maps == num_channels:
        files += output_files(output_folder, case, "reconstruction", num_maps)
    return all(path.is_file() for path in files)


def _read(reader: BaseReaderWriter, files: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """All channels of an image, (C, X, Y, Z), and nnU-Net's properties of it."""
    for name in files:
        check_whole(Path(name))  # ITK reads what is missing or not finite in a NIfTI file as 0
    try:
        return reader.read_images(files)
    # Each of nnU-Net's readers fails in ways of its own (ITK, skimage, tifffile); the files are at fault.
    except Exception as error:
        fault = f"{_names(files)} cannot be read as one image ({str(error) or 'see above'})"
        raise UserError(f"{fault}; expected readable files, all channels with one size and spacing") from error


def _names(files: Sequence[str]) -> str:
    return ", ".join(os.path.basename(name) for name in files)
