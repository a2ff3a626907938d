"""All cases of a release, side by side, into one raw data set.

DatasetXXX_Name/imagesTr, labelsTr, imagesTs, labelsTs, dataset.json   as nnU-Net wants them
DatasetXXX_Name/manifest.csv       a row a case: where it is from, what was found out about it, what was written
DatasetXXX_Name/conversion.json    version, arguments, splits, subjects that are missing
DatasetXXX_Name/problems.csv       cases that could not be converted, and why; only where there are any
DatasetXXX_Name/previews/          a picture a case, on request
DatasetXXX_Name/unlisted/          files found among the cases that are none
$nnUNet_preprocessed/DatasetXXX_Name/splits_final.json
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.conversion.case import COLUMNS, CaseJob, convert_case, is_there
from nnunetv2_anomaly.conversion.raw_dataset import READER, refuse_filled, write_dataset_json
from nnunetv2_anomaly.conversion.release import LICENCE, Case, Options, Release
from nnunetv2_anomaly.conversion.splits import seeded_test_sets, splits_from_test_sets, training_subjects, write_splits
from nnunetv2_anomaly.conversion.summary import Summary, note_unconfirmed, refuse_differing_mappings
from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.files import is_half_written, locked, read_json, write_text
from nnunetv2_anomaly.images.files import last_line
from nnunetv2_anomaly.parallel import run_jobs
from nnunetv2_anomaly.reporting.table import csv_text, unescaped

MANIFEST = "manifest.csv"
PROBLEMS = "problems.csv"
RECORD = "conversion.json"
LOCK = "conversion.lock"
UNLISTED = "unlisted"


def convert_cases(
    release: Release, cases: Sequence[Case], options: Options, arguments: Mapping[str, object]
) -> Summary:
    """Convert cases into a raw data set of nnU-Net, and write its splits; ``arguments`` are for the record.

    A case that cannot be converted does not stop the others. Finished cases of an earlier run are left alone.

    Raises: UserError for what concerns all cases: two label maps of one case, a folder that holds something else or was
        made with other options, a subject that is in no test set.
    """
    folder = options.dataset_dir
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    if twice:
        files = ", ".join(case.label_relative for case in cases if case.name == twice[0])
        raise UserError(f"{files} would all be the case {twice[0]}; expected one label map per case; remove the others")
    if options.test_sets is not None:
        splits_from_test_sets(options.test_sets, _subjects(cases))
    columns = (*COLUMNS, *(f"voxels_{name}" for name in release.labels))
    if (folder / RECORD).is_file():
        record = read_json(folder / RECORD)
        rows = _earlier_rows(columns, record, release, options, {case.name for case in cases})
    else:
        refuse_filled(folder)
        record, rows = {}, {}
    made_folder = not options.dry_run and not folder.exists()
    with nullcontext() if options.dry_run else _locked(folder):
        if not options.dry_run:
            _prepare(folder, cases)
            record |= {
                "converted_by": release.converted_by,
                "version": __version__,
                "release": release.key,
                "labels": dict(release.labels),
                "options": options.of_content(),
                "arguments": dict(arguments),
            }
            _write_record(folder, record)
        summary = _convert_each(release, cases, options, rows, columns)
        if release.has_pose:
            note_unconfirmed(summary)
        elif not options.differing_mappings:
            refuse_differing_mappings(summary, record, options)
        if summary.rows:
            # From all cases given, so that one that fails today keeps its place once it is repaired.
            drawn = seeded_test_sets(_subjects(cases) | training_subjects(summary), options.seed)
            write_splits(summary, drawn, record, options)
        if summary.rows and not options.dry_run:
            write_manifest(folder, columns, summary.rows.values())
            (folder / PROBLEMS).unlink(missing_ok=True)
            if summary.problems:
                _write_table(folder / PROBLEMS, ("case", "problem"), sorted(summary.problems.items()))
            _set_aside(folder, summary)
            _write_dataset_json(folder, release, options, summary.rows)
            _write_record(folder, record)
    if made_folder and not summary.rows:
        shutil.rmtree(folder)
    return summary


def _convert_each(
    release: Release, cases: Sequence[Case], options: Options, rows: dict[str, dict[str, str]], columns: Sequence[str]
) -> Summary:
    """Convert the cases side by side; the manifest is written after every one."""
    summary = Summary(rows=rows)
    jobs = [CaseJob(case, release, options, rows.get(case.name)) for case in cases]
    with run_jobs(convert_case, jobs, options.num_processes) as finished:
        for job, future in tqdm(finished, total=len(jobs), desc="converting", unit="case"):
            outcome, name = future.result(), job.case.name
            if outcome.problem is not None:
                summary.problems[name] = outcome.problem
                if outcome.dropped:
                    summary.rows.pop(name, None)
            if outcome.row is not None:
                summary.rows[name] = outcome.row
                (summary.kept if outcome.kept else summary.converted).append(name)
            if not options.dry_run and not outcome.kept and (outcome.row is not None or outcome.dropped):
                write_manifest(options.dataset_dir, columns, summary.rows.values())
    if not options.dry_run:
        # Rows of cases that this run was not given, whose files are gone or were made with other options, are no cases.
        for name in sorted(set(summary.rows) - {case.name for case in cases}):
            if not is_there(summary.rows[name], options):
                summary.problems[name] = "its files of before are gone or of other options; convert it again"
                del summary.rows[name]
    return summary


def _earlier_rows(
    columns: Sequence[str], record: Mapping, release: Release, options: Options, given: set[str]
) -> dict[str, dict[str, str]]:
    """The manifest of earlier runs. Raises: UserError if they made other cases, not all of which this one replaces."""
    folder = options.dataset_dir
    now = {"release": release.key, "labels": dict(release.labels), "options": options.of_content()}
    changed = [key for key, value in now.items() if record.get(key) != value]
    if not changed:
        return read_manifest(folder, columns)
    replaceable = "release" not in changed and set(read_manifest(folder)) <= given
    if options.overwrite and replaceable:
        return {} if "labels" in changed else read_manifest(folder, columns)
    differences = "; ".join(f"{key} {record.get(key)} then, {now[key]} now" for key in changed)
    advice = "--overwrite converts all cases again" if replaceable else "choose another number with -d"
    raise UserError(f"{folder} was converted otherwise ({differences}); {advice}")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One conversion at a time into a folder, made if need be. Raises: UserError if another one is at work there."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, f"another conversion is writing to {folder}; wait for its end, then run again"):
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def _prepare(folder: Path, cases: Sequence[Case]) -> None:
    """Create the folders, and mark the data set as unfinished."""
    for subset in ("Tr", "Ts") if any(case.is_test for case in cases) else ("Tr",):
        for kind in ("images", "labels"):
            (folder / f"{kind}{subset}").mkdir(parents=True, exist_ok=True)
    # Without it nnU-Net does not take an unfinished data set for a whole one.
    (folder / "dataset.json").unlink(missing_ok=True)


def _set_aside(folder: Path, summary: Summary) -> None:
    """Leave nnU-Net the manifest's cases and no others: delete half-written files, move others aside."""
    of_cases = {folder / row[f"{kind}_file"] for row in summary.rows.values() for kind in ("image", "label")}
    aside = []
    for place in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        for file in sorted((folder / place).glob("*")):
            if is_half_written(file.name):
                file.unlink()
            elif file not in of_cases:
                (folder / UNLISTED / place).mkdir(parents=True, exist_ok=True)
                os.replace(file, folder / UNLISTED / place / file.name)
                aside.append(f"{place}/{file.name}")
    if aside:
        summary.notes.append(f"Files that belong to no case were moved to {folder / UNLISTED}: {listed(aside)}.")


