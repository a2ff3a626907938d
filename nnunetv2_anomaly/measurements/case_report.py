"""The page of one measured knee: it can be turned; slices, flattened maps, tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_anomaly.measurements.bones import Found
from nnunetv2_anomaly.measurements.maps import FlatMap, flat_figure
from nnunetv2_anomaly.measurements.report_words import TERMS, case_sentences
from nnunetv2_anomaly.measurements.scene import scene_of
from nnunetv2_anomaly.reporting.drawing import label_figure
from nnunetv2_anomaly.reporting.page import Content, Picture, Section, Terms, page
from nnunetv2_anomaly.reporting.table import Cell, Table, in_words, number, word_cell

#: quantity -> title and digits of its column
_LESION_QUANTITIES: Mapping[str, tuple[str, int]] = {
    "lesion_count": ("lesions", 0),
    "lesion_volume": ("lesion volume [mm³]", 1),
    "lesion_percent": ("of the bone [%]", 2),
    "moaks_size_grade": ("MOAKS size grade", 0),
}
_CARTILAGE_QUANTITIES: Mapping[str, tuple[str, int]] = {
    "VC": ("volume [mm³]", 0),
    "tAB": ("subchondral [cm²]", 2),
    "cAB": ("covered [cm²]", 2),
    "dAB": ("bare [%]", 1),
    "ThCtAB": ("thickness, bare as 0 [mm]", 2),
    "ThCcAB": ("thickness where covered [mm]", 2),
    "ThCSD": ("its SD [mm]", 2),
    "moaks_area_grade": ("MOAKS area grade", 0),
}
_VOLUME_QUANTITIES: Mapping[str, tuple[str, int]] = {
    "volume": ("volume [mm³]", 0),
    "effusion_volume": ("effusion [mL]", 2),
}
_LESION_COLUMNS: Mapping[str, tuple[str, int]] = {
    "volume_mm3": ("volume [mm³]", 1),
    "largest_area_mm2": ("largest area in a slice [mm²]", 1),
    "largest_diameter_mm": ("largest diameter [mm]", 1),
    "interface_distance_mm": ("to cartilage [mm]", 1),
    "bare_overlap_mm2": ("beneath bare bone [mm²]", 1),
}


def case_page(
    case: str,
    side: str | None,
    found: Found,
    flat_maps: Mapping[str, FlatMap],
    labels: NDArray[np.integer],
    image: NDArray[np.floating] | None,
    spacing_mm: Sequence[float],
    names: Mapping[str, int],
) -> str:
    """The page as HTML, for a folder with ``scene.SCRIPT``.

    Args: flat_maps: by bone. labels, image: (Z superior, Y anterior, X right). names: name -> value of the labels.
    """
    slices = slices_picture(labels, image, spacing_mm, names)
    # Open, because what is drawn while it is folded has no size.
    sections = [Section("The knee in 3D", [scene_of(found)])]
    if flat_maps:
        titled = [(in_words(bone), flat) for bone, flat in flat_maps.items()]
        words = "Thickness of cartilage laid out on a plane; grey is bone without the cartilage that should cover it."
        sections.append(Section("Thickness", [Picture(flat_figure(titled), words, words)], folded=True))
    tables = [
        _lesion_table(found.lesions),
        _value_table("Cartilage", found.rows, _CARTILAGE_QUANTITIES),
        _value_table("Lesions by place", found.rows, _LESION_QUANTITIES),
        _value_table("Volumes", found.rows, _VOLUME_QUANTITIES),
    ]
    first, *others = [table for table in tables if table.rows] or [tables[-1]]
    lead: list[Content] = [*case_sentences(side, found.rows, found.lesions), slices, first]
    sections.append(Section("Terms on this page", [Terms(TERMS)], folded=True))
    if others:
        sections.append(Section("Further values", others, folded=True))
    flags = sorted({(row["structure"], row["flag"]) for row in found.rows if row["flag"]})
    if flags:
        rows = [[word_cell("structure", in_words(structure)), word_cell("flag", flag)] for structure, flag in flags]
        lacking = Table("", ("structure", "why"), rows, words=2)
        sections.append(Section("What could not be taken", [lacking], folded=True))
    return page(case, sections, lead)


def slices_picture(
    labels: NDArray[np.integer], image: NDArray | None, spacing_mm: Sequence[float], names: Mapping[str, int]
) -> Picture:
    """Slices in three planes. Args: as ``case_page``."""
    shown = "Slices in three planes through most of the labels, whose outlines are numbered"
    return Picture(label_figure(image, labels, spacing_mm, names), shown, shown)


def _value_table(title: str, rows: Iterable[Mapping[str, Any]], quantities: Mapping[str, tuple[str, int]]) -> Table:
    """A row per structure and region with a value, a column per quantity that any has."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row["quantity"] in quantities and math.isfinite(row["value"]):
            found.setdefault((row["structure"], row["region"]), {})[row["quantity"]] = row["value"]
    known = [quantity for quantity in quantities if any(quantity in values for values in found.values())]
    cells = [
        [
            word_cell("structure", in_words(structure)),
            word_cell("region", in_words(region)),
            *(Cell(number(values.get(quantity, math.nan), quantities[quantity][1])) for quantity in known),
        ]
        for (structure, region), values in found.items()
    ]
    header = ("structure", "region", *(quantities[quantity][0] for quantity in known))
    return Table(title, header, cells, words=2, grouped=1)


def _lesion_table(lesions: Sequence[Mapping[str, Any]]) -> Table:
    """The lesions one by one, with the place that holds most of each."""
    known = [column for column in _LESION_COLUMNS if any(column in row for row in lesions)]
    rows = []
    for row in sorted(lesions, key=lambda row: -row["volume_mm3"]):
        shares = {name.removeprefix("share_"): value for name, value in row.items() if name.startswith("share_")}
        place = max(shares, key=lambda name: shares[name], default="")
        words = [row["bone"], str(row["lesion"]), place, ", ".join(of for of in ("subchondral", "kissing") if row[of])]
        rows.append(
            [
                *(word_cell("", in_words(word)) for word in words),
                *(Cell(number(row.get(column), _LESION_COLUMNS[column][1])) for column in known),
            ]
        )
    header = ("bone", "lesion", "mostly in", "touches", *(_LESION_COLUMNS[column][0] for column in known))
    return Table("Lesions, largest first", header, rows, words=4)
