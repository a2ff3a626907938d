"""Instances that Mask R-CNN finds in the slices of new images, in the images' own voxels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunetv2_anomaly.errors import CasesFailedError, UserError
from nnunetv2_anomaly.files import take_output_folder, write_failures_as_user_errors, write_marker, write_text
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.parts import ALL, Part
from nnunetv2_anomaly.prediction.cases import CaseFiles, list_cases, preprocessed_case
from nnunetv2_anomaly.prediction.models import each_fold, load_model
from nnunetv2_anomaly.segmenters.base import AnomalyAwareNetwork
from nnunetv2_anomaly.segmenters.mask_rcnn.instances import listed_instances

MARKER = "instances.json"


def predict_instances(
    images: Path,
    output: Path,
    model_folder: Path,
    *,
    folds: list[int | str],
    checkpoint: str = "checkpoint_final.pth",
    device: torch.device,
    continue_prediction: bool = False,
    part: Part = ALL,
) -> list[str]:
    """Write CASE_instances.json for every image of a folder: each instance's slice, class, score and box.

    Args: images: named as nnU-Net wants them. output: made if need be. model_folder, folds, checkpoint: of a training
        of Mask R-CNN; every fold gives instances of its own. continue_prediction: leave cases alone that are there.
        part: of the cases, while other jobs search the others; its record is of a name of its own then.
    Returns: the cases that were written.
    Raises: UserError for another model, slices larger than the patch, and as ``load_model`` and ``preprocessed_case``.
    """
    predictor = load_model(model_folder, folds=folds, device=device, checkpoint=checkpoint)
    if not hasattr(_segmenter(predictor.network), "detect"):
        expected = "IMaskRCNNTrainer, IMaskRCNNSTrainer or MaskRCNNTrainer"
        raise UserError(f"{predictor.trainer_name} finds no instances; expected {expected}, so give one with -tr")
    reader = predictor.plans_manager.image_reader_writer_class()
    names = {value: name for name, value in predictor.dataset_json["labels"].items()}

    def write(job: CaseFiles) -> None:
        image, _, properties = preprocessed_case(predictor, reader, job, None)
        found = [
            {"fold": fold, **row}
            for fold, _ in zip(folds, each_fold(predictor), strict=True)
            for row in _instances(predictor, image, properties, names, job.case)
        ]
        # Axes of the image file, 0 for its first, x: readers reverse them.
        order = (2 - axis for axis in predictor.plans_manager.transpose_forward)
        axes = dict(zip(("slice", "y", "x"), order, strict=True))
        write_text(output / f"{job.case}_instances.json", json.dumps({"axes": axes, "instances": found}, indent=1))

    with write_failures_as_user_errors(output):
        take_output_folder(output, MARKER, "instances of an earlier run", shared=not part.is_all)
        record = output / part.named(MARKER)
        jobs = part.of(list_cases(images, predictor.dataset_json["file_ending"]))
        state = {"images": str(images), "model_folder": str(model_folder), "folds": folds, "checkpoint": checkpoint}
        write_marker(record, state, finished=False)
        done = {path.name for path in output.glob("*_instances.json") if continue_prediction}
        missing = [job for job in jobs if f"{job.case}_instances.json" not in done]
        written, failed = run_cases(write, missing, 1, "finding instances", "searched")
        if failed:
            raise CasesFailedError(failed)
        write_marker(record, state, finished=True)
    return list(written)


def _segmenter(network: nn.Module) -> Any:
    return network.segmenter if isinstance(network, AnomalyAwareNetwork) else network


@torch.inference_mode()
def _instances(
    predictor: nnUNetPredictor, image: Tensor, properties: Mapping[str, Any], names: Mapping[int, str], case: str
) -> list[dict[str, Any]]:
    """Of a preprocessed image (C, slices, Y, X): rows with slice, label, class, score, box in voxels of the file."""
    size, patch = image.shape[2:], predictor.configuration_manager.patch_size
    if any(voxels > most for voxels, most in zip(size, patch, strict=True)):
        fault = f"slices of {case} have {' x '.join(map(str, size))} voxels, and the model sees {patch[0]} x {patch[1]}"
        raise UserError(f"{fault}; expected whole slices, so train on plans of nnUNetv2_anomaly plan_whole_image -c 2d")
    # As nnU-Net's own prediction pads, so that the network sees what it has learned to see.
    padded, where = pad_nd_image(image, patch, "constant", {"value": 0}, True)
    starts = [of.start for of in where[-2:]]
    network, rows = predictor.network, []
    cropped = properties["bbox_used_for_cropping"]
    before = properties["shape_after_cropping_and_before_resampling"][1:]
    factors = [own / now for own, now in zip(before, size, strict=True)]
    for index, of in enumerate(padded.transpose(0, 1).to(predictor.device)):
        seen = network.seen(of[None]) if isinstance(network, AnomalyAwareNetwork) else of[None]
        (detected,) = _segmenter(network).detect(seen)
        for row in listed_instances(detected, names):
            corners = zip(row["box"], (1, 0, 1, 0), strict=True)  # x, y, x, y
            box = [round((edge - starts[axis]) * factors[axis] + cropped[1 + axis][0], 2) for edge, axis in corners]
            rows.append({"slice": int(index + cropped[0][0]), **row, "score": round(row["score"], 4), "box": box})
    return rows
