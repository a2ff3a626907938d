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

import dataclasses
import hashlib
import json
import os
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tqdm import tqdm

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.conversion.case import COLUMNS, CaseJob, CaseOutcome, convert_case, is_there
from nnunetv2_anomaly.conversion.manifest import (
    MANIFEST,
    PROBLEMS,
    read_manifest,
    write_manifest,
    write_table,
)
from nnunetv2_anomaly.conversion.mapping import CLEAR_MARGIN, CLEAR_SCORE, AxisMapping
from nnunetv2_anomaly.conversion.raw_dataset import READER, refuse_filled, write_dataset_json
from nnunetv2_anomaly.conversion.release import Case, Options, Release
from nnunetv2_anomaly.conversion.splits import seeded_test_sets, splits_from_test_sets
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import is_half_written, write_text
from nnunetv2_anomaly.parallel import run_jobs

try:
    import fcntl
except ImportError:  # Windows has no such locks; two conversions into one folder are then not told apart
    fcntl = None

RECORD = "conversion.json"
LOCK = "conversion.lock"
UNLISTED = "unlisted"


@dataclasses.dataclass
class Summary:
    """What a run did."""

    converted: list[str] = dataclasses.field(default_factory=list)
    kept: list[str] = dataclasses.field(default_factory=list)  # from an earlier run
    problems: dict[str, str] = dataclasses.field(default_factory=dict)  # case -> why
    faults: list[str] = dataclasses.field(default_factory=list)  # what is wrong beside the cases
    notes: list[str] = dataclasses.field(default_factory=list)  # what the user should know, and is no fault
    rows: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)  # the manifest


def convert_cases(
    release: Release,
    cases: Sequence[Case],
    options: Options,
    *,
    splits_dir: Path,
    test_sets: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
    num_processes: int = 2,
    differing_mappings: bool = False,
    arguments: Mapping[str, object] | None = None,
) -> Summary:
    """Convert cases into a raw data set of nnU-Net, and write its splits.

    A case that cannot be converted does not stop the others. Finished cases of an earlier run are left alone.

    Args:
        release: what the cases are of.
        cases: of different names.
        options: where and how they are written.
        splits_dir: the data set's folder in nnU-Net's preprocessed folder; made if missing.
        test_sets: subjects of each fold's validation set; None for a seeded draw.
        seed: of that draw.
        num_processes: cases at a time.
        differing_mappings: whether masks without pose may have their axes in different orders within the release.
        arguments: what the user gave, for the record.

    Raises: UserError for what concerns all cases: nothing to convert, a folder that holds something else or was made
        with other options, a subject that is in no test set.
    """
    folder = options.dataset_dir
    if not cases:
        raise UserError("There is no case to convert; see that the folder of label maps is the right one.")
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    if twice:
        files = ", ".join(case.label_relative for case in cases if case.name == twice[0])
        raise UserError(f"{files} would both be the case {twice[0]}; expected one label map a case: remove the others.")
    if test_sets is not None:
        splits_from_test_sets(test_sets, _subjects(cases))
    columns = (*COLUMNS, *(f"voxels_{name}" for name in release.labels))
    record = _earlier_record(folder)
    rows = _earlier_rows(folder, columns, record, release, options, cases)
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
                "arguments": {key: _plain(value) for key, value in (arguments or {}).items()},
            }
            _write_record(folder, record)
        summary = _convert_each(release, cases, options, rows, columns, num_processes)
        if release.has_pose:
            _note_unconfirmed(summary)
        elif not differing_mappings:
            _refuse_differing_mappings(summary, record, options)
        if summary.rows:
            drawn = ""
            if test_sets is None:
                # From all cases given, so that one that fails today has its place when it is mended.
                test_sets = seeded_test_sets(_subjects(cases) | _training_subjects(summary), seed)
                drawn = f"drawn with seed {seed}"
            _write_splits(summary, splits_dir, test_sets, drawn, record, options)
        if summary.rows and not options.dry_run:
            write_manifest(folder, columns, summary.rows.values())
            _write_problems(folder, summary.problems)
            _set_aside(folder, summary)
            _write_dataset_json(folder, release, options, summary.rows)
            _write_record(folder, record)
    if made_folder and not summary.rows:
        shutil.rmtree(folder)
    return summary


