"""An evaluation's output: tests, tables, figures, and the page that shows them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from nnunetv2_anomaly.errors import counted
from nnunetv2_anomaly.evaluation import statistics
from nnunetv2_anomaly.evaluation.case import DIAGONAL
from nnunetv2_anomaly.evaluation.figures import evaluation_figures
from nnunetv2_anomaly.evaluation.lesion_tables import lesion_tables
from nnunetv2_anomaly.evaluation.pair_tables import paired_table, tukey_table
from nnunetv2_anomaly.evaluation.pictures import select_cases
from nnunetv2_anomaly.evaluation.results import Evaluation
from nnunetv2_anomaly.evaluation.summary import summary_sentences, summary_table, terms_of
from nnunetv2_anomaly.evaluation.tables import fold_table, group_table, metrics_table, segmentation_table
from nnunetv2_anomaly.reporting.drawing import save_figure
from nnunetv2_anomaly.reporting.page import Content, Picture, Section, Terms
from nnunetv2_anomaly.reporting.table import Cell, Table, in_words, number

#: too long for a page of a paper
_WITHOUT_LATEX = ("all_metrics", "tukey", "paired")

#: tables and figures that only some evaluations have, by the names of their files
_TABLES_OF_SOME = (
    *("groups", "folds", "lesion_detection", "lesion_volumes", "lesion_sizes", "lesion_slices", "lesion_slice_sizes"),
    *("tukey", "paired"),
)
_DIVISIONS = {"groups": "By group of cases", "folds": "By fold"}
_FIGURES_OF_SOME = ("roc", "lesion_volumes", "lesion_sizes")
#: table of lesions -> title of its section, and its figure
_LESIONS = {
    "lesion_detection": ("Detection", "roc"),
    "lesion_sizes": ("Lesions one by one", "lesion_sizes"),
    "lesion_volumes": ("Volumes", "lesion_volumes"),
    "lesion_slices": ("Slice by slice", ""),
    "lesion_slice_sizes": ("By the area in a slice", ""),
}


@dataclass(frozen=True)
class Findings:
    """An evaluation with its tests, tables and figures, made once for files and page."""

    evaluation: Evaluation
    tukey: pd.DataFrame  # of ``statistics``, as paired
    paired: pd.DataFrame
    tables: Mapping[str, Table]  # all that it has data for, by the names of their files, as drawings
    drawings: Mapping[str, Picture]

    @classmethod
    def of(cls, evaluation: Evaluation, tested: Evaluation | None = None) -> Findings:
        """Test, tabulate and draw an evaluation.

        Args:
            tested: whose ``cases`` and ``bones`` are tested in place of its own, because these are not independent of
                each other, such as predictions of one image by several trainings of a model; None tests its own.
        """
        tested = evaluation if tested is None else tested
        tukey, paired = statistics.tukey(tested.cases), statistics.paired(tested.cases)
        drawings = {drawing.name: drawing for drawing in evaluation_figures(evaluation)}
        return cls(evaluation, tukey, paired, _tables(evaluation, tested, tukey, paired), drawings)


def _tables(evaluation: Evaluation, tested: Evaluation, tukey: pd.DataFrame, paired: pd.DataFrame) -> dict[str, Table]:
    enough = tested.cases["case"].nunique() >= statistics.fewest_cases(len(tested.models))
    marked = statistics.daggers(paired, evaluation.models[0]) if enough else None
    tables = {
        "segmentation": segmentation_table(evaluation, marked),
        "groups": group_table(evaluation),
        "folds": fold_table(evaluation),
        "all_metrics": metrics_table(evaluation),
        **lesion_tables(evaluation, tested),
        "tukey": tukey_table(tukey) if len(tukey) and enough else None,
        "paired": paired_table(paired) if len(paired) and enough else None,
    }
    return {name: table for name, table in tables.items() if table is not None}


def write_tables_and_figures(folder: Path, findings: Findings) -> list[Path]:
    """Write ``folder/tables`` (CSV, Markdown, LaTeX) and ``folder/figures`` (PNG, SVG), each file whole.

    Files of an earlier evaluation that this one does not write are removed first: a table of groups that no longer
    exist would mislead. Returns: the files.
    """
    tables, figures = folder / "tables", folder / "figures"
    earlier = [tables / f"{name}.{ending}" for name in _TABLES_OF_SOME for ending in ("csv", "md", "tex")]
    earlier += [figures / f"{name}.{ending}" for name in _FIGURES_OF_SOME for ending in ("png", "svg")]
    for path in (*earlier, *figures.glob("case_*.png")):
        path.unlink(missing_ok=True)
    paths = []
    for name, table in findings.tables.items():
        paths += table.write(tables, name, ("csv", "md") if name in _WITHOUT_LATEX else ("csv", "md", "tex"))
    figures.mkdir(parents=True, exist_ok=True)
    for drawing in findings.drawings.values():
        for ending in ("png", "svg"):
            paths.append(figures / f"{drawing.name}.{ending}")
            save_figure(drawing.figure, paths[-1], dpi=150)
    return paths


def lead_of(
    findings: Findings, pictures: Sequence[tuple[str, Figure]] = (), sentences: Sequence[str] = ()
) -> list[Content]:
    """What a page begins with: ``sentences``, or else those of the evaluation, the first picture, and one table."""
    sentences = sentences or summary_sentences(findings.evaluation, findings.paired)
    shown = [_picture(*picture) for picture in pictures[:1]]
    return [*sentences, *shown, summary_table(findings.evaluation)]


def report_sections(
    findings: Findings,
    pictures: Sequence[tuple[str, Figure]] = (),
    *,
    missing: str = DIAGONAL,
    notes: Sequence[str] = (),
    chosen: str = "",
    terms: Mapping[str, str] | None = None,
) -> list[Section]:
    """The evaluation as folded sections of a page, with pictures (title, figure) of cases and notes at the beginning.

    Args:
        missing: what distances are where just one map has the label, ``case.DIAGONAL`` or ``case.EXCLUDE``.
        chosen: how the pictures' cases were chosen; empty where ``select_cases`` chose them.
        terms: further ones to explain.
    """
    evaluation, tables, drawings = findings.evaluation, findings.tables, findings.drawings
    parts = [
        Section("Distances and DSC, case by case", [drawings[name] for name in drawings if name.startswith("box_")]),
        *(Section(title, [tables[name]]) for name, title in _DIVISIONS.items() if name in tables),
    ]
    if tested := "tukey" in tables or "paired" in tables:
        parts.append(Section("Differences between models", _significant(findings)))
    explained = {**terms_of(evaluation, tested=tested), **(terms or {})}
    sections = [
        Section("Terms on this page", [Terms(explained)], folded=True),
        Section("What was compared", _introduction(evaluation, missing, notes), folded=True),
        Section("Segmentation", [tables["segmentation"]], parts, folded=True),
    ]
    lesions = [
        Section(title, [tables[table], *([drawings[drawn]] if drawn in drawings else [])])
        for table, (title, drawn) in _LESIONS.items()
        if table in tables
    ]
    if lesions:
        sections.append(Section("Lesions", sections=lesions, folded=True))
    if pictures:  # the first stands in the lead
        others = [_picture(*picture) for picture in pictures[1:]]
        sections.append(Section("Cases", [*([chosen] if chosen else _how_chosen(evaluation)), *others], folded=True))
    return sections


def _introduction(evaluation: Evaluation, missing: str, notes: Sequence[str]) -> list[str]:
    num_cases = evaluation.cases["case"].nunique()
    models = ", ".join(evaluation.models)
    compared = f"{counted(num_cases, 'case')} and {counted(len(evaluation.models), 'model')}: {models}."
    labels = f"Labels: {', '.join(in_words(label) for label in evaluation.labels)}."
    if evaluation.groups:
        sizes = evaluation.cases.groupby("group", observed=True)["case"].nunique()
        groups = (f"{group} ({counted(sizes.get(group, 0), 'case')})" for group in evaluation.groups)
        labels += f" Groups: {', '.join(groups)}."
    replaced = (
        "replaced by the image's diagonal, so that a missing or an invented label costs more than any misplaced one"
        if missing == DIAGONAL
        else "left out of the means and counted beside them"
    )
    policy = (
        "Where a case has a label in neither map, there is nothing to measure, and it is left out of that label's "
        "means. Where just one of the maps has it, the label is missed (the reference alone has it) or invented (the "
        f"prediction alone has it): the DSC is 0, and the distances, which are then undefined, are {replaced}. Every "
        "mean that is not of all cases, or that holds such a distance, says so in its own cell."
    )
    measures = "The tables folder holds every metric of every label in full precision (all_metrics.csv)."
    return [compared, labels, *notes, measures, policy]


def _significant(findings: Findings) -> list[Content]:
    content: list[Content] = []
    for name, frame, make in (("tukey", findings.tukey, tukey_table), ("paired", findings.paired, paired_table)):
        if frame["significant"].any():
            content.append(make(frame, significant_only=True))
        elif name in findings.tables:
            content.append(f"{findings.tables[name].title}: none of {len(frame)} comparisons is significant.")
    return content


def _picture(title: str, figure: Figure) -> Picture:
    return Picture(figure, f"{title}: reference, predictions, and where they disagree.", title)


def _how_chosen(evaluation: Evaluation) -> list[Content]:
    choices = select_cases(evaluation)
    rows = [[Cell(of.model), Cell(of.rank), Cell(of.case), Cell(number(100 * of.mean_dsc, 1))] for of in choices]
    title = "Cases of each model by the mean DSC over its labels, after post-processing"
    text = (
        "Each case on the slice on which the predictions, all together, disagree most with the reference. Sagittal "
        "slices have superior up and anterior to the right. The first picture stands at the top of the page."
    )
    return [Table(title, ("model", "rank", "case", "mean DSC [%]"), rows, words=3, grouped=1), text]
