"""Cross-validation by subject: all visits of a person stay on one side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunetv2_anomaly.errors import UserError

NUM_FOLDS = 5


def read_test_sets(file: Path) -> list[list[str]]:
    """Read the published cross-validation: a line "Test set N:", then one subject a line.

    Commas at line ends, blank lines, Windows line ends and a byte order mark do not matter.

    Returns: the subjects of each test set, in the file's order.

    Raises: UserError if the file is missing, holds no test set or an empty one, or names a subject twice.
    """
    if not file.is_file():
        raise UserError(f"{file} is no file; expected test sets: a line 'Test set 1:', then one subject a line.")
    sets: list[list[str]] = []
    home: dict[str, int] = {}
    for number, line in enumerate(_lines(file), start=1):
        text = line.strip().rstrip(",;").strip()
        if not text:
            continue
        if re.fullmatch(r"test set \d+\s*:?", text, re.IGNORECASE):
            sets.append([])
            continue
        if not sets or not re.fullmatch(r"[A-Za-z0-9_-]+", text):
            raise UserError(f"{file}, line {number}: {text!r}; expected 'Test set N:' or one subject a line.")
        if text in home:
            raise UserError(
                f"{file}, line {number}: subject {text} is in test sets {home[text]} and {len(sets)}; expected once."
            )
        home[text] = len(sets)
        sets[-1].append(text)
    if not sets or not all(sets):
        raise UserError(f"{file} holds {len(sets)} test sets, some of them empty; expected subjects in each.")
    return sets


def splits_from_test_sets(
    test_sets: Sequence[Sequence[str]], subjects: Mapping[str, str]
) -> list[dict[str, list[str]]]:
    """nnU-Net's splits, one a test set: its cases validate, all others train.

    Args:
        test_sets: subjects of each set.
        subjects: case -> subject, of the cases that are there.

    Raises: UserError if a case's subject is in no test set: it would never be validated.
    """
    fold_of = {subject: fold for fold, members in enumerate(test_sets) for subject in members}
    strangers = sorted({subject for subject in subjects.values() if subject not in fold_of})
    if strangers:
        raise UserError(
            f"{len(strangers)} of the converted subjects are in none of the {len(test_sets)} test sets "
            f"({', '.join(strangers[:8])}{', ...' if len(strangers) > 8 else ''}); expected every subject in one: give "
            "the split file of this release, or none."
        )
    return [
        {
            "train": sorted(case for case, subject in subjects.items() if fold_of[subject] != fold),
            "val": sorted(case for case, subject in subjects.items() if fold_of[subject] == fold),
        }
        for fold in range(len(test_sets))
    ]


def seeded_test_sets(subjects: Mapping[str, str], seed: int) -> list[list[str]]:
    """Deal the subjects into five test sets of nearly equal numbers, or as many as there are subjects.

    Args:
        subjects: case -> subject.
        seed: the same subjects and seed give the same sets.

    Returns: no set at all for a single subject: nothing would be left to train on.
    """
    names = sorted(set(subjects.values()))
    if len(names) < 2:
        return []
    order = np.random.default_rng(seed).permutation(len(names))
    return [sorted(names[i] for i in part) for part in np.array_split(order, min(NUM_FOLDS, len(names)))]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text file in UTF-8 ({error}).") from error
