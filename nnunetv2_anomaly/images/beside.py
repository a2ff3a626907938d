"""Images that lie beside a case's segmentation: found by its name, read on its grid."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.images.files import read_failures_as_user_errors, read_image
from nnunetv2_anomaly.images.grids import Grid, oriented, same_grid
from nnunetv2_anomaly.images.segmentations import Segmentation, SegmentationFiles

#: what stands between a case's name and the file ending
IMAGE, ERROR_IMAGE = "_0000", "_error"


def check_beside(option: str, folder: Path | None, cases: Collection[str], kind: str, file_ending: str) -> None:
    """Check that every case has its image.

    Args: option: that gave the folder. kind: ``IMAGE`` or ``ERROR_IMAGE``; files end as the data set's, or in .nii.gz.
    Raises: UserError that lists the cases without, or for a folder that does not exist.
    """
    if folder is None:
        return
    if not folder.is_dir():
        raise UserError(f"{option} {folder} is not a folder; give one, or leave the option out")
    without = [case for case in cases if not files_beside(folder, case, kind, file_ending)]
    if without:
        endings = " or ".join(f"CASE{kind}{ending}" for ending in _endings(file_ending))
        lacking = f"{len(without)} of {len(cases)} cases: {listed(without)}"
        raise UserError(f"{option} {folder} lacks {endings} for {lacking}; complete it, or leave the option out")


def _endings(file_ending: str) -> tuple[str, ...]:
    """Error images are NIfTI files whatever the data set's file ending."""
    return tuple(dict.fromkeys((file_ending, ".nii.gz")))


def files_beside(folder: Path, case: str, kind: str, file_ending: str) -> list[Path]:
    """The file of a case's image, or one for each of its channels (CASE_error_0000 ...); empty where there is none."""
    for ending in _endings(file_ending):
        whole = folder / f"{case}{kind}{ending}"
        if whole.is_file():
            return [whole]
        numbered = (folder / f"{case}{kind}_{channel:04d}{ending}" for channel in itertools.count())
        channels = list(itertools.takewhile(Path.is_file, numbered))
        if channels:
            return channels
    return []


def image_beside(
    folder: Path | None, case: str, kind: str, reference: Segmentation, files: SegmentationFiles
) -> NDArray[np.floating] | None:
    """The image of a case on its reference's grid, of several files their mean.

    Returns: of the shape of ``reference.voxels``; None where no folder was given.
    Raises: UserError for an image that cannot be read or lies on another grid.
    """
    if folder is None:
        return None
    found = files_beside(folder, case, kind, files.file_ending)
    return np.mean([_image(file, reference, files) for file in found], axis=0)


def _image(file: Path, reference: Segmentation, files: SegmentationFiles) -> NDArray[np.floating]:
    """An image on its reference's grid; the first channel of a file with several."""
    if reference.grid is not None:
        image = read_image(file)
        if not same_grid(reference.grid, Grid.of(image)):
            raise UserError(f"{file} and {reference.path} lie on different grids; give the images that were segmented")
        return sitk.GetArrayFromImage(oriented(image)).astype(np.float32)
    reader = files.reader_class
    known = (files.file_ending, *reader.supported_file_endings)
    if not file.name.endswith(known):  # an error image of a data set of pictures
        reader = SegmentationFiles(".nii.gz").reader_class
    with read_failures_as_user_errors(file):
        voxels, _ = reader().read_images([str(file)])
    found = voxels[0, 0] if reference.voxels.ndim == 2 else voxels[0]
    if found.shape != reference.voxels.shape:
        raise UserError(f"{file} and {reference.path} differ in size; give the images that were segmented")
    return found
