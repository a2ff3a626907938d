"""An evaluation's tables, as CSV for programs and as Markdown, LaTeX and HTML for readers.

A mean over fewer than all cases says so in its own cell, and so does one that holds replaced distances.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
import re
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunetv2_anomaly.evaluation.results import (
    CLEANED,
    INVENTED,
    MISSED,
    NEITHER,
    RAW,
    Evaluation,
)
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.measurements.lesions import PROBABILITY, SIZE
from nnunetv2_anomaly.measurements.surface import DISTANCES, METRICS
from nnunetv2_anomaly.reporting import page

DAGGER = "†"


@dataclass(frozen=True)
class Measure:
    """A metric as the paper's tables and figures show it.

    Attributes:
        name: of its columns in a CSV.
        title: what stands above it.
        metric, processing: which values of ``Evaluation.cases``.
        factor: what they are multiplied by.
        digits: after the point.
        larger_is_better: else smaller is.
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
class Cell(page.Cell):
    """A cell as readers see it, and its values for programs: column of the CSV -> number or text, not rounded."""

    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table in four forms.

    Attributes:
        title: stands above it.
        header: a title per column, as readers see it.
        rows: of ``Cell``, as many as the header has.
        notes: sentences beneath it.
        words: that many leading columns hold words, the others numbers.
        grouped: in that many leading columns, a cell that repeats the one above it is shown once.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    words: int = 1
    grouped: int = 0

    def csv(self) -> str:
        """The cells' values, in full precision, a column per name; undefined numbers are empty."""
        records = [dict(itertools.chain.from_iterable(cell.values.items() for cell in row)) for row in self.rows]
        columns = list(dict.fromkeys(itertools.chain.from_iterable(records)))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow({name: "" if _is_missing(value) else value for name, value in record.items()})
        return buffer.getvalue()

    def markdown(self) -> str:
        """With title and notes, a smaller second line in brackets."""
        aligned = [":--"] * self.words + ["--:"] * (len(self.header) - self.words)
        lines = [[_markdown(title) for title in self.header], aligned]
        for row, shown in self._without_repeats():
            lines.append([_markdown_cell(cell) if on else "" for cell, on in zip(row, shown, strict=True)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "".join(f"\n{_markdown(note)}\n" for note in self.notes)
        return f"**{_markdown(self.title)}**\n\n{table}\n{notes}"

    def latex(self) -> str:
        """A table environment; the document needs the package booktabs."""
        columns = "l" * self.words + "r" * (len(self.header) - self.words)
        body: list[str] = []
        for row, shown in self._without_repeats():
            if self.grouped and shown[0] and body:
                body.append(r"\midrule")
            cells = [_latex_cell(cell) if on else "" for cell, on in zip(row, shown, strict=True)]
            body.append(f"{' & '.join(cells)} \\\\")
        notes = "".join(f"\n\\par\\smallskip{{\\footnotesize {_latex(note)}\\par}}" for note in self.notes)
        head = " & ".join(_latex(title) for title in self.header)
        return (
            "% needs \\usepackage{booktabs}\n"
            f"\\begin{{table}}\n\\centering\n\\caption{{{_latex(self.title)}}}\n\\begin{{tabular}}{{{columns}}}\n"
            f"\\toprule\n{head} \\\\\n\\midrule\n" + "\n".join(body) + f"\n\\bottomrule\n\\end{{tabular}}{notes}\n"
            "\\end{table}\n"
        )

    def html(self) -> str:
        """For a ``reporting.page``."""
        return page.table(self.header, self.rows, self.title, notes=self.notes, words=self.words, grouped=self.grouped)

    def write(self, folder: Path, stem: str, endings: Collection[str] = ("csv", "md", "tex")) -> list[Path]:
        """Write it as ``stem.csv``, ``stem.md`` and ``stem.tex``, each whole; the folder is made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        forms = {"csv": self.csv, "md": self.markdown, "tex": self.latex}
        paths = []
        for ending in endings:
            paths.append(folder / f"{stem}.{ending}")
            write_text(paths[-1], forms[ending]())
        return paths

    def _without_repeats(self) -> Iterator[tuple[tuple[Cell, ...], list[bool]]]:
        """Every row, and which of its cells are shown."""
        above: list[str] = []
        for row in self.rows:
            texts = [cell.text for cell in row]
            yield row, [n >= self.grouped or texts[: n + 1] != above[: n + 1] for n in range(len(row))]
            above = texts


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


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
    letters = cell.mark.replace(DAGGER, "")
    shown = (
        (f"\\textbf{{{text}}}" if cell.bold and text else text)
        + (_latex(DAGGER) if DAGGER in cell.mark else "")
        + (f"\\textsuperscript{{{_latex(letters)}}}" if letters else "")
    )
    if not cell.beneath:
        return shown
    lines = [shown, *(f"\\scriptsize {_latex(line)}" for line in cell.beneath.splitlines())]
    return "\\begin{tabular}[t]{@{}r@{}}" + " \\\\ ".join(lines) + "\\end{tabular}"


@dataclass(frozen=True)
class Summary:
    """One metric over cases.

    Attributes:
        mean, median, low, high: of the values that are defined; NaN without any.
        sd: their standard deviation (n - 1); NaN with fewer than two.
        n: how many are defined.
        cases: how many cases there are, which ``n`` is not where some are left out.
        missed, invented, neither: how many of the cases have that status.
        replaced: how many of the values stand for a distance that is undefined.
        of: the cases with a defined value.
    """

    mean: float
    sd: float
    median: float
    low: float
    high: float
    n: int
    cases: int
    missed: int
    invented: int
    neither: int
    replaced: int
    of: frozenset[str]


def summarise(rows: pd.DataFrame, metric: str, factor: float = 1.0) -> Summary:
    """One metric over some rows of ``Evaluation.cases``, at most one row per case.

    Args:
        rows: of one model, label and processing.
        metric: a column of it.
        factor: what its values are multiplied by.

    Returns: in the metric's unit times ``factor``.
    """
    values = rows[metric].to_numpy(dtype=float) * factor
    defined = np.isfinite(values)
    status = rows["status"].to_numpy()
    left = values[defined]
    one_sided = np.isin(status, (MISSED, INVENTED))
    return Summary(
        mean=float(left.mean()) if left.size else math.nan,
        sd=float(left.std(ddof=1)) if left.size > 1 else math.nan,
        median=float(np.median(left)) if left.size else math.nan,
        low=float(left.min()) if left.size else math.nan,
        high=float(left.max()) if left.size else math.nan,
        n=int(left.size),
        cases=len(rows),
        missed=int((status == MISSED).sum()),
        invented=int((status == INVENTED).sum()),
        neither=int((status == NEITHER).sum()),
        replaced=int((one_sided & defined).sum()) if metric in DISTANCES else 0,
        of=frozenset(rows["case"].to_numpy()[defined]),
    )


def in_words(name: str) -> str:
    """A name of a label, bone or metric, as readers see it."""
    return name.replace("_", " ")


def _words(column: str, text: str, value: Any = None) -> Cell:
    return Cell(text, left=True, values={column: text if value is None else value})


def _number(column: str, value: float, digits: int, *, bold: bool = False) -> Cell:
    return Cell(page.number(value, digits), bold=bold, values={column: value})


def _count(column: str, value: float) -> Cell:
    return Cell(str(int(value)), values={column: int(value)})


def _mean_cell(measure: Measure, found: Summary, *, bold: bool, mark: str) -> Cell:
    """Mean and standard deviation, and beneath it what the mean is over where that is not plainly all cases."""
    text = page.number(found.mean, measure.digits)
    if found.n > 1:
        text += f" ± {page.number(found.sd, measure.digits)}"
    one_sided = [f"{number} {what}" for number, what in ((found.missed, MISSED), (found.invented, INVENTED)) if number]
    lines = [f"n = {found.n} of {found.cases}"] if found.n < found.cases else []
    lines += [", ".join(one_sided)] if one_sided else []
    names = ("mean", "sd", "n", "cases", "missed", "invented", "replaced")
    values = {f"{measure.name}_{name}": getattr(found, name) for name in names}
    return Cell(text, bold=bold, mark=mark, beneath="\n".join(lines), values=values)


def _letters(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = ""
    number += 1
    while number:
        number, place = divmod(number - 1, 26)
        letters = string.ascii_lowercase[place] + letters
    return letters


def _best(found: Mapping[str, Summary], *, larger_is_better: bool) -> set[str]:
    """Models with the best mean. None where their means are over different cases, or do not differ."""
    means = {model: summary.mean for model, summary in found.items() if summary.n}
    if len({found[model].of for model in means}) > 1 or len(set(means.values())) < 2:
        return set()
    best = (max if larger_is_better else min)(means.values())
    return {model for model, mean in means.items() if mean == best}


def segmentation_table(evaluation: Evaluation, daggers: Collection[tuple[str, str, str, str]] = frozenset()) -> Table:
    """The paper's table of segmentation (method paper, Table 2): mean and standard deviation of ``MEASURES``.

    A row per label and model. The best mean of a label's models is bold where they all are over the same cases.

    Args:
        evaluation: what was measured.
        daggers: (processing, label, metric, model) of what differs significantly from the first model
            (``statistics.daggers``).
    """
    num_cases = evaluation.cases["case"].nunique()
    title = f"Segmentation: mean ± standard deviation over {num_cases} case{'s' * (num_cases != 1)}"
    return _means_table(evaluation, title, MEASURES, None, daggers)


def group_table(evaluation: Evaluation) -> Table | None:
    """Means within each group of cases (method paper, Table 3: HD0 and HD1), or None where cases are not grouped."""
    if not evaluation.groups:
        return None
    measures = (DSC, HD, HD_RAW)
    return _means_table(evaluation, "Segmentation by group of cases", measures, "group", frozenset())


def fold_table(evaluation: Evaluation) -> Table | None:
    """Means within each fold, or None where folds are unknown."""
    if not _values_of(evaluation, "fold"):
        return None
    return _means_table(evaluation, "Segmentation by fold", MEASURES, "fold", frozenset())


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
    found = _summaries(evaluation, measures, by)
    marks, notes = _marks(evaluation, measures, by)
    rows = []
    for (label, value), of_measures in found.items():
        best = {m: _best(models, larger_is_better=m.larger_is_better) for m, models in of_measures.items()}
        for model in evaluation.models:
            cells = [_words("label", in_words(label), label), _words("model", model)]
            if by is not None:
                cells.insert(1, _words(by, str(value)))
                cells.append(_count("cases", max(models[model].cases for models in of_measures.values())))
            for measure, models in of_measures.items():
                signs = DAGGER if (measure.processing, label, measure.metric, model) in daggers else ""
                signs += marks[label] if _is_incomplete(models[model]) else ""
                cells.append(_mean_cell(measure, models[model], bold=model in best[measure], mark=signs))
            rows.append(tuple(cells))
    header = ("label", "model") if by is None else ("label", by, "model", "cases")
    words = 2 if by is None else 3
    return Table(
        title,
        (*header, *(measure.title for measure in measures)),
        tuple(rows),
        (*_explanations(evaluation, measures, rows, found, by), *notes),
        words=words,
        grouped=words - 1,
    )


def _summaries(evaluation: Evaluation, measures: Sequence[Measure], by: str | None) -> dict[tuple[str, Any], _Found]:
    """(label, value of the column ``by``) -> what was found; the value is None without such a column."""
    columns = ["label", "model", "processing", *([by] if by is not None else [])]
    parts = dict(_grouped(evaluation.cases, columns))
    nothing = evaluation.cases.iloc[:0]
    return {
        (label, value): {
            measure: {
                model: summarise(
                    parts.get((label, model, measure.processing, *([value] if by is not None else [])), nothing),
                    measure.metric,
                    measure.factor,
                )
                for model in evaluation.models
            }
            for measure in measures
        }
        for label in evaluation.labels
        for value in (_values_of(evaluation, by) if by is not None else [None])
    }


def _is_incomplete(found: Summary) -> bool:
    """Whether a mean leaves out cases, or holds replaced distances."""
    return found.n < found.cases or found.replaced > 0


def _marks(evaluation: Evaluation, measures: Sequence[Measure], by: str | None) -> tuple[dict[str, str], list[str]]:
    """Label -> mark of its incomplete means, and a note for each mark that tells the numbers model by model.

    Those of groups or folds are told of all of them together; what is of one stands in its cells.
    """
    together = ""
    if by is not None:
        known = evaluation.cases[by].isin(_values_of(evaluation, by))
        evaluation, together = dataclasses.replace(evaluation, cases=evaluation.cases[known]), f", all {by}s together"
    marks: dict[str, str] = {}
    notes: list[str] = []
    for (label, _), of_measures in _summaries(evaluation, measures, None).items():
        numbers = {
            model: _missing_numbers({measure: models[model] for measure, models in of_measures.items()})
            for model in evaluation.models
        }
        told = "; ".join(f"{model}: {text}" for model, text in numbers.items() if text)
        if told:
            marks[label] = _letters(len(notes))
            notes.append(f"({marks[label]}) {in_words(label)}{together}. {told}.")
    return marks, notes


def _missing_numbers(found: Mapping[Measure, Summary]) -> str:
    """How many cases lack a label in one map or both, where a mean is incomplete for it; else empty."""
    texts: dict[str, list[str]] = {}
    for measure, summary in found.items():
        if not _is_incomplete(summary):
            continue
        counts = ((summary.neither, "in neither map"), (summary.missed, MISSED), (summary.invented, INVENTED))
        told = [f"{number} {what}" for number, what in counts if number] or [f"{summary.cases - summary.n} undefined"]
        texts.setdefault(f"{', '.join(told)} of {summary.cases}", []).append(measure.processing)
    if len(texts) < 2:
        return next(iter(texts), "")
    before_or_after = {RAW: "before post-processing", CLEANED: "after it"}
    return ", ".join(f"{before_or_after[where[0]]} {text}" for text, where in reversed(texts.items()))


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
        notes.append(f"{DAGGER} differs from {baseline} (Tukey's honestly significant difference, p < 0.05).")
    if any(summary.missed or summary.invented for summary in summaries):
        distances = "replaced" if any(summary.replaced for summary in summaries) else "left out"
        notes.append(
            f"Missed: the reference alone has the label; invented: the prediction alone has it. The DSC of such a case "
            f"is 0, and its distances, which are undefined, are {distances}."
        )
    if any(summary.neither for summary in summaries):
        notes.append("Cases in which neither map has the label are left out.")
    if by is not None:
        without = evaluation.cases.loc[~evaluation.cases[by].isin(_values_of(evaluation, by)), "case"].nunique()
        if without:
            notes.append(f"{without} case{'s' * (without != 1)} without a {by}: in no row.")
    return notes


def metrics_table(evaluation: Evaluation) -> Table:
    """Every metric of every label and model, before and after post-processing, in a row each."""
    rows = []
    parts = dict(_grouped(evaluation.cases, ["label", "processing", "model"]))
    for label, processing, metric, model in itertools.product(
        evaluation.labels, (RAW, CLEANED), METRICS, evaluation.models
    ):
        part = parts.get((label, processing, model))
        if part is None:
            continue
        found, digits = summarise(part, metric), 1 if metric.endswith("_mm3") else 4
        numbers = {"mean": found.mean, "sd": found.sd, "median": found.median, "min": found.low, "max": found.high}
        counts = {
            "n": found.n, "cases": found.cases, "missed": found.missed, "invented": found.invented,
            "replaced": found.replaced,
        }  # fmt: skip
        rows.append(
            (
                _words("label", in_words(label), label),
                _words("processing", processing),
                _words("metric", metric),
                _words("model", model),
                *(_number(name, value, digits) for name, value in numbers.items()),
                *(_count(name, value) for name, value in counts.items()),
            )
        )
    notes = (
        "n: cases with a defined value. Missed, invented: cases in which the reference alone, or the prediction alone, "
        "has the label. Replaced: undefined distances that were given a value. sd: standard deviation (n - 1).",
    )
    header = (
        "label", "processing", "metric", "model", "mean", "sd", "median", "min", "max", "n", "cases", "missed",
        "invented", "replaced",
    )  # fmt: skip
    return Table("All metrics", header, tuple(rows), notes, words=4, grouped=3)


def detection_table(summary: pd.DataFrame) -> Table:
    """The paper's table of lesion detection (method paper, Table 4).

    Args:
        summary: of ``detection.summary``.
    """
    scores = {
        "sensitivity": "sensitivity", "specificity": "specificity", "accuracy": "accuracy", "auc": "AUC",
        "mean_dsc": "DSC", "dacc": "dAcc", "ddsc": "dDSC",
    }  # fmt: skip
    rows = []
    for bone, own in _grouped(summary, ["bone"]):
        best = {name: _best_values(own[name], larger_is_better=True) for name in scores}
        # Models are evaluated on the same bones; where one lacks some, none is named best.
        same = len(own[["positives", "negatives"]].drop_duplicates()) == 1
        for place, row in own.iterrows():
            cells = [_words("bone", in_words(bone), bone), _words("model", row["model"])]
            cells += [_count(name, row[name]) for name in ("positives", "negatives")]
            for name in scores:
                cell = _number(name, row[name], 3, bold=same and place in best[name])
                if name in ("dacc", "ddsc"):
                    rule, threshold = row[f"{name}_rule"], row[f"{name}_threshold"]
                    values = {**cell.values, f"{name}_rule": rule, f"{name}_threshold": threshold}
                    cell = Cell(cell.text, bold=cell.bold, beneath=threshold_in_words(rule, threshold), values=values)
                cells.append(cell)
            rows.append(tuple(cells))
    notes = (
        "A bone is positive where the reference has a lesion in it, and detected from a DSC of 5 % on. Sensitivity, "
        "specificity, accuracy and DSC (mean over the positive bones) of the predictions as they are; AUC over all "
        "thresholds. dAcc, dDSC: the best accuracy and the best mean DSC over the thresholds, and the threshold that "
        "gives it; it is chosen on these very cases and tells what post-processing could give at best.",
    )
    header = ("bone", "model", "positive", "negative", *scores.values())
    return Table("Lesion detection, bone by bone", header, tuple(rows), notes, words=2, grouped=1)


def threshold_in_words(rule: str | None, threshold: float) -> str:
    """A threshold of ``Evaluation.bones``, as readers see it; empty where there is none."""
    if rule == SIZE and threshold == 0:
        return "as predicted"
    if rule == SIZE:
        return f"lesions ≥ {threshold:g} mm³"
    if rule == PROBABILITY:
        return f"softmax ≥ {threshold:g}"
    return ""


def lesion_wise_table(lesion_wise: pd.DataFrame) -> Table:
    """Lesions that are found, one by one, by their size.

    Args:
        lesion_wise: of ``detection.lesion_wise``.
    """
    rows = []
    for (bone, low, high), own in _grouped(lesion_wise, ["bone", "from_mm3", "to_mm3"]):
        best = {name: _best_values(own[name], larger_is_better=True) for name in ("sensitivity", "precision")}
        for place, row in own.iterrows():
            rows.append(
                (
                    _words("bone", in_words(bone), bone),
                    Cell(size_in_words(low, high), left=True, values={"from_mm3": low, "to_mm3": high}),
                    _words("model", row["model"]),
                    _count("reference", row["reference"]),
                    _count("found", row["found"]),
                    _number("sensitivity", row["sensitivity"], 3, bold=place in best["sensitivity"]),
                    _count("predicted", row["predicted"]),
                    _count("true", row["true"]),
                    _number("precision", row["precision"], 3, bold=place in best["precision"]),
                )
            )
    notes = (
        "A lesion of the reference is found where any of its voxels is predicted; one of the prediction is true where "
        "any of its voxels is in the reference. Each counts by its own volume.",
    )
    header = (
        "bone", "volume [mm³]", "model", "lesions", "found", "sensitivity", "predicted", "true", "precision",
    )  # fmt: skip
    return Table("Lesions, one by one", header, tuple(rows), notes, words=3, grouped=2)


def size_in_words(low: float, high: float) -> str:
    """A bin of volumes in mm3, as readers see it."""
    if math.isinf(high):
        return f"≥ {low:g}"
    return f"< {high:g}" if low == 0 else f"{low:g} to {high:g}"


def volume_table(agreement: pd.DataFrame) -> Table:
    """How far lesion volumes agree.

    Args:
        agreement: of ``detection.volume_agreement``.
    """
    rows = [
        (
            _words("bone", in_words(bone), bone),
            _words("model", row["model"]),
            _count("n", row["n"]),
            _number("pearson_r", row["pearson_r"], 3),
            Cell(_p(row["pearson_p"]), values={"pearson_p": row["pearson_p"]}),
            *(_number(name, row[name], 1) for name in ("bias_mm3", "sd_mm3", "lower_mm3", "upper_mm3")),
        )
        for bone, own in _grouped(agreement, ["bone"])
        for _, row in own.iterrows()
    ]
    notes = (
        "n: bones in which at least one of the maps has a lesion. Bias: mean of prediction - reference; limits of "
        "agreement: bias -+ 1.96 standard deviations.",
    )
    header = (
        "bone", "model", "n", "Pearson r", "p", "bias [mm³]", "sd [mm³]", "lower limit [mm³]", "upper limit [mm³]",
    )  # fmt: skip
    return Table("Lesion volumes: agreement", header, tuple(rows), notes, words=2, grouped=1)


def tukey_table(tukey: pd.DataFrame, *, significant_only: bool = False) -> Table:
    """Tukey's honestly significant difference, a pair of models in a row.

    Args:
        tukey: of ``statistics.tukey``.
        significant_only: whether the other pairs are left out.
    """
    return _pairs_table(
        tukey,
        "Differences between models: Tukey's honestly significant difference",
        "The models' values are taken for independent samples. Interval: 95 %, simultaneous over all pairs. "
        "Significant: p < 0.05.",
        {"n_a": "n of A", "n_b": "n of B"},
        {"mean_a": "mean of A", "mean_b": "mean of B", "difference": "A - B", "lower": "from", "upper": "to"},
        {"p": "p"},
        significant_only=significant_only,
    )


def paired_table(paired: pd.DataFrame, *, significant_only: bool = False) -> Table:
    """Wilcoxon's signed-rank test, a pair of models in a row.

    Args:
        paired: of ``statistics.paired``.
        significant_only: whether the other pairs are left out.
    """
    return _pairs_table(
        paired,
        "Differences between models, case by case: Wilcoxon's signed-rank test",
        "n: cases in which both models have a value; means and difference are over them. Corrected p: Holm's, over "
        "the pairs of a label and metric. Significant: corrected p < 0.05.",
        {"n": "n"},
        {"mean_a": "mean of A", "mean_b": "mean of B", "difference": "A - B"},
        {"p": "p", "p_holm": "corrected p"},
        significant_only=significant_only,
    )


#: of statistics' metrics, as readers see them
_METRIC_TITLES = {"dsc": "DSC", "asd_mm": "ASD [mm]", "hd_mm": "HD [mm]", "hd95_mm": "HD95 [mm]"}


def _pairs_table(
    frame: pd.DataFrame,
    title: str,
    note: str,
    counts: Mapping[str, str],
    numbers: Mapping[str, str],
    ps: Mapping[str, str],
    *,
    significant_only: bool,
) -> Table:
    frame = frame.sort_values(["label", "metric"], key=_place, kind="stable")
    chosen = frame[frame["significant"].astype(bool)] if significant_only else frame
    notes = [f"{note} Before and after: post-processing."]
    if significant_only:
        notes.append(f"{len(chosen)} of {len(frame)} comparisons are significant; only these are shown.")
    rows = [
        (
            _words("label", in_words(row["label"]), row["label"]),
            _words("metric", _METRIC_TITLES.get(row["metric"], row["metric"]), row["metric"]),
            _words("processing", {RAW: "before", CLEANED: "after"}[row["processing"]], row["processing"]),
            _words("model_a", row["model_a"]),
            _words("model_b", row["model_b"]),
            *(_count(name, row[name]) for name in counts),
            *(_number(name, row[name], 4) for name in numbers),
            *(Cell(_p(row[name]), values={name: row[name]}) for name in ps),
            *(
                []
                if significant_only
                else [Cell("yes" if row["significant"] else "no", values={"significant": bool(row["significant"])})]
            ),
        )
        for _, row in chosen.iterrows()
    ]
    header = (
        "label", "metric", "", "A", "B", *counts.values(), *numbers.values(), *ps.values(),
        *([] if significant_only else ["significant"]),
    )  # fmt: skip
    return Table(title, header, tuple(rows), tuple(notes), words=5, grouped=3)


def _place(names: pd.Series) -> pd.Series:
    """Of each name the place in the order in which names are first met."""
    return names.map({name: place for place, name in enumerate(names.unique())})


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else page.number(value, 3)


def _grouped(frame: pd.DataFrame, columns: list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Rows of equal values, in the order in which these are first met; one column gives its value, several a tuple."""
    for key, own in frame.groupby(columns, sort=False, observed=True):
        yield (key[0] if len(columns) == 1 else key), own


def _best_values(values: pd.Series, *, larger_is_better: bool) -> set[Any]:
    """Index of the best; empty where the values do not differ."""
    known = values.dropna().astype(float)
    if known.nunique() < 2:
        return set()
    return set(known.index[known == (known.max() if larger_is_better else known.min())])
