"""Groups of cases by a column of a table of subjects: Kellgren-Lawrence grades, sexes, or whatever is in it."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nnunetv2_anomaly.errors import UserError, listed

#: grades up to this one are the paper's HD0, higher ones its HD1
KL_COLUMN, KL_LIMIT = "KLGrade", 2.0

#: more different values than this are no groups
_MOST = 8


@dataclass(frozen=True)
class Groups:
    """Attributes: names in order; of_case: case -> name; column: where they are from; without: cases in no group."""

    names: tuple[str, ...]
    of_case: dict[str, str]
    column: str
    without: tuple[str, ...]


def read_groups(file: Path, cases: Sequence[str], *, column: str = KL_COLUMN, limit: float | None = None) -> Groups:
    """Group cases by a column of a table.

    The table (CSV) has a column ``case`` with the cases' names, or a column ``SubjectID`` with what stands in them
    between underscores or hyphens, such as 9001104 in 9001104_12m_right; a column ``Visit`` beside it is looked for in
    the same way. A manifest of ``convert`` is such a table. Columns are found in any case of letters; KLGrade and
    kl_grade are one.

    Args:
        limit: numbers up to it are one group, higher ones another; None takes 2 for KLGrade, else every value is a
            group.
    Raises: UserError for a missing file or column, a case with two values, values that are no numbers with a limit, or
        too many values.
    """
    heading, table = _read_table(file)
    wanted = _plain(column)
    identifier = next((name for name in ("case", "subjectid", "subject") if name in table.columns), "case")
    for name, plain in (("case or SubjectID", identifier), (column, wanted), ("Visit", "visit")):
        count = list(table.columns).count(plain)
        if count > 1 or (count == 0 and plain != "visit"):
            there = ", ".join(heading) or "none"
            raise UserError(f"{file} has {count or 'no'} columns {name}; expected one of {there}")
    if limit is None and wanted == _plain(KL_COLUMN):
        limit = KL_LIMIT
    values = {case: _value(case, table, identifier, column, file) for case in cases}
    known = {case: value for case, value in values.items() if value.lower() not in ("", "nan", "na")}
    if limit is not None:
        for case, value in known.items():
            if _number(value) is None:
                raise UserError(f"{file}: {column} of {case} is {value}; expected a number, as there is a limit")
        of_case = {case: _side(column, limit, float(value) > limit) for case, value in known.items()}
        order = [_side(column, limit, high) for high in (False, True)]
    else:
        distinct = sorted(set(known.values()), key=lambda value: (_number(value) is None, _number(value) or 0.0, value))
        if len(distinct) > _MOST:
            fault = f"{file}: {column} has {len(distinct)} different values ({listed(distinct)})"
            raise UserError(f"{fault}; expected at most {_MOST}, or a limit between two groups with --group_limit")
        of_case = {case: f"{column} {value}" for case, value in known.items()}
        order = [f"{column} {value}" for value in distinct]
    names = tuple(name for name in order if name in of_case.values())
    if not names:
        raise UserError(f"{file} has no {column} of any of the {len(cases)} cases, such as {listed(list(cases)[:2])}")
    return Groups(names, of_case, column, tuple(case for case in cases if case not in of_case))


def _read_table(file: Path) -> tuple[list[str], pd.DataFrame]:
    """Heading, and cells as text in columns of plain names; a line may be shorter, or end in more commas."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            lines = [[cell.strip() for cell in line] for line in csv.reader(stream, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a table ({error}); expected CSV in UTF-8 with a heading") from error
    heading, *lines = [line for line in lines if any(line)] or [[]]
    for line in lines:
        if any(line[len(heading) :]):
            fault = f"{file}: {','.join(line)} has more cells than the heading"
            raise UserError(f"{fault}; put cells with commas in quotes")
    cells = [[*line, *[""] * len(heading)][: len(heading)] for line in lines]
    return heading, pd.DataFrame(cells, columns=[_plain(name) for name in heading], dtype=str)


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "").replace(" ", "")


def _value(case: str, table: pd.DataFrame, identifier: str, column: str, file: Path) -> str:
    if identifier == "case":
        rows = table[table["case"] == case]
    else:
        words = set(re.split(r"[^0-9A-Za-z]+", case))
        rows = table[table[identifier].str.removesuffix(".0").isin(words)]
        if "visit" in table.columns:
            of_visit = rows[rows["visit"].isin(words)]
            rows = of_visit if len(of_visit) else rows[rows["visit"] == ""]
    found = set(rows[_plain(column)])
    if len(found) > 1:
        several = f"{file} has several {column} of {case} ({', '.join(sorted(found))})"
        raise UserError(f"{several}; expected one, or a table with a column case")
    return found.pop() if found else ""


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _side(column: str, limit: float, high: bool) -> str:
    if _plain(column) == _plain(KL_COLUMN) and limit == int(limit):
        return f"{column} >= {limit + 1:g}" if high else f"{column} <= {limit:g}"  # grades are whole numbers
    return f"{column} {'>' if high else '<='} {limit:g}"
