"""Erased region and intensities of every case, computed once before the pre-stage starts.

The erased region is computed on the whole preprocessed volume: on a patch, the foreground beyond the patch's edge
would be missing from the dilation. Both are cached beside the preprocessed data, in a folder of their own, because a
preprocessed configuration folder may hold one type of file only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetBaseDataset, nnUNetDatasetBlosc2
from scipy.ndimage import distance_transform_cdt, distance_transform_edt, find_objects
from tqdm import tqdm

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import temporary_beside, write_failures_as_user_errors
from nnunetv2_anomaly.records import fingerprint, load_record, save_record
from nnunetv2_anomaly.training.data_record import read_whole

CACHE_FOLDER = "anomaly_erased_regions"


def erased_region(
    segmentation: np.ndarray,
    foreground_labels: Sequence[int],
    margin_voxels: int | None = None,
    *,
    margin_mm: float = 0.0,
    spacing_mm: Sequence[float] = (),
) -> np.ndarray:
    """All foreground together with a margin (method paper, stage 1).

    Args:
        segmentation: (X, Y, Z), the whole volume.
        foreground_labels: values that count as foreground.
        margin_voxels: as published: dilated so often with the face-connected element.
        margin_mm: where that is None: what is no farther from the foreground; needs ``spacing_mm``, one per axis.
    Returns: (X, Y, Z), bool, True = erased. Nothing is erased where there is no foreground.
    """
    foreground = np.isin(segmentation, np.asarray(foreground_labels))
    if not foreground.any():
        return foreground
    if margin_voxels is None:
        # Nothing is erased beyond the foreground's box with the margin: a distance takes 20 bytes a voxel.
        (box,) = find_objects(foreground.astype(np.uint8))
        reach = [math.ceil(margin_mm / step) for step in spacing_mm]
        box = tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(box, reach, strict=True))
        region = np.zeros_like(foreground)
        region[box] = distance_transform_edt(~foreground[box], sampling=spacing_mm) <= margin_mm * (1 + 1e-6)
        return region
    return distance_transform_cdt(~foreground, metric="taxicab") <= margin_voxels  # the element's ball


@dataclass(frozen=True)
class CaseStatistics:
    """Intensities of one preprocessed case, clipped, per channel; units of the normalised image."""

    foreground_voxels: int
    num_voxels: int
    low: list[float]
    high: list[float]
    mean: list[float]
    clipped_fraction: float
    erased_voxels: int = 0


@dataclass(frozen=True)
class IntensityStatistics:
    """Range and mean over cases, clipped, per channel; units of the normalised image."""

    low: list[float]
    high: list[float]
    mean: list[float]
    clipped_fraction: float

    @property
    def rescaled_mean(self) -> list[float]:
        """The mean in the range that becomes [0, 1]."""
        return [(mean - low) / (high - low) for mean, low, high in zip(self.mean, self.low, self.high, strict=True)]


def intensity_statistics(cases: Sequence[CaseStatistics]) -> IntensityStatistics:
    """Range and mean over cases.

    Raises: UserError if a channel is constant over all cases, so that there is no range to rescale.
    """
    weights = np.array([case.num_voxels for case in cases], dtype=float)
    low = np.min([case.low for case in cases], axis=0)
    high = np.max([case.high for case in cases], axis=0)
    constant = np.flatnonzero(high <= low)
    if constant.size:
        value = f"has the one value {low[constant[0]]:g} in all {len(cases)} training cases"
        fault = f"image channel {constant[0]} {value} after normalisation and clipping"
        advice = "check the raw images, the normalisation in plans.json and the setting 'intensity_clip'"
        raise UserError(f"{fault}; expected images with contrast, so {advice}")
    return IntensityStatistics(
        low=low.tolist(),
        high=high.tolist(),
        mean=np.average([case.mean for case in cases], axis=0, weights=weights).tolist(),
        clipped_fraction=float(np.average([case.clipped_fraction for case in cases], weights=weights)),
    )


def cache_folder(preprocessed_dataset_folder: str | Path, data_identifier: str, margin: str) -> Path:
    """Where the erased regions of a configuration's cases lie, one folder per margin."""
    return Path(preprocessed_dataset_folder) / CACHE_FOLDER / data_identifier / f"margin_{margin}"


def _case_files(dataset_class: type[nnUNetBaseDataset], folder: Path, case: str) -> tuple[Path, Path]:
    """Files that hold a case's image and its segmentation; one file for both in nnU-Net's older npz format."""
    if dataset_class is nnUNetDatasetBlosc2:
        return folder / f"{case}.b2nd", folder / f"{case}_seg.b2nd"
    return folder / f"{case}.npz", folder / f"{case}.npz"


def _save_region(
    dataset_class: type[nnUNetBaseDataset], region: np.ndarray, target: Path, patch_size: Sequence[int]
) -> None:
    """Write a region in the format in which the data set class reads a previous stage's segmentation."""
    temporary = temporary_beside(target)
    labels = region.astype(np.int8)
    ending = _ending(dataset_class)
    try:
        if dataset_class is nnUNetDatasetBlosc2:
            blocks, chunks = comp_blosc2_params((1, *labels.shape), tuple(patch_size), labels.itemsize)
            dataset_class.save_seg(labels, str(temporary), chunks_seg=chunks[1:], blocks_seg=blocks[1:])
        else:
            dataset_class.save_seg(labels, str(temporary))
        os.replace(f"{temporary}.{ending}", f"{target}.{ending}")
    finally:
        Path(f"{temporary}.{ending}").unlink(missing_ok=True)