def read_manifest(folder: Path, columns: Sequence[str] | None = None) -> dict[str, dict[str, str]]:
    """Rows of the manifest by case, if there is one. Raises: UserError if it has other columns than the given ones."""
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        fault = f"cannot be read as the table that a conversion writes ({last_line(error)})"
        raise UserError(f"{file} {fault}; delete its folder, or choose another number with -d") from error
    if columns is not None and list(table) != list(columns):
        fault = "has other columns than this conversion writes, so it is of another release or version"
        raise UserError(f"{file} {fault}; delete its folder, or choose another number with -d")
    return {row["case"]: row for row in table.map(unescaped).to_dict("records")}


def write_manifest(folder: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write the rows, sorted by case, beside and renamed."""
    _write_table(folder / MANIFEST, columns, sorted(rows, key=lambda row: row["case"]))


def _write_table(file: Path, columns: Sequence[str], rows: Sequence) -> None:
    write_text(file, csv_text(pd.DataFrame(rows, columns=list(columns))))


def _write_dataset_json(folder: Path, release: Release, options: Options, rows: Mapping[str, dict[str, str]]) -> None:
    training = {name: row for name, row in sorted(rows.items()) if row["subset"] == "training"}
    # nnU-Net takes a path that is not absolute as one in the data set's folder.
    files = {name: {"images": [row["image_file"]], "label": row["label_file"]} for name, row in training.items()}
    mirrored = sum(row["mirrored"] == "yes" for row in rows.values())
    note = f" {mirrored} left knees were mirrored into right ones ({MANIFEST})." if mirrored else ""
    write_dataset_json(
        folder,
        name=folder.name,
        labels=release.labels,
        num_training=len(training),
        overwrite_image_reader_writer=READER,
        description=release.description + note,
        reference=release.reference,
        licence=LICENCE,
        converted_by=release.converted_by,
        **({"dataset": files} if options.reference else {}),
    )


def _write_record(folder: Path, record: Mapping) -> None:
    write_text(folder / RECORD, json.dumps(record, indent=2, default=str) + "\n")


def _subjects(cases: Sequence[Case]) -> dict[str, str]:
    """Case -> subject, of the training cases whose subject is known."""
    return {case.name: case.subject for case in cases if not case.is_test and case.subject}
