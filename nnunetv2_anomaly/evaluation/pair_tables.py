"""Tables of the tests between models, a pair of models in a row."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from nnunetv2_anomaly.evaluation.results import CLEANED, RAW
from nnunetv2_anomaly.reporting.table import Column, Table, in_groups, in_words, number, p_column, table_of

#: of statistics' metrics, as readers see them
_METRIC_TITLES = {"dsc": "DSC [%]", "asd_mm": "ASD [mm]", "hd_mm": "HD [mm]", "hd95_mm": "HD95 [mm]"}

_PROCESSINGS = {RAW: "before", CLEANED: "after"}


def _of_metric(name: str, title: str) -> Column:
    """A column in the metric's unit, as the other tables show it."""
    return Column(name, title, text=lambda row: number(row[name] * (100 if row["metric"] == "dsc" else 1), 3))


_MEANS = (_of_metric("mean_a", "mean of A"), _of_metric("mean_b", "mean of B"), _of_metric("difference", "A - B"))


def tukey_table(tukey: pd.DataFrame, *, significant_only: bool = False) -> Table:
    """Tukey's honestly significant difference, of ``statistics.tukey``; all pairs, or the significant ones alone."""
    title = "Differences between models: Tukey's honestly significant difference"
    note = "The models' values are taken for independent samples. Interval: 95 %, simultaneous over all pairs. "
    columns = [
        *(Column("n_a", "n of A"), Column("n_b", "n of B"), *_MEANS),
        *(_of_metric("lower", "from"), _of_metric("upper", "to"), p_column("p", "p")),
    ]
    return _pairs_table(tukey, title, f"{note}Significant: p < 0.05.", columns, significant_only)


def paired_table(paired: pd.DataFrame, *, significant_only: bool = False) -> Table:
    """Wilcoxon's signed-rank test, of ``statistics.paired``; all pairs, or the significant ones alone."""
    title = "Differences between models, case by case: Wilcoxon's signed-rank test"
    note = "n: cases in which both models have a value; means and difference are over them. Corrected p: Holm's, over "
    note += "the pairs of a label and metric. Significant: corrected p < 0.05."
    columns = [Column("n"), *_MEANS, p_column("p", "p"), p_column("p_holm", "corrected p")]
    return _pairs_table(paired, title, note, columns, significant_only)


def _pairs_table(
    frame: pd.DataFrame, title: str, note: str, columns: Sequence[Column], significant_only: bool
) -> Table:
    frame = in_groups(frame, ["label", "metric"])
    columns = [
        Column("label", digits=None, text=lambda row: in_words(row["label"])),
        Column("metric", digits=None, text=lambda row: _METRIC_TITLES.get(row["metric"]) or row["metric"]),
        Column("processing", "post-processing", None, text=lambda row: _PROCESSINGS[row["processing"]]),
        Column("model_a", "A", None),
        Column("model_b", "B", None),
        *columns,
    ]
    notes = [note]
    if significant_only:
        chosen = frame[frame["significant"].astype(bool)]
        notes.append(f"{len(chosen)} of {len(frame)} comparisons are significant; only these are shown.")
        frame = chosen
    else:
        columns.append(Column("significant", text=lambda row: "yes" if row["significant"] else "no"))
    return table_of(frame, columns, title, notes, grouped=3)
