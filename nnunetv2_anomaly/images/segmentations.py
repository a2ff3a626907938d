"""Segmentations of any nnU-Net data set, read as nnU-Net itself reads them, and their softmax outputs."""

from __future__ import annotations

import logging
import math
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, io_orientation
from nnunetv2.imageio import reader_writer_registry as readers
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images import files as image_files
from nnunetv2_anomaly.images.dataset_description import DatasetDescription
from nnunetv2_anomaly.images.grids import Grid, apart_mm, differences, joined, oriented, posed, turned, turned_back
from nnunetv2_anomaly.images.headers import NIFTI_ENDINGS, save_nifti_like
from nnunetv2_anomaly.images.label_maps import count_values, whole_numbers


@dataclass(frozen=True)
class Segmentation:
    """Label map of one case: (Z, Y, X), or (Y, X) where the file is two-dimensional.

    With a ``grid`` its axes point as ``grids.ORIENTATION`` says, whatever the file's order; else as nnU-Net reads them.
    """

    path: Path
    voxels: NDArray[np.integer]
    spacing_mm: tuple[float, ...]  # in the voxels' axis order; 1 where the file has none
    grid: Grid | None = None  # pose of the file's voxels, where SimpleITK read it and it is three-dimensional
    affine: NDArray[np.float64] | None = None  # (4, 4), of the voxels' axes in reverse, where nibabel read it

    def to_right_anterior_superior(self, voxels: NDArray) -> tuple[NDArray, tuple[float, ...]]:
        """A view of voxels of this shape with their axes as ``grids.ORIENTATION`` says, and their spacing in mm.

        Without a pose they stay as they are.
        """
        if self.grid is not None or self.affine is None:
            return voxels, self.spacing_mm
        turn = io_orientation(self.affine)
        spacing = np.empty(3)
        spacing[turn[:, 0].astype(int)] = self.spacing_mm[::-1]
        return apply_orientation(voxels.T, turn).T, tuple(spacing[::-1].tolist())

    def difference(self, other: Segmentation) -> str:
        """How the geometry of another one differs, in words; empty if it is the same."""
        if self.grid is not None and other.grid is not None:
            return differences(self.grid, other.grid)
        if self.voxels.shape != other.voxels.shape:
            return f"size {joined(self.voxels.shape)} against {joined(other.voxels.shape)}"
        if not np.allclose(self.spacing_mm, other.spacing_mm, rtol=0, atol=1e-4):
            return f"spacing {joined(self.spacing_mm)} against {joined(other.spacing_mm)} mm"
        if self.affine is None or other.affine is None or np.allclose(self.affine, other.affine, atol=1e-3):
            return ""
        return f"corners {apart_mm(self.affine, other.affine, self.voxels.shape[::-1]):.3f} mm apart"


