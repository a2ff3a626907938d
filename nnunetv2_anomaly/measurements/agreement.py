"""Agreement of two readers, or of a reader and a model, over cases."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.errors import UserError, counted
from nnunetv2_anomaly.files import take_output_folder, write_failures_as_user_errors, write_text
from nnunetv2_anomaly.measurements.regions import SUBREGIONS
from nnunetv2_anomaly.reporting.drawing import bland_altman_lines, own_style
from nnunetv2_anomaly.reporting.page import Content, Picture, Section, Terms, page
from nnunetv2_anomaly.reporting.table import Column, csv_text, in_words, table_of

MARKER = "agreement.json"
_KEYS = ["structure", "region", "quantity", "unit"]
_LIMITS = ("bias", "sd_difference", "limit_low", "limit_high")
_VALUES = ["value_first", "value_second"]
#: of 95 % limits of agreement
_LIMIT = 1.96
_TERMS = {
    "Bland-Altman plot": "Difference of both readings over their mean; bias is the mean difference, and 95 % of the "
    "differences are expected within the limits of agreement (dashed).",
    "icc_2_1": "Intraclass correlation, absolute agreement: 1 where readings agree in every case, 0 where they agree "
    "no more than by chance.",
    "cov, rms_cov": "Coefficient of variation: the standard deviation of both readings by their mean.",
    "spearman": "Correlation of ranks: 1 where both order the cases alike.",
}
#: figures of the page show as many values, those of most cases first, of whole structures if there are any
_SHOWN = 12


def agreement(first: Sequence[float] | NDArray, second: Sequence[float] | NDArray) -> dict[str, float]:
    """Agreement of two readings of the same cases; a case that one of them lacks (NaN) does not count.

    Returns:
        n: cases. both_zero: those where both are 0.
        cov, rms_cov: coefficient of variation, mean and root mean square over cases of SD (ddof 1) / mean; cases whose
            mean is not above 0 are left out; (10, 12) gives 0.1286.
        bias, sd_difference, limit_low, limit_high: second less first, in the values' unit (Bland and Altman 1986).
        icc_2_1: two-way random effects, absolute agreement, single measurement (Shrout and Fleiss 1979).
        spearman, spearman_p: of the ranks.
        What cannot be taken of so few or such cases is NaN.
    """
    pairs = np.array([first, second], dtype=float).T
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    count = len(pairs)
    both_zero = (pairs == 0).all(axis=1)
    means, sds = pairs[~both_zero].mean(axis=1), pairs[~both_zero].std(axis=1, ddof=1)
    variation = sds[means > 0] / means[means > 0]
    varied = count > 2 and (np.ptp(pairs, axis=0) > 0).all()
    ranks = spearmanr(*pairs.T) if varied else (math.nan, math.nan)
    return {
        "n": count,
        "both_zero": int(both_zero.sum()),
        "cov": float(variation.mean()) if len(variation) else math.nan,
        "rms_cov": float(np.sqrt((variation**2).mean())) if len(variation) else math.nan,
        **dict(zip(_LIMITS, limits_of_agreement(pairs[:, 1] - pairs[:, 0]), strict=True)),
        "icc_2_1": icc_2_1(pairs),
        "spearman": float(ranks[0]),
        "spearman_p": float(ranks[1]),
    }


def limits_of_agreement(differences: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Bias, standard deviation (ddof 1) and 95 % limits of differences, in their unit (Bland and Altman 1986).

    Args: differences: (cases,). Returns: NaN for what takes more cases.
    """
    bias = float(differences.mean()) if len(differences) else math.nan
    sd = float(differences.std(ddof=1)) if len(differences) > 1 else math.nan
    return bias, sd, bias - _LIMIT * sd, bias + _LIMIT * sd


def icc_2_1(readings: NDArray[np.float64]) -> float:
    """Intraclass correlation, two-way random effects, absolute agreement, single measurement (Shrout and Fleiss 1979).

    Args: readings: (cases, readers). Returns: NaN for fewer than two cases, or where nothing varies.
    """
    cases, readers = readings.shape
    if cases < 2:
        return math.nan
    mean = readings.mean()
    of_cases = readers * ((readings.mean(axis=1) - mean) ** 2).sum() / (cases - 1)
    of_readers = cases * ((readings.mean(axis=0) - mean) ** 2).sum() / (readers - 1)
    rest = readings - readings.mean(axis=1, keepdims=True) - readings.mean(axis=0) + mean
    error = (rest**2).sum() / ((cases - 1) * (readers - 1))
    whole = of_cases + (readers - 1) * error + readers * (of_readers - error) / cases
    return float((of_cases - error) / whole) if whole > 0 else math.nan


