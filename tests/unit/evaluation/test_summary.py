"""Facts about what a report says first: sentences that are true of its table."""

from __future__ import annotations

import pytest
from made_evaluation import evaluation_of, row, small_evaluation
from matplotlib.figure import Figure

from nnunetv2_anomaly.evaluation import statistics
from nnunetv2_anomaly.evaluation.report import Findings, lead_of, report_sections
from nnunetv2_anomaly.evaluation.results import CLEANED, MISSED, NEITHER
from nnunetv2_anomaly.evaluation.summary import dsc_sentence, significance_sentence, summary_sentences, summary_table
from nnunetv2_anomaly.reporting.page import Picture, Terms
from nnunetv2_anomaly.reporting.table import Table


def made(values, num_cases=1):
    """Values: model -> label -> DSC."""
    return evaluation_of(
        row(f"c{n}", model, label, CLEANED, dsc=dsc)
        for model, of in values.items()
        for label, dsc in of.items()
        for n in range(num_cases)
    )


def texts(table):
    return [[cell.text for cell in cells] for cells in table.rows]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"bone": 0.95, "cartilage": 0.70}, "82.5 % for B, which is 2.5 points higher; of 2 labels it is higher in 1, "
         "lower in 1."),
        ({"bone": 0.80, "cartilage": 0.60}, "70.0 % for B, which is 5.0 points lower; of 2 labels it is lower in 1, "
         "the same in 1."),
        # What differs by less than is shown is called the same.
        ({"bone": 0.90004, "cartilage": 0.60004}, "75.0 % for B, which is the same; of 2 labels it is the same in 2."),
    ],
)  # fmt: skip
def test_higher_lower_and_the_same_are_those_of_the_numbers_shown(second, said):
    first = {"bone": 0.90, "cartilage": 0.60}
    if said.startswith("82.5"):
        first = {"bone": 0.85, "cartilage": 0.75}
    evaluation = made({"A": first, "B": second})
    sentence = dsc_sentence(evaluation)
    assert sentence.endswith(said)
    (*_, means) = texts(summary_table(evaluation))
    assert means[0] == "mean of labels"
    assert all(f"{value} % for {model}" in sentence for model, value in zip("AB", means[1:], strict=True))


def test_where_nothing_overlaps_nothing_is_called_better():
    evaluation = made({"A": {"bone": 0.0, "lesion": 0.0}, "B": {"bone": 0.0, "lesion": 0.0}})
    assert "0.0 % for A and 0.0 % for B, which is the same" in dsc_sentence(evaluation)
    assert not any(cell.bold for cells in summary_table(evaluation).rows for cell in cells)


def test_one_model_has_its_range_and_its_distances():
    evaluation = made({"A": {"bone": 0.9, "cartilage": 0.6}})
    assert dsc_sentence(evaluation).endswith("is 75.0 %, from 60.0 % (cartilage) to 90.0 % (bone).")
    paired = statistics.paired(evaluation.cases)
    assert significance_sentence(evaluation, paired).startswith("Its surfaces are 0.20 mm from the reference's")


def test_of_several_models_the_best_comes_first():
    evaluation = made({name: {"bone": dsc} for name, dsc in {"A": 0.7, "B": 0.9, "C": 0.8}.items()})
    assert dsc_sentence(evaluation).endswith("is 90.0 % for B, 80.0 % for C, 70.0 % for A.")


def test_means_over_different_cases_are_not_compared_in_bold():
    rows = [row("c1", "A", "bone", CLEANED, dsc=0.9), row("c2", "A", "bone", CLEANED, status=NEITHER)]
    rows += [row("c1", "B", "bone", CLEANED, dsc=0.8), row("c2", "B", "bone", CLEANED, status=MISSED)]
    table = summary_table(evaluation_of(rows))
    assert not any(cell.bold for cells in table.rows for cell in cells)
    assert "Where the models' means are over different cases, none is bold." in table.notes


def test_of_four_cases_no_test_is_made_and_the_page_says_why():
    findings = Findings.of(small_evaluation(num_cases=4))
    *_, last = summary_sentences(findings.evaluation, findings.paired)
    assert last.startswith("4 cases are too few to test a difference (it takes 6)")
    terms = report_sections(findings)[0].content[0]
    assert isinstance(terms, Terms)
    assert "Tukey's test" not in terms.meanings


def test_significant_differences_are_named_with_their_direction():
    values = {"A": {"bone": 0.9, "lesion": 0.5}, "B": {"bone": 0.8, "lesion": 0.6}}
    evaluation = evaluation_of(
        row(f"c{n}", model, label, CLEANED, dsc=dsc + 0.001 * n)
        for model, of in values.items()
        for label, dsc in of.items()
        for n in range(6)
    )
    said = significance_sentence(evaluation, statistics.paired(evaluation.cases))
    assert "that of B is higher in lesion; that of B is lower in bone" in said
    same = small_evaluation(("A", "A again"), num_cases=6)
    paired = statistics.paired(same.cases).assign(significant=False)
    assert significance_sentence(same, paired).startswith("In no label does DSC differ significantly from that of A")


def test_a_report_leads_with_three_sentences_one_picture_and_one_table():
    lead = lead_of(Findings.of(small_evaluation()), [("c1", Figure()), ("c2", Figure())])
    assert [type(content) for content in lead] == [str, str, str, Picture, Table]
