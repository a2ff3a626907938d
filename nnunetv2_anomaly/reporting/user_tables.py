"""Tables that users give: manifests, pairs of visits, limits, references, slices, other measurements."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.reporting.table import unescaped

#: columns that are no numbers, whatever they look like
_TEXTS = dict.fromkeys(
    [
        "case",
        "subject",
        "visit",
        "side",
        "before",
        "after",
        "structure",
        "region",
        "quantity",
        "unit",
        "flag",
        "slices",
    ],
    str,
)
_NUMBERS = ["value", "mean", "sd", "limit"]


def read_table(file: Path, columns: set[str], what: str) -> pd.DataFrame:
    """A CSV. Raises: UserError if it cannot be read or lacks one of the columns."""
    try:
        table = pd.read_csv(file, dtype=_TEXTS, keep_default_na=False, na_values=["", "NA"])
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as {what} ({error}); expected CSV") from error
    if missing := sorted(columns - set(table)):
        raise UserError(f"{file} lacks the column {', '.join(missing)}; expected {what}")
    for name in table.columns.intersection(list(_TEXTS)):
        table[name] = table[name].fillna("").map(unescaped)
    for name in table.columns.intersection(_NUMBERS):
        numbers = pd.to_numeric(table[name], errors="coerce")
        if len(wrong := table[name][numbers.isna() & table[name].notna()]):
            expected = "a number with a decimal point, or nothing"
            raise UserError(f"{file} has the {name} {wrong.iloc[0]}; expected {expected}")
        table[name] = numbers.astype(float)
    return table
