"""One case: the predictions of every model against the reference, as they are and cleaned, and its lesions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.evaluation.lesion_slices import slice_rows
from nnunetv2_anomaly.evaluation.results import BOTH, CLEANED, INVENTED, MISSED, NEITHER, RAW
from nnunetv2_anomaly.images.dataset_description import DatasetDescription
from nnunetv2_anomaly.images.segmentations import Segmentation, SegmentationFiles, read_known
from nnunetv2_anomaly.measurements.lesions import detect
from nnunetv2_anomaly.measurements.surface import evaluate_case
from nnunetv2_anomaly.postprocessing.clean_up import CleanUp
from nnunetv2_anomaly.postprocessing.components import count_components
from nnunetv2_anomaly.records import fingerprint, load_record, save_record

#: distances where only one of the two maps has a label: the image's diagonal, or undefined
DIAGONAL, EXCLUDE = "diagonal", "exclude"


@dataclass(frozen=True)
class EvaluationSettings:
    """Everything but its files that the numbers of a case depend on."""

    dataset: DatasetDescription  # its reader is that of the references
    clean_up: CleanUp  # between HD* and HD
    missing: str = DIAGONAL  # or EXCLUDE
    with_probabilities: bool = True


@dataclass(frozen=True)
class CaseTask:
    """The work of one process; predictions and probabilities: model -> file; record: keeps results for the next run."""

    case: str
    reference: Path
    predictions: Mapping[str, Path]
    probabilities: Mapping[str, Path]
    settings: EvaluationSettings
    record: Path


def evaluate_one(task: CaseTask) -> dict[str, list[dict[str, Any]]]:
    """Rows of ``Evaluation``'s four tables for one case, without fold and group: measured, or from the task's record.

    Returns: "cases", "bones", "lesions", "slices" -> rows.
    Raises: UserError for a file that cannot be read, labels that are not in the data set, or another geometry.
    """
    files = [task.reference, *task.predictions.values(), *task.probabilities.values()]
    state = fingerprint(files, {"settings": dataclasses.asdict(task.settings), "models": list(task.predictions)})
    if (found := load_record(task.record, state)) is None:
        save_record(task.record, state, found := _measure(task))
    return found


def _measure(task: CaseTask) -> dict[str, list[dict[str, Any]]]:
    settings, dataset = task.settings, task.settings.dataset
    files = SegmentationFiles(dataset.file_ending, dataset.reader)
    reference = read_known(files, task.reference, dataset)
    ignored = None if dataset.ignore is None else reference.voxels == dataset.ignore
    reference_voxels = without_ignored(reference.voxels, ignored)
    rows: dict[str, list[dict[str, Any]]] = {"cases": [], "bones": [], "lesions": [], "slices": []}
    for model, file in task.predictions.items():
        prediction = read_known(files, file, dataset)
        if difference := reference.difference(prediction):
            fault = f"{file} lies on another grid than its reference {task.reference} ({difference})"
            raise UserError(f"{fault}; expected the same: predict the image that the reference belongs to")
        softmax, row = task.probabilities.get(model), {"case": task.case, "model": model}
        voxels = without_ignored(prediction.voxels, ignored)
        pair = _Pair(settings, files, reference_voxels, voxels, prediction, softmax)
        try:
            rows["cases"] += [{**row, **found} for found in _label_rows(pair)]
            for kind, found in _lesion_rows(pair):
                rows[kind].append({**row, **found})
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{softmax or file}: {error}") from error
    return rows


def without_ignored(voxels: NDArray, ignored: NDArray[np.bool_] | None) -> NDArray:
    """The voxels with those that the reference ignores as background."""
    return voxels if ignored is None or not ignored.any() else np.where(ignored, 0, voxels).astype(voxels.dtype)


@dataclass(frozen=True)
class _Pair:
    """Reference and prediction of a case; ignored voxels are background in both."""

    settings: EvaluationSettings
    files: SegmentationFiles
    reference: NDArray
    voxels: NDArray
    prediction: Segmentation  # as it was read
    softmax: Path | None


def _label_rows(pair: _Pair) -> Iterator[dict[str, Any]]:
    settings, voxels, spacing = pair.settings, pair.voxels, pair.prediction.spacing_mm
    diagonal = math.dist([0] * voxels.ndim, [(n - 1) * s for n, s in zip(voxels.shape, spacing, strict=True)])
    missing_mm = diagonal if settings.missing == DIAGONAL else math.nan
    keys: dict[str, int | tuple[int, ...]] = {**settings.dataset.labels, **settings.dataset.single_values}
    channels = None
    if settings.clean_up.lesion_probability is not None and pair.softmax is not None:
        channels = pair.files.probabilities(pair.softmax, pair.prediction, settings.dataset.num_classes)
    cleaned = settings.clean_up.apply(voxels, spacing, channels)
    changed = bool(cleaned.removals) or any(cleaned.uncertain_voxels.values())
    extent = settings.clean_up.extent(voxels.shape, spacing)
    for processing, map_voxels in ((RAW, voxels), (CLEANED, cleaned.segmentation)):
        if processing == RAW or changed:
            labels = list(keys.values())
            metrics = evaluate_case(pair.reference, map_voxels, spacing, labels, missing_distance_mm=missing_mm)
            components = _components(map_voxels, keys)
            found = [
                {"label": name, "status": _status(metrics[key]), **metrics[key], "components": components[name]}
                for name, key in keys.items()
            ]
        yield from ({**row, "processing": processing, **extent} for row in found)


def _components(voxels: NDArray, keys: Mapping[str, int | tuple[int, ...]]) -> dict[str, int]:
    counts: dict[Any, int] = dict(count_components(voxels, [key for key in keys.values() if isinstance(key, int)]))
    for key in set(keys.values()) - set(counts):
        counts[key] = count_components(np.isin(voxels, key).astype(np.uint8), [1])[1]
    return {name: counts[key] for name, key in keys.items()}


def _status(metrics: Mapping[str, float]) -> str:
    in_reference, in_prediction = (metrics[f"{of}_volume_mm3"] > 0 for of in ("reference", "prediction"))
    return (BOTH if in_prediction else MISSED) if in_reference else (INVENTED if in_prediction else NEITHER)


def _lesion_rows(pair: _Pair) -> Iterator[tuple[str, dict[str, Any]]]:
    """("bones", "lesions" or "slices", row)."""
    settings, softmax = pair.settings, pair.softmax
    bone_of_lesion = settings.clean_up.bone_of_lesion
    if not bone_of_lesion:
        return
    channels = {}
    if softmax is not None and settings.with_probabilities:
        of_classes = enumerate(pair.files.probabilities(softmax, pair.prediction, settings.dataset.num_classes))
        channels = {value: channel for value, channel in of_classes if value in bone_of_lesion}
    names = settings.dataset.names
    spacing = pair.prediction.spacing_mm
    for lesion, bone in bone_of_lesion.items():
        masks = pair.reference == lesion, pair.voxels == lesion
        detected = detect(*masks, spacing, probability=channels.get(lesion))
        of = {"bone": names[lesion if bone is None else bone], "lesion": names[lesion]}
        yield from (("bones", {**of, **point}) for point in detected.points)
        yield from (("lesions", {**of, **found}) for found in detected.lesions)
    reference, prediction = (np.isin(voxels, list(bone_of_lesion)) for voxels in (pair.reference, pair.voxels))
    within = reference | np.isin(pair.reference, [bone for bone in bone_of_lesion.values() if bone is not None])
    yield from (("slices", row) for row in slice_rows(reference, prediction, within, spacing))
