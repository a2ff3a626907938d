"""Facts about the page, the files and the cases that are chosen for pictures."""

from __future__ import annotations

import dataclasses
import math
import re

import matplotlib.image
import pytest
from made_evaluation import evaluation_of, row, small_evaluation
from matplotlib.figure import Figure

from nnunetv2_anomaly.evaluation.case import DIAGONAL, EXCLUDE
from nnunetv2_anomaly.evaluation.report import (
    Findings,
    report_sections,
    select_cases,
    write_report,
    write_tables_and_figures,
)
from nnunetv2_anomaly.evaluation.results import CLEANED, MISSED, NEITHER, RAW
from nnunetv2_anomaly.reporting.page import Section


def chosen(evaluation):
    return [(choice.model, choice.rank, choice.case, choice.mean_dsc) for choice in select_cases(evaluation)]


def rows_of(means, model="A"):
    """A case per mean DSC, of two labels that differ from it by 0.1; worse before post-processing."""
    return [
        row(case, model, label, processing, dsc=mean + difference - 0.05 * (processing == RAW))
        for case, mean in means.items()
        for label, difference in (("bone", 0.1), ("lesion", -0.1))
        for processing in (RAW, CLEANED)
    ]


def test_worst_median_and_best_case_are_chosen_by_the_mean_over_labels():
    means = {"c1": 0.7, "c2": 0.5, "c3": 0.8, "c4": 0.6, "c5": 0.4}
    assert chosen(evaluation_of(rows_of(means))) == [
        ("A", "worst", "c5", pytest.approx(0.4)),
        ("A", "median", "c4", pytest.approx(0.6)),
        ("A", "best", "c3", pytest.approx(0.8)),
    ]


def test_of_four_cases_the_worse_middle_one_is_the_median():
    means = {"c1": 0.8, "c2": 0.7, "c3": 0.6, "c4": 0.5}
    assert [case for _, rank, case, _ in chosen(evaluation_of(rows_of(means))) if rank == "median"] == ["c3"]


def test_ties_are_broken_by_the_name_whatever_the_order_of_the_rows():
    for names in (("c1", "c2", "c3"), ("c3", "c2", "c1")):
        assert [case for *_, case, _ in chosen(evaluation_of(rows_of(dict.fromkeys(names, 0.5))))] == ["c3", "c2", "c1"]


def test_every_model_chooses_for_itself_and_one_case_is_all_three():
    evaluation = evaluation_of([*rows_of({"c1": 0.5, "c2": 0.6}), *rows_of({"c1": 0.9}, "B")])
    assert [(model, case) for model, _, case, _ in chosen(evaluation)] == [
        ("A", "c1"), ("A", "c1"), ("A", "c2"), ("B", "c1"), ("B", "c1"), ("B", "c1"),
    ]  # fmt: skip
    assert select_cases(evaluation)[0].title == "worst of A, mean DSC 50.0 %"


def test_a_label_in_neither_map_does_not_count_and_a_missed_one_counts_as_0():
    rows = [
        row("c1", "A", "bone", CLEANED, dsc=0.9),
        row("c1", "A", "lesion", CLEANED, status=NEITHER),
        row("c2", "A", "bone", CLEANED, dsc=0.9),
        row("c2", "A", "lesion", CLEANED, status=MISSED),
        row("c3", "A", "bone", CLEANED, status=NEITHER),
        row("c3", "A", "lesion", CLEANED, status=NEITHER),
    ]
    assert {(case, dsc) for *_, case, dsc in chosen(evaluation_of(rows))} == {("c1", 0.9), ("c2", 0.45)}


def test_a_model_without_any_defined_dsc_chooses_nothing():
    assert select_cases(evaluation_of([row("c1", "A", "bone", CLEANED, status=NEITHER)])) == []


