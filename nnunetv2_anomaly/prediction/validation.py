"""How good a detector's anomaly maps are: on a fold's validation cases, and on images with known anomalies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from scipy.ndimage import binary_erosion
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.artefact import detector_of
from nnunetv2_anomaly.detectors.base import Detector
from nnunetv2_anomaly.detectors.error import squared
from nnunetv2_anomaly.detectors.level import bone_numbers, contrast_within
from nnunetv2_anomaly.detectors.quality import lesion_auc, lesion_average_precision
from nnunetv2_anomaly.detectors.thresholds import ScoredCase
from nnunetv2_anomaly.errors import CasesFailedError, UserError
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.images.geometry import preprocessed_spacing
from nnunetv2_anomaly.images.sliding_window import Windows
from nnunetv2_anomaly.labels import BONES_WITH_LESIONS, LESIONS
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.prediction.case_files import write_case
from nnunetv2_anomaly.prediction.cases import CaseFiles, list_cases, read_case, read_labels
from nnunetv2_anomaly.prediction.models import load_model
from nnunetv2_anomaly.prediction.windows import predict_maps

#: in summary.json: what ``validate_case`` returned, case by case; as in nnU-Net's own
CASES_KEY = "metric_per_case"
#: end of the files of maps from which a threshold is found
KEPT = "_map.npz"
#: over all bone, and away from its surface
AUC_KEYS = ("lesion_auc", "lesion_auc_interior")
SIGNED_AUC_KEYS = ("lesion_auc_signed", "lesion_auc_signed_interior")
#: what is measured in summary.json, and which AUC of it: (source, its keys, title)
MEASURED = (
    ("intensity", AUC_KEYS, "raw intensity"),
    ("contrast", AUC_KEYS, "contrast in the labelled bones"),
    ("inpainter", AUC_KEYS, "error image of G (mask known)"),
    ("inpainter", SIGNED_AUC_KEYS, "x - G(x), with its sign"),
    ("detector", AUC_KEYS, "error image of A (no mask)"),
    ("detector", SIGNED_AUC_KEYS, "x - A(x), with its sign"),
)


@dataclass(frozen=True)
class Rivals:
    """What a family compares its detector with, on one case, and measures beyond lesions."""

    #: name -> window network and its volume (C', X, Y, Z); it returns an expected image (C, X, Y, Z)
    reconstructions: Mapping[str, tuple[nn.Module, Tensor]]
    #: of image and expected image, both (C, X, Y, Z) on the detector's scale: numbers by name
    measure: Callable[[Tensor, Tensor], dict[str, float]]


def labels_named(dataset_labels: Mapping[str, Any], chosen: Sequence[str], word: str) -> list[int]:
    """Label values by name.

    Args: dataset_labels: "labels" of dataset.json; a region contributes all its values. word: begins the name of the
        setting that chose them.
    Raises: UserError if a name is not among the labels.
    """
    unknown = [name for name in chosen if name not in dataset_labels]
    if unknown:
        known = f"dataset.json has the labels {', '.join(dataset_labels)}"
        raise UserError(f"the setting '{word}_labels' names {', '.join(unknown)}; {known}")
    return sorted({int(value) for name in chosen for value in np.atleast_1d(dataset_labels[name])})


@dataclass(frozen=True)
class CaseForValidation:
    """One preprocessed case: image (C, X, Y, Z) normalised, labels (X, Y, Z), nnU-Net's properties."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    properties: dict


@torch.no_grad()
def validate_case(
    detector: Detector,
    case: CaseForValidation,
    output_folder: Path,
    windows: Windows,
    *,
    lesion_labels: Sequence[int],
    bones: Sequence[Sequence[int]],
    rivals: Rivals | None = None,
    keep: bool = False,
    whole: bool = False,
) -> dict[str, Any]:
    """Make a detector's maps of one case, write them, and measure them.

    Args: bones: label values of each, with those of the lesions in it. keep: whether the map stays for
        ``thresholds.fit_threshold``, as CASE and ``KEPT``. whole: whether all that nnU-Net has not cropped away may
        hold lesions where there are no bones, as of a brain.
    Returns: for "detector", and for each rival by its name, the family's measures and, where the case has lesion
        labels, the voxel-wise AUC for lesion against bone, over all bone and over the bone at least one voxel from its
        surface: of the error image (``AUC_KEYS``), and of the difference (``SIGNED_AUC_KEYS``); for "intensity" that
        of the image itself, and for "contrast" that of the image minus the local level of the labelled bones
        (``detectors.level``). The three have the average precision over all bone, too.
    """
    image, labels = torch.from_numpy(case.image), torch.from_numpy(case.labels)
    numbers = (labels >= 0).long() if whole and not bones else bone_numbers(labels, bones)
    # A detector without a bone model of its own is told the bones, as it has to be of new images.
    maps = predict_maps(detector, image, windows, numbers if detector.needs_bones else None)
    lesion_mask = np.isin(case.labels, lesion_labels)
    bone_mask = lesion_mask | (numbers.numpy() > 0)
    # At the bone's surface every reconstruction is a little off; what is left without it tells that apart. Beyond the
    # image's edge bone may go on, and 2D images have one slice only.
    areas = (bone_mask, binary_erosion(bone_mask, border_value=1))

    def measured(difference: Tensor, error: Tensor) -> dict[str, Any]:
        numbers = rivals.measure(maps.image, maps.image - difference) if rivals else {}
        return {
            **numbers,
            **lesion_auc(error.mean(dim=0).numpy(), lesion_mask, areas, AUC_KEYS),
            **lesion_auc(difference.mean(dim=0).numpy(), lesion_mask, areas, SIGNED_AUC_KEYS),
        }

    result: dict[str, Any] = {"case": case.name, "detector": measured(maps.difference, maps.error)}
    spacing = preprocessed_spacing(case.properties, windows.plans_manager, windows.configuration_manager)
    if keep:
        scored = (maps.error.mean(dim=0).numpy(), numbers.numpy(), lesion_mask, tuple(spacing))
        ScoredCase(*scored).save(output_folder / f"{case.name}{KEPT}")
    controls = {
        "detector": maps.error,
        "intensity": image.float(),
        "contrast": contrast_within(image, numbers, [[int(of)] for of in numbers.unique() if of], spacing),
    }
    for name, of in controls.items():
        scores = of.mean(dim=0).numpy()
        found = result.setdefault(name, lesion_auc(scores, lesion_mask, areas, AUC_KEYS))
        found["lesion_ap"] = lesion_average_precision(scores, lesion_mask, bone_mask)
    for name, (network, volume) in (rivals.reconstructions if rivals else {}).items():
        difference = maps.image - windows.predict(network, volume, len(image))
        result[name] = measured(difference, squared(difference))
    outlines = lesion_mask if lesion_mask.any() else None
    write_case(output_folder, case.name, maps, case.properties, windows, outlines=outlines)
    return result


