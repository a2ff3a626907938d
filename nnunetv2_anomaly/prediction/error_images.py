"""Reconstructions and error images of new images, from a pre-stage or an anomaly-aware model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder
from tqdm import tqdm

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import write_text, written_into
from nnunetv2_anomaly.prediction.models import load_model
from nnunetv2_anomaly.prestage.networks import AnomalyDetector
from nnunetv2_anomaly.prestage.validation import DetectorWindow
from nnunetv2_anomaly.volumes.files import check_whole
from nnunetv2_anomaly.volumes.output import output_files, write_case
from nnunetv2_anomaly.volumes.sliding_window import predict_image

#: searched in this order when no trainer is named
DEFAULT_TRAINERS = ("AnomalyAwareTrainer", "AnomalyPreStageTrainer")


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
    if not nnUNet_results.is_set():
        raise UserError(
            'nnUNet_results is not set; set it, for example with: eval "$(nnUNetv2_anomaly env --base DIR)"'
        )
    try:
        dataset_name = maybe_convert_to_dataset_name(int(dataset) if dataset.isdigit() else dataset)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the data set {dataset!r} is not known in nnUNet_raw, nnUNet_preprocessed or nnUNet_results; expected a "
            f"number or a name like Dataset501_OAIZIB"
        ) from error
    trainers = DEFAULT_TRAINERS if trainer is None else (trainer,)
    folders = [Path(str(nnUNet_results)) / dataset_name / f"{name}__{plans}__{configuration}" for name in trainers]
    for folder in folders:
        if (folder / f"fold_{fold}" / checkpoint).is_file():
            return folder
    raise UserError(
        f"no model with fold_{fold}/{checkpoint} in {' or '.join(str(folder) for folder in folders)}; train one with "
        f"nnUNetv2_train {dataset} {configuration} {fold} -tr {trainers[-1]}, or name another with -p, -c, -f, -tr"
    )


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
    0 where nnU-Net crops the image away. Both are in the original geometry, in [0, 1], unitless, float32.

    Args:
        input_folder: images named as nnU-Net wants them, case_0000.nii.gz and so on, with the data set's file ending.
        output_folder: made if need be; gets <case>_reconstruction.nii.gz, <case>_error.nii.gz, <case>.png and
            error_images.json. With several channels each file carries its channel, _0000 and so on.
        model_folder: of a pre-stage or an anomaly-aware trainer.
        continue_prediction: leave cases alone whose files are all there.
    Returns: the cases that were written.
    Raises: UserError for a folder without images, a missing channel, a damaged file, NaN, a model without a detector,
        or an output folder that cannot be written to.
    """
    predictor = load_model(model_folder, fold=fold, device=device, checkpoint=checkpoint)
    detector = getattr(predictor.network, "detector", None)
    if not isinstance(detector, AnomalyDetector):
        raise UserError(
            f"the model in {model_folder} ({predictor.trainer_name}) has no detector; expected one of "
            f"{' or '.join(DEFAULT_TRAINERS)}"
        )
    plans_manager, configuration_manager = predictor.plans_manager, predictor.configuration_manager
    num_channels = determine_num_input_channels(plans_manager, configuration_manager, predictor.dataset_json)
    cases = list_cases(input_folder, predictor.dataset_json["file_ending"], num_channels)
    with written_into(output_folder):
        output_folder.mkdir(parents=True, exist_ok=True)
    preprocessor = configuration_manager.preprocessor_class(verbose=False)
    written = []
    for case, files in tqdm(cases.items(), desc="Error images", disable=not show_progress):
        if continue_prediction and _is_complete(output_folder, case, num_channels):
            continue
        image, properties = _preprocess(preprocessor, files, plans_manager, configuration_manager, predictor)
        reconstruction = predict_image(
            DetectorWindow(detector),
            image,
            num_output_channels=num_channels,
            plans_manager=plans_manager,
            configuration_manager=configuration_manager,
            dataset_json=predictor.dataset_json,
            device=device,
        )
        with torch.no_grad():
            rescaled = detector.rescale(image[None].to(device))[0].cpu()
        with written_into(output_folder):
            write_case(
                output_folder,
                case,
                image=rescaled.numpy(),
                reconstruction=reconstruction.numpy(),
                properties=properties,
                plans_manager=plans_manager,
                configuration_manager=configuration_manager,
            )
        written.append(case)
    record = {
        "version": __version__,
        "input_folder": str(input_folder),
        "model_folder": str(model_folder),
        "fold": fold,
        "checkpoint": checkpoint,
        "trainer": predictor.trainer_name,
        "cases": list(cases),
    }
    with written_into(output_folder):
        write_text(output_folder / "error_images.json", json.dumps(record, indent=2))
    return written


def list_cases(folder: Path, file_ending: str, num_channels: int) -> dict[str, list[str]]:
    """Cases of a folder of images: name -> one file per channel, in order.

    Raises: UserError if the folder is missing or empty, or a case lacks a channel or has one too many.
    """
    if not folder.is_dir():
        raise UserError(f"the input folder {folder} does not exist; expected a folder with images")
    lists: Sequence[list[str]] = create_lists_from_splitted_dataset_folder(str(folder), file_ending)
    cases = {os.path.basename(files[0])[: -len(f"_0000{file_ending}")]: files for files in lists}
    if not cases:
        raise UserError(
            f"no image in {folder} ends with _0000{file_ending}; expected the data set's own file ending and a channel "
            f"number, for example case_0000{file_ending}"
        )
    for case, files in cases.items():
        if len(files) != num_channels:
            raise UserError(
                f"case {case} in {folder} has {len(files)} channel(s); expected {num_channels}, numbered _0000 to "
                f"_{num_channels - 1:04d}"
            )
    return cases


def _is_complete(output_folder: Path, case: str, num_channels: int) -> bool:
    files = [output_folder / f"{case}.png"]
    for kind in ("reconstruction", "error"):
        files += output_files(output_folder, case, kind, num_channels)
    return all(path.is_file() for path in files)


def _preprocess(preprocessor, files, plans_manager, configuration_manager, predictor) -> tuple[torch.Tensor, dict]:
    for name in files:
        check_whole(Path(name))  # ITK reads what is missing or not finite in a NIfTI file as 0
    try:
        data, _, properties = preprocessor.run_case(
            files, None, plans_manager, configuration_manager, predictor.dataset_json
        )
    except RuntimeError as error:
        raise UserError(
            f"{', '.join(os.path.basename(name) for name in files)} cannot be read as one image "
            f"({error or 'see above'}); expected readable files, all channels with one size and spacing"
        ) from error
    if not np.isfinite(data).all():
        raise UserError(
            f"{', '.join(os.path.basename(name) for name in files)} holds NaN or infinite voxels; expected finite "
            f"intensities, so mend the image"
        )
    return torch.from_numpy(np.asarray(data, dtype=np.float32)), properties
