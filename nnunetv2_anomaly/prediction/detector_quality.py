"""How well the detector's error image finds known anomalies in images that it never saw."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from tqdm import tqdm

from nnunetv2_anomaly.detectors.inpainting.networks import PreStageNetwork
from nnunetv2_anomaly.detectors.inpainting.preparation import erased_region
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.labels import BONES, LESIONS
from nnunetv2_anomaly.prediction.error_images import list_cases
from nnunetv2_anomaly.prediction.models import load_model
from nnunetv2_anomaly.prediction.validation import CaseForValidation, validate_case, write_summary


def measure_detector(
    images_folder: Path,
    labels_folder: Path,
    anomalies_folder: Path,
    output_folder: Path,
    model_folder: Path,
    *,
    fold: int | str = 0,
    device: torch.device,
    chosen: Collection[str] | None = None,
    bone_labels: Sequence[int] = BONES,
    anomaly_labels: Sequence[int] = LESIONS,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Error images of A and of G on held-out cases, measured against a truth that the training labels do not hold.

    Args:
        images_folder: images named as nnU-Net wants them.
        labels_folder: <case><ending>, the anatomy; it is what is erased for G.
        anomalies_folder: <case><ending>, anomalies by ``anomaly_labels``, on the grid of the labels.
        output_folder: made if need be; gets A's images, a picture per case and summary.json.
        model_folder: of the pre-stage.
        chosen: the cases to measure; None: all images of the folder.
        bone_labels: labels among whose voxels the anomalies are to be found.
    Returns: the summary: means over cases of the voxel-wise AUC of A's and G's error image, squared and with its sign,
        and of the raw intensity, and of the MSEs; then each case.
    Raises: UserError if the model is no pre-stage, or a file is missing or has another grid.
    """
    predictor = load_model(model_folder, fold=fold, device=device)
    network = predictor.network
    if not isinstance(network, PreStageNetwork):
        raise UserError(f"the model in {model_folder} ({predictor.trainer_name}) is no pre-stage; G is needed here")
    network = network.to(device).eval()
    network.set_distilling(True)
    plans_manager, configuration_manager = predictor.plans_manager, predictor.configuration_manager
    dataset_json = predictor.dataset_json
    ending = dataset_json["file_ending"]
    settings = recursive_find_trainer_class_by_name(predictor.trainer_name).settings(configuration_manager)
    reader = plans_manager.image_reader_writer_class()
    preprocessor = configuration_manager.preprocessor_class(verbose=False)
    output_folder.mkdir(parents=True, exist_ok=True)
    num_channels = determine_num_input_channels(plans_manager, configuration_manager, dataset_json)
    results = []
    cases = list_cases(images_folder, ending, num_channels, reader)
    cases = {case: files for case, files in cases.items() if chosen is None or case in chosen}
    for case, files in tqdm(cases.items(), desc="Detector", disable=not show_progress):
        image, properties = reader.read_images(files)
        labels, anomalies = (
            _read_labels(reader, folder / f"{case}{ending}", image.shape[1:])
            for folder in (labels_folder, anomalies_folder)
        )
        labels = np.where(anomalies > 0, anomalies, labels)
        data, preprocessed_labels, properties = preprocessor.run_case_npy(
            image, labels, properties, plans_manager, configuration_manager, dataset_json
        )
        foreground = sorted(set(np.unique(preprocessed_labels).tolist()) - {0, -1})
        hole_mask = erased_region(preprocessed_labels[0], foreground, settings["erase_margin_voxels"])
        with torch.no_grad():
            results.append(
                validate_case(
                    network,
                    CaseForValidation(case, np.asarray(data), preprocessed_labels[0], hole_mask, properties),
                    output_folder,
                    plans_manager=plans_manager,
                    configuration_manager=configuration_manager,
                    dataset_json=dataset_json,
                    device=device,
                    lesion_labels=anomaly_labels,
                    bone_labels=bone_labels,
                )
            )
    return write_summary(output_folder / "summary.json", results)


def _read_labels(reader, path: Path, expected_shape: tuple[int, ...]) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected a label map for every image")
    labels, _ = reader.read_seg(str(path))
    if labels.shape[1:] != expected_shape:
        raise UserError(
            f"{path} has {labels.shape[1:]} voxels and its image {expected_shape}; expected one grid, so resample one"
        )
    return labels
