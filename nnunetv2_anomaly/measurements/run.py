"""Measures every segmentation of a folder, case by case, and writes one tidy table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.conversion.side import side_from_labels
from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.files import take_output_folder, write_failures_as_user_errors, write_text
from nnunetv2_anomaly.images.dataset_description import DatasetDescription, segmentation_files
from nnunetv2_anomaly.images.segmentations import Segmentation, SegmentationFiles, chosen_reader
from nnunetv2_anomaly.measurements.bones import Structures
from nnunetv2_anomaly.measurements.knee import measure_knee
from nnunetv2_anomaly.measurements.regions import Conventions
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.records import fingerprint, load_record, save_record
from nnunetv2_anomaly.reporting.table import csv_text

MARKER = "measure.json"
#: raised when a number would come out otherwise than before
METHOD_VERSION = 1
COLUMNS = (
    "case", "subject", "visit", "side", "structure", "region", "quantity", "value", "unit", "flag", "method_version",
)  # fmt: skip
SIDES = ("right", "left")


@dataclass(frozen=True)
class Options:
    """What the numbers depend on, beside the labels."""

    side: str | None = None  # of all cases; None: each one's own
    min_lesion_mm3: float = 0.0
    kissing_mm: float = 10.0
    thickness: bool = False  # of cartilage, which needs vtk
    conventions: Conventions = field(default_factory=Conventions)


@dataclass(frozen=True)
class _Task:
    case: str
    source: Path
    output: Path
    dataset: DatasetDescription
    options: Options
    known: Mapping[str, str]  # of the manifest: subject, visit, side


def read_manifest(file: Path) -> dict[str, dict[str, str]]:
    """Subject, visit and side by case, where the table has them; that of a conversion is one.

    Raises: UserError if it cannot be read, has no column case or a case twice, or a side that is none.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a table ({error}); expected CSV with a column case") from error
    if "case" not in table:
        raise UserError(
            f"{file} has the columns {', '.join(map(str, table))}; expected case, and subject, visit or side"
        )
    if len(twice := table["case"][table["case"].duplicated()]):
        raise UserError(f"{file} has {twice.iloc[0]} twice; expected each case once")
    columns = [name for name in ("subject", "visit", "side") if name in table]
    if "side" in columns and len(wrong := table["side"][~table["side"].isin((*SIDES, ""))]):
        raise UserError(f"{file} has the side {wrong.iloc[0]}; expected right, left or nothing")
    return {str(row["case"]): {name: str(row[name]) for name in columns} for _, row in table.iterrows()}


def measure_folder(
    segmentations: Path,
    output: Path,
    dataset: DatasetDescription,
    options: Options,
    *,
    manifest: Mapping[str, Mapping[str, str]],
    num_processes: int,
) -> pd.DataFrame:
    """Measure all segmentations of a folder.

    Writes measurements.csv, lesions.csv, cases/CASE.json and measure.json with the settings. Run again, it measures
    what is missing or has changed since.

    Args:
        manifest: case -> subject, visit, side, as far as they are known.
    Returns: measurements.csv.
    Raises: UserError for an output folder that holds something else; after the others are measured, for cases that
        cannot be read, or whose side is said in two ways.
    """
    files = segmentation_files(segmentations, dataset.file_ending)
    dataset = dataclasses.replace(dataset, reader=chosen_reader(dataset, files.values()))
    unknown = sorted(set(manifest) - set(files))
    if manifest and not set(manifest) & set(files):
        raise UserError(f"the manifest has none of the cases of {segmentations}, but {listed(unknown)}")
    tasks = [_Task(case, file, output, dataset, options, manifest.get(case, {})) for case, file in files.items()]
    with write_failures_as_user_errors(output):
        take_output_folder(output, MARKER, "measurement")
        settings = {"segmentations": str(segmentations.resolve()), **dataclasses.asdict(options)}
        _write_marker(output, settings, finished=False)
        found, failed = run_cases(_measure_case, tasks, num_processes, "measuring", "measured")
        rows = [row for case in sorted(found) for row in found[case]["rows"]]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        write_text(output / "measurements.csv", csv_text(table))
        lesions = pd.DataFrame([row for case in sorted(found) for row in found[case]["lesions"]])
        write_text(output / "lesions.csv", csv_text(lesions.reindex(columns=_lesion_columns(lesions))))
        if failed:
            raise UserError(failed)
        _write_marker(output, settings, finished=True)
    return table


