"""The table of what a data set's cases are and where they are from."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import write_text

MANIFEST = "manifest.csv"
PROBLEMS = "problems.csv"


def read_manifest(folder: Path, columns: Sequence[str] | None = None) -> dict[str, dict[str, str]]:
    """Rows by case; none if there is no manifest.

    Raises: UserError if it has other columns than the given ones.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = {row["case"]: row for row in reader}
    if columns is not None and tuple(reader.fieldnames or ()) != tuple(columns):
        raise UserError(
            f"{file} has other columns than this conversion writes, so it is of another release, other options or "
            "another version; delete the data set's folder, or choose another number with -d"
        )
    return rows


def write_manifest(folder: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write the rows, sorted by case, beside and renamed."""
    write_table(folder / MANIFEST, columns, sorted(rows, key=lambda row: row["case"]))


def write_table(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write a table as CSV, beside and renamed."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())
