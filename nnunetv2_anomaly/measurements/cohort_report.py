"""The page of all measured knees: worst cases first, distributions by region, what could not be taken."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from urllib.parse import quote

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nnunetv2_anomaly.measurements.change_run import Changes
from nnunetv2_anomaly.measurements.regions import PLACES, SUBREGIONS
from nnunetv2_anomaly.measurements.report_words import TERMS, cohort_sentences
from nnunetv2_anomaly.reporting.drawing import own_style
from nnunetv2_anomaly.reporting.page import Content, Picture, Section, Terms, page
from nnunetv2_anomaly.reporting.table import Cell, Column, Table, in_words, number, table_of, word_cell

#: of the summary's columns: name -> how it is taken
_STATISTICS = {"n": "count", "mean": "mean", "sd": "std", "median": "median", "minimum": "min", "maximum": "max"}
_KEYS = ["structure", "region", "quantity", "unit"]
#: of the cases that the page begins with
_FIRST = 10
#: titles of the list of cases, in the order of ``case_list``'s values
WORST = ("lesion volume [mm³]", "lesions", "largest MOAKS size grade", "bare bone [%]", "thinnest plate [mm]")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Number, mean, SD, median and range over cases of every value of measurements.csv, empty ones left out."""
    of_each = table.groupby(_KEYS, sort=False)["value"].agg(list(_STATISTICS.values()))
    return of_each.rename(columns={of: name for name, of in _STATISTICS.items()}).reset_index()


def case_list(table: pd.DataFrame) -> pd.DataFrame:
    """A row per case: what it has of lesions and of bare bone, the worst first."""
    rows = []
    for case, own in table.groupby("case", sort=True):

        def of(quantity: str, regions: Collection[str], own: pd.DataFrame = own) -> pd.Series:
            return own[(own["quantity"] == quantity) & own["region"].isin(regions)].set_index("region")["value"]

        bare, area, thickness = (of(name, SUBREGIONS) for name in ("dAB", "tAB", "ThCtAB"))
        sums = [of(name, ["all"]).sum(min_count=1) for name in ("lesion_volume", "lesion_count")]
        grade = own.loc[own["quantity"] == "moaks_size_grade", "value"].max()
        share = (bare * area).sum(min_count=1) / area.sum() if area.sum() else np.nan
        rows.append((str(case), str(own["side"].iloc[0]), *sums, grade, share, thickness.min()))
    listed = pd.DataFrame(rows, columns=["case", "side", *WORST])
    return listed.sort_values([WORST[0], WORST[3]], ascending=False, kind="stable")