def agreement_table(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Agreement of every value that both tables have, over the cases of both.

    Args: two measurements.csv. Returns: a row per structure, region, quantity and unit, with what ``agreement`` gives.
    """
    groups = paired(first, second).groupby(_KEYS, sort=False)
    rows = [{**dict(zip(_KEYS, key, strict=True)), **agreement(*own[_VALUES].to_numpy().T)} for key, own in groups]
    return pd.DataFrame(rows)


def paired(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """A row for each value of each case that both tables have: value_first, value_second."""
    columns = ["case", *_KEYS, "value"]
    for table in (first, second):
        if (twice := table.duplicated(columns[:-1])).any():
            told = " ".join(map(str, table[twice].iloc[0][columns[:-1]]))
            raise UserError(f"a table has {told} twice; expected each value of a case once")
    return first[columns].merge(second[columns], on=["case", *_KEYS], suffixes=("_first", "_second"))


def write_agreement(first: pd.DataFrame, second: pd.DataFrame, output: Path, names: tuple[str, str]) -> Path:
    """Write agreement.csv and report.html, which is returned.

    Args: first, second: measurements.csv of both readings. names: of the readings.
    Raises: UserError if they share no value of a case, or the folder holds something else or cannot be written to.
    """
    both = paired(first, second)
    if not both[_VALUES].notna().all(axis=1).any():
        cases = " and ".join(counted(table["case"].nunique(), "case") for table in (first, second))
        raise UserError(f"{names[0]} and {names[1]} have no value of the same case ({cases}); expected the same cases")
    table = agreement_table(first, second)
    with write_failures_as_user_errors(output):
        take_output_folder(output, MARKER, "agreement")
        write_text(output / MARKER, json.dumps({"version": __version__, "readings": names}, indent=2))
        write_text(output / "agreement.csv", csv_text(table))
        write_text(output / "report.html", _page(both, table, names))
    return output / "report.html"


def _page(both: pd.DataFrame, table: pd.DataFrame, names: tuple[str, str]) -> str:
    digits = {"n": 0, "both_zero": 0, "cov": 4, "rms_cov": 4, "spearman_p": 4}
    columns = [Column(name, digits=None if name in _KEYS else digits.get(name, 3)) for name in map(str, table)]
    notes = ["cov: mean over cases of the standard deviation of both readings by their mean; rms_cov: its RMS form."]
    values = table_of(table.astype(dict.fromkeys(_KEYS, str)), columns, "", notes, grouped=0)
    content: list[Content] = []
    first = table[table["n"] > 1].sort_values("n", ascending=False, kind="stable")
    whole = first[first["region"].isin(("all", *SUBREGIONS))]
    first = (whole if len(whole) else first).head(_SHOWN)
    for row in first.to_dict("records"):
        own = both[(both[_KEYS] == pd.Series({key: row[key] for key in _KEYS})).all(axis=1)]
        title = in_words(f"{row['structure']}, {row['region']}: {row['quantity']} [{row['unit']}]")
        shown = f"{title}: second reading against the first, and difference of both against their mean"
        content.append(Picture(_figure(own, row, title, names), shown, f"{shown}, {names[1]} less {names[0]}"))
    chosen = [of for of in columns if of.name in (*_KEYS, "n", "bias", "limit_low", "limit_high", "icc_2_1")]
    lead: list[Content] = [*_sentences(both, first, names), *content[:1]]
    lead.append(table_of(first.astype(dict.fromkeys(_KEYS, str)), chosen, "Values of most cases", (), grouped=1))
    sections = [Section("Terms on this page", [Terms(_TERMS)], folded=True)]
    if content[1:]:
        sections.append(Section("Further Bland-Altman plots", content[1:], folded=True))
    return page("Agreement", [*sections, Section("All values", [values], folded=True)], lead)


def _sentences(both: pd.DataFrame, first: pd.DataFrame, names: tuple[str, str]) -> list[str]:
    """What was compared, how far readings agree, and whether one is higher; numbers are those of the table."""
    compared = f"{names[1]} is compared with {names[0]} in {counted(both['case'].nunique(), 'case')}."
    known = first[first["icc_2_1"].notna()].round({"icc_2_1": 3})
    if known.empty:
        return [compared, "Too few cases differ to say how far the readings agree."]
    ends = [known.loc[known["icc_2_1"].idxmin()], known.loc[known["icc_2_1"].idxmax()]]
    low, high = (f"{row['icc_2_1']:.3f} ({in_words(' '.join(row[_KEYS[:3]].astype(str)))})" for row in ends)
    span = f"is {low}" if len(known) == 1 else f"runs from {low} to {high}"
    agree = f"Of the values below, ICC (1 where readings agree in every case) {span}."
    beyond = known[(known["limit_low"] > 0) | (known["limit_high"] < 0)]
    apart = (
        f"In {len(beyond)} of them the 95 % limits of agreement do not hold 0: one reading is higher throughout."
        if len(beyond)
        else "In none of them is one reading higher throughout: the 95 % limits of agreement hold 0."
    )
    return [compared, agree, apart]


@own_style
def _figure(own: pd.DataFrame, row: Mapping[Any, Any], title: str, names: tuple[str, str]) -> Figure:
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=10)
    values = own[_VALUES].dropna().to_numpy()
    left.plot(values[:, 0], values[:, 1], ".", color="#1f5a94")
    ends = [values.min(), values.max()]
    left.plot(ends, ends, color="0.5", linewidth=0.8)
    left.set(xlabel=names[0], ylabel=names[1])
    right.plot(values.mean(axis=1), values[:, 1] - values[:, 0], ".", color="#1f5a94")
    words = bland_altman_lines(right, row["bias"], row["limit_low"], row["limit_high"], row["unit"])
    right.set_title(words, fontsize=8)
    unit = f" [{row['unit']}]" if row["unit"] else ""
    right.set(xlabel=f"mean of both{unit}", ylabel=f"difference{unit}")
    if not values.any():  # else hundredths of a unit around 0
        left.set(xlim=(-0.05, 1), ylim=(-0.05, 1))
        right.set(xlim=(-0.05, 1), ylim=(-1, 1))
    return figure
