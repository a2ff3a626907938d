"""Signed surface distances, and differences of cartilage thickness, of predictions and references."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.evaluation.case import without_ignored
from nnunetv2_anomaly.evaluation.pairing import Pairs
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.images.dataset_description import DatasetDescription
from nnunetv2_anomaly.images.segmentations import Segmentation, SegmentationFiles, read_known
from nnunetv2_anomaly.measurements.bones import Options, Structures
from nnunetv2_anomaly.measurements.cartilage import CartilageMap
from nnunetv2_anomaly.measurements.case import pose_of, side_of_labels
from nnunetv2_anomaly.measurements.knee import measure_knee
from nnunetv2_anomaly.measurements.maps import FlatMap, difference, flat_figure, flattened
from nnunetv2_anomaly.measurements.signed_surface import SIGNED_METRICS, signed_surface
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.records import fingerprint, load_record, save_record
from nnunetv2_anomaly.reporting.drawing import save_figure
from nnunetv2_anomaly.reporting.page import Content, Section
from nnunetv2_anomaly.reporting.table import Cell, Table, csv_text, in_words, number, word_cell

_DIFFERENCE_METRICS = ("coverage", "thickness_difference_mean_mm", "thickness_difference_sd_mm")
#: name of a table's file -> its title, what its rows are of, and its metrics
_TABLES: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "surfaces": ("Surface distances, mean and SD over cases", "label", SIGNED_METRICS),
    "thickness_differences": ("Cartilage thickness, prediction less reference", "bone", _DIFFERENCE_METRICS),
}
#: of the colour scale of differences, mm
_LIMIT_MM = 1.5


@dataclass(frozen=True)
class _SurfaceTask:
    case: str
    reference: Path
    model: str
    prediction: Path
    dataset: DatasetDescription
    output: Path


def evaluate_surfaces(
    pairs: Pairs, dataset: DatasetDescription, output: Path, num_processes: int
) -> tuple[list[Section], str]:
    """Compare the surfaces of every prediction, before post-processing, with its reference.

    Writes surfaces/surfaces.csv, thickness_differences.csv and per case MODEL/CASE.json and, where thickness could be
    compared, CASE.png.

    Args: output: of the evaluation.
    Returns: sections for its report, and a sentence that lists the cases that could not be measured.
    """
    found, failures = [], []
    for model in pairs.models:
        tasks = [
            _SurfaceTask(case, reference, model.name, model.files[case], dataset, output)
            for case, reference in pairs.references.items()
        ]
        of_cases, failed = run_cases(_measure, tasks, num_processes, f"surfaces of {model.name}", "measured")
        failures += [failed] if failed else []
        found += [of_cases[case] for case in sorted(of_cases)]
    words = "Predictions as they are. Signed distances are above 0 where a prediction reaches outside its reference."
    content: list[Content] = [words]
    (output / "surfaces").mkdir(exist_ok=True)
    for kind, (title, of, metrics) in _TABLES.items():
        rows = [row for of_case in found for row in of_case[kind]]
        table = pd.DataFrame(rows, columns=["case", "model", of, *metrics])
        write_text(output / "surfaces" / f"{kind}.csv", csv_text(table))
        content += [_summary(title, table, of, metrics)] if rows else []
    return [Section("Surfaces", content)], "\n".join(failures)


def _summary(title: str, table: pd.DataFrame, of: str, metrics: Sequence[str]) -> Table:
    rows = []
    for (name, model), own in table.groupby([of, "model"], sort=False):
        numbers = [(number(own[metric].mean(), 3), number(own[metric].std(), 3)) for metric in metrics]
        cells = [Cell(mean, beneath=f"SD {sd}") for mean, sd in numbers]
        rows.append([word_cell(of, str(name)), word_cell("model", str(model)), *cells])
    header = (of, "model", *(in_words(metric) for metric in metrics))
    return Table(title, header, rows, words=2, grouped=1)


def _measure(task: _SurfaceTask) -> dict[str, list[dict[str, Any]]]:
    state = fingerprint([task.reference, task.prediction], {"dataset": dataclasses.asdict(task.dataset)})
    record = task.output / "surfaces" / task.model / f"{task.case}.json"
    if (kept := load_record(record, state)) is not None:
        return kept
    files = SegmentationFiles(task.dataset.file_ending, task.dataset.reader)
    reference, prediction = (read_known(files, file, task.dataset) for file in (task.reference, task.prediction))
    if reference.voxels.ndim != 3:
        raise UserError(f"{task.reference} has {reference.voxels.ndim} axes; --surfaces needs volumes")
    if task.dataset.ignore is not None:
        ignored = reference.voxels == task.dataset.ignore
        reference, prediction = (
            dataclasses.replace(of, voxels=without_ignored(of.voxels, ignored)) for of in (reference, prediction)
        )
    head = {"case": task.case, "model": task.model}
    surfaces = []
    for name, values in task.dataset.labels.items():
        of_reference, of_prediction = (np.isin(of.voxels, values) for of in (reference, prediction))
        if of_reference.any():
            metrics = signed_surface(of_reference, of_prediction, reference.spacing_mm)
            surfaces.append({**head, "label": name, **metrics})
    differences: list[dict[str, Any]] = []
    maps: list[tuple[str, FlatMap]] = []
    side = side_of_labels(reference, task.dataset) or "right"
    of_both = [cartilage_maps(of, task.dataset, side) for of in (reference, prediction)]
    for bone in sorted(of_both[0].keys() & of_both[1].keys()):
        flat = flattened([of[bone] for of in of_both])
        found = difference(flat[1], flat[0])
        words = f"{in_words(bone)}: {number(found.mean_mm, 2)} mm on {number(100 * found.coverage, 0)} %"
        nowhere = np.zeros_like(flat[0].is_bare)
        maps.append((words, dataclasses.replace(flat[0], values_mm=found.values_mm, is_bare=nowhere)))
        numbers = (found.coverage, found.mean_mm, found.sd_mm)
        differences.append({**head, "bone": bone, **dict(zip(_DIFFERENCE_METRICS, numbers, strict=True))})
    if maps:
        record.parent.mkdir(parents=True, exist_ok=True)
        limits, label = (-_LIMIT_MM, _LIMIT_MM), "prediction less reference [mm]"
        save_figure(flat_figure(maps, task.case, "RdBu_r", limits, label), record.with_suffix(".png"))
    rows = {"surfaces": surfaces, "thickness_differences": differences}
    save_record(record, state, rows)
    return rows


def cartilage_maps(segmentation: Segmentation, dataset: DatasetDescription, side: str) -> dict[str, CartilageMap]:
    """Cartilage thickness by bone, where it could be measured.

    Args: side: "right" or "left", the same for maps that are compared.
    """
    structures = Structures.of(dataset.labels, dataset.roles)
    if not structures.cartilages:
        return {}
    found = measure_knee(
        segmentation.voxels, *pose_of(segmentation), structures, side, Options(quantities=("thickness",))
    )
    return {bone: of for bone, of in found.cartilages.items() if len(of.measured)}
