"""Change of a knee between two visits: values in the same regions, and lesions one by one."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.measurements.bones import Bone, Found, Structures
from nnunetv2_anomaly.measurements.standardised import read_table

#: kinds of a lesion's change
NEW, GONE, GROWN, SHRUNK, STABLE, MERGED, SPLIT, REGROUPED = (
    "new", "gone", "grown", "shrunk", "stable", "merged", "split", "split and merged",
)  # fmt: skip
BEYOND, WITHIN = "beyond", "within"
#: quantity of a bone that was brought to where it lay, which only the later visit has
RESIDUAL = "registration_residual"
#: region of a limit that is of single lesions
ONE_LESION = "lesion"
CHANGE_COLUMNS = (
    "pair", "subject", "side", "case_before", "case_after", "structure", "region", "quantity", "before", "after",
    "change", "change_percent", "unit", "limit", "verdict", "flag",
)  # fmt: skip
MATCH_COLUMNS = (
    "pair", "subject", "side", "case_before", "case_after", "bone", "lesions_before", "lesions_after", "kind",
    "volume_before_mm3", "volume_after_mm3", "change_mm3", "change_percent", "limit", "verdict",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two visits of one knee, by the names of their cases."""

    before: str
    after: str
    subject: str = ""

    @property
    def name(self) -> str:
        """Of its files and rows."""
        return f"{self.before}--{self.after}"


def read_pairs(file: Path) -> list[Pair]:
    """Pairs from a CSV with the columns before and after. Raises: UserError if it cannot be read or has none."""
    table = read_table(file, {"before", "after"}, "a table of cases before and after").fillna("").astype(str)
    if not len(table):
        raise UserError(f"{file} has no pair; expected a row for each, with the cases before and after")
    return [Pair(row["before"], row["after"], row.get("subject", "")) for row in table.to_dict("records")]


def pairs_of(known: Mapping[str, Mapping[str, str]]) -> list[Pair]:
    """Each visit of a subject's knee with the next one. Args: known: case -> subject, visit, side, as far as known."""
    knees: dict[tuple[str, str], list[tuple[list[Any], str]]] = {}
    for case, of in known.items():
        if of.get("subject") and of.get("visit"):
            # 6m comes before 12m.
            order = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", of["visit"])]
            knees.setdefault((of["subject"], of.get("side", "")), []).append((order, case))
    found = []
    for (subject, _), visits in knees.items():
        ordered = [case for _, case in sorted(visits)]
        found += [Pair(before, after, subject) for before, after in itertools.pairwise(ordered)]
    return found


class Limits:
    """Limits of agreement of repeated scans or readings, that a change is held against."""

    def __init__(self, table: pd.DataFrame | None = None) -> None:
        """Args: table: quantity, limit (in its unit), and structure, region where they differ; None: no limits."""
        self._limits: dict[tuple[str, str, str], float] = {}
        for row in [] if table is None else table.fillna("").to_dict("records"):
            key = (str(row.get("structure", "")), str(row.get("region", "")), str(row["quantity"]))
            self._limits[key] = float(row["limit"])

    @classmethod
    def read(cls, file: Path) -> Limits:
        """Raises: UserError if it cannot be read, lacks a column, or has a limit that is no number from 0."""
        table = read_table(file, {"quantity", "limit"}, "a table of quantity, limit, and structure, region")
        if not (pd.to_numeric(table["limit"], errors="coerce") >= 0).all():
            raise UserError(f"{file} has a limit that is not a number of at least 0; expected limits of agreement")
        return cls(table)

    def __bool__(self) -> bool:
        return bool(self._limits)

    def of(self, structure: str, region: str, quantity: str) -> float:
        """The limit of the most specific row; NaN where there is none."""
        keys = ((structure, region), (structure, ""), ("", region), ("", ""))
        found = (self._limits.get((*key, quantity)) for key in keys)
        return next((limit for limit in found if limit is not None), math.nan)


def verdict(change: float, limit: float) -> str:
    """``BEYOND`` or ``WITHIN``; empty where there is no change or no limit."""
    if math.isnan(change) or math.isnan(limit):
        return ""
    return BEYOND if abs(change) > limit else WITHIN