def _convert_each(
    release: Release,
    cases: Sequence[Case],
    options: Options,
    rows: dict[str, dict[str, str]],
    columns: Sequence[str],
    num_processes: int,
) -> Summary:
    """Convert the cases side by side; the manifest is written after every one."""
    summary = Summary(rows=rows)
    jobs = [CaseJob(case, release, options, rows.get(case.name)) for case in cases]
    with run_jobs(convert_case, jobs, num_processes) as finished:
        for job, future in tqdm(finished, total=len(jobs), desc="converting", unit="case"):
            try:
                outcome = future.result()
            except Exception as error:  # the process died, for want of memory or by force
                outcome = CaseOutcome(problem=f"its process ended ({error!r}); run again, with fewer processes (-np).")
            _take(summary, job, outcome)
            if not options.dry_run and not outcome.kept and (outcome.row is not None or outcome.dropped):
                write_manifest(options.dataset_dir, columns, summary.rows.values())
    if not options.dry_run:
        _drop_lost(summary, options, {case.name for case in cases})
    return summary


def told(summary: Summary, options: Options) -> str:
    """A run's outcome in words, with a table of what failed."""
    verb = "would be converted" if options.dry_run else "converted"
    lines = [f"{len(summary.converted)} cases {verb}, {len(summary.kept)} were there from an earlier run."]
    if options.dry_run:
        for name in summary.converted:
            row = summary.rows[name]
            lines.append(
                f"  {name}: {row['image_source']} + {row['label_source']}, side {row['side'] or 'unknown'}"
                f"{', mirrored' if row['mirrored'] == 'yes' else ''}, mapping {row['mapping']} "
                f"(evidence {row['mapping_evidence']})"
            )
    elif summary.rows:
        training = sum(row["subset"] == "training" for row in summary.rows.values())
        lines.append(f"{options.dataset_dir} holds {training} training and {len(summary.rows) - training} test cases.")
    mappings = Counter(row["mapping"] for row in summary.rows.values())
    if summary.rows:
        lines.append("Axis mappings: " + ", ".join(f"{text} in {n} cases" for text, n in mappings.most_common()))
    lines += summary.notes
    lines += summary.faults
    if summary.problems:
        lines.append(f"{len(summary.problems)} cases failed:")
        width = max(len(name) for name in summary.problems)
        for name, problem in sorted(summary.problems.items()):
            wrapped = textwrap.wrap(problem, 118 - width, break_long_words=False, break_on_hyphens=False)
            lines += [f"  {name if i == 0 else '':{width}}  {line}" for i, line in enumerate(wrapped)]
    return "\n".join(lines)


def _take(summary: Summary, job: CaseJob, outcome: CaseOutcome) -> None:
    name = job.case.name
    if outcome.problem is not None:
        summary.problems[name] = outcome.problem
        if outcome.dropped:
            summary.rows.pop(name, None)
        return
    summary.rows[name] = outcome.row
    (summary.kept if outcome.kept else summary.converted).append(name)


def _earlier_record(folder: Path) -> dict:
    """What conversion.json says of earlier runs.

    Raises: UserError if the folder holds something that is no conversion of ours.
    """
    file = folder / RECORD
    if not file.is_file():
        refuse_filled(folder)
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("no record")
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({error}); delete the data set's folder and convert again.") from error
    return record


def _earlier_rows(
    folder: Path,
    columns: Sequence[str],
    record: Mapping,
    release: Release,
    options: Options,
    cases: Sequence[Case],
) -> dict[str, dict[str, str]]:
    """The manifest of earlier runs.

    Raises: UserError if they made other cases than this one would, and this one does not replace them all.
    """
    if not record:
        return {}
    now = {"release": release.key, "labels": dict(release.labels), "options": options.of_content()}
    changed = [key for key, value in now.items() if record.get(key) != value]
    if not changed:
        return read_manifest(folder, columns)
    others = sorted(set(read_manifest(folder)) - {case.name for case in cases})
    if options.overwrite and not others and "release" not in changed:
        return {} if "labels" in changed else read_manifest(folder, columns)
    told = "; ".join(f"{key} {record.get(key)} then, {now[key]} now" for key in changed)
    mend = "choose another number with -d"
    if not others and "release" not in changed:
        mend = "--overwrite makes all cases anew"
    raise UserError(f"{options.dataset_dir} was converted otherwise ({told}); {mend}.")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One conversion at a time into a folder, which is made if need be.

    Raises: UserError if another one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another conversion is writing to {folder}; wait for its end, then run again.") from error
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def _prepare(folder: Path, cases: Sequence[Case]) -> None:
    """Make the folders, and clear away what an interrupted run left half done."""
    for subset, wanted in (("Tr", True), ("Ts", any(case.is_test for case in cases))):
        for kind in ("images", "labels"):
            if wanted:
                (folder / f"{kind}{subset}").mkdir(parents=True, exist_ok=True)
    # Until the end nnU-Net shall not take the data set for a whole one.
    (folder / "dataset.json").unlink(missing_ok=True)


