"""Clean a folder of predictions: new files of the same names, and a table of what was removed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunetv2_anomaly.errors import CasesFailedError, UserError, listed, worded
from nnunetv2_anomaly.files import (
    is_half_written,
    read_json,
    take_output_folder,
    write_failures_as_user_errors,
    write_marker,
    write_text,
)
from nnunetv2_anomaly.images.colours import write_colour_tables
from nnunetv2_anomaly.images.dataset_description import DatasetDescription, segmentation_files
from nnunetv2_anomaly.images.files import read_failures_as_user_errors
from nnunetv2_anomaly.images.segmentations import Segmentation, SegmentationFiles, chosen_reader, read_known
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.parts import ALL, Part
from nnunetv2_anomaly.postprocessing.clean_up import EXTENT_COLUMNS, Cleaned, CleanUp
from nnunetv2_anomaly.postprocessing.components import count_components
from nnunetv2_anomaly.records import fingerprint, load_record, save_record
from nnunetv2_anomaly.reporting.table import csv_text

#: marks the output folder of a clean-up, and holds its settings
MARKER = "postprocessing.json"

#: columns of removed.csv
COLUMNS = (
    "case", "label", "value", "components", "removed_components", "removed_voxels", "removed_mm3",
    "smallest_removed_distance", *EXTENT_COLUMNS, "uncertain_voxels", "became",
)  # fmt: skip


@dataclass(frozen=True)
class _Task:
    case: str
    source: Path
    probabilities: Path | None
    output: Path
    dataset: DatasetDescription
    clean_up: CleanUp

    @property
    def values(self) -> list[int]:
        """What counts as a label."""
        return sorted(self.dataset.values - {0, self.dataset.ignore})


def postprocess_folder(
    predictions: Path,
    output: Path,
    dataset: DatasetDescription,
    clean_up: CleanUp,
    *,
    num_processes: int,
    overwrite: bool,
    part: Part = ALL,
) -> pd.DataFrame:
    """Clean every segmentation of a folder.

    Writes the segmentations under their names, removed.csv, colour tables, copies of dataset.json and plans.json, and
    postprocessing.json with the settings. Run again, it cleans what is missing or has changed since.

    Args:
        predictions: folder of segmentations, and of softmax outputs (.npz) where the clean-up needs them.
        output: folder; missing, empty, or of an earlier clean-up with the same settings.
        num_processes: cases at a time; each takes about ten times the memory of a label map.
        overwrite: replace what an earlier clean-up with other settings wrote.
        part: of the cases, while other jobs clean the others; tables follow when all are cleaned without it.
    Returns: removed.csv: a row per case and label.
    Raises: UserError for files that cannot be cleaned or written, after the others were; or an output folder that
        holds something else.
    """
    files = segmentation_files(predictions, dataset.file_ending)
    softmax = {case: predictions / f"{case}.npz" for case in files} if clean_up.needs_probabilities else {}
    without = [case for case, file in softmax.items() if not file.is_file()]
    if without:
        fault = f"{predictions} has no softmax output (.npz) of {listed(without)}"
        raise UserError(f"{fault}, which --lesion_probability needs; predict with --save_probabilities")
    dataset = dataclasses.replace(dataset, reader=chosen_reader(dataset, files.values()))
    tasks = [_Task(case, file, softmax.get(case), output, dataset, clean_up) for case, file in part.of(files.items())]
    names = {value: name for name, value in dataset.single_values.items()}
    settings = {
        "predictions": str(predictions.resolve()),
        "settings": json.loads(json.dumps(dataclasses.asdict(clean_up))),  # as it comes back from the file
    }
    with write_failures_as_user_errors(output):
        _prepare(predictions, output, files, settings, overwrite, shared=not part.is_all)
        rows, failed = run_cases(_clean_case, tasks, num_processes, "cleaning", "cleaned")
        table = pd.DataFrame([row for case in sorted(rows) for row in rows[case]], columns=list(COLUMNS))
        table["label"] = [names.get(value, str(value)) for value in table["value"]]
        if part.is_all:
            write_text(output / "removed.csv", csv_text(table))
            write_colour_tables(output, dataset.single_values)
            write_marker(output / MARKER, settings, finished=not failed)
    if failed:
        raise CasesFailedError(failed)
    return table


def _prepare(
    predictions: Path, output: Path, cases: Collection[str], settings: Mapping[str, Any], overwrite: bool, shared: bool
) -> None:
    """Make the output folder ready. Raises: UserError if it holds something that would be lost."""
    if output.exists() and output.resolve() == predictions.resolve():
        raise UserError(f"-i and -o are both {output}; give another folder with -o, the predictions are kept")
    take_output_folder(output, MARKER, "clean-up", shared=shared)
    before = read_json(output / MARKER) if (output / MARKER).is_file() else {}
    then, now = ({**state, **state.get("settings", {})} for state in (before, settings))
    other = {name: then[name] for name in now if name != "settings" and then.get(name, now[name]) != now[name]}
    if other and not overwrite:
        raise UserError(f"{output} was cleaned with other settings ({worded(other)}); give another -o, or --overwrite")
    records = (record for record in (output / "cases").glob("*.json") if not is_half_written(record.name))
    strangers = sorted({record.stem for record in records} - set(cases))
    if strangers:
        raise UserError(f"{output} holds cases that {predictions} has not: {listed(strangers)}; give another with -o")
    if not shared:
        write_marker(output / MARKER, settings, finished=False)
        for file in filter(Path.is_file, (predictions / "dataset.json", predictions / "plans.json")):
            shutil.copyfile(file, output / file.name)


def _clean_case(task: _Task) -> list[dict[str, Any]]:
    """Clean a case, and write it; rows of removed.csv, without the labels' names."""
    sources = [task.source, *([task.probabilities] if task.probabilities else [])]
    options = {"clean_up": dataclasses.asdict(task.clean_up), "reader": task.dataset.reader, "values": task.values}
    state = fingerprint(sources, options)
    record, target = task.output / "cases" / f"{task.case}.json", task.output / task.source.name
    kept = load_record(record, state)
    if kept is not None and target.is_file():
        return kept["rows"]
    files = SegmentationFiles(task.dataset.file_ending, task.dataset.reader)
    # No network predicts the ignore label.
    segmentation = read_known(files, task.source, dataclasses.replace(task.dataset, ignore=None))
    softmax, of = task.probabilities, f"the softmax output of {task.source}"
    with nullcontext() if softmax is None else read_failures_as_user_errors(softmax, of, "predict again"):
        channels = None if softmax is None else files.probabilities(softmax, segmentation, task.dataset.num_classes)
        cleaned = task.clean_up.apply(segmentation.voxels, segmentation.spacing_mm, channels)
    rows = _rows(task, segmentation, cleaned)
    with write_failures_as_user_errors(target):
        if np.array_equal(cleaned.segmentation, segmentation.voxels):
            files.copy(task.source, target)
        else:
            files.write(cleaned.segmentation, segmentation, target)
        save_record(record, state, {"rows": rows})
    return rows


def _rows(task: _Task, segmentation: Segmentation, cleaned: Cleaned) -> list[dict[str, Any]]:
    """One row per label, also for labels that the case does not have."""
    components = count_components(segmentation.voxels, task.values)
    extent = task.clean_up.extent(segmentation.voxels.shape, segmentation.spacing_mm)
    rows = []
    for value in task.values:
        own = [removal for removal in cleaned.removals if removal.label == value]
        distances = [removal.distance for removal in own if removal.distance is not None]
        rows.append(
            {
                "case": task.case,
                "value": value,
                "components": components[value],
                "removed_components": len(own),
                "removed_voxels": sum(removal.num_voxels for removal in own),
                "removed_mm3": sum(removal.volume_mm3 or 0.0 for removal in own),
                "smallest_removed_distance": min(distances, default=None),
                **extent,
                "uncertain_voxels": cleaned.uncertain_voxels.get(value, 0),
                "became": " ".join(str(v) for v in sorted({removal.became for removal in own})),
            }
        )
    return rows