def changed_values(before: Found, after: Found, refused: Mapping[str, str], limits: Limits) -> list[dict[str, Any]]:
    """Rows of change.csv, but for the pair.

    Args:
        after: measured in the regions of ``before``.
        refused: structure -> why its regions are not those of ``before``; only its whole is compared.
    """
    values = [{(r["structure"], r["region"], r["quantity"]): r for r in found.rows} for found in (before, after)]
    rows = []
    for key in dict.fromkeys((*values[0], *values[1])):
        own = [of.get(key) for of in values]
        structure, region, quantity = key
        old, new = (math.nan if row is None else float(row["value"]) for row in own)
        flags = [row["flag"] if row else "not measured" for row in own]
        flag = (
            ""
            if quantity == RESIDUAL
            else "; ".join(f"{flag} {when}" for flag, when in zip(flags, ("before", "after"), strict=True) if flag)
        )
        if structure in refused and region != "all":
            old, new, flag = math.nan, math.nan, refused[structure]
        change, limit = new - old, limits.of(*key)
        row: dict[str, Any] = {"structure": structure, "region": region, "quantity": quantity}
        row |= {"before": old, "after": new}
        row |= {"change": change, "change_percent": _percent(change, old), "unit": next(r for r in own if r)["unit"]}
        rows.append({**row, "limit": limit, "verdict": verdict(change, limit), "flag": flag})
    return rows


def _percent(change: float, old: float) -> float:
    return 100 * change / old if old else math.nan


def matched_lesions(before: Found, after: Found, limits: Limits, stable_percent: float) -> list[dict[str, Any]]:
    """Rows of lesion_matches.csv, but for the pair: lesions that overlap, within half a voxel's diagonal, are the same.

    Args:
        after: measured where ``before`` lay, its bones' spaces moved.
        stable_percent: a lesion that changes by no more is stable, where ``limits`` has none for single lesions.
    """
    rows = []
    for bone in dict.fromkeys((*before.bones, *after.bones)):
        lesions = [_lesions_of(found, bone) for found in (before, after)]
        for group in _groups(*lesions):
            old, new = ([lesions[when][of] for of in own] for when, own in enumerate(group))
            volumes = [sum(of["volume_mm3"] for _, of in some) for some in (old, new)]
            change, limit = volumes[1] - volumes[0], limits.of(bone, ONE_LESION, "lesion_volume")
            least = stable_percent / 100 * volumes[0] if math.isnan(limit) else limit
            numbers = ["+".join(str(of["lesion"]) for _, of in some) for some in (old, new)]
            row: dict[str, Any] = {"bone": bone, "lesions_before": numbers[0], "lesions_after": numbers[1]}
            row |= {"kind": kind_of(len(old), len(new), change, least)}
            row |= {"volume_before_mm3": volumes[0], "volume_after_mm3": volumes[1], "change_mm3": change}
            row |= {"change_percent": _percent(change, volumes[0]), "limit": limit}
            rows.append({**row, "verdict": verdict(change, limit)})
    return rows


def kind_of(number_before: int, number_after: int, change_mm3: float, stable_mm3: float) -> str:
    """What became of lesions that overlap: ``NEW`` and so on. Args: stable_mm3: a change of no more is none."""
    if not number_before or not number_after:
        return GONE if number_before else NEW
    if number_before > 1 or number_after > 1:
        return REGROUPED if min(number_before, number_after) > 1 else MERGED if number_before > 1 else SPLIT
    return STABLE if abs(change_mm3) <= stable_mm3 else GROWN if change_mm3 > 0 else SHRUNK


def _lesions_of(found: Found, name: str) -> list[tuple[cKDTree, Mapping[str, Any]]]:
    """The lesions of a bone: tree of the places of voxels, and row."""
    bone: Bone | None = found.bones.get(name)
    if bone is None:
        return []
    return [
        (cKDTree(bone.space.points(indices)), {**row, "reach_mm": float(np.linalg.norm(bone.space.spacing_mm)) / 2})
        for row, indices in zip(found.lesions, found.lesion_indices, strict=True)
        if row["bone"] == name
    ]


def _groups(
    before: Sequence[tuple[cKDTree, Mapping[str, Any]]], after: Sequence[tuple[cKDTree, Mapping[str, Any]]]
) -> Iterable[tuple[list[int], list[int]]]:
    """Sets of lesions that overlap, directly or through others."""
    number = len(before) + len(after)
    met = sparse.lil_array((number, number))
    for place, (old, of_old) in enumerate(before):
        for other, (new, of_new) in enumerate(after):
            reach = max(of_old["reach_mm"], of_new["reach_mm"])
            if old.count_neighbors(new, reach):
                met[place, len(before) + other] = 1
    count, group = sparse.csgraph.connected_components(met, directed=False)
    for one in range(count):
        own = np.flatnonzero(group == one)
        yield own[own < len(before)].tolist(), (own[own >= len(before)] - len(before)).tolist()


def structures_of_bone(bone: str, structures: Structures) -> list[str]:
    """The bone and its cartilages."""
    return [bone, *(name for name, of in structures.cartilages.items() if of.bone == bone)]