def cohort_page(
    table: pd.DataFrame,
    linked: Sequence[str],
    notes: Sequence[str],
    changes: Changes | None = None,
    picture: Picture | None = None,
) -> str:
    """The page as HTML.

    Args: table: measurements.csv. linked: cases with a page in reports/. notes: paragraphs. picture: of the first case.
    """
    cases = case_list(table)
    rows = [
        [
            Cell(row["case"], left=True, link=f"reports/{quote(row['case'])}.html" if row["case"] in linked else ""),
            word_cell("side", row["side"]),
            *(Cell(number(row[name], digits)) for name, digits in zip(WORST, (1, 0, 0, 1, 2), strict=True)),
        ]
        for row in cases.to_dict("records")
    ]
    header, title = ("case", "side", *WORST), "Knees, most lesion volume first"
    more = f", {_FIRST} of {len(rows)}" if len(rows) > _FIRST else ""
    lead: list[Content] = [*cohort_sentences(cases), *((picture,) if picture is not None else ())]
    lead.append(Table(f"{title}{more}", header, rows[:_FIRST], words=2))
    sections = [
        Section("Terms on this page", [Terms(TERMS)], folded=True),
        Section("How it was measured", notes, folded=True),
    ]
    if more:
        sections.append(Section("All knees", [Table(title, header, rows, words=2)], folded=True))
    content: list[Content] = []
    drawn = (
        ("lesion_volume", [place for places in PLACES.values() for place in places], "lesion volume [mm³]"),
        ("ThCtAB", [name for names in SUBREGIONS.values() for name in names], "thickness, bare bone as 0 [mm]"),
        ("dAB", [name for names in SUBREGIONS.values() for name in names], "bare bone [%]"),
        ("effusion_volume", ["all"], "effusion [mL]"),
    )
    for quantity, regions, label in drawn:
        own = table[(table["quantity"] == quantity) & table["region"].isin(regions) & table["value"].notna()]
        if len(own):
            figure = _distributions(own, [name for name in regions if name in set(own["region"])], label)
            content.append(Picture(figure, f"{label} by region: a point per case, box of quartiles and median"))
    if content:
        sections.append(Section("Distributions by region", content, folded=True))
    if changes is not None:
        sections.append(_change_section(changes))
    shown = summary(table)
    shown = shown[shown["region"].isin(("all", *SUBREGIONS))]
    columns = [Column(name, digits=None) for name in _KEYS]
    columns += [Column(name, digits=0 if name == "n" else 2) for name in _STATISTICS]
    notes_of = ["Whole structures and plates; every region is in summary.csv."]
    sections.append(Section("Summary", [table_of(shown, columns, "", notes_of, grouped=1)], folded=True))
    lacking = table[table["flag"] != ""].groupby(["structure", "flag"])["case"].nunique().reset_index()
    if len(lacking):
        cells = [[word_cell("", s), word_cell("", f), Cell(str(n))] for s, f, n in lacking.itertuples(index=False)]
        lacking_table = Table("", ("structure", "why", "cases"), cells, words=2)
        sections.append(Section("What could not be taken", [lacking_table], folded=True))
    return page("Measurements", sections, lead)


def _change_section(changes: Changes) -> Section:
    """Lesions one by one, and values of bones and plates, those beyond their limits first."""
    words = "Values are taken in the regions of the earlier visit."
    unjudged = "No limits of agreement were given (--limits), so no change is said to be beyond or within them."
    content: list[Content] = [words if changes.has_limits else f"{words} {unjudged}"]
    kinds = changes.lesions.groupby("kind").agg(number=("kind", "size"), change=("change_mm3", "sum")).reset_index()
    if len(kinds):
        cells = [
            [word_cell("", kind), Cell(str(n)), Cell(number(of, 1))] for kind, n, of in kinds.itertuples(index=False)
        ]
        content.append(Table("Lesions", ("what became of them", "lesions", "change [mm³]"), cells))
    shown = changes.values[changes.values["region"].isin(("all", *SUBREGIONS)) & changes.values["change"].notna()]
    shown = shown.sort_values("verdict", key=lambda of: of != "beyond", kind="stable")
    columns = [Column(name, digits=None) for name in ("pair", "structure", "region", "quantity", "unit")]
    columns += [Column(name, digits=2) for name in ("before", "after", "change", "change_percent", "limit")]
    columns.append(Column("verdict", digits=None))
    content.append(table_of(shown, columns, "Bones and plates", ["Every region is in change.csv."], grouped=1))
    return Section("Change between visits", content, folded=True)


@own_style
def _distributions(own: pd.DataFrame, regions: Sequence[str], label: str) -> Figure:
    figure = Figure(figsize=(max(4.0, 0.42 * len(regions) + 1.6), 4.2), layout="constrained")
    axis = figure.subplots()
    values = [own[own["region"] == region]["value"].to_numpy() for region in regions]
    axis.boxplot(values, showfliers=False, widths=0.6, medianprops={"color": "0.1"})
    for place, of_region in enumerate(values, start=1):
        # Points side by side by their rank, the same in every run.
        spread = 0.22 * np.sin(np.arange(len(of_region)) * 2.4)
        axis.plot(place + spread, of_region, ".", color="#1f5a94", alpha=0.55, markersize=5)
    axis.set_xticks(range(1, len(regions) + 1), [in_words(name) for name in regions], rotation=90, fontsize=8)
    axis.set_ylabel(label)
    if not own["value"].any():  # else hundredths of a unit around 0
        axis.set_ylim(-0.05, 1)
    axis.grid(axis="y", alpha=0.3)
    return figure