def _ending(dataset_class: type[nnUNetBaseDataset]) -> str:
    return "b2nd" if dataset_class is nnUNetDatasetBlosc2 else "npz"


def _prepare_case(
    dataset: nnUNetBaseDataset,
    case: str,
    cache: Path,
    foreground_labels: Sequence[int],
    margin_voxels: int | None,
    margin_mm: float,
    spacing_of: Callable[[dict], Sequence[float]],
    clip: float,
    patch_size: Sequence[int],
) -> CaseStatistics:
    folder = Path(dataset.source_folder)
    entry, region_file = cache / f"{case}.json", cache / f"{case}.{_ending(type(dataset))}"
    image_file, segmentation_file = _case_files(type(dataset), folder, case)
    with read_whole(case, folder):
        of_image = image_file.stat()  # by size and time: reading all images again would take as long as preparing them
    options = [[int(label) for label in foreground_labels], margin_voxels, margin_mm, clip]
    state = fingerprint([segmentation_file], {"options": [*options, of_image.st_size, of_image.st_mtime_ns]})
    stored = load_record(entry, state)
    if stored is not None and region_file.is_file():
        return CaseStatistics(**stored)
    with read_whole(case, folder):
        data, segmentation, _, properties = dataset.load_case(case)
        image = np.asarray(data[:], dtype=np.float32)
        labels = np.asarray(segmentation[:])[0]
    if not np.isfinite(image).all():
        advice = "correct the raw image (or the normalisation) and run nnUNetv2_preprocess again"
        fault = f"case '{case}' holds NaN or infinite voxels after preprocessing"
        raise UserError(f"{fault}; expected finite intensities, so {advice}")
    if labels.shape != image.shape[1:]:
        sizes = f"an image of {image.shape[1:]} and a segmentation of {labels.shape} voxels in {folder}"
        advice = "check the raw files and run nnUNetv2_plan_and_preprocess again with --verify_dataset_integrity"
        raise UserError(f"case '{case}' has {sizes}; expected one geometry, so {advice}")
    spacing_mm = spacing_of(properties) if margin_voxels is None else ()
    region = erased_region(labels, foreground_labels, margin_voxels, margin_mm=margin_mm, spacing_mm=spacing_mm)
    clipped = np.clip(image, -clip, clip)
    axes = tuple(range(1, image.ndim))
    statistics = CaseStatistics(
        foreground_voxels=int(np.isin(labels, np.asarray(foreground_labels)).sum()),
        erased_voxels=int(region.sum()),
        num_voxels=int(labels.size),
        low=clipped.min(axis=axes).tolist(),
        high=clipped.max(axis=axes).tolist(),
        mean=clipped.mean(axis=axes, dtype=np.float64).tolist(),
        clipped_fraction=float((np.abs(image) > clip).mean()),
    )
    with _cached_into(cache):
        entry.unlink(missing_ok=True)  # never an entry that describes another region file
        _save_region(type(dataset), region, cache / case, patch_size)
        save_record(entry, state, asdict(statistics))
    return statistics


def _cached_into(cache: Path) -> AbstractContextManager[None]:
    """Turn a failure to write the cache into a UserError; blosc2 reports a full disk as a RuntimeError."""
    advice = "expected a folder with write permission and a few megabytes a case, so make room or give permission"
    return write_failures_as_user_errors(f"the cache of erased regions {cache}", advice, kinds=(OSError, RuntimeError))


def prepare_cases(
    dataset: nnUNetBaseDataset,
    cache: Path,
    *,
    foreground_labels: Sequence[int],
    margin_voxels: int | None = None,
    margin_mm: float = 0.0,
    spacing_of: Callable[[dict], Sequence[float]] = lambda properties: properties["spacing"],
    clip: float,
    patch_size: Sequence[int],
    show_progress: bool = True,
) -> dict[str, CaseStatistics]:
    """Erased region and intensity statistics of every case of a preprocessed data set, from the cache where it holds.

    An entry is made again when one of the case's files, the margin, the foreground labels or the clipping changed.
    Entries are written beside and renamed, so that folds may start at the same time.

    Args:
        dataset: nnU-Net's data set of the preprocessed configuration folder.
        cache: the folder of ``cache_folder``; made if need be. Its files have the form in which nnU-Net loads the
            segmentation of a previous stage.
        foreground_labels: values that count as foreground.
        margin_voxels, margin_mm: as ``erased_region`` takes them.
        spacing_of: nnU-Net's properties of a case -> spacing of its preprocessed volume in mm.
        clip: intensities are clipped to [-clip, clip], units of the normalised image.
        patch_size: in voxels, for the chunks of the file.
    Returns: statistics by case.
    Raises: UserError for NaN or infinite voxels, an image and a segmentation of different size, a file that cannot be
        read, or a cache that cannot be written.
    """
    with _cached_into(cache):
        cache.mkdir(parents=True, exist_ok=True)
    cases = list(dataset.identifiers)
    with ThreadPoolExecutor(max(1, min(default_num_processes, os.cpu_count() or 1, len(cases)))) as pool:
        options = (foreground_labels, margin_voxels, margin_mm, spacing_of, clip, patch_size)
        prepared = pool.map(lambda case: _prepare_case(dataset, case, cache, *options), cases)
        shown = tqdm(prepared, "Erased regions and intensities", total=len(cases), disable=not show_progress)
        return dict(zip(cases, shown, strict=True))
