"""Bones, cartilages and candidate lesions of new images: a segmentation, and a detector that no lesion label taught."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.detectors.level import bone_numbers
from nnunetv2_anomaly.detectors.thresholds import FIXED, lesions_in
from nnunetv2_anomaly.errors import CasesFailedError, UserError, listed, worded
from nnunetv2_anomaly.files import read_json, write_failures_as_user_errors, write_text, written_beside
from nnunetv2_anomaly.images.geometry import to_original_grid
from nnunetv2_anomaly.label_roles import ROLES_KEY, label_roles
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.parts import ALL, Part
from nnunetv2_anomaly.plans.settings import known_settings
from nnunetv2_anomaly.prediction.anomaly_maps import TrainedDetector
from nnunetv2_anomaly.prediction.case_files import write_case
from nnunetv2_anomaly.prediction.cases import CaseFiles, Segmenter, given_bones, list_cases, preprocessed_case


def labels_with_lesions(description: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """The labels of a segmentation with a lesion label for each bone.

    Args: description: dataset.json of the segmentation.
    Returns: dataset.json of the result; the value of each bone's lesions, in the order of its roles' bones: the label
        that the data set has for them, else a new one.
    Raises: UserError for region-based labels, of which a voxel has several.
    """
    labels = {name: value for name, value in description["labels"].items() if name != "ignore"}
    if several := [name for name, value in labels.items() if np.size(value) > 1]:
        fault = f"the segmentation has region-based labels ({listed(several)})"
        raise UserError(f"{fault}; expected plain ones, so give a segmentation of such with --bones")
    labels = {name: int(np.ravel(value)[0]) for name, value in labels.items()}
    roles = label_roles(labels, description.get(ROLES_KEY))
    lesions = dict(roles.lesions)
    values = []
    for bone in roles.bones:
        name = next((lesion for lesion, of in lesions.items() if of == bone), None)
        if name is None:
            name = f"{bone.removesuffix('_bone')}_lesion"
            name = name if name not in labels else f"{bone}_candidate_lesion"
            labels[name] = 1 + max(labels.values())
            lesions[name] = bone
        values.append(labels[name])
    said = {**dataclasses.asdict(roles), "lesions": lesions}
    return {**description, "labels": labels, ROLES_KEY: said}, values


def detect_lesions(
    input_folder: Path,
    output_folder: Path,
    detector: TrainedDetector,
    segmentation: Path | Segmenter,
    *,
    threshold: float | None = None,
    min_mm3: float | None = None,
    continue_prediction: bool = False,
    part: Part = ALL,
) -> list[str]:
    """Write a label map of every image in a folder: what a model segments, and candidate lesions in its bones.

    Args:
        input_folder: images named as nnU-Net wants them.
        output_folder: made if need be; gets a label map for each case in its image's geometry, dataset.json and
            detect_lesions.json; ``anatomy`` with the segmentations alone; ``maps`` with anomaly maps and pictures.
        detector: whose maps are thresholded within bones.
        segmentation: a model of nnU-Net, or a folder of segmentations.
        threshold: of the map; None: as the detector's validation found it.
        min_mm3: of a candidate; None: as the threshold was found with.
        continue_prediction: leave cases alone whose label map is there, of a run with the same settings.
        part: of the cases, while other jobs detect the others; its record is of a name of its own then.
    Returns: the cases that were written.
    Raises: UserError as ``predict_anomaly_maps`` does, or if there is no threshold.
    """
    if threshold is None:
        if (fitted := detector.fit()) is None:
            fault = f"the detector {detector.described} has no threshold for lesions"
            raise UserError(f"{fault}; repeat its validation with nnUNetv2_train ... --val, or give --threshold")
    else:
        fitted = {"rule": FIXED, "value": threshold, "min_mm3": known_settings()["min_lesion_mm3"].default}
    chosen = {**fitted, **({} if min_mm3 is None else {"min_mm3": min_mm3})}
    predictor = detector.predictor
    with write_failures_as_user_errors(output_folder):
        maps_folder = output_folder / "maps"
        maps_folder.mkdir(parents=True, exist_ok=True)
        model = segmentation.model_folder if isinstance(segmentation, Segmenter) else segmentation
        record = {
            "version": __version__,
            "detector": detector.described,
            "trainer": predictor.trainer_name,
            "segmentation": str(model),
            "threshold": chosen,
        }
        record_file = output_folder / part.named("detect_lesions.json")
        _take_settings(record_file, record, continue_prediction)
        keep = continue_prediction
        bones = given_bones(segmentation, input_folder, output_folder / "anatomy", predictor, keep=keep, part=part)
        description, values = labels_with_lesions(bones.description)
        plans, ending = predictor.plans_manager, bones.ending
        reader = plans.image_reader_writer_class()

        def write(job: CaseFiles) -> None:
            image, numbers, properties = preprocessed_case(predictor, reader, job, bones)
            assert numbers is not None
            maps = detector.maps(image, numbers)
            score = maps.error.mean(dim=0, keepdim=True).numpy()
            score = to_original_grid(score, properties, plans, predictor.configuration_manager)[0]
            anatomy, own = reader.read_seg(str(bones.folder / f"{job.case}{ending}"))
            places = bone_numbers(torch.from_numpy(anatomy[0].astype(np.int64)), bones.bones).numpy()
            found = lesions_in(score, places, own["spacing"], chosen, plans.transpose_forward[0])
            labels = np.where(found > 0, np.array([0, *values])[found], anatomy[0])
            labels = labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
            with written_beside(output_folder / f"{job.case}{ending}") as temporary:
                reader.write_seg(labels, str(temporary), own)
            write_case(maps_folder, job.case, maps, properties, detector.windows)

        cases = part.of(list_cases(input_folder, predictor.dataset_json["file_ending"]))
        done = [job.case for job in cases if (output_folder / f"{job.case}{ending}").is_file()]
        missing = [job for job in cases if not (keep and job.case in done)]
        written, failed = run_cases(write, missing, 1, "detecting", "detected")
        write_text(output_folder / "dataset.json", json.dumps({**description, "file_ending": ending}, indent=2))
        write_text(record_file, json.dumps({**record, "cases": sorted({*done, *written})}))
        if failed:
            raise CasesFailedError(failed)
    return list(written)


def _take_settings(file: Path, record: dict[str, Any], continued: bool) -> None:
    """Write the settings. Raises: UserError where a run is to be continued that had others."""
    if continued and file.is_file():
        before = read_json(file)
        other = [name for name, value in json.loads(json.dumps(record)).items() if before.get(name) != value]
        if other:
            then = worded({name: before.get(name) for name in other})
            advice = "leave out --continue_prediction, or give another folder with -o"
            raise UserError(f"{file.parent} was made with other settings ({then}); {advice}")
    write_text(file, json.dumps({**record, "cases": []}))