def mean_of_cases(values: Sequence[float | None]) -> float | None:
    """Mean over the cases that have a finite value; None where none has."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def means_over(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of what ``validate_case`` returned, over the cases where each number exists."""
    sources = {source: numbers for case in cases for source, numbers in case.items() if source != "case"}
    mean: dict[str, Any] = {
        source: {key: mean_of_cases([case[source].get(key) for case in cases]) for key in numbers}
        for source, numbers in sources.items()
    }
    with_lesion = sum(case["detector"]["lesion_auc"] is not None for case in cases)
    return {**mean, "num_cases": len(cases), "num_cases_with_lesion": with_lesion}


def quality_of(mean: Mapping[str, Any]) -> dict[str, float]:
    """What an artefact keeps of ``means_over``: AUC and average precision for lesions; empty where there were none."""
    if mean["num_cases_with_lesion"] == 0:
        return {}
    of_detector = {name: mean["detector"][name] for name in ("lesion_auc", "lesion_ap")}
    controls = ("intensity", "contrast")
    return of_detector | {f"{of}_{name}": mean[of][name] for of in controls for name in of_detector}


def write_summary(path: Path, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write summary.json: means over cases, then each case; numbers that do not exist are null. Returns: it."""
    content = json.dumps({"mean": means_over(cases), CASES_KEY: list(cases)})
    summary: dict[str, Any] = json.loads(content, parse_constant=lambda _: None)  # NaN, infinite
    write_text(path, json.dumps(summary, indent=2, allow_nan=False))
    return summary


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
) -> dict[str, Any]:
    """Error images of A and of G on held-out cases, measured against a truth that the training labels do not hold.

    Args:
        images_folder: images named as nnU-Net wants them.
        labels_folder: <case><ending>, the anatomy; it is what is erased for G.
        anomalies_folder: <case><ending>, anomalies by the labels ``LESIONS``, on the grid of the labels.
        output_folder: made if need be; gets A's images, a picture per case and summary.json.
        chosen: the cases to measure; None: all images of the folder.
    Returns: the summary: means over cases of the voxel-wise AUC of the error image, squared and with its sign, of the
        family's rivals and of the raw intensity, and of the family's own measures; then each case.
    Raises: UserError if the model is no pre-stage; after the others are measured, for cases whose files are missing,
        cannot be read, or have another grid.
    """
    predictor = load_model(model_folder, folds=(fold,), device=device)
    network = predictor.network
    detector = detector_of(network)
    trainer = recursive_find_trainer_class_by_name(predictor.trainer_name)
    if detector is None or not hasattr(trainer, "rivals"):
        model = f"the model in {model_folder} ({predictor.trainer_name})"
        raise UserError(f"{model} is no pre-stage; expected the model of a detector")
    plans = predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    windows, num_channels = Windows(*plans, device), determine_num_input_channels(*plans)
    ending = predictor.dataset_json["file_ending"]
    reader = predictor.plans_manager.image_reader_writer_class()
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    output_folder.mkdir(parents=True, exist_ok=True)
    cases = [case for case in list_cases(images_folder, ending) if chosen is None or case.case in chosen]

    def measure(files: CaseFiles) -> dict[str, Any]:
        name, (image, properties) = files.case, read_case(reader, files, num_channels)
        of_case = (folder / f"{name}{ending}" for folder in (labels_folder, anomalies_folder))
        labels, anomalies = (read_labels(reader, file, image.shape[1:], properties) for file in of_case)
        labels = np.where(anomalies > 0, anomalies, labels)
        image, labels, properties = preprocessor.run_case_npy(image, labels, properties, *plans)
        case = CaseForValidation(name, np.asarray(image), labels[0], properties)
        foreground = sorted(set(np.unique(labels).tolist()) - {0, -1})
        rivals = trainer.rivals(network, case, foreground, windows)
        labelled: dict[str, Any] = {"lesion_labels": LESIONS, "bones": BONES_WITH_LESIONS}
        return validate_case(detector, case, output_folder, windows, rivals=rivals, **labelled)

    found, failed = run_cases(measure, cases, 1, "measuring the detector", "measured")
    if not found:
        raise UserError(failed)
    summary = write_summary(output_folder / "summary.json", [found[case.case] for case in cases if case.case in found])
    if failed:
        raise CasesFailedError(failed)
    return summary
