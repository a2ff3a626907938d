"""Facts about the forms in which a table is written."""

from __future__ import annotations

import csv
import io
import re

import pandas as pd
import pytest

from nnunetv2_anomaly.reporting.page import Section, page
from nnunetv2_anomaly.reporting.table import Cell, Table, csv_text, unescaped, word_cell

NASTY = "<b>&_%$#{}~^\\|*[x]--"


@pytest.fixture
def nasty():
    cell = Cell(NASTY, bold=True, mark="†", beneath="n = 1 of 2\n1 missed", values={"model": NASTY})
    return Table(NASTY, ("label", NASTY), ((Cell("bone", values={"label": "bone"}), cell),), (NASTY,))


def test_latex_escapes_what_it_reads_otherwise(nasty):
    latex = nasty.latex()
    assert (
        r"\textbf{\textless{}b\textgreater{}\&\_\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
        r"\textbar{}{*}{[}x]-{}-}$^\dagger$" in latex
    )
    assert r"\begin{tabular}{lr}" in latex
    for command in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert latex.count(command) == 1
    # What is left after the escaped signs is balanced, and each row has one separator.
    bare = re.sub(r"\\[\\{}&%$#_]", "", latex)
    assert bare.count("{") == bare.count("}")
    assert bare.count("&") == 2
    assert bare.count("$") % 2 == 0


def test_markdown_escapes_pipes_and_tags_and_keeps_one_line_per_row(nasty):
    lines = nasty.markdown().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {3}
    assert "&lt;b&gt;&amp;\\_%\\$\\#" in rows[2]
    assert "<sup>†</sup> (n = 1 of 2, 1 missed)" in rows[2]


#: text -> the cell of a CSV
CELLS = {
    "=1+1": "'=1+1",
    "+49 30": "'+49 30",
    "-a": "'-a",
    "@SUM(A1)": "'@SUM(A1)",
    "\t=1": "'\t=1",
    "'=1": "''=1",
    "'a": "'a",
    "-0.5": "-0.5",
    "+1": "+1",
    "-1e-05": "-1e-05",
    "-1+1": "'-1+1",
    "knee-1": "knee-1",
    "": "",
}


def test_no_text_in_a_csv_is_a_formula_and_all_of_it_comes_back():
    frame = pd.DataFrame({"=case": list(CELLS), "score": -0.5, "label": None, "count": 2})
    text = csv_text(frame)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert rows[0] == {"'=case": "'=1+1", "score": "-0.5", "label": "", "count": "2"}
    assert [row["'=case"] for row in rows] == list(CELLS.values())
    assert [unescaped(row["'=case"]) for row in rows] == list(CELLS)
    assert unescaped("'=case") == "=case"
    assert csv_text(pd.DataFrame({"case": ["\r=1", "a\rb"]})) == "case\n' =1\na b\n"


def test_a_table_with_a_model_called_like_a_formula_is_no_formula():
    table = Table("title", ["model", "n"], [[word_cell("model", "=cmd"), Cell("-1", values={"n": -1})]])
    assert table.csv() == "model,n\n'=cmd,-1\n"


def test_html_escapes_and_csv_keeps_the_name(nasty):
    assert '<td class="bold">&lt;b&gt;&amp;_%$#' in page("title", [Section("one", [nasty])])
    assert list(csv.DictReader(io.StringIO(nasty.csv()))) == [{"label": "bone", "model": NASTY}]
