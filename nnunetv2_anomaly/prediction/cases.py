"""Images and label maps of new cases, as nnU-Net names and preprocesses them."""

from __future__ import annotations

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
from torch import Tensor

from nnunetv2_anomaly.detectors.level import bone_numbers
from nnunetv2_anomaly.errors import UserError, listed, worded
from nnunetv2_anomaly.files import is_half_written, read_json, written_beside
from nnunetv2_anomaly.images.files import check_whole, only_files, read_failures_as_user_errors
from nnunetv2_anomaly.label_roles import ROLES_KEY, label_roles, with_their_lesions
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.parts import ALL, Part
from nnunetv2_anomaly.prediction.models import load_model, trained_folds


@dataclass(frozen=True)
class CaseFiles:
    """A case, and its image's files in the order of their channels."""

    case: str
    files: tuple[str, ...]


def list_cases(folder: Path, file_ending: str) -> list[CaseFiles]:
    """Cases of a folder of images.

    Args: file_ending: of the data set.
    Raises: UserError if the folder is missing or empty, or a file has no channel number.
    """
    if not folder.is_dir():
        raise UserError(f"the input folder {folder} does not exist; expected a folder with images")
    named = re.compile(r".+_\d{4}" + re.escape(file_ending))
    entries = (entry for entry in folder.glob(f"*{file_ending}") if not is_half_written(entry.name))
    names = [entry.name for entry in only_files(entries)]
    unnumbered = [name for name in names if not named.fullmatch(name)]
    if len(unnumbered) == len(names):
        expected = f"the data set's own file ending and a channel number, for example case_0000{file_ending}"
        raise UserError(f"no image in {folder} ends with _0000{file_ending}; expected {expected}")
    if unnumbered:  # of which nnU-Net's own list makes nothing
        fault = f"{folder} holds files without a channel number: {listed(unnumbered)}"
        raise UserError(f"{fault}; expected names like case_0000{file_ending}, so rename them or move them away")
    lists: Sequence[list[str]] = create_lists_from_splitted_dataset_folder(str(folder), file_ending)
    lists = [files for files in lists if not is_half_written(os.path.basename(files[0]))]
    return [CaseFiles(os.path.basename(files[0])[: -len(f"_0000{file_ending}")], tuple(files)) for files in lists]


def read_case(reader: BaseReaderWriter, case: CaseFiles, num_channels: int) -> tuple[np.ndarray, dict[str, Any]]:
    """All channels of an image, (C, X, Y, Z), and nnU-Net's properties of it.

    Args: num_channels: that it has to have, in as many files or in fewer.
    Raises: UserError if a channel's number is left out, a file cannot be read, it has another number of channels, or
        its intensities are not finite.
    """
    folder, ending = os.path.split(case.files[0])[0], os.path.basename(case.files[0])[len(f"{case.case}_0000") :]
    wanted = ", ".join(f"{case.case}_{channel:04d}{ending}" for channel in range(len(case.files)))
    if _names(case.files) != wanted:
        raise UserError(f"case {case.case} in {folder} has the files {_names(case.files)}; expected {wanted}")
    for name in case.files:
        check_whole(Path(name))  # ITK reads what is missing or not finite in a NIfTI file as 0
    try:
        voxels, properties = reader.read_images(case.files)
    # Each of nnU-Net's readers fails in ways of its own (ITK, skimage, tifffile); the files are at fault.
    except Exception as error:
        fault = f"{_names(case.files)} cannot be read as one image ({str(error) or 'see above'})"
        raise UserError(f"{fault}; expected readable files, all channels with one size and spacing") from error
    if len(voxels) != num_channels:
        fault = f"case {case.case} in {folder} has {len(voxels)} channel(s)"
        raise UserError(f"{fault}; expected {num_channels}, in files numbered from _0000 on")
    if not np.isfinite(voxels).all():
        fault = f"{_names(case.files)} holds NaN or infinite voxels"
        raise UserError(f"{fault}; expected finite intensities, so fix the image")
    return voxels, properties


def _names(files: Sequence[str]) -> str:
    return ", ".join(os.path.basename(name) for name in files)


def read_labels(
    reader: BaseReaderWriter, path: Path, image_shape: tuple[int, ...], image_properties: dict[str, Any]
) -> np.ndarray:
    """A label map, (1, X, Y, Z). Raises: UserError if it is missing, unreadable, or on another grid than its image."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected a label map for every image")
    with read_failures_as_user_errors(path, "a label map"):
        check_whole(path)
        labels, properties = reader.read_seg(str(path))
    if labels.shape[1:] != image_shape:
        fault = f"{path} has {labels.shape[1:]} voxels and its image {image_shape}"
        raise UserError(f"{fault}; expected one grid, so resample one")
    other = _pose(image_properties)
    for what, own in _pose(properties).items():
        if not np.allclose(own, other[what], rtol=1e-3, atol=1e-2):
            fault = f"{path} has the {what} {worded(own)} and its image {worded(other[what])}"
            raise UserError(f"{fault}; expected one grid, so resample one")
    return labels


def _pose(properties: dict[str, Any]) -> dict[str, list[float]]:
    """Spacing, origin and axes, as nnU-Net's reader found them; empty where it has none."""
    affine = np.asarray(properties.get("nibabel_stuff", {}).get("original_affine", np.zeros((0, 4))))
    known = {"origin": affine[:3, 3:].ravel(), "direction": affine[:3, :3].ravel(), **properties.get("sitk_stuff", {})}
    pose = {"spacing": properties["spacing"], "origin": known["origin"], "axes": known["direction"]}
    return {what: [float(of) for of in numbers] for what, numbers in pose.items()}


