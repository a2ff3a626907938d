"""Measures the change between visits, pair by pair, of a folder of segmentations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.images.dataset_description import DatasetDescription
from nnunetv2_anomaly.images.segmentations import SegmentationFiles, read_known
from nnunetv2_anomaly.measurements.bones import ALL, Earlier, Found, Structures
from nnunetv2_anomaly.measurements.case import Options, measured, state_of
from nnunetv2_anomaly.measurements.change import (
    CHANGE_COLUMNS,
    MATCH_COLUMNS,
    RESIDUAL,
    Limits,
    Obstacles,
    Pair,
    changed_values,
    matched_lesions,
    structures_of_bone,
)
from nnunetv2_anomaly.measurements.registration import register
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.records import fingerprint, load_record, save_record
from nnunetv2_anomaly.reporting.table import csv_text


@dataclass(frozen=True)
class ChangeOptions:
    """What the numbers of a change depend on, beside those of its visits."""

    limits: Limits = dataclasses.field(default_factory=Limits)
    limits_file: Path | None = None
    max_residual_mm: float = 1.0  # of the registration; beyond it the bone's regions are not compared
    stable_percent: float = 10.0


@dataclass(frozen=True)
class _PairTask:
    pair: Pair
    files: tuple[Path, Path]
    output: Path
    dataset: DatasetDescription
    options: Options
    change: ChangeOptions
    known: tuple[Mapping[str, str], Mapping[str, str]]

    @property
    def case(self) -> str:
        return self.pair.name


@dataclass(frozen=True)
class Changes:
    """What was found of all pairs."""

    values: pd.DataFrame  # change.csv
    lesions: pd.DataFrame  # lesion_matches.csv
    has_limits: bool
    failed: str  # lists the pairs that could not be measured; empty if there is none


def measure_changes(
    pairs: Sequence[Pair],
    files: Mapping[str, Path],
    output: Path,
    dataset: DatasetDescription,
    options: Options,
    change: ChangeOptions,
    *,
    manifest: Mapping[str, Mapping[str, str]],
    num_processes: int,
) -> Changes:
    """Measure the change of each pair, in the regions of its earlier visit, and write change.csv, lesion_matches.csv.

    Args: files: case -> segmentation. output: of ``measure_folder``; pairs/PAIR.json are kept there.
    Returns: both tables, and the pairs that failed.
    """
    tasks = []
    for pair in pairs:
        known = manifest.get(pair.before, {}), manifest.get(pair.after, {})
        of_both = files[pair.before], files[pair.after]
        tasks.append(_PairTask(pair, of_both, output, dataset, options, change, known))
    found, failed = run_cases(_measure_pair, tasks, num_processes, "comparing visits", "compared")
    tables = []
    for kind, columns in (("change", CHANGE_COLUMNS), ("lesion_matches", MATCH_COLUMNS)):
        rows = [row for name in sorted(found) for row in found[name][kind]]
        tables.append(pd.DataFrame(rows, columns=list(columns)))
        write_text(output / f"{kind}.csv", csv_text(tables[-1]))
    return Changes(tables[0], tables[1], bool(change.limits), failed)


def _measure_pair(task: _PairTask) -> dict[str, list[dict[str, Any]]]:
    change = task.change
    limits = [] if change.limits_file is None else [change.limits_file]
    settings = {"max_residual_mm": change.max_residual_mm, "stable_percent": change.stable_percent}
    depends_on = {**state_of(task.dataset, task.options, *task.known), **settings, "subject": task.pair.subject}
    state = fingerprint([*task.files, *limits], depends_on)
    record = task.output / "pairs" / f"{task.pair.name}.json"
    if (kept := load_record(record, state)) is not None:
        return kept
    before, after, refused, side = _both_visits(task)
    head = {"pair": task.pair.name, "subject": task.pair.subject, "side": side or ""}
    head |= {"case_before": task.pair.before, "case_after": task.pair.after}
    obstacles = Obstacles.of(before, after, refused)
    lesions = matched_lesions(before, after, obstacles, change.limits, change.stable_percent)
    lesions = lesions if "lesions" in task.options.quantities else []
    rows = {
        "change": [{**head, **row} for row in changed_values(before, after, obstacles, change.limits)],
        "lesion_matches": [{**head, **row} for row in lesions],
    }
    save_record(record, state, rows)
    return rows


def _both_visits(task: _PairTask) -> tuple[Found, Found, dict[str, str], str | None]:
    """The earlier visit, the later one in its regions, why regions of some structures are not compared, and the side.

    Raises: UserError if the visits are of two sides.
    """
    files = SegmentationFiles(task.dataset.file_ending, task.dataset.reader)
    visits = [read_known(files, file, task.dataset) for file in task.files]
    cases = (task.pair.before, task.pair.after)
    side, before = measured(visits[0], cases[0], task.dataset, task.options, task.known[0])
    # In its own pose the later visit is needed only for registration.
    light = dataclasses.replace(task.options, quantities=())
    other, plain = measured(visits[1], cases[1], task.dataset, light, task.known[1])
    if side != other:
        words = f"{side or 'of unknown side'} ({cases[0]}) and {other or 'of unknown side'} ({cases[1]})"
        raise UserError(f"the knees of {task.pair.name} are {words}; expected two visits of one knee")
    structures = Structures.of(task.dataset.labels, task.dataset.roles)
    earlier: dict[str, Earlier] = {}
    refused: dict[str, str] = {}
    for name in sorted(before.bones.keys() & plain.bones.keys()):
        motion = register(plain.bones[name], before.bones[name])
        if motion.residual_mm <= task.change.max_residual_mm:
            earlier[name] = Earlier(before.bones[name].landmarks, motion)
        else:
            why = f"registration refused: its residual is {motion.residual_mm:.2f} mm"
            refused |= dict.fromkeys(structures_of_bone(name, structures), why)
    _, after = measured(visits[1], cases[1], task.dataset, task.options, task.known[1], earlier)
    for name, of in earlier.items():
        after.add(name, ALL, RESIDUAL, of.motion.residual_mm, "mm")
    return before, after, refused, side
