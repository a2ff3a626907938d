"""Facts about the forms in which a table is written."""

from __future__ import annotations

import csv
import io
import re

import pytest

from nnunetv2_anomaly.reporting.page import Section, page
from nnunetv2_anomaly.reporting.table import Cell, Table

NASTY = "<b>&_%$#{}~^\\|*[x]--"


@pytest.fixture
def nasty():
    cell = Cell(NASTY, bold=True, mark="†a", beneath="n = 1 of 2\n1 missed", values={"model": NASTY})
    return Table(NASTY, ("label", NASTY), ((Cell("bone", values={"label": "bone"}), cell),), (NASTY,))


def test_latex_escapes_what_it_reads_otherwise(nasty):
    latex = nasty.latex()
    assert (
        r"\textbf{\textless{}b\textgreater{}\&\_\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
        r"\textbar{}{*}{[}x]-{}-}$^\dagger$\textsuperscript{a}" in latex
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
    assert "<sup>†a</sup> (n = 1 of 2, 1 missed)" in rows[2]


def test_html_escapes_and_csv_keeps_the_name(nasty):
    assert '<td class="bold">&lt;b&gt;&amp;_%$#' in page("title", [Section("one", [nasty])])
    assert list(csv.DictReader(io.StringIO(nasty.csv()))) == [{"label": "bone", "model": NASTY}]