def _set_aside(folder: Path, summary: Summary) -> None:
    """See that nnU-Net finds the manifest's cases and no others: half files go, others are put aside."""
    listed = {folder / row[f"{kind}_file"] for row in summary.rows.values() for kind in ("image", "label")}
    aside = []
    for place in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        for file in sorted((folder / place).glob("*")):
            if is_half_written(file.name):
                file.unlink()
            elif file not in listed:
                (folder / UNLISTED / place).mkdir(parents=True, exist_ok=True)
                os.replace(file, folder / UNLISTED / place / file.name)
                aside.append(f"{place}/{file.name}")
    if aside:
        summary.notes.append(f"Files that are no case's were put into {folder / UNLISTED}: {', '.join(aside)}.")


def _drop_lost(summary: Summary, options: Options, given: set[str]) -> None:
    """Rows of cases that this run was not given, whose files are gone or were made with other options, are no cases."""
    for name in sorted(set(summary.rows) - given):
        if not is_there(summary.rows[name], options):
            summary.problems[name] = "converted before, and its files are gone or of other options; convert it again."
            del summary.rows[name]


def _refuse_differing_mappings(summary: Summary, record: dict, options: Options) -> None:
    """All masks of a release were stored the same way; a case that says otherwise was mistaken for another one.

    The same way may be in space, or in the order of the slices' names, as whoever stored the mask had read them. What
    a run that came to its end found stands; otherwise the majority does.
    """
    if not summary.rows:
        return
    ways = [{name: _stored_mapping(row, by_name) for name, row in summary.rows.items()} for by_name in (False, True)]
    agreed = record.get("agreed_mapping")
    if agreed is not None:
        way, mapping, tied = ways[agreed["by_name"]], agreed["mapping"], False
    else:
        rankings = [Counter(way.values()).most_common() for way in ways]
        by_name = max((False, True), key=lambda k: rankings[k][0][1])  # in space where both agree
        way, ranking = ways[by_name], rankings[by_name]
        mapping, tied = ranking[0][0], len(ranking) > 1 and ranking[0][1] == ranking[1][1]
        if not tied:
            record["agreed_mapping"] = {"by_name": by_name, "mapping": mapping}
    counts = Counter(way.values()).most_common()
    others = "; ".join(f"{text} in {count} cases" for text, count in counts)
    for name, found in way.items():
        if found == mapping and not tied:
            continue
        row = summary.rows.pop(name)
        summary.problems[name] = (
            f"its mask's axes are {row['mapping']} by the voxels (evidence {row['mapping_evidence']}), and the release "
            f"has {others}; expected all masks of a release to be stored alike: check that mask and image belong "
            "together, or give --differing_mappings if they really differ."
        )
        for done in (summary.converted, summary.kept):
            if name in done:
                done.remove(name)
        for file in () if options.dry_run else (row["image_file"], row["label_file"], f"previews/{name}.png"):
            if not Path(file).is_absolute():
                (options.dataset_dir / file).unlink(missing_ok=True)


def _note_unconfirmed(summary: Summary) -> None:
    """Masks with a pose are believed; where the voxels do not bear it out clearly, somebody should look."""
    doubtful = [
        f"{name} ({row['mapping_evidence']})"
        for name, row in summary.rows.items()
        if float(row["mapping_evidence"]) < CLEAR_MARGIN or float(row["mapping_score_bits"]) < CLEAR_SCORE
    ]
    if doubtful:
        summary.notes.append(
            f"The voxels of {len(doubtful)} cases do not clearly bear out that the mask is the image's own, as their "
            f"headers say; look at them (--previews): {', '.join(doubtful)}"
        )


