"""Cross-validation by subject: all visits of a person stay on one side."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunetv2_anomaly.conversion.release import Options
from nnunetv2_anomaly.conversion.sources import read_lines
from nnunetv2_anomaly.conversion.summary import Summary
from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.files import write_text

NUM_FOLDS = 5


def read_test_sets(file: Path) -> list[list[str]]:
    """Read the published cross-validation: a line "Test set N:", then one subject a line.

    Returns: the subjects of each test set, in the file's order.
    Raises: UserError if the file is missing, holds no test set or an empty one, or names a subject twice.
    """
    sets: list[list[str]] = []
    home: dict[str, int] = {}
    expected = "test sets: a line 'Test set 1:', then one subject per line"
    for number, line in enumerate(read_lines(file, expected), start=1):
        text, place = line.strip().rstrip(",;").strip(), f"{file}, line {number}"
        if re.fullmatch(r"test set \d+\s*:?", text, re.IGNORECASE):
            sets.append([])
        elif text and (not sets or not re.fullmatch(r"[A-Za-z0-9_-]+", text)):
            raise UserError(f"{place}: {text!r}; expected 'Test set N:' or one subject per line")
        elif text in home:
            raise UserError(f"{place}: subject {text} is in test sets {home[text]} and {len(sets)}; expected once")
        elif text:
            home[text] = len(sets)
            sets[-1].append(text)
    if not (sets and all(sets)):
        raise UserError(f"{file} holds {len(sets)} test sets, some of them empty; expected subjects in each")
    return sets


def splits_from_test_sets(
    test_sets: Sequence[Sequence[str]], subjects: Mapping[str, str]
) -> list[dict[str, list[str]]]:
    """nnU-Net's splits, one a test set: its cases validate, all others (case -> subject) train.

    Raises: UserError if a case's subject is in no test set: it would never be validated.
    """
    fold_of = {subject: fold for fold, members in enumerate(test_sets) for subject in members}
    strangers = sorted({subject for subject in subjects.values() if subject not in fold_of})
    if strangers:
        fault = f"{len(strangers)} of the converted subjects are in none of the {len(test_sets)} test sets"
        raise UserError(f"{fault} ({listed(strangers)}); give the split file of this release, or none")
    split_of = {case: fold_of[subject] for case, subject in sorted(subjects.items())}
    return [
        {kind: [case for case, of in split_of.items() if (of == fold) == (kind == "val")] for kind in ("train", "val")}
        for fold in range(len(test_sets))
    ]


def seeded_test_sets(subjects: Mapping[str, str], seed: int) -> list[list[str]]:
    """Deal the subjects (case -> subject) into five test sets of nearly equal numbers, fewer for fewer subjects.

    Returns: no set at all for a single subject: nothing would be left to train on.
    """
    names = sorted(set(subjects.values()))
    if len(names) < 2:
        return []
    order = np.random.default_rng(seed).permutation(len(names))
    return [sorted(names[i] for i in part) for part in np.array_split(order, min(NUM_FOLDS, len(names)))]


def write_splits(summary: Summary, drawn_sets: Sequence[Sequence[str]], record: dict, options: Options) -> None:
    """Write splits_final.json, of the published test sets or the drawn ones, unless the user has put others there."""
    test_sets, drawn, splits_dir = options.test_sets, "", options.splits_dir
    if test_sets is None:
        test_sets, drawn = drawn_sets, f"drawn with seed {options.seed}"
    subjects = training_subjects(summary)
    if not test_sets or not subjects:
        summary.notes.append("No splits were written: there is one subject only; train with fold 'all'.")
        return
    absent = sorted({subject for members in test_sets for subject in members} - set(subjects.values()))
    record["splits"] = drawn or "published"
    record["subjects_not_converted"] = absent
    if absent and not drawn:
        note = f"{len(absent)} subjects of the split file were not converted: {listed(absent)}"
        summary.notes.append(f"{note} (all of them in conversion.json).")
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
    counts = ", ".join(str(len(split["val"])) for split in splits)
    folds = f"folds 0 to {len(splits) - 1}, {drawn or 'as published'}, by subject"
    summary.notes.append(f"{file}: {counts} cases validate in {folds}.")


def training_subjects(summary: Summary) -> dict[str, str]:
    """Case -> subject, of the training cases in the manifest."""
    return {name: row["subject"] for name, row in summary.rows.items() if row["subset"] == "training"}
