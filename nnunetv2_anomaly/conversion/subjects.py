"""What is known of the subjects besides their images: tables of one's own, and the OAI's.

The OAI's come in text files (enrollees, AllClinical00, kxr_sq_bu00 and so on): bars between the cells, the subject in
ID, the visit in the columns' names (V00AGE, P01BMI, V03XRKL), codes with their meaning ("1: Right", ".: Missing").
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunetv2_anomaly.conversion.sources import BASELINE, VISIT_NUMBERS
from nnunetv2_anomaly.errors import UserError, listed

#: the codes of OAI's tables
SIDES = {"1": "right", "2": "left", "right": "right", "left": "left", "r": "right", "l": "left"}
_SEXES = {"1": "male", "2": "female", "male": "male", "female": "female", "m": "male", "f": "female"}

#: what a visit is called (its month, OAI's number or code) -> its month; P01 and P02 are examinations before baseline,
#: and of 60m, 84m and 108m there are no images, so that no case asks for them
VISITS = dict.fromkeys(("baseline", "p01", "p02"), BASELINE)
for _month, _number in (VISIT_NUMBERS | {"60m": 7, "84m": 9, "108m": 11}).items():
    VISITS |= dict.fromkeys((_month, _month[:-1], f"v{_number:02d}", str(_number)), _month)

#: columns of the subjects, in plain letters; of several the first here counts
SUBJECT_COLUMNS = ("subjectid", "srcsubjectid", "id")
#: other column, in plain letters -> field of ``Subject``
_COLUMNS = {
    "visit": "visit", "kneeside": "side", "side": "side", "klgrade": "kl_grade", "xrkl": "kl_grade", "gender": "sex",
    "sex": "sex", "age": "age_years", "bmi": "bmi", "path": "series_path", "readprj": "project",
}  # fmt: skip
#: field -> its codes, and what they are in words
_CODES = {
    "visit": (VISITS, f"one of {', '.join(VISIT_NUMBERS)}, or V00, V01 and so on"),
    "side": (SIDES, "1 (right) or 2 (left)"),
    "sex": (_SEXES, "1 (male) or 2 (female)"),
}
#: field -> what its numbers lie between
_RANGES = {"age_years": (0, 130), "bmi": (5, 150)}
#: of another visit these are unknown
_OF_VISIT = ("kl_grade", "age_years", "bmi")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What the table says of a subject, or of one knee; None where it says nothing."""

    subject: str
    visit: str | None = None
    side: str | None = None  # "right" or "left"
    kl_grade: int | None = None  # Kellgren-Lawrence, 0 to 4
    sex: str | None = None
    age_years: float | None = None
    bmi: float | None = None  # kg/m2
    series_path: str | None = None  # below the baseline folder: package/subject/date/barcode


class SubjectTable:
    """What is known by subject, and by visit and knee where the table distinguishes them."""

    def __init__(self, lines: Iterable[Subject]) -> None:
        self._lines: dict[str, list[Subject]] = {}
        for line in lines:
            self._lines.setdefault(line.subject, []).append(line)
        #: whether a subject has a line for either knee: then a side says whose line it is, not which knee was imaged
        self._of_knees = any(len({line.side for line in own} - {None}) > 1 for own in self._lines.values())

    def __len__(self) -> int:
        return len(self._lines)

    def get(self, subject: str, visit: str | None = None, side: str | None = None) -> Subject | None:
        """What is known of a subject at a visit, None if nothing is; of the knee of this side in a table of knees.

        A line without a visit was made at baseline: grade, age and body mass index at another visit are unknown. In a
        table of knees the grade is unknown without a side.
        """
        lines = [line for line in self._lines.get(subject, ()) if line.visit in (None, visit)]
        if self._of_knees and side:
            lines = [line for line in lines if line.side in (None, side)]
        if not lines:
            return None
        known: dict[str, Any] = {}
        for field in ("side", "kl_grade", "sex", "age_years", "bmi", "series_path"):
            lasts = visit in (None, BASELINE) or field not in _OF_VISIT
            for of in (None, visit) if lasts else (visit,):
                values = {getattr(line, field) for line in lines if line.visit == of} - {None}
                known |= {field: values.pop()} if len(values) == 1 else {}
        if self._of_knees:
            known |= {"side": None} if side else {"side": None, "kl_grade": None}
        return Subject(subject, visit if any(line.visit for line in lines) else None, **known)

    def knees(self, subject: str, visit: str | None) -> dict[str, Subject]:
        """Side -> what is known of that knee; empty unless it is a table of knees."""
        found = {side: self.get(subject, visit, side) for side in ("right", "left") if self._of_knees}
        return {side: line for side, line in found.items() if line is not None}

    def series_paths(self) -> dict[str, str]:
        """Subject -> path of its baseline series, where the table has one."""
        lines = (line for own in self._lines.values() for line in own if line.visit in (None, BASELINE))
        return {line.subject: line.series_path for line in lines if line.series_path}


