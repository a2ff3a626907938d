"""Groups of cases by a column of a table of subjects: Kellgren-Lawrence grades, sexes, or whatever is in it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nnunetv2_anomaly.conversion import subjects
from nnunetv2_anomaly.conversion.side import side_from_text
from nnunetv2_anomaly.conversion.sources import BASELINE, visit_named
from nnunetv2_anomaly.conversion.subjects import SUBJECT_COLUMNS, code_of, meaning_of, number_in, plain, read_table
from nnunetv2_anomaly.errors import UserError, listed

#: grades up to this one are the paper's HD0, higher ones its HD1
KL_COLUMN, KL_LIMIT = "KLGrade", 2.0

#: more different values than this are no groups
_MOST = 8


@dataclass(frozen=True)
class Groups:
    """Groups of cases."""

    names: tuple[str, ...]  # in order
    of_case: dict[str, str]  # case -> name
    column: str  # where they are from
    without: tuple[str, ...]  # cases in no group


def read_groups(file: Path, cases: Sequence[str], *, column: str = KL_COLUMN, limit: float | None = None) -> Groups:
    """Group cases by a column of a table.

    The table (``read_table``) has a column ``case`` with the cases' names, or a column ``SubjectID`` or ``ID`` with
    what stands in them between underscores or hyphens, such as 9001104 in 9001104_12m_right; visits and sides in
    columns ``Visit`` and ``SIDE`` are looked for in the same way. A manifest of ``convert`` is such a table. Columns
    are found in any case of letters; KLGrade and kl_grade are one, and so is V01XRKL for cases of that visit.

    Args:
        limit: numbers up to it are one group, higher ones another; None takes 2 for KLGrade, else every value is a
            group.
    Raises: UserError for a missing file or column, a case with two values, values that are no numbers with a limit, or
        too many values.
    """
    heading, rows = read_table(file)
    table = pd.DataFrame([row for _, row in rows], columns=[plain(name) for name in heading], dtype=str)
    names, wanted = list(table.columns), plain(column)
    identifier = next((name for name in ("case", *SUBJECT_COLUMNS, "subject") if name in names), "case")
    alike = {name: visit for name in names for field, visit in [meaning_of(name)] if field == meaning_of(column)[0]}
    columns = {wanted: None} if wanted in names or not alike else alike
    needed = {identifier: "case or SubjectID", **dict.fromkeys(columns, column)}
    for name in (*needed, *sorted({"visit", "side", "kneeside", "readprj"} - needed.keys())):
        count = names.count(name)
        if count > 1 or (count == 0 and name in needed):
            fault = f"{file} has {count or 'no'} columns {needed.get(name, name)}"
            raise UserError(f"{fault}; expected one of {listed(heading) or 'none'}")
    if limit is None and _is_grade(column):
        limit = KL_LIMIT
    values = {case: _value(case, table, identifier, columns, f"{file} has several {column}") for case in cases}
    known = {case: value for case, value in values.items() if value}
    if limit is not None:
        numbers = {case: number_in(value) for case, value in known.items()}
        of_case = {case: _side(column, limit, number > limit) for case, number in numbers.items() if number is not None}
        for case in sorted(known.keys() - of_case.keys())[:1]:
            raise UserError(f"{file}: {column} of {case} is {known[case]}; expected a number, as there is a limit")
        order = [_side(column, limit, high) for high in (False, True)]
    else:
        fullest = _by_code(known.values())
        known = {case: fullest[_code(value)] for case, value in known.items()}
        distinct = sorted(set(known.values()), key=lambda of: (number_in(of) is None, number_in(of) or 0.0, of))
        if len(distinct) > _MOST:
            fault = f"{file}: {column} has {len(distinct)} different values ({listed(distinct)})"
            raise UserError(f"{fault}; expected at most {_MOST}, or a limit between two groups with --group_limit")
        of_case = {case: f"{column} {value}" for case, value in known.items()}
        order = [f"{column} {value}" for value in distinct]
    groups = tuple(name for name in order if name in of_case.values())
    if not groups:
        raise UserError(f"{file} has no {column} of any of the {len(cases)} cases, such as {listed(list(cases)[:2])}")
    return Groups(groups, of_case, column, tuple(case for case in cases if case not in of_case))


def _value(case: str, table: pd.DataFrame, identifier: str, columns: Mapping[str, str | None], fault: str) -> str:
    visit = visit_named(case)
    rows = table[table["case"] == case] if identifier == "case" else table
    if identifier != "case":
        words = set(re.split(r"[^0-9A-Za-z]+", case))
        rows = rows[rows[identifier].str.removesuffix(".0").isin(words)]
        if "visit" in rows:
            codes = {code for code, month in subjects.VISITS.items() if month == visit}
            same = [cell in words or code_of(cell) in codes for cell in rows["visit"]]
            rows = rows[same] if any(same) else rows[rows["visit"] == ""]
        for name in {"side", "kneeside"} & set(rows) if (side := side_from_text(case)) else ():
            rows = rows[[subjects.SIDES.get(code_of(cell), side) == side for cell in rows[name]]]
    # Of several readings the lowest project's, as in ``read_subjects``.
    projects = [number_in(cell) or 0.0 for cell in rows["readprj"]] if "readprj" in rows else [0.0] * len(rows)
    wanted = [name for name, of in columns.items() if of in (None, visit or BASELINE)]
    for project, earlier in itertools.product(sorted(set(projects)), (False, True)):
        read = rows[[p == project for p in projects]]
        of = [name for name in wanted if subjects.is_before_baseline(name) == earlier]
        found = _by_code(cell for name in of for cell in read[name] if code_of(cell))
        if len(found) > 1:
            told = ", ".join(sorted(found.values()))
            raise UserError(f"{fault} of {case} ({told}); expected one, or a table with a column case")
        if found:
            return next(iter(found.values()))
    return ""


def _code(cell: str) -> float | str:
    """What makes two cells the same: the number that "1: Male" and "1.0" have in common, else the text."""
    return cell if (number := number_in(cell)) is None else number


def _by_code(cells: Iterable[str]) -> dict[float | str, str]:
    """Code -> the longest of its cells, which says most."""
    return {_code(cell): cell for cell in sorted(cells, key=lambda cell: (len(cell), cell))}


def _is_grade(column: str) -> bool:
    return meaning_of(column)[0] == meaning_of(KL_COLUMN)[0]


def _side(column: str, limit: float, high: bool) -> str:
    if _is_grade(column) and limit == int(limit):
        return f"{column} >= {limit + 1:g}" if high else f"{column} <= {limit:g}"  # grades are whole numbers
    return f"{column} {'>' if high else '<='} {limit:g}"
