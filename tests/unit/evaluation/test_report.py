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
    lead_of,
    report_sections,
    write_tables_and_figures,
)
from nnunetv2_anomaly.evaluation.results import CLEANED, NEITHER, RAW
from nnunetv2_anomaly.reporting.page import Section, page


def test_tables_and_figures_are_written_and_open(tmp_path):
    paths = write_tables_and_figures(tmp_path / "new", Findings.of(small_evaluation(num_cases=6)))
    assert sorted(paths) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    names = {path.relative_to(tmp_path / "new").as_posix() for path in paths}
    for stem in ("segmentation", "groups", "folds", "lesion_detection", "lesion_sizes", "lesion_volumes"):
        assert {f"tables/{stem}.{ending}" for ending in ("csv", "md", "tex")} <= names
    assert {f"tables/{stem}.csv" for stem in ("all_metrics", "tukey", "paired")} <= names
    assert {f"figures/box_hd_mm.{ending}" for ending in ("png", "svg")} <= names
    for path in paths:
        if path.suffix == ".png":
            assert matplotlib.image.imread(path).std() > 0


def test_every_column_has_a_heading():
    for table in Findings.of(small_evaluation(num_cases=6)).tables.values():
        assert all(table.header), table.title


@pytest.mark.parametrize(("column", "table"), [("group", "groups"), ("fold", "folds")])
def test_a_single_group_has_no_table_of_its_own(column, table):
    evaluation = small_evaluation(num_cases=6)
    assert table in Findings.of(evaluation).tables
    cases = evaluation.cases.assign(**{column: "low"})
    assert table not in Findings.of(dataclasses.replace(evaluation, cases=cases)).tables


def test_a_single_bone_is_not_repeated_as_all_bones():
    for name in ("lesion_detection", "lesion_sizes", "lesion_volumes"):
        assert {cells[0].text for cells in Findings.of(small_evaluation()).tables[name].rows} == {"femoral bone"}


def test_dsc_is_in_per_cent_wherever_it_is_shown_and_a_fraction_in_files():
    tables = Findings.of(small_evaluation(num_cases=6)).tables
    detection, paired = tables["lesion_detection"], tables["paired"]
    place = detection.header.index("DSC [%]")
    cell = detection.rows[0][place]
    assert float(cell.text) == pytest.approx(100 * cell.values["mean_dsc"], abs=0.05)
    of_dsc = next(row for row in paired.rows if row[1].text == "DSC [%]")
    mean = of_dsc[paired.header.index("mean of A")]
    assert float(mean.text) == pytest.approx(100 * mean.values["mean_a"], abs=0.001)


def page_of(findings):
    return page("Evaluation", report_sections(findings), lead_of(findings))


def better_and_worse(num_cases):
    """A model whose distances are shorter in every case, and another one."""
    return evaluation_of(
        row(f"c{n}", model, "bone", processing, hd=hd + 0.1 * n)
        for model, hd in (("A", 2.0), ("B", 9.0))
        for n in range(num_cases)
        for processing in (RAW, CLEANED)
    )


@pytest.mark.parametrize("num_cases", [2, 4, 5])
def test_of_fewer_than_six_cases_nothing_is_called_significant(num_cases):
    findings = Findings.of(better_and_worse(num_cases))
    table = findings.tables["segmentation"]
    assert not any(cell.mark for cells in table.rows for cell in cells)
    assert table.notes[-1].startswith("Fewer than 6 cases")
    assert not {"tukey", "paired"} & findings.tables.keys()
    assert "Differences between models" not in page_of(findings)


def test_tests_without_a_significant_difference_are_a_sentence():
    findings = Findings.of(small_evaluation(("A", "A again"), num_cases=6))
    for frame in (findings.tukey, findings.paired):
        frame["significant"] = False
    shown = page_of(findings)
    assert shown.count("comparisons is significant.") == 2
    assert "only these are shown" not in shown


def test_what_differs_from_the_first_model_has_a_dagger():
    a, b = Findings.of(better_and_worse(6)).tables["segmentation"].rows
    assert [cell.mark for cell in a] == [""] * 6
    # HD, and ASD that is a tenth of it here, before and after; DSC is equal.
    assert [cell.mark for cell in b] == ["", "", "", "†", "†", "†"]


def test_the_page_has_every_part_and_asks_for_nothing_outside_itself():
    findings = Findings.of(small_evaluation(("<A> & $b$_%", "B")))
    pictures = [("case_0: worst of B", Figure(figsize=(2, 2)))]
    sections = report_sections(findings, pictures, notes=["Grades are of the table."])
    text = page("Two <models>", [*sections, Section("More", ["at the end"])], lead_of(findings, pictures))
    assert re.findall(r"<h2[^>]*>([^<]*)", text) == [
        "Terms on this page", "What was compared", "Segmentation", "Lesions", "Cases", "More",
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
    sections = {section.title: section for section in report_sections(Findings.of(small_evaluation()), missing=missing)}
    assert any(told in text for text in sections["What was compared"].content)


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
        small_evaluation(("A",), labels=tuple(f"structure_{n}" for n in range(8)), num_cases=1),
        small_evaluation(
            tuple(f"a_very_long_name_of_a_model_{n}__with_plans__3d_fullres" for n in range(5)), num_cases=1
        ),
        one_label_undefined(small_evaluation()),
        without_lesions(small_evaluation()),
    ],
    ids=["one model", "one case", "one of each", "8 labels", "5 models", "a label is undefined", "no lesions"],
)
@pytest.mark.filterwarnings("error")
def test_unusual_evaluations_are_written_without_a_warning(evaluation):
    findings = Findings.of(evaluation)
    for table in findings.tables.values():
        assert all((table.csv(), table.markdown(), table.latex()))
    assert len(page_of(findings)) > 10_000