def read_subjects(file: Path) -> SubjectTable:
    """Read a subject table: one's own, or one of the OAI's; columns and codes: docs/reference/converted-data-sets.md.

    Raises: UserError for a missing file, a missing column of subjects, a value out of range, or a subject listed twice
        with other values.
    """
    heading, rows = read_table(file)
    names = [plain(name) for name in heading]
    subject_column = next((names.index(name) for name in SUBJECT_COLUMNS if name in names), None)
    meanings = ((number, *meaning_of(name), is_before_baseline(name)) for number, name in enumerate(heading))
    columns = [meaning for meaning in meanings if meaning[1] in _COLUMNS.values()]
    if subject_column is None or not rows:
        fault = f"has no column SubjectID, or no line; its {len(heading)} columns are {listed(heading) or 'none'}"
        raise UserError(f"{file} {fault}; expected the subjects' numbers in a column SubjectID or ID")
    found: dict[tuple, dict[str, tuple[tuple[float, bool], Any]]] = {}
    for line, row in rows:
        place, subject = f"{file}, line {line}", row[subject_column].removesuffix(".0")
        if not subject:
            raise UserError(f"{place}: {heading[subject_column]} is empty; expected the subject's number")
        cells = [(field, visit, _value(row[n], field, heading[n], place), prior) for n, field, visit, prior in columns]
        told = [cell for cell in cells if cell[2] is not None]
        side, visit_of_line, project = (
            next((value for field, _, value, _ in told if field == of), None) for of in ("side", "visit", "project")
        )
        # A line that tells nothing is one of the subject all the same.
        for field, visit, value, earlier in [("subject", None, subject, False), *told]:
            known, rank = found.setdefault((subject, side, visit or visit_of_line), {}), (project or 0.0, earlier)
            before = known.setdefault(field, (rank, value))
            if rank < before[0]:
                known[field] = (rank, value)
            elif value != before[1] and rank == before[0]:
                fault = f"subject {subject} is listed a second time with other values ({field} {before[1]} and {value})"
                raise UserError(f"{place}: {fault}; expected one line per subject, or per visit, knee and reading")
    fields = {field.name for field in dataclasses.fields(Subject)} - {"subject", "visit", "side"}
    return SubjectTable(
        Subject(subject, visit, side, **{field: value for field, (_, value) in known.items() if field in fields})
        for (subject, side, visit), known in found.items()
    )


def read_table(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a table in a text file, as spreadsheets and the OAI write them, in UTF-8, UTF-16 or Latin-1.

    Cells are parted by bars, tabs, semicolons or commas, whichever the first line has most of; they may be in quotes.

    Returns: the heading; number and cells of each further line, as many as the heading has.
    Raises: UserError if the file is missing or no table, or a line has more cells than the heading.
    """
    try:
        if file.is_fifo():
            raise csv.Error("it is a pipe")
        content = file.read_bytes()
        encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with suppress(UnicodeDecodeError):
            text = content.decode("latin-1")  # of any bytes: this stays where they are no UTF
            text = content.decode(encoding)
        if "\0" in text:
            raise csv.Error("it is no text")
        lines = re.split(r"\r\n?|\n", text)
        first = next((line for line in lines if line.strip()), "")
        reader = csv.reader(lines, delimiter=max("|\t;,", key=first.count), strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except (OSError, csv.Error) as error:
        expected = "expected text with a heading, cells parted by | ; , or tabs"
        raise UserError(f"{file} cannot be read as a table ({error}); {expected}") from error
    heading = rows[0][1] if rows else []
    while heading and not heading[-1]:
        heading.pop()
    for number, row in rows[1:]:
        if any(row[len(heading) :]):
            fault = f"{','.join(row[: len(heading) + 1])[:200]} has more cells than the heading"
            raise UserError(f"{file}, line {number}: {fault}; put cells that hold the separator in quotes")
    return heading, [(number, [*row, *[""] * len(heading)][: len(heading)]) for number, row in rows[1:]]


def plain(name: str) -> str:
    """A column's name in small letters, without underscores and spaces."""
    return name.strip().lower().replace("_", "").replace(" ", "")


def meaning_of(column: str) -> tuple[str, str | None]:
    """What a column is taken for, and the visit that its name begins with: V03XRKL is kl_grade at 24m.

    Returns: field of ``Subject``, else the plain name; visit, None where the name or the field has none.
    """
    prefix, name = re.fullmatch(r"(v\d\d|p0[12])?(.*)", plain(column)).groups()  # type: ignore[union-attr]
    field = _COLUMNS.get(name)
    if field is None or (prefix and prefix not in VISITS):
        return plain(column), None
    return field, VISITS[prefix] if prefix and field in _OF_VISIT else None


def is_before_baseline(column: str) -> bool:
    """Whether a column is of an examination (P01, P02) that counts as baseline where that has no value itself."""
    return plain(column).startswith(("p01", "p02"))


def code_of(cell: str) -> str:
    """The code in a cell ("2: Female"), in small letters; empty where the value is missing (".: Missing", "NA")."""
    code = re.sub(r"[.,]00?$", "", cell.partition(":")[0].strip().lower())
    return "" if re.fullmatch(r"\.[a-z]?|nan|na|n/a", code) else code


def number_in(cell: str) -> float | None:
    """The number in a cell, also with a comma before one or two decimals; None if it holds no finite number."""
    try:
        number = float(re.sub(r",(\d\d?)$", r".\1", code_of(cell)))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _value(cell: str, field: str, column: str, place: str) -> Any:
    """The value of a cell, None if missing. Raises: UserError if it is none of the field's."""
    code = code_of(cell)
    if field == "series_path":
        return cell.strip("/, ") or None
    if not code:
        return None
    codes, expected = _CODES.get(field, (None, "a number"))
    value: Any = codes.get(code) if codes else number_in(cell)
    if field == "kl_grade" and value is not None:
        value, expected = (int(value) if value in range(5) else None), "0 to 4"
    if field in _RANGES:
        low, high = _RANGES[field]
        value, expected = value if low < (value or 0.0) < high else None, f"a number between {low} and {high}"
    if value is None:
        raise UserError(f"{place}: {column} is {cell}; expected {expected}, or nothing")
    return value