def _stored_mapping(row: Mapping[str, str], by_name: bool) -> str:
    """Mapping from the mask to the image in space, or to the image with its slices in the order of their names."""
    if not by_name or row["slices_named_towards"] not in ("L", "P", "I"):
        return row["mapping"]
    axis = {"I": 0, "P": 1, "L": 2}[row["slices_named_towards"]]  # of the array (z, y, x)
    mapping = AxisMapping.parse(row["mapping"])
    return str(AxisMapping(mapping.order, tuple(sorted(set(mapping.flips) ^ {axis}))))


def _write_problems(folder: Path, problems: Mapping[str, str]) -> None:
    if not problems:
        (folder / PROBLEMS).unlink(missing_ok=True)
        return
    rows = [{"case": name, "problem": problem} for name, problem in sorted(problems.items())]
    write_table(folder / PROBLEMS, ("case", "problem"), rows)


def _write_dataset_json(folder: Path, release: Release, options: Options, rows: Mapping[str, dict[str, str]]) -> None:
    training = {name: row for name, row in sorted(rows.items()) if row["subset"] == "training"}
    more = {}
    if options.reference:
        # nnU-Net takes a path that is not absolute as one in the data set's folder.
        more["dataset"] = {
            name: {"images": [row["image_file"]], "label": row["label_file"]} for name, row in training.items()
        }
    mirrored = sum(row["mirrored"] == "yes" for row in rows.values())
    write_dataset_json(
        folder,
        name=folder.name,
        labels=release.labels,
        num_training=len(training),
        file_ending=".nii.gz",
        overwrite_image_reader_writer=READER,
        description=release.description
        + (f" {mirrored} left knees were mirrored into right ones ({MANIFEST})." if mirrored else ""),
        reference=release.reference,
        license=release.licence,
        converted_by=release.converted_by,
        **more,
    )


def _write_record(folder: Path, record: Mapping) -> None:
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def _subjects(cases: Sequence[Case]) -> dict[str, str]:
    """Case -> subject, of the training cases whose subject is known."""
    return {case.name: case.subject for case in cases if not case.is_test and case.subject}


def _training_subjects(summary: Summary) -> dict[str, str]:
    return {name: row["subject"] for name, row in summary.rows.items() if row["subset"] == "training"}


def _write_splits(
    summary: Summary,
    splits_dir: Path,
    test_sets: Sequence[Sequence[str]] | None,
    drawn: str,
    record: dict,
    options: Options,
) -> None:
    """Write splits_final.json, unless the user has put other splits there.

    Args: drawn: how the test sets were drawn; empty if they were published.
    """
    subjects = _training_subjects(summary)
    if not test_sets or not subjects:
        summary.notes.append("No splits were written: there is one subject only; train with fold 'all'.")
        return
    absent = sorted({subject for members in test_sets for subject in members} - set(subjects.values()))
    record["splits"] = drawn or "published"
    record["subjects_not_converted"] = absent
    if absent and not drawn:
        listed = "\n".join(textwrap.wrap(", ".join(absent), 116, initial_indent="  ", subsequent_indent="  "))
        summary.notes.append(f"{len(absent)} subjects of the split file were not converted:\n{listed}")
    splits = splits_from_test_sets(test_sets, subjects)
    empty = [str(fold) for fold, split in enumerate(splits) if not split["val"] or not split["train"]]
    if empty:
        summary.notes.append(f"Fold {', '.join(empty)} has no case to validate or none to train; it cannot be trained.")
    text = json.dumps(splits, indent=2) + "\n"
    file = splits_dir / "splits_final.json"
    if file.is_file() and file.read_bytes() != text.encode():
        ours = hashlib.sha256(file.read_bytes()).hexdigest() == record.get("splits_sha256")
        if not ours and not options.overwrite:
            summary.faults.append(f"{file} holds other splits and was left alone; --overwrite replaces them.")
            return
        summary.notes.append("The splits have changed: what was trained on a fold before is of the earlier ones.")
    if options.dry_run:
        return
    splits_dir.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    record["splits_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    summary.notes.append(
        f"{file}: {', '.join(str(len(split['val'])) for split in splits)} cases validate in folds 0 to "
        f"{len(splits) - 1}, {drawn or 'as published'}, by subject."
    )


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