@dataclass(frozen=True)
class GivenBones:
    """Segmentations that say where the bones of new images are."""

    folder: Path
    ending: str
    bones: list[list[int]]  # label values of each, with those of the lesions in it
    description: dict[str, Any]  # dataset.json of the segmentations


@dataclass(frozen=True)
class Segmenter:
    """A model folder of nnU-Net that says where the bones are."""

    model_folder: Path
    folds: Sequence[int | str]
    checkpoint: str = "checkpoint_final.pth"


def given_bones(
    bones: Path | Segmenter,
    images: Path,
    output: Path,
    predictor: nnUNetPredictor,
    *,
    keep: bool = False,
    part: Part = ALL,
) -> GivenBones:
    """Segmentations of new images, predicted where a model is given.

    Args:
        bones: a folder of segmentations, or a model folder of nnU-Net, of which all finished folds predict.
        images: as nnU-Net names them. output: where what a model predicts goes. keep: leave those that are there.
        part: of the images.
        predictor: of the detector: its labels and file ending count where the segmentations have no dataset.json.
    Raises: UserError if there is no such folder, its dataset.json names no bone, or the model cannot be loaded.
    """
    description = predictor.dataset_json
    if isinstance(bones, Path) and (folds := trained_folds(bones)) and (bones / "plans.json").is_file():
        bones = Segmenter(bones, folds)
    if isinstance(bones, Segmenter):
        of, device = bones.model_folder, predictor.device
        model = load_model(of, device=device, folds=bones.folds, checkpoint=bones.checkpoint)
        description, bones = model.dataset_json, output
        _predict_segmentations(model, images, output, keep, part)
    elif not bones.is_dir():
        raise UserError(f"--bones {bones} is no folder; expected one with segmentations, or a model folder of nnU-Net")
    elif (bones / "dataset.json").is_file():
        description = read_json(bones / "dataset.json")
    labels = description.get("labels")
    if not isinstance(labels, dict):
        raise UserError(f"{bones / 'dataset.json'} has no labels; expected each label's name and value")
    roles = label_roles(labels, description.get(ROLES_KEY))
    if not roles.bones:
        known = ", ".join(labels)
        raise UserError(f"no label of {bones} is a bone ({known}); say which are as '{ROLES_KEY}' in its dataset.json")
    ending = description.get("file_ending", predictor.dataset_json["file_ending"])
    return GivenBones(bones, ending, with_their_lesions(roles.bones, labels, roles), description)


def _predict_segmentations(model: nnUNetPredictor, images: Path, output: Path, keep: bool, part: Part) -> None:
    """Segment the images of a folder; one at fault is reported when it is read again."""
    ending = model.dataset_json["file_ending"]
    num_channels = determine_num_input_channels(model.plans_manager, model.configuration_manager, model.dataset_json)
    reader = model.plans_manager.image_reader_writer_class()
    output.mkdir(parents=True, exist_ok=True)

    def segment(job: CaseFiles) -> None:
        voxels, properties = read_case(reader, job, num_channels)
        labels = model.predict_single_npy_array(voxels, properties, None, None, False)
        with written_beside(output / f"{job.case}{ending}") as temporary:
            reader.write_seg(labels, str(temporary), properties)

    missing = part.of(list_cases(images, ending))
    missing = [job for job in missing if not (keep and (output / f"{job.case}{ending}").is_file())]
    for job in missing:  # so that none of an earlier model stays where this one fails
        (output / f"{job.case}{ending}").unlink(missing_ok=True)
    run_cases(segment, missing, 1, "segmenting", "segmented")


def preprocessed_case(
    predictor: nnUNetPredictor,
    reader: BaseReaderWriter,
    job: CaseFiles,
    bones: GivenBones | None,
    *,
    whole: bool = False,
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Image (C, X, Y, Z) as nnU-Net preprocesses it; bones' numbers (X, Y, Z), 0 outside, if given; properties.

    Args: whole: let all that nnU-Net does not take for empty be one bone, where none are given.

    Raises: UserError as ``read_case`` and ``read_labels``.
    """
    plans = (predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json)
    voxels, properties = read_case(reader, job, determine_num_input_channels(*plans))
    labels = None
    if bones is not None:
        labels = read_labels(reader, bones.folder / f"{job.case}{bones.ending}", voxels.shape[1:], properties)
        labels = bone_numbers(torch.from_numpy(labels.astype(np.int64)), bones.bones).numpy()
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    voxels, numbers, properties = preprocessor.run_case_npy(voxels, labels, properties, *plans)
    image = torch.from_numpy(np.asarray(voxels, dtype=np.float32))
    if labels is None:
        inside = torch.from_numpy(np.asarray(numbers[0]) >= 0).long()
        return image, inside if whole else None, properties
    return image, torch.from_numpy(np.asarray(numbers[0], dtype=np.int64)).clamp(min=0), properties
