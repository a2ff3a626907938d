"""Tables of the metrics: means over all cases, over groups and over folds.

A mean over fewer than all cases says so in its own cell, and so does one that holds replaced distances.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nnunetv2_anomaly.errors import counted
from nnunetv2_anomaly.evaluation.results import CLEANED, INVENTED, MISSED, NEITHER, RAW, Evaluation
from nnunetv2_anomaly.evaluation.statistics import fewest_cases
from nnunetv2_anomaly.measurements.surface import DISTANCES, METRICS
from nnunetv2_anomaly.reporting.table import DAGGER, Cell, Column, Table, in_words, number, table_of, word_cell


@dataclass(frozen=True)
class Measure:
    """A metric as the paper's tables and figures show it.

    Values of ``Evaluation.cases`` (metric, processing) times a factor; its name is that of its columns in a CSV.
    """

    name: str
    title: str
    metric: str
    processing: str
    factor: float = 1.0
    digits: int = 2
    larger_is_better: bool = False


DSC = Measure("dsc_percent", "DSC [%]", "dsc", CLEANED, factor=100.0, digits=1, larger_is_better=True)
ASD = Measure("asd_mm", "ASD [mm]", "asd_mm", CLEANED)
HD = Measure("hd_mm", "HD [mm]", "hd_mm", CLEANED)
HD_RAW = Measure("hd_raw_mm", "HD* [mm]", "hd_mm", RAW)

#: of the paper's table of segmentation, in its order
MEASURES = (DSC, ASD, HD, HD_RAW)


@dataclass(frozen=True)
class Summary:
    """One metric over cases: statistics of the values that are defined, NaN without any."""

    mean: float
    sd: float  # n - 1; NaN with fewer than two
    median: float
    min: float
    max: float
    n: int  # values that are defined
    cases: int
    missed: int  # cases of each status
    invented: int
    neither: int
    replaced: int  # values that stand for a distance that is undefined
    of: frozenset[str]  # cases with a defined value


def summarise(rows: pd.DataFrame, metric: str, factor: float = 1.0) -> Summary:
    """One metric over rows of ``Evaluation.cases`` of one model, label and processing, at most one row per case.

    Returns: in the metric's unit times ``factor``.
    """
    values = rows[metric].to_numpy(dtype=float) * factor
    defined = np.isfinite(values)
    status, left = rows["status"].to_numpy(), pd.Series(values[defined])
    one_sided = np.isin(status, (MISSED, INVENTED)) if metric in DISTANCES else np.zeros(len(rows), bool)
    mean, sd, median, lowest, highest = (float(left.agg(name)) for name in ("mean", "std", "median", "min", "max"))
    missed, invented, neither = (int((status == of).sum()) for of in (MISSED, INVENTED, NEITHER))
    replaced, of = int((one_sided & defined).sum()), frozenset(rows["case"].to_numpy()[defined])
    statuses = len(rows), missed, invented, neither
    return Summary(mean, sd, median, lowest, highest, len(left), *statuses, replaced, of)


def mean_cell(measure: Measure, found: Summary, *, bold: bool, mark: str) -> Cell:
    """Mean and standard deviation, and beneath it what the mean is over where that is not plainly all cases."""
    text = number(found.mean, measure.digits)
    if found.n > 1:
        text += f" ± {number(found.sd, measure.digits)}"
    one_sided = [f"{count} {what}" for count, what in ((found.missed, MISSED), (found.invented, INVENTED)) if count]
    lines = [f"n = {found.n} of {found.cases}"] if found.n < found.cases else []
    lines += [", ".join(one_sided)] if one_sided else []
    names = ("mean", "sd", "n", "cases", "missed", "invented", "replaced")
    values = {f"{measure.name}_{name}": getattr(found, name) for name in names}
    return Cell(text, bold=bold, mark=mark, beneath="\n".join(lines), values=values)


def best_models(found: Mapping[str, Summary], *, larger_is_better: bool) -> set[str]:
    """Models with the best mean. None where their means are over different cases, or do not differ."""
    means = {model: summary.mean for model, summary in found.items() if summary.n}
    if len({found[model].of for model in means}) > 1 or len(set(means.values())) < 2:
        return set()
    best = (max if larger_is_better else min)(means.values())
    return {model for model, mean in means.items() if mean == best}


def segmentation_table(
    evaluation: Evaluation, daggers: Collection[tuple[str, str, str, str]] | None = frozenset()
) -> Table:
    """The paper's table of segmentation (method paper, Table 2): mean and standard deviation of ``MEASURES``.

    A row per label and model. The best mean of a label's models is bold where they all are over the same cases. What
    differs significantly from the first model (``statistics.daggers``) has a dagger; None: too few cases to tell.
    """
    num_cases = evaluation.cases["case"].nunique()
    title = f"Segmentation: mean ± standard deviation over {counted(num_cases, 'case')}"
    table = _means_table(evaluation, title, MEASURES, None, daggers or frozenset())
    if daggers is not None or len(evaluation.models) < 2:
        return table
    fewest = fewest_cases(len(evaluation.models))
    few = f"Fewer than {fewest} cases: whatever the models differ by, no paired test can call it significant."
    return dataclasses.replace(table, notes=[*table.notes, few])


def group_table(evaluation: Evaluation) -> Table | None:
    """Means within each group of cases (method paper, Table 3: HD0 and HD1), or None where there are no two groups."""
    title, several = "Segmentation by group of cases", len(_values_of(evaluation, "group")) > 1
    return _means_table(evaluation, title, (DSC, HD, HD_RAW), "group", frozenset()) if several else None


def fold_table(evaluation: Evaluation) -> Table | None:
    """Means within each fold, or None where there are no two folds."""
    several = len(_values_of(evaluation, "fold")) > 1
    return _means_table(evaluation, "Segmentation by fold", MEASURES, "fold", frozenset()) if several else None


def _values_of(evaluation: Evaluation, by: str) -> list[Any]:
    """Groups or folds that cases are in, in order."""
    known = {value for value in evaluation.cases[by].unique() if not pd.isna(value) and value != ""}
    if by == "group":
        return [group for group in evaluation.groups if group in known]
    return sorted(known, key=lambda fold: (len(str(fold)), str(fold)))


#: measure -> model -> what it is over the cases of one label, and of one group or fold
_Found = dict[Measure, dict[str, Summary]]


def _means_table(
    evaluation: Evaluation,
    title: str,
    measures: Sequence[Measure],
    by: str | None,
    daggers: Collection[tuple[str, str, str, str]],
) -> Table:
    """A row per label, value of the column ``by`` and model; of ``measures`` a column each."""
    found = summaries(evaluation, measures, by)
    rows = []
    for (label, value), of_measures in found.items():
        best = {m: best_models(models, larger_is_better=m.larger_is_better) for m, models in of_measures.items()}
        for model in evaluation.models:
            cells = [word_cell("label", in_words(label), label), word_cell("model", model)]
            if by is not None:
                cells.insert(1, word_cell(by, str(value)))
                num_cases = max(models[model].cases for models in of_measures.values())
                cells.append(Cell(str(num_cases), values={"cases": num_cases}))
            for measure, models in of_measures.items():
                mark = DAGGER if (measure.processing, label, measure.metric, model) in daggers else ""
                cells.append(mean_cell(measure, models[model], bold=model in best[measure], mark=mark))
            rows.append(cells)
    header = ["label", "model"] if by is None else ["label", by, "model", "cases"]
    header += [measure.title for measure in measures]
    notes = _explanations(evaluation, measures, rows, found, by)
    words = 2 if by is None else 3
    return Table(title, header, rows, notes, words=words, grouped=words - 1)


def summaries(evaluation: Evaluation, measures: Sequence[Measure], by: str | None) -> dict[tuple[str, Any], _Found]:
    """(label, value of the column ``by``) -> what was found; the value is None without such a column."""
    columns = ["label", "model", "processing", *([by] if by is not None else [])]
    parts = dict(iter(evaluation.cases.groupby(columns, sort=False, observed=True)))

    def summary(measure: Measure, *key: Any) -> Summary:
        return summarise(parts.get(key, evaluation.cases.iloc[:0]), measure.metric, measure.factor)

    return {
        (label, *(value or [None])): {
            measure: {model: summary(measure, label, model, measure.processing, *value) for model in evaluation.models}
            for measure in measures
        }
        for label in evaluation.labels
        for value in ([[value] for value in _values_of(evaluation, by)] if by is not None else [[]])
    }


def _explanations(
    evaluation: Evaluation,
    measures: Sequence[Measure],
    rows: Sequence[Sequence[Cell]],
    found: Mapping[tuple[str, Any], _Found],
    by: str | None,
) -> list[str]:
    """What the signs mean, those alone that are in the table."""
    cells = [cell for row in rows for cell in row]
    samples = [models for of_measures in found.values() for models in of_measures.values()]
    summaries = [summary for models in samples for summary in models.values()]
    names = [measure.title.split(" [")[0] for measure in measures if measure.processing == CLEANED]
    notes = [
        f"{', '.join(names)} after post-processing, HD* before it; ± standard deviation over cases (n - 1)."
        f"{' Bold: the best of the models, before rounding.' if any(cell.bold for cell in cells) else ''}"
    ]
    if any(len({summary.of for summary in models.values() if summary.n}) > 1 for models in samples):
        notes.append("Where the models' means are over different cases, none is named best.")
    if any(DAGGER in cell.mark for cell in cells):
        baseline = evaluation.models[0]
        notes.append(f"{DAGGER} differs from {baseline} (Wilcoxon's signed-rank test, Holm's correction, p < 0.05).")
    if any(summary.missed or summary.invented for summary in summaries):
        distances = "replaced" if any(summary.replaced for summary in summaries) else "left out"
        notes.append(
            f"Missed: the reference alone has the label; invented: the prediction alone has it. The DSC of such a case "
            f"is 0, and its distances, which are undefined, are {distances}."
        )
    if any(summary.neither for summary in summaries):
        notes.append("Cases in which neither map has the label are left out.")
    if by is not None:
        lacking = ~evaluation.cases[by].isin(_values_of(evaluation, by))
        if without := evaluation.cases.loc[lacking, "case"].nunique():
            notes.append(f"{counted(without, 'case')} without a {by}: in no row.")
    return notes


def metrics_table(evaluation: Evaluation) -> Table:
    """Every metric of every label and model, before and after post-processing, in a row each."""
    parts = dict(iter(evaluation.cases.groupby(["label", "processing", "model"], sort=False, observed=True)))
    rows = [
        {"label": label, "processing": processing, "metric": metric, "model": model}
        | dataclasses.asdict(summarise(parts[label, processing, model], metric))
        for label, processing, metric, model in itertools.product(
            evaluation.labels, (RAW, CLEANED), METRICS, evaluation.models
        )
        if (label, processing, model) in parts
    ]

    def shown(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: number(row[name], 1 if row["metric"].endswith("_mm3") else 4)

    columns = (
        Column("label", digits=None, text=lambda row: in_words(row["label"])),
        *(Column(name, digits=None) for name in ("processing", "metric", "model")),
        *(Column(name, text=shown(name)) for name in ("mean", "sd", "median", "min", "max")),
        *(Column(name) for name in ("n", "cases", "missed", "invented", "replaced")),
    )
    notes = (
        "n: cases with a defined value. Missed, invented: cases in which the reference alone, or the prediction alone, "
        "has the label. Replaced: undefined distances that were given a value. sd: standard deviation (n - 1).",
    )
    return table_of(pd.DataFrame(rows), columns, "All metrics", notes, grouped=3)