def _lesion_columns(lesions: pd.DataFrame) -> list[str]:
    """Those of every lesion, also where there is none, then the places of the bones that have any."""
    first = (
        "case", "subject", "visit", "side", "bone", "lesion", "label", "volume_mm3", "largest_area_mm2",
        "largest_diameter_mm", "lateral_mm", "anterior_mm", "superior_mm", "interface_distance_mm", "subchondral",
        "kissing",
    )  # fmt: skip
    return [*first, *(str(name) for name in lesions if name not in first)]


def _write_marker(output: Path, settings: Mapping[str, Any], *, finished: bool) -> None:
    state = {"version": __version__, "method_version": METHOD_VERSION, "finished": finished, **settings}
    write_text(output / MARKER, json.dumps(state, indent=2))


def _measure_case(task: _Task) -> dict[str, list[dict[str, Any]]]:
    options = {**dataclasses.asdict(task.options), "known": dict(task.known), "method": METHOD_VERSION}
    labels = {name: list(values) for name, values in task.dataset.labels.items()}
    state = fingerprint([task.source], {**options, "labels": labels, "roles": task.dataset.said_roles})
    record = task.output / "cases" / f"{task.case}.json"
    kept = load_record(record, state)
    if kept is not None:
        return {"rows": kept["rows"], "lesions": kept["lesions"]}
    segmentation = SegmentationFiles(task.dataset.file_ending, task.dataset.reader).read(task.source)
    origin, steps = _pose(segmentation)
    side = _side(task, segmentation)
    found = measure_knee(
        segmentation.voxels,
        origin,
        steps,
        Structures.of(task.dataset.labels, task.dataset.roles),
        side,
        conventions=task.options.conventions,
        min_lesion_mm3=task.options.min_lesion_mm3,
        kissing_mm=task.options.kissing_mm,
        thickness=task.options.thickness,
    )
    head = {"case": task.case, "subject": task.known.get("subject", ""), "visit": task.known.get("visit", "")}
    head["side"] = side or ""
    rows = [{**head, **row, "method_version": METHOD_VERSION} for row in found.rows]
    lesions = [{**head, **row} for row in found.lesions]
    save_record(record, state, {"rows": rows, "lesions": lesions})
    return {"rows": rows, "lesions": lesions}


def _pose(segmentation: Segmentation) -> tuple[tuple[float, ...], np.ndarray]:
    """Origin and steps of the voxels' axes in ITK's world, to the patient's left, posterior, superior.

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
    raise UserError(f"{segmentation.path} says nothing of how its axes lie; expected NIfTI, NRRD or MetaImage")


def _side(task: _Task, segmentation: Segmentation) -> str | None:
    """The side of a case: as given, and by its anatomy. Raises: UserError if two of them conflict."""
    names = {name: values[0] for name, values in task.dataset.labels.items() if len(values) == 1}
    evidence = side_from_labels(segmentation.voxels, segmentation.spacing_mm, names)
    said = {"--side": task.options.side, "the manifest": task.known.get("side") or None}
    said["the shape of bones and cartilages"] = evidence.side
    given = {by: side for by, side in said.items() if side}
    if len(set(given.values())) > 1:
        words = ", ".join(f"{side} by {by}" for by, side in given.items())
        raise UserError(f"the side of {task.case} is {words}; expected one, so correct the one that is wrong")
    return next(iter(given.values()), None)
