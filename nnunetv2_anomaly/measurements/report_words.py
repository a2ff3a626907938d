"""What the pages of measured knees say first, made from the values in their tables, and the terms on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from nnunetv2_anomaly.errors import counted
from nnunetv2_anomaly.measurements.regions import SUBREGIONS
from nnunetv2_anomaly.reporting.table import in_words

TERMS: Mapping[str, str] = {
    "Bone marrow lesion": "Tissue in a bone that looks other than healthy marrow; here a labelled one.",
    "Subchondral bone": "The surface of a bone that cartilage should cover (tAB); covered (cAB) is the part that does "
    "have cartilage, bare (dAB) the rest.",
    "Thickness": "Of cartilage, straight away from its bone: with bare bone counted as 0 (ThCtAB), or over the covered "
    "part alone (ThCcAB). Thinner is worse.",
    "MT, LT, MF, LF, P": "Plates of cartilage: medial and lateral tibia and femur, patella; c, e, i, a, p and the like "
    "before them are central, external, internal, anterior, posterior parts.",
    "MOAKS": "MRI Osteoarthritis Knee Score; its grades run from 0 (none) to 3 (most).",
    "Effusion": "Fluid in the joint.",
    "Kissing": "Of lesions of two bones that face each other.",
}


def case_sentences(
    side: str | None, rows: Sequence[Mapping[str, Any]], lesions: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Three on one knee. Args: rows: of measurements.csv. lesions: one each."""
    structures = dict.fromkeys(in_words(row["structure"]) for row in rows if row["region"] == "all")
    knee = f"A {side} knee" if side else "A knee of unknown side"
    return [
        f"{knee}; measured are {', '.join(structures) or 'no structures'}.",
        _lesion_sentence(rows, lesions),
        _cartilage_sentence(rows),
    ]


def _lesion_sentence(rows: Iterable[Mapping[str, Any]], lesions: Sequence[Mapping[str, Any]]) -> str:
    if not any(row["quantity"] == "lesion_volume" for row in rows):
        return "Lesions were not measured."
    if not lesions:
        return "No lesion was found in its bones."
    largest = max(lesions, key=lambda row: row["volume_mm3"])
    of = f"{largest['volume_mm3']:.1f} mm³ in the {in_words(largest['bone'])}"
    if len(lesions) == 1:
        return f"Its bones hold one lesion: {of}."
    volume = sum(row["volume_mm3"] for row in lesions)
    return f"Its bones hold {len(lesions)} lesions, {volume:.1f} mm³ together, the largest {of}."


def _cartilage_sentence(rows: Iterable[Mapping[str, Any]]) -> str:
    values: dict[str, dict[str, float]] = {"ThCtAB": {}, "dAB": {}, "tAB": {}}
    for row in rows:
        if row["region"] in SUBREGIONS and row["quantity"] in values and pd.notna(row["value"]):
            values[row["quantity"]][row["region"]] = row["value"]
    told = []
    if thickness := values["ThCtAB"]:
        thinnest = min(thickness, key=lambda plate: thickness[plate])
        told.append(f"cartilage is thinnest in the plate {thinnest}, {thickness[thinnest]:.2f} mm with bare bone as 0")
    if area := sum(values["tAB"].get(plate, 0.0) for plate in values["dAB"]):
        bare = sum(share * values["tAB"].get(plate, 0.0) for plate, share in values["dAB"].items()) / area
        told.append(f"{bare:.1f} % of the bone that cartilage should cover is bare")
    text = ", and ".join(told) or "no plate of cartilage was measured"
    return f"{text[0].upper()}{text[1:]}."


def cohort_sentences(cases: pd.DataFrame) -> list[str]:
    """Three on many knees. Args: cases: a row each, with ``cohort_report.WORST``'s columns, NaN where not measured."""
    sides = cases["side"].replace("", "of unknown side").value_counts()
    of_sides = ", ".join(f"{count} {side}" for side, count in sides.items())
    knees = f"{counted(len(cases), 'knee')} {'was' if len(cases) == 1 else 'were'} measured: {of_sides}."
    volume, count, _, bare, thinnest = (cases[name] for name in cases.columns[2:])
    lesions = "Lesions were not measured."
    if volume.notna().any():
        lesions = f"{int((count > 0).sum())} of {int(count.notna().sum())} knees have a lesion in a bone"
        largest = cases.loc[volume.idxmax(), "case"]
        lesions += f"; most lesion volume, {volume.max():.1f} mm³, is in {largest}." if volume.max() > 0 else "."
    told = []
    if thinnest.notna().any():
        told.append(
            f"the thinnest plate of cartilage, {thinnest.min():.2f} mm, is in {cases.loc[thinnest.idxmin(), 'case']}"
        )
    if bare.notna().any():
        told.append(f"most bare bone, {bare.max():.1f} %, is in {cases.loc[bare.idxmax(), 'case']}")
    text = "; ".join(told) or "no plate of cartilage was measured"
    return [knees, lesions, f"{text[0].upper()}{text[1:]}."]