class SegmentationFiles:
    """Reads and writes the segmentations of one data set through the reader that nnU-Net uses for it."""

    def __init__(self, file_ending: str, reader: str | None = None) -> None:
        """Args: reader: name of nnU-Net's class, as ``chosen_reader`` gives it; None chooses by the file ending.
        Raises: UserError if nnU-Net has no such reader.
        """
        self.file_ending = file_ending
        try:
            self.reader_class: type[BaseReaderWriter] = (
                readers.recursive_find_reader_writer_by_name(reader)
                if reader
                else readers.determine_reader_writer_from_file_ending(file_ending, verbose=False)
            )
        except RuntimeError as error:
            wanted = reader or f"for files that end in {file_ending}"
            raise UserError(f"nnU-Net has no reader {wanted}; check dataset.json") from error
        name = self.reader_class.__name__
        self.by_simpleitk = file_ending in image_files.FILE_ENDINGS and name.startswith("SimpleITKIO")
        #: whether nnU-Net turns the axes to right, anterior, superior, and keeps softmax outputs so
        self.turned = name.endswith("WithReorient")
        #: whether nnU-Net keeps the spacing of CASE.tif in CASE.json
        self.has_spacing_beside = name == "Tiff3DIO"

    def read(self, path: Path) -> Segmentation:
        """Read a segmentation. Raises: UserError if it is unreadable, or holds others than whole numbers from 0."""
        if self.by_simpleitk:
            image = image_files.read_image(path, dimensions=(2, 3))
            grid = Grid.of(image) if image.GetDimension() == 3 else None
            image = image if grid is None else oriented(image)
            voxels = whole_numbers(sitk.GetArrayFromImage(image), path)
            return Segmentation(path, voxels, image.GetSpacing()[::-1], grid)
        voxels, properties = self._read_through_nnunet(path)
        spacing = tuple(float(s) for s in properties["spacing"])
        voxels = whole_numbers(voxels[0], path)
        if "nibabel_stuff" in properties:
            stuff = properties["nibabel_stuff"]  # where nnU-Net turned the voxels, their affine is not the file's
            affine = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), dtype=float)
            return Segmentation(path, voxels, spacing, affine=affine)
        if voxels.shape[0] == 1:
            voxels, spacing = voxels[0], spacing[1:]  # nnU-Net gives two-dimensional images a third axis
        return Segmentation(path, voxels, spacing)

    def _read_through_nnunet(self, path: Path) -> tuple[NDArray, dict[str, Any]]:
        with image_files.read_failures_as_user_errors(path, "a segmentation"):
            image_files.check_whole(path)
            voxels, properties = self.reader_class().read_seg(str(path))
        if len(voxels) != 1:
            raise UserError(f"{path} holds {len(voxels)} values a voxel; expected a segmentation with one")
        return voxels, properties

    def write(self, voxels: NDArray[np.integer], like: Segmentation, path: Path) -> None:
        """Write a segmentation, beside and renamed, with the pose and axis order of the file that it was made from.

        Args: voxels: of the shape of ``like.voxels``. like: what was read from that file.
        Raises: OSError if the disk is full or the folder cannot be written to.
        """
        in_file = voxels if like.grid is None else turned_back(voxels, like.grid)
        has_pose = like.affine is not None or like.grid is not None
        if has_pose and like.path.name.lower().endswith(NIFTI_ENDINGS):
            with image_files.image_written_beside(path) as temporary:
                save_nifti_like(in_file.T, like.path, temporary, like.affine)
            return
        if self.by_simpleitk:
            source = image_files.read_image(like.path, dimensions=(2, 3))
            image = sitk.GetImageFromArray(in_file)
            image.CopyInformation(source)
            image_files.write_image(sitk.Cast(image, source.GetPixelID()), path)
            return
        _, properties = self._read_through_nnunet(like.path)
        with image_files.image_written_beside(path) as temporary:
            self.reader_class().write_seg(voxels[None] if voxels.ndim == 2 else voxels, str(temporary), properties)
            if self.has_spacing_beside:
                os.replace(temporary.with_suffix(".json"), path.with_suffix(".json"))

    def copy(self, source: Path, path: Path) -> None:
        """Copy a segmentation byte by byte, beside and renamed. Raises: OSError if it cannot be written."""
        if self.has_spacing_beside and source.with_suffix(".json").is_file():
            shutil.copyfile(source.with_suffix(".json"), path.with_suffix(".json"))
        with image_files.image_written_beside(path) as temporary:
            shutil.copyfile(source, temporary)

    def probabilities(self, path: Path, of: Segmentation, num_classes: int) -> Iterator[NDArray]:
        """``probability_channels`` in the axis order of the segmentation that was made from it (``in_order``)."""
        return (self.in_order(channel, of) for channel in probability_channels(path, num_classes))

    def in_order(self, channel: NDArray, of: Segmentation) -> NDArray:
        """A view of one of ``probability_channels`` in the axis order of ``of.voxels``.

        Raises: ValueError if it has another shape than the segmentation.
        """
        if of.voxels.ndim == 2:
            channel = channel[0]
        in_file = None if self.turned else of.grid
        expected = of.voxels.shape if in_file is None else in_file.size[::-1]
        if channel.shape != expected:
            raise ValueError(f"its shape is {channel.shape}, the segmentation's {expected}")
        return channel if in_file is None else turned(channel, in_file)


