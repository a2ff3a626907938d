"""What is known of the subjects besides their images: a table with one line a subject, or a subject and visit."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from nnunetv2_anomaly.conversion.sources import BASELINE, VISIT_NUMBERS, read_lines
from nnunetv2_anomaly.errors import UserError

#: the codes of OAI's tables
_SIDES = {"1": "right", "2": "left", "right": "right", "left": "left", "r": "right", "l": "left", "": None}
_SEXES = {"1": "male", "2": "female", "male": "male", "female": "female", "m": "male", "f": "female", "": None}

_VISITS = {
    "": None,
    "baseline": BASELINE,
    **{visit: visit for visit in VISIT_NUMBERS},
    **{f"v{number:02d}": visit for visit, number in VISIT_NUMBERS.items()},
}

#: column, in small letters -> field of ``Subject``; further columns are left alone and go nowhere
_COLUMNS = {
    "subjectid": "subject",
    "visit": "visit",
    "kneeside": "side",
    "klgrade": "kl_grade",
    "gender": "sex",
    "age": "age_years",
    "bmi": "bmi",
    "path": "series_path",
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """One line of the table; None where it says nothing."""

    subject: str
    visit: str | None = None
    side: str | None = None  # "right" or "left"
    kl_grade: int | None = None  # Kellgren-Lawrence, 0 to 4
    sex: str | None = None
    age_years: float | None = None
    bmi: float | None = None  # kg/m2
    series_path: str | None = None  # below the baseline folder: package/subject/date/barcode


class SubjectTable:
    """Lines by subject, and by visit where the table has a column for it."""

    def __init__(self, lines: Mapping[tuple[str, str | None], Subject]) -> None:
        self._lines = dict(lines)

    def __len__(self) -> int:
        return len(self._lines)

    def get(self, subject: str, visit: str | None = None) -> Subject | None:
        """The line of this visit, else that of the subject without a visit, else None.

        Such a line was made at baseline: grade, age and body mass index at another visit are unknown.
        """
        line = self._lines.get((subject, visit)) or self._lines.get((subject, None))
        if line is not None and line.visit is None and visit not in (None, BASELINE):
            return dataclasses.replace(line, kl_grade=None, age_years=None, bmi=None)
        return line

    def series_paths(self) -> dict[str, str]:
        """Subject -> path of its baseline series, where the table has one."""
        return {
            line.subject: line.series_path
            for line in self._lines.values()
            if line.series_path and line.visit in (None, BASELINE)
        }


def read_subjects(file: Path) -> SubjectTable:
    """Read a subject table (CSV with a heading).

    Columns, in any order and case: SubjectID; and, where given, Visit (00m, 12m, ...), KneeSide (1 right, 2 left),
    KLGrade (0 to 4), Gender (1 male, 2 female), Age (years), BMI (kg/m2), Path (of the series below OAI's baseline
    folder). Empty cells are unknown. Anything else in it, such as bar codes, is not taken over.

    Raises: UserError for a missing file, a missing SubjectID column, a value out of range, or a subject listed twice.
    """
    rows = list(csv.DictReader(read_lines(file, "a subject table (CSV with a column SubjectID)")))
    heading = {(name or "").strip().lower(): name for name in (rows[0] if rows else {})}
    if "subjectid" not in heading:
        raise UserError(f"{file} has no column SubjectID, or no line; its columns are {', '.join(heading) or 'none'}")
    lines: dict[tuple[str, str | None], Subject] = {}
    for number, row in enumerate(rows, start=2):
        cells = {field: (row.get(heading.get(column)) or "").strip() for column, field in _COLUMNS.items()}
        if not any(cells.values()):
            continue
        subject = _parse(cells, f"{file}, line {number}")
        key = (subject.subject, subject.visit)
        if key in lines and lines[key] != subject:
            fault = f"line {number}: subject {subject.subject} is listed a second time with other values"
            raise UserError(f"{file}, {fault}; expected one line per subject, or per visit with a column Visit")
        lines[key] = subject
    return SubjectTable(lines)


def _parse(cells: Mapping[str, str], place: str) -> Subject:
    grade = _number(cells["kl_grade"], "KLGrade", place)
    visits = f"one of {', '.join(VISIT_NUMBERS)}, or V00, V01 and so on"
    fault = None
    if not cells["subject"]:
        fault = "SubjectID is empty; expected the subject's number"
    elif grade not in (None, 0, 1, 2, 3, 4):
        fault = f"KLGrade is {cells['kl_grade']}; expected 0 to 4, or nothing"
    if fault is not None:
        raise UserError(f"{place}: {fault}")
    return Subject(
        subject=cells["subject"].removesuffix(".0"),
        visit=_coded(cells["visit"], _VISITS, "Visit", visits, place),
        side=_coded(cells["side"], _SIDES, "KneeSide", "1 (right) or 2 (left)", place),
        kl_grade=None if grade is None else int(grade),
        sex=_coded(cells["sex"], _SEXES, "Gender", "1 (male) or 2 (female)", place),
        age_years=_number(cells["age_years"], "Age", place),
        bmi=_number(cells["bmi"], "BMI", place),
        series_path=cells["series_path"].strip("/, ") or None,
    )


def _coded(text: str, codes: Mapping[str, str | None], column: str, expected: str, place: str) -> str | None:
    key = text.lower().removesuffix(".0")
    if key not in codes:
        raise UserError(f"{place}: {column} is {text}; expected {expected}, or nothing")
    return codes[key]


def _number(text: str, column: str, place: str) -> float | None:
    if not text or text.lower() == "nan":
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{place}: {column} is {text}; expected a number, or nothing") from None
