"""Evaluates models on the cases of a reference folder: pairs, cases in parallel, tables, figures, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.evaluation.case import CaseTask, EvaluationSettings, evaluate_one
from nnunetv2_anomaly.evaluation.groups import Groups
from nnunetv2_anomaly.evaluation.pairing import Model, Pairs
from nnunetv2_anomaly.evaluation.pictures import case_pictures
from nnunetv2_anomaly.evaluation.report import Findings, lead_of, report_sections, write_tables_and_figures
from nnunetv2_anomaly.evaluation.results import BONE_COLUMNS, CASE_COLUMNS, LESION_COLUMNS, SLICE_COLUMNS, Evaluation
from nnunetv2_anomaly.files import (
    read_json,
    take_output_folder,
    write_failures_as_user_errors,
    write_marker,
    write_text,
)
from nnunetv2_anomaly.images.colours import write_colour_tables
from nnunetv2_anomaly.measurements.surface import METRICS
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.parts import ALL, Part
from nnunetv2_anomaly.postprocessing.clean_up import EXTENT_COLUMNS
from nnunetv2_anomaly.reporting.drawing import save_figure
from nnunetv2_anomaly.reporting.page import Section, page
from nnunetv2_anomaly.reporting.table import csv_text, unescaped

#: file of an output folder that shows that an evaluation wrote it, and which one
MARKER = "evaluation.json"

#: table of ``Evaluation`` -> its columns
_COLUMNS = {
    "cases": (*CASE_COLUMNS, *METRICS, "components", *EXTENT_COLUMNS),
    "bones": BONE_COLUMNS,
    "lesions": LESION_COLUMNS,
    "slices": SLICE_COLUMNS,
}


def evaluate_models(
    pairs: Pairs,
    output: Path,
    settings: EvaluationSettings,
    *,
    groups: Groups | None = None,
    num_processes: int = 2,
    part: Part = ALL,
) -> tuple[Evaluation, str]:
    """Measure every case, several at a time, and keep a record of each.

    Args:
        output: folder; the results of each case are kept in ``output/cases``.
        part: of the cases, while other jobs evaluate the others.
        num_processes: cases at a time; each takes about ten times the memory of a case's label map, and a softmax
            output's lesion channels on top.
    Returns: what was measured, and a sentence that lists the cases that could not be, empty if all could.
    Raises: UserError if none could.
    """
    with_probabilities = _check_probabilities(pairs, settings)
    tasks = [
        CaseTask(
            case,
            reference,
            {model.name: model.files[case] for model in pairs.models},
            {model.name: model.probabilities[case] for model in with_probabilities},
            settings,
            record=output / "cases" / f"{case}.json",
        )
        for case, reference in part.of(pairs.references.items())
    ]
    with write_failures_as_user_errors(output):
        found, failed = run_cases(evaluate_one, tasks, num_processes, "evaluating", "evaluated")
    if not found and failed and part.is_all:
        raise UserError(failed)
    done = [found[case] for case in pairs.references if case in found]
    tables = {
        kind: _table([row for of in done for row in of[kind]], columns, pairs, groups)
        for kind, columns in _COLUMNS.items()
    }
    names = tuple(model.name for model in pairs.models)
    return Evaluation(names, dict(settings.dataset.labels), groups.names if groups else (), **tables), failed


def _check_probabilities(pairs: Pairs, settings: EvaluationSettings) -> list[Model]:
    """The models whose softmax outputs are used: those that have any; they have one of every case then."""
    clean_up, used = settings.clean_up, []
    if not clean_up.bone_of_lesion or not (settings.with_probabilities or clean_up.lesion_probability is not None):
        return []
    for model in pairs.models:
        if not (without := [case for case in pairs.references if case not in model.probabilities]):
            used.append(model)
            continue
        missing = f"{model.name} ({model.folder}) has no softmax output (.npz) of {listed(without)}"
        if clean_up.lesion_probability is not None:
            raise UserError(f"{missing}, which --lesion_probability needs; predict with --save_probabilities")
        if len(without) < len(pairs.references):
            advice = "predict all with --save_probabilities, or leave them out with --without_probabilities"
            raise UserError(f"{missing}, but of other cases; {advice}")
    return used


def _table(rows: list[dict[str, Any]], columns: Sequence[str], pairs: Pairs, groups: Groups | None) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(columns))
    table["fold"] = [pairs.folds.get(key) for key in zip(table["model"], table["case"], strict=True)]
    table["group"] = [groups.of_case.get(case) if groups else None for case in table["case"]]
    order = {model.name: place for place, model in enumerate(pairs.models)}
    # Model by model, so that the first one given is the first one met.
    return table.sort_values("model", key=lambda names: names.map(order), kind="stable").reset_index(drop=True)


def prepare_output(output: Path, arguments: dict[str, Any], part: Part = ALL) -> None:
    """Make or take over the output folder. Raises: UserError if it holds something else, or cannot be written to."""
    with write_failures_as_user_errors(output):
        take_output_folder(output, MARKER, "evaluation", shared=not part.is_all)
        if part.is_all:
            write_marker(output / MARKER, {"arguments": arguments}, finished=False)


def write_evaluation(
    output: Path,
    evaluation: Evaluation,
    pairs: Pairs,
    settings: EvaluationSettings,
    arguments: dict[str, Any],
    *,
    images: Path | None = None,
    error_images: Path | None = None,
    notes: Sequence[str] = (),
    title: str = "Evaluation",
    more_sections: Sequence[Section] = (),
    tested: Evaluation | None = None,
) -> Path:
    """Write tables, figures, colour tables and the report, which is returned.

    Pictures of cases show ``images`` and ``error_images`` (``images.beside``), notes stand at the report's beginning;
    ``tested`` is as ``Findings.of`` takes it.

    Raises: UserError for pictures that are missing or of another grid, or if ``output`` cannot be written to.
    """
    findings = Findings.of(evaluation, tested)
    with write_failures_as_user_errors(output):
        write_tables_and_figures(output, findings)
        for name in _COLUMNS:
            write_text(output / "tables" / f"{name}.csv", csv_text(getattr(evaluation, name)))
        write_colour_tables(output, settings.dataset.single_values)
        pictures = case_pictures(evaluation, pairs, settings.dataset, images, error_images)
        for case, _, figure in pictures:
            save_figure(figure, output / "figures" / f"case_{case}.png", dpi=130)
        shown = [(caption, figure) for _, caption, figure in pictures]
        sections = report_sections(findings, shown, missing=settings.missing, notes=notes)
        report = output / "report.html"
        write_text(report, page(title, [*sections, *more_sections], lead_of(findings, shown)))
        content = {
            "arguments": arguments,
            "dataset": settings.dataset.source,
            "models": {model.name: model.folder for model in pairs.models},
            "groups": evaluation.groups,
            "num_cases": len(pairs.references),
            "settings": dataclasses.asdict(settings),
        }
        write_marker(output / MARKER, content, finished=True)
    return report


def load_evaluation(output: Path) -> Evaluation:
    """Read back what ``write_evaluation`` wrote. Raises: UserError if the folder holds no finished evaluation."""
    content = read_json(output / MARKER)
    if not content.get("finished"):
        raise UserError(f"{output} holds an evaluation that is not finished; run nnUNetv2_anomaly evaluate again")
    tables = {}
    for kind in _COLUMNS:
        file = output / "tables" / f"{kind}.csv"
        texts = dict.fromkeys(("case", "model", "fold", "group", "label", "bone", "lesion"), str)
        # Names such as "nan" or "None" are names: only what is empty is missing.
        table = pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=[""])
        tables[kind] = table.assign(**{name: table[name].map(unescaped) for name in texts if name in table})
    return Evaluation(
        models=tuple(content["models"]),
        labels={name: tuple(values) for name, values in content["settings"]["dataset"]["labels"].items()},
        groups=tuple(content["groups"]),
        **tables,
    )