def test_tables_and_figures_are_written_and_open(tmp_path):
    paths = write_tables_and_figures(tmp_path / "new", Findings.of(small_evaluation()))
    assert sorted(paths) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    names = {path.relative_to(tmp_path / "new").as_posix() for path in paths}
    for stem in ("segmentation", "groups", "folds", "lesion_detection", "lesion_sizes", "lesion_volumes"):
        assert {f"tables/{stem}.{ending}" for ending in ("csv", "md", "tex")} <= names
    assert {f"tables/{stem}.csv" for stem in ("all_metrics", "tukey", "paired")} <= names
    assert {f"figures/box_hd_mm.{ending}" for ending in ("png", "svg")} <= names
    for path in paths:
        if path.suffix == ".png":
            assert matplotlib.image.imread(path).std() > 0


def test_what_differs_from_the_first_model_has_a_dagger():
    rows = [
        row(f"c{n}", model, "bone", processing, hd=hd + 0.1 * n)
        for model, hd in (("A", 2.0), ("B", 9.0))
        for n in range(4)
        for processing in (RAW, CLEANED)
    ]
    a, b = Findings.of(evaluation_of(rows)).tables["segmentation"].rows
    assert [cell.mark for cell in a] == [""] * 6
    # HD, and ASD that is a tenth of it here, before and after; DSC is equal.
    assert [cell.mark for cell in b] == ["", "", "", "†", "†", "†"]


def test_the_page_has_every_part_and_asks_for_nothing_outside_itself(tmp_path):
    findings = Findings.of(small_evaluation(("<A> & $b$_%", "B")))
    picture = Figure(figsize=(2, 2))
    path = write_report(
        tmp_path / "new" / "report.html",
        findings,
        [("case_0: worst of B", picture)],
        title="Two <models>",
        notes=["Grades are of the table."],
        more_sections=[Section("More", ["at the end"])],
    )
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"<h2[^>]*>([^<]*)", text) == [
        "What was compared", "Segmentation", "Lesions", "Cases", "More",
    ]  # fmt: skip
    assert "Two &lt;models&gt;" in text
    assert "&lt;A&gt; &amp; $b$_%" in text
    assert "<A>" not in text
    assert "Grades are of the table." in text
    assert text.count("<img") == 7 + 1
    assert not re.search(r"https?://|<script|<link", text)
    assert 'alt="case_0: worst of B: reference' in text


@pytest.mark.parametrize(
    ("missing", "told"), [(DIAGONAL, "replaced by the image's diagonal"), (EXCLUDE, "left out of the means")]
)
def test_the_page_tells_what_undefined_distances_become(missing, told):
    assert any(told in text for text in report_sections(Findings.of(small_evaluation()), missing=missing)[0].content)


def one_label_undefined(evaluation):
    cases = evaluation.cases.copy()
    of = cases["label"] == "femoral_lesion"
    cases.loc[of, ["dsc", "iou", "hd_mm", "asd_mm", "hd95_mm"]] = math.nan
    cases.loc[of, "status"] = NEITHER
    return dataclasses.replace(evaluation, cases=cases)


def without_lesions(evaluation):
    return dataclasses.replace(evaluation, bones=evaluation.bones[:0], lesions=evaluation.lesions[:0], groups=())


@pytest.mark.parametrize(
    "evaluation",
    [
        small_evaluation(("A",)),
        small_evaluation(num_cases=1),
        small_evaluation(("A",), num_cases=1),
        small_evaluation(("A",), labels=tuple(f"structure_{n}" for n in range(20)), num_cases=2),
        small_evaluation(
            tuple(f"a_very_long_name_of_a_model_{n}__with_plans__3d_fullres" for n in range(9)), num_cases=1
        ),
        one_label_undefined(small_evaluation()),
        without_lesions(small_evaluation()),
    ],
    ids=["one model", "one case", "one of each", "20 labels", "9 models", "a label is undefined", "no lesions"],
)
@pytest.mark.filterwarnings("error")
def test_unusual_evaluations_are_written_without_a_warning(evaluation, tmp_path):
    findings = Findings.of(evaluation)
    for table in findings.tables.values():
        assert all((table.csv(), table.markdown(), table.latex()))
    assert write_report(tmp_path / "report.html", findings).stat().st_size > 10_000
