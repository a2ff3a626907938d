"""One segmentation of a folder: its values, kept beside the output, and its pictures."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_anomaly.conversion.side import side_from_labels
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.images.beside import ERROR_IMAGE, IMAGE, files_beside, image_beside
from nnunetv2_anomaly.images.dataset_description import DatasetDescription
from nnunetv2_anomaly.images.segmentations import Segmentation, SegmentationFiles, read_known, write_map
from nnunetv2_anomaly.measurements.bones import QUANTITIES, Earlier, Found, Options, Structures
from nnunetv2_anomaly.measurements.case_report import case_page, slices_picture
from nnunetv2_anomaly.measurements.knee import measure_knee
from nnunetv2_anomaly.measurements.maps import flat_figure, flattened, thickness_volume, write_flat, write_surface
from nnunetv2_anomaly.records import fingerprint, load_record, save_record
from nnunetv2_anomaly.reporting.drawing import save_figure
from nnunetv2_anomaly.reporting.page import Picture
from nnunetv2_anomaly.reporting.table import in_words

#: raised when a number would come out otherwise than before
METHOD_VERSION = 2


@dataclass(frozen=True)
class Extras:
    """Images and anomaly maps of the cases, and which outputs are written beside the tables."""

    images: Path | None = None
    anomaly_maps: Path | None = None
    reports: bool = False  # which need vtk and plotly
    maps: bool = False  # which need vtk


@dataclass(frozen=True)
class CaseTask:
    """One case, as a worker process takes it."""

    case: str
    source: Path
    output: Path
    dataset: DatasetDescription
    options: Options
    extras: Extras
    known: Mapping[str, str]  # of the manifest: subject, visit, side


def measure_case(task: CaseTask) -> dict[str, Any]:
    """Rows of measurements.csv and of lesions.csv: measured, or from the case's record.

    Returns: "rows", "lesions" -> rows; "files" -> those that were written, from the output folder on.
    Raises: UserError for a file that cannot be read, has no pose or lies on another grid, or if sources give two sides.
    """
    wanted = {"reports": task.extras.reports, "maps": task.extras.maps}
    kinds = ((task.extras.images, IMAGE), (task.extras.anomaly_maps, ERROR_IMAGE))
    ending = task.dataset.file_ending
    others = [file for of, kind in kinds if of is not None for file in files_beside(of, task.case, kind, ending)]
    state = fingerprint([task.source, *others], {**state_of(task.dataset, task.options, task.known), **wanted})
    record = task.output / "cases" / f"{task.case}.json"
    kept = load_record(record, state)
    if kept is not None and all((task.output / file).is_file() for file in kept["files"]):
        return kept
    files = SegmentationFiles(ending, task.dataset.reader)
    segmentation = read_known(files, task.source, task.dataset)
    side, found = measured(segmentation, task.case, task.dataset, task.options, task.known)
    image, anomaly = (image_beside(folder, task.case, kind, segmentation, files) for folder, kind in kinds)
    _add_intensities(found, image, anomaly)
    written = _write_maps_and_page(task, segmentation, side, found, image)
    head = {"case": task.case, "subject": task.known.get("subject", ""), "visit": task.known.get("visit", "")}
    head["side"] = side or ""
    rows = [{**head, **row, "method_version": METHOD_VERSION} for row in found.rows]
    lesions = [{**head, **row} for row in found.lesions] if "lesions" in task.options.quantities else []
    found_of_case: dict[str, Any] = {"rows": rows, "lesions": lesions, "files": written}
    save_record(record, state, found_of_case)
    return found_of_case


def state_of(dataset: DatasetDescription, options: Options, *known: Mapping[str, str]) -> dict[str, Any]:
    """What values depend on beside the files. Args: known: of each case, its subject, visit and side."""
    labels = {name: list(values) for name, values in dataset.labels.items()}
    state = {**dataclasses.asdict(options), "labels": labels, "roles": dataset.said_roles, "method": METHOD_VERSION}
    return {**state, "known": [dict(of) for of in known]}


def measured(
    segmentation: Segmentation,
    case: str,
    dataset: DatasetDescription,
    options: Options,
    known: Mapping[str, str],
    earlier: Mapping[str, Earlier] = MappingProxyType({}),
) -> tuple[str | None, Found]:
    """Side of one segmentation, and the values that are asked for. Raises: UserError as ``pose_of`` and ``_side``."""
    pose, structures = pose_of(segmentation), Structures.of(dataset.labels, dataset.roles)
    side = _side(case, dataset, options, known, segmentation)
    found = measure_knee(segmentation.voxels, *pose, structures, side, options, earlier)
    wanted = {name for group in options.quantities for name in QUANTITIES[group]}
    found.rows = [row for row in found.rows if row["quantity"] in wanted]
    return side, found


def _add_intensities(found: Found, image: NDArray | None, anomaly: NDArray | None) -> None:
    """Mean intensity of each lesion and of its bone outside lesions; mean and maximum of the anomaly map in it."""
    for row, indices in zip(found.lesions, found.lesion_indices, strict=True):
        own = tuple(indices.T)
        if image is not None:
            bone = found.bones[row["bone"]]
            healthy = image[tuple(bone.indices[~bone.is_lesion].T)]
            row["image_mean"] = float(image[own].mean())
            row["image_mean_of_bone"] = float(healthy.mean()) if len(healthy) else math.nan
        if anomaly is not None:
            row |= {"anomaly_mean": float(anomaly[own].mean()), "anomaly_max": float(anomaly[own].max())}


def _write_maps_and_page(
    task: CaseTask, segmentation: Segmentation, side: str | None, found: Found, image: NDArray | None
) -> list[str]:
    """Returns: the files, from the output folder on."""
    measured_maps = {bone: of for bone, of in found.cartilages.items() if len(of.measured)}
    if not (task.extras.maps or task.extras.reports):
        return []
    flat = {bone: flattened([of])[0] for bone, of in measured_maps.items()}
    written = []
    if task.extras.maps and measured_maps:
        folder = task.output / "maps" / task.case
        folder.mkdir(parents=True, exist_ok=True)
        volume = thickness_volume(list(measured_maps.values()), segmentation.voxels.shape)
        write_map(volume, segmentation, folder / "thickness_mm.nii.gz")
        for bone, of in measured_maps.items():
            stem = re.sub(r"[^\w.-]", "_", bone)
            write_surface(of, folder / f"{stem}_cartilage.vtp")
            write_flat(flat[bone], folder / f"{stem}_thickness_flat.nii.gz")
            save_figure(flat_figure([(in_words(bone), flat[bone])]), folder / f"{stem}_thickness_flat.png")
        written += [str(file.relative_to(task.output)) for file in sorted(folder.iterdir())]
    if task.extras.reports:
        html = case_page(task.case, side, found, flat, *_upright(segmentation, image), task.dataset.single_values)
        written.append(f"reports/{task.case}.html")
        write_text(task.output / written[-1], html)
    return written


def _upright(segmentation: Segmentation, image: NDArray | None) -> tuple[NDArray, NDArray | None, Sequence[float]]:
    """Labels, image and spacing in mm of a case, (Z superior, Y anterior, X right)."""
    labels, spacing = segmentation.to_right_anterior_superior(segmentation.voxels)
    return labels, None if image is None else segmentation.to_right_anterior_superior(image)[0], spacing


def picture_of(task: CaseTask) -> Picture:
    """Slices of a case. Raises: UserError for a file that cannot be read or lies on another grid."""
    files = SegmentationFiles(task.dataset.file_ending, task.dataset.reader)
    segmentation = read_known(files, task.source, task.dataset)
    image = image_beside(task.extras.images, task.case, IMAGE, segmentation, files)
    shown = slices_picture(*_upright(segmentation, image), task.dataset.single_values)
    return dataclasses.replace(shown, caption=f"{task.case}, the first knee of the table. {shown.caption}")


def pose_of(segmentation: Segmentation) -> tuple[tuple[float, ...], np.ndarray]:
    """Where the voxels lie in ITK's world, to the patient's left, posterior, superior.

    Returns: origin, (3,) mm; steps, (3, 3) mm, column k the way along array axis k of (Z, Y, X).
    Raises: UserError for a picture, or a file without a pose.
    """
    if segmentation.voxels.ndim != 3:
        raise UserError(f"{segmentation.path} has {segmentation.voxels.ndim} axes; expected a volume")
    if segmentation.grid is not None:
        grid = segmentation.grid.oriented()
        return grid.origin_mm, grid.steps_mm()[:, ::-1]
    if segmentation.affine is not None:  # nibabel's world is to the right and anterior
        turned = np.diag([-1.0, -1.0, 1.0, 1.0]) @ segmentation.affine
        return tuple(turned[:3, 3].tolist()), turned[:3, :3][:, ::-1]
    raise UserError(f"{segmentation.path} stores no orientation; expected NIfTI, NRRD or MetaImage")


def side_of_labels(segmentation: Segmentation, dataset: DatasetDescription) -> str | None:
    """The side that the shape of bones and cartilages shows; None where it shows none."""
    if segmentation.voxels.ndim != 3:
        return None
    return side_from_labels(*segmentation.to_right_anterior_superior(segmentation.voxels), dataset.single_values).side


def _side(
    case: str, dataset: DatasetDescription, options: Options, known: Mapping[str, str], segmentation: Segmentation
) -> str | None:
    """The side of a case: as given, and by its anatomy. Raises: UserError if two of them conflict."""
    said = {"--side": options.side, "the manifest": known.get("side") or None}
    said["the shape of bones and cartilages"] = side_of_labels(segmentation, dataset)
    given = {by: side for by, side in said.items() if side}
    if len(set(given.values())) > 1:
        words = ", ".join(f"{side} by {by}" for by, side in given.items())
        raise UserError(f"the side of {case} is {words}; expected one side, so correct the wrong source")
    return next(iter(given.values()), None)