def read_known(files: SegmentationFiles, path: Path, dataset: DatasetDescription) -> Segmentation:
    """Read a segmentation. Raises: UserError if it cannot be read, or holds other labels than the data set's."""
    segmentation = files.read(path)
    counted = count_values(segmentation.voxels)
    unknown = {value: count for value, count in counted.items() if value not in dataset.values}
    if unknown:
        shown = ", ".join(f"{value} ({count} voxels)" for value, count in list(unknown.items())[:5])
        labels = ", ".join(f"{'+'.join(map(str, values))} {name}" for name, values in dataset.labels.items())
        raise UserError(f"{path} holds unknown labels: {shown}; expected {labels}; check dataset.json (-djfile)")
    return segmentation


def write_map(values: NDArray[np.floating], like: Segmentation, path: Path) -> None:
    """Write a number a voxel as NIfTI in the pose and axis order of a segmentation's file, beside and renamed.

    Args: values: of the shape of ``like.voxels``, (Z, Y, X). like: with a grid or an affine.
    Raises: OSError if the disk is full or the folder cannot be written to.
    """
    if like.grid is not None:
        image_files.write_image(posed(turned_back(values, like.grid), like.grid), path)
        return
    with image_files.image_written_beside(path) as temporary:
        nibabel.save(nibabel.Nifti1Image(values.T, like.affine), temporary)


def probability_channels(path: Path, num_classes: int) -> Iterator[NDArray[np.floating]]:
    """Softmax output that nnU-Net wrote with --save_probabilities or --npz, one class at a time, to spare memory.

    Yields: (Z, Y, X), in [0, 1], in the axis order of nnU-Net's reader.
    Raises: UserError if the file is no such output, cut short, has another number of classes than the data set, or
        holds NaN or numbers out of [0, 1].
    """
    with (
        image_files.read_failures_as_user_errors(path, "nnU-Net's softmax output", "predict the case again"),
        zipfile.ZipFile(path) as archive,
        archive.open("probabilities.npy") as stream,
    ):
        np.lib.format.read_magic(stream)
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(stream)  # version 2 is for headers over 64 kB
        if len(shape) != 4 or not np.issubdtype(dtype, np.floating):
            raise ValueError(f"it holds {dtype} of shape {shape}, not floats of shape (K, Z, Y, X)")
        if shape[0] != num_classes:
            found = f"the softmax output of {shape[0]} classes and dataset.json has {num_classes}, background included"
            raise UserError(f"{path} holds {found}; give that of the model's data set (-djfile), or predict again")
        if by_column:  # in the other order the last axis varies slowest, so that classes are not apart
            channels: Iterable[NDArray] = np.frombuffer(stream.read(), dtype).reshape(shape[::-1]).T
        else:
            num_bytes = math.prod(shape[1:]) * dtype.itemsize
            channels = (np.frombuffer(stream.read(num_bytes), dtype).reshape(shape[1:]) for _ in range(shape[0]))
        for channel in channels:
            if not np.isfinite(channel).all() or channel.min(initial=0) < 0 or channel.max(initial=0) > 1.001:
                raise ValueError("it holds NaN or numbers out of [0, 1]")
            yield np.minimum(channel, 1)  # half precision rounds up
        if stream.read(1):  # also checks what was read: the archive's checksum is compared at its very end
            raise ValueError("it is longer than its header says")


def chosen_reader(dataset: DatasetDescription, files: Iterable[Path]) -> str | None:
    """Name of nnU-Net's reader for a data set with these segmentations, None for that of its file ending.

    SimpleITK reads no NIfTI file whose axes are not at right angles; nnU-Net falls back to nibabel where the first file
    is one. Here one is enough, whichever it is, and a warning names it.
    """
    if dataset.reader is None and dataset.file_ending.lower() in NIFTI_ENDINGS:
        sheared = next((file for file in files if image_files.is_sheared(file)), None)
        if sheared is not None:
            logging.warning("All files are read by nibabel (NibabelIO), as the axes of %s are sheared", sheared)
            return "NibabelIO"
    return dataset.reader
