"""Tables: CSV for programs; Markdown, LaTeX and pages for readers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import pandas as pd

from nnunetv2_anomaly.files import write_text

DAGGER = "†"

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)

#: a row of a data frame: column -> value
Row: TypeAlias = Mapping[Any, Any]


@dataclass(frozen=True)
class Cell:
    """A table's cell of plain text."""

    text: str
    bold: bool = False
    code: bool = False
    left: bool = False  # aligned to the left, as words are, rather than to the right, as numbers are
    mark: str = ""  # a sign set high after the text: ``DAGGER``
    beneath: str = ""  # smaller lines under the text
    link: str = ""  # address of a page, from the page that has the table
    values: Mapping[str, Any] = field(default_factory=dict)  # column of the CSV -> number or text, not rounded


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV, its lines ending in a line feed.

    Spreadsheets take text that begins with =, +, -, @, tab or carriage return for a formula and run it: an apostrophe
    stands before such text, as OWASP advises ("CSV Injection"), and numbers stay numbers. Carriage returns, which
    readers take for the end of a line, become spaces.
    """
    escaped = frame.rename(columns=_escaped)
    for name in escaped.select_dtypes(exclude="number"):
        escaped[name] = pd.Series(list(map(_escaped, escaped[name])), index=escaped.index, dtype=object)
    return escaped.to_csv(index=False, lineterminator="\n")


def _escaped(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    formula = re.match(r"'*[=+\-@\t\r]", value) and not _NUMBER.fullmatch(value)
    return ("'" * bool(formula) + value).replace("\r", " ")


def unescaped(value: Any) -> Any:
    """A cell of a CSV as it was before ``csv_text`` wrote it."""
    return value[1:] if isinstance(value, str) and re.match(r"'+[=+\-@\t\r]", value) else value


def in_words(name: str) -> str:
    """A name of a label, bone or metric, as readers see it."""
    return name.replace("_", " ")


def word_cell(column: str, text: str, value: Any = None) -> Cell:
    """A cell of words, with its value in the CSV; None takes the text."""
    return Cell(text, left=True, values={column: text if value is None else value})


def number(value: float | None, digits: int) -> str:
    """A number with so many digits after the point; "n/a" where there is none, or it is not finite."""
    if value is None or not math.isfinite(value):
        return "n/a"
    text = f"{value:.{digits}f}"
    # A negative number that rounds to nothing is nothing.
    return text.lstrip("-") if float(text) == 0 else text


@dataclass(frozen=True)
class Table:
    """A table in four forms."""

    kind: ClassVar[str] = "table"

    title: str
    header: Sequence[str]  # a title per column, as readers see it
    rows: Sequence[Sequence[Cell]]  # as many cells as the header has
    notes: Sequence[str] = ()  # sentences beneath it
    words: int = 1  # that many leading columns hold words, the others numbers
    grouped: int = 0  # in that many leading columns, a cell that repeats the one above it is shown once

    def csv(self) -> str:
        """The cells' values, in full precision, a column per name; undefined numbers are empty."""
        records = [dict(itertools.chain.from_iterable(cell.values.items() for cell in row)) for row in self.rows]
        columns = dict.fromkeys(itertools.chain.from_iterable(records))
        return csv_text(pd.DataFrame(records, columns=list(columns), dtype=object))

    def markdown(self) -> str:
        """With title and notes, a smaller second line in brackets."""
        aligned = [":--"] * self.words + ["--:"] * (len(self.header) - self.words)
        lines = [[_markdown(title) for title in self.header], aligned]
        for row, spans in self.rows_with_spans():
            lines.append([_markdown_cell(cell) if span else "" for cell, span in zip(row, spans, strict=True)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "".join(f"\n{_markdown(note)}\n" for note in self.notes)
        return f"**{_markdown(self.title)}**\n\n{table}\n{notes}"

    def latex(self) -> str:
        """A table environment; the document needs the package booktabs."""
        columns = "l" * self.words + "r" * (len(self.header) - self.words)
        body: list[str] = []
        for row, spans in self.rows_with_spans():
            if self.grouped and spans[0] and body:
                body.append(r"\midrule")
            cells = [_latex_cell(cell) if span else "" for cell, span in zip(row, spans, strict=True)]
            body.append(f"{' & '.join(cells)} \\\\")
        notes = "".join(f"\n\\par\\smallskip{{\\footnotesize {_latex(note)}\\par}}" for note in self.notes)
        head = " & ".join(_latex(title) for title in self.header)
        return (
            "% needs \\usepackage{booktabs}\n"
            f"\\begin{{table}}\n\\centering\n\\caption{{{_latex(self.title)}}}\n\\begin{{tabular}}{{{columns}}}\n"
            f"\\toprule\n{head} \\\\\n\\midrule\n" + "\n".join(body) + f"\n\\bottomrule\n\\end{{tabular}}{notes}\n"
            "\\end{table}\n"
        )

    def write(self, folder: Path, stem: str, endings: Collection[str] = ("csv", "md", "tex")) -> list[Path]:
        """Write it as ``stem.csv``, ``stem.md`` and ``stem.tex``, each whole; the folder is made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        forms = {"csv": self.csv, "md": self.markdown, "tex": self.latex}
        paths = {ending: folder / f"{stem}.{ending}" for ending in endings}
        for ending, path in paths.items():
            write_text(path, forms[ending]())
        return list(paths.values())

    def rows_with_spans(self) -> Iterator[tuple[Sequence[Cell], list[int]]]:
        """Every row, and over how many rows each of its cells extends; 0 where it repeats the one above it."""
        texts = [[cell.text for cell in row] for row in self.rows]
        for index, row in enumerate(self.rows):
            spans = [1] * len(row)
            for column in range(self.grouped):
                leads = [text[: column + 1] for text in texts]
                same = itertools.takewhile(leads[index].__eq__, leads[index:])
                spans[column] = 0 if index and leads[index - 1] == leads[index] else sum(1 for _ in same)
            yield row, spans


@dataclass(frozen=True)
class Column:
    """A column of ``table_of``."""

    name: str  # of a column of the data frame, and of the CSV
    title: str | None = None  # what stands above it; None takes the name
    digits: int | None = 0  # after the point; None for words
    text: Callable[[Row], str] | None = None  # what readers see of a row; None takes the name's value, with its digits
    beneath: Callable[[Row], str] | None = None  # a smaller line under it
    also: Sequence[str] = ()  # further columns of the data frame that stand in the CSV alone

    def cell(self, row: Row, *, bold: bool = False) -> Cell:
        """The cell of a row: column of the data frame -> value."""
        if self.text is not None:
            text = self.text(row)
        else:
            text = row[self.name] if self.digits is None else number(row[self.name], self.digits)
        beneath = self.beneath(row) if self.beneath is not None else ""
        values = {name: row[name] for name in (self.name, *self.also)}
        return Cell(text, bold=bold, left=self.digits is None, beneath=beneath, values=values)


def p_column(name: str, title: str) -> Column:
    """A column of p-values; readers see small ones as a bound."""
    return Column(name, title, text=lambda row: "< 0.001" if row[name] < 0.001 else number(row[name], 3))


def percent_column(name: str, title: str, digits: int = 1) -> Column:
    """A column of shares from 0 to 1, in per cent for readers and as they are in the CSV."""
    return Column(name, title, digits, text=lambda row: number(100 * row[name], digits))


def table_of(
    frame: pd.DataFrame,
    columns: Sequence[Column],
    title: str,
    notes: Sequence[str],
    *,
    grouped: int,
    bold: Collection[tuple[int, str]] = (),
) -> Table:
    """A table of a data frame, a row per row.

    Args: columns: those of words first; bold: (number of the row, name of the column) of the bold cells.
    """
    records = enumerate(frame.to_dict("records"))
    rows = [[column.cell(row, bold=(place, column.name) in bold) for column in columns] for place, row in records]
    header = [column.name if column.title is None else column.title for column in columns]
    words = sum(column.digits is None for column in columns)
    return Table(title, header, rows, notes, words=words, grouped=grouped)


def in_groups(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Rows with equal values together, in the order in which these are first met; numbered from 0."""

    def places(values: pd.Series) -> pd.Series:
        return values.map({value: place for place, value in enumerate(values.unique())})

    return frame.sort_values(list(columns), key=places, kind="stable").reset_index(drop=True)


def best_cells(frame: pd.DataFrame, by: Sequence[str], names: Sequence[str]) -> set[tuple[int, str]]:
    """(index, column of ``names``) of the largest value of each group; none of a group whose values do not differ."""
    values = frame[list(names)].astype(float)
    groups = values.groupby([frame[name] for name in by])
    largest, smallest = groups.transform("max"), groups.transform("min")
    best = values.eq(largest) & largest.ne(smallest)
    return {(place, name) for name in names for place in frame.index[best[name]]}


def _markdown(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(text.split()))


def _markdown_cell(cell: Cell) -> str:
    text = _markdown(cell.text)
    beneath = ", ".join(cell.beneath.splitlines())
    return (
        (f"**{text}**" if cell.bold and text else text)
        + (f"<sup>{_markdown(cell.mark)}</sup>" if cell.mark else "")
        + (f" ({_markdown(beneath)})" if beneath else "")
    )


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # After the end of a row these two would be read as its options.
    "[": "{[}",
    "*": "{*}",
    "-": "-{}",
    "±": r"$\pm$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "−": "$-$",
    "³": "$^3$",
    DAGGER: r"$^\dagger$",
}


def _latex(text: str) -> str:
    # A lone hyphen stays one; several would become a dash.
    return re.sub(r"-\{\}(?!-)", "-", "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split())))


def _latex_cell(cell: Cell) -> str:
    text = _latex(cell.text)
    shown = (f"\\textbf{{{text}}}" if cell.bold and text else text) + _latex(cell.mark)
    if not cell.beneath:
        return shown
    lines = [shown, *(f"\\scriptsize {_latex(line)}" for line in cell.beneath.splitlines())]
    return "\\begin{tabular}[t]{@{}r@{}}" + " \\\\ ".join(lines) + "\\end{tabular}"
