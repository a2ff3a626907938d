"""Change of a knee between two visits: values in the same regions, and lesions one by one."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.measurements.bones import ALL, Bone, Found, Structures
from nnunetv2_anomaly.measurements.regions import SHAFT
from nnunetv2_anomaly.reporting.user_tables import read_table

#: kinds of a lesion's change
NEW, GONE, GROWN, SHRUNK, STABLE, MERGED, SPLIT, REGROUPED = (
    "new", "gone", "grown", "shrunk", "stable", "merged", "split", "split and merged",
)  # fmt: skip
NOT_COMPARED = "not compared"
BEYOND, WITHIN = "beyond", "within"
#: quantity of a bone that was brought to where it lay, which only the later visit has
RESIDUAL = "registration_residual"
_BASELINE = re.compile(r"baseline|bl|screening|pre", re.IGNORECASE)
#: flag of what a knee lacks
ABSENT = "absent"
_OF_LESIONS = ("lesion_count", "lesion_volume", "lesion_percent", "moaks_size_grade")
_OF_BONES = ("volume", *_OF_LESIONS)
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
    table = read_table(file, {"before", "after"}, "a table of cases before and after")
    if not len(table):
        raise UserError(f"{file} has no pair; expected a row for each, with the cases before and after")
    if len(twice := table["before"][table["before"] == table["after"]]):
        raise UserError(f"{file} pairs {twice.iloc[0]} with itself; expected two visits")
    return [Pair(row["before"], row["after"], row.get("subject", "")) for row in table.to_dict("records")]


def pairs_of(known: Mapping[str, Mapping[str, str]]) -> list[Pair]:
    """Each visit of a subject's knee with the next one.

    Visits follow one another by the numbers in their names, 6m before 12m; those that are called a baseline come first.

    Args: known: case -> subject, visit, side, as far as known; cases without a subject and visit are left out.
    Raises: UserError if a knee has a visit twice, or visits that have no order.
    """
    knees: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for case, of in known.items():
        if of.get("subject") and of.get("visit"):
            knees.setdefault((of["subject"], of.get("side", "")), []).append((of["visit"], case))
    found = []
    for (subject, side), visits in knees.items():
        names = [visit for visit, _ in visits]
        if len(set(names)) == 1:
            continue
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            knee = f"the {side} knee" if side else "a knee of unknown side"
            raise UserError(f"subject {subject} has two cases of visit {twice} for {knee}; name the pairs with --pairs")
        if not all(re.search(r"\d", name) or _BASELINE.fullmatch(name) for name in names):
            told = ", ".join(names)
            raise UserError(f"the visits {told} of subject {subject} have no order; name the pairs with --pairs")
        ordered = [case for _, case in sorted(visits, key=lambda visit: _order(visit[0]))]
        found += [Pair(before, after, subject) for before, after in itertools.pairwise(ordered)]
    return found


def _order(visit: str) -> list[Any]:
    if _BASELINE.fullmatch(visit):
        return []  # before all others
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", visit)]


class Limits:
    """Limits of agreement of repeated scans or readings, that a change is held against."""

    def __init__(self, table: pd.DataFrame | None = None) -> None:
        """Args: table: quantity, limit (in its unit), and structure, region where they differ; None: no limits."""
        self._limits: dict[tuple[str, str, str], float] = {}
        for row in [] if table is None else table.fillna("").to_dict("records"):
            key = (str(row.get("structure", "")), str(row.get("region", "")), str(row["quantity"]))
            if key in self._limits:
                raise UserError(f"the limits have {' '.join(filter(None, key))} twice; expected each limit once")
            self._limits[key] = float(row["limit"])

    @classmethod
    def read(cls, file: Path) -> Limits:
        """Raises: UserError if it cannot be read, lacks a column, or has a limit that is no number from 0."""
        table = read_table(file, {"quantity", "limit"}, "a table of quantity, limit, and structure, region")
        if not (table["limit"] >= 0).all():
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


@dataclass(frozen=True)
class Obstacles:
    """Why values of two visits cannot be compared."""

    refused: Mapping[str, str]  # structure -> why its regions are not those of the earlier visit
    cut: frozenset[str]  # bones at which an image ends
    outside: frozenset[tuple[str, str]]  # bone and region with a lesion that the other image does not show whole
    unseen: frozenset[tuple[int, str, int]]  # those lesions: 0 before or 1 after, bone, number

    @classmethod
    def of(cls, before: Found, after: Found, refused: Mapping[str, str]) -> Obstacles:
        """Args: after: measured where ``before`` lay, its bones' spaces moved, but for those of ``refused``."""
        cut, outside, unseen = set(), set(), set()
        for when, (found, other) in enumerate(((before, after), (after, before))):
            cut |= {name for name, bone in found.bones.items() if bone.touches_border(found.shape)}
            for row, indices in zip(found.lesions, found.lesion_indices, strict=True):
                name = row["bone"]
                if name in other.bones and name not in refused and _is_outside(found.bones[name], indices, other):
                    shares = {of.removeprefix("share_"): share for of, share in row.items() if of.startswith("share_")}
                    outside |= {(name, ALL), *((name, region) for region, share in shares.items() if share > 0)}
                    unseen.add((when, name, row["lesion"]))
        return cls(refused, frozenset(cut), frozenset(outside), frozenset(unseen))

    def why(self, structure: str, region: str, quantity: str) -> str:
        """Why a value has no change; empty where it has one."""
        if structure in self.refused and region != ALL:
            return self.refused[structure]
        if quantity in _OF_LESIONS and (structure, region) in self.outside:
            return "a lesion lies outside the other image"
        return ""


def _is_outside(bone: Bone, indices: NDArray[np.intp], other: Found) -> bool:
    """Whether voxels of a bone, (N, 3), lie outside the image of the other visit, if only in part."""
    space = other.bones[bone.name].space
    places = np.linalg.solve(space.steps_mm, (bone.space.points(indices) - space.origin_mm).T)
    return bool(((places < -0.5) | (places > np.array(other.shape)[:, None] - 0.5)).any())


def changed_values(before: Found, after: Found, obstacles: Obstacles, limits: Limits) -> list[dict[str, Any]]:
    """Rows of change.csv, but for the pair. Args: after: measured in the regions of ``before``."""
    values = [{(r["structure"], r["region"], r["quantity"]): r for r in found.rows} for found in (before, after)]
    rows = []
    for key in dict.fromkeys((*values[0], *values[1])):
        own = [of.get(key) for of in values]
        structure, region, quantity = key
        old, new = (math.nan if row is None else float(row["value"]) for row in own)
        flags = [row["flag"] if row else "not measured" for row in own]
        told = [f"{flag} {when}" for flag, when in zip(flags, ("before", "after"), strict=True) if flag]
        change, limit = new - old, limits.of(*key)
        if why := obstacles.why(*key):
            told.append(why)
        if why or ABSENT in flags:
            change = math.nan
        is_cut = structure in obstacles.cut and quantity in _OF_BONES and region in (ALL, SHAFT)
        if is_cut:
            told.append("an image ends at the bone")
        told_verdict, unit = "" if is_cut else verdict(change, limit), next(r for r in own if r)["unit"]
        values_of_row = (*key, old, new, change, _percent(change, old), unit, limit, told_verdict, "; ".join(told))
        rows.append(dict(zip(CHANGE_COLUMNS[5:], values_of_row, strict=True)))
    return rows


def _percent(change: float, old: float) -> float:
    return 100 * change / old if old else math.nan


def matched_lesions(
    before: Found, after: Found, obstacles: Obstacles, limits: Limits, stable_percent: float
) -> list[dict[str, Any]]:
    """Rows of lesion_matches.csv, but for the pair: lesions that overlap, within half a voxel's diagonal, are the same.

    Args:
        after: measured where ``before`` lay, its bones' spaces moved.
        stable_percent: a lesion that changes by no more is stable, where ``limits`` has none for single lesions.
    """
    rows = []
    for bone in dict.fromkeys((*before.bones, *after.bones)):
        lesions = _lesions_of(before, bone), _lesions_of(after, bone)
        comparable = bone not in obstacles.refused and bone in before.bones and bone in after.bones
        for group in _groups(*lesions, comparable):
            old, new = ([lesions[when][of] for of in own] for when, own in enumerate(group))
            members = ((when, bone, of.number) for when, some in enumerate((old, new)) for of in some)
            shown = comparable and obstacles.unseen.isdisjoint(members)
            volumes = [sum(of.volume_mm3 for of in some) for some in (old, new)]
            change, limit = volumes[1] - volumes[0], limits.of(bone, ONE_LESION, "lesion_volume")
            change = change if shown else math.nan
            least = stable_percent / 100 * volumes[0] if math.isnan(limit) else limit
            numbers = ["+".join(str(of.number) for of in some) for some in (old, new)]
            kind = kind_of(len(old), len(new), change, least) if shown else NOT_COMPARED
            judged = (change, _percent(change, volumes[0]), limit, verdict(change, limit))
            rows.append(dict(zip(MATCH_COLUMNS[5:], (bone, *numbers, kind, *volumes, *judged), strict=True)))
    return rows


def kind_of(number_before: int, number_after: int, change_mm3: float, stable_mm3: float) -> str:
    """What became of lesions that overlap: ``NEW`` and so on. Args: stable_mm3: a change of no more is none."""
    if not number_before or not number_after:
        return GONE if number_before else NEW
    if number_before > 1 or number_after > 1:
        return REGROUPED if min(number_before, number_after) > 1 else MERGED if number_before > 1 else SPLIT
    return STABLE if abs(change_mm3) <= stable_mm3 else GROWN if change_mm3 > 0 else SHRUNK


@dataclass(frozen=True)
class _Lesion:
    number: int
    volume_mm3: float
    tree: cKDTree  # of the places of its voxels
    reach_mm: float  # half a voxel's diagonal


def _lesions_of(found: Found, name: str) -> list[_Lesion]:
    bone: Bone | None = found.bones.get(name)
    if bone is None:
        return []
    reach = float(np.linalg.norm(bone.space.spacing_mm)) / 2
    return [
        _Lesion(row["lesion"], row["volume_mm3"], cKDTree(bone.space.points(indices)), reach)
        for row, indices in zip(found.lesions, found.lesion_indices, strict=True)
        if row["bone"] == name
    ]


def _groups(before: list[_Lesion], after: list[_Lesion], comparable: bool) -> Iterable[tuple[list[int], list[int]]]:
    """Sets of lesions that overlap, directly or through others; each by itself where they are not comparable."""
    number = len(before) + len(after)
    met = sparse.lil_array((number, number))
    for (place, old), (other, new) in itertools.product(enumerate(before), enumerate(after, start=len(before))):
        met[place, other] = comparable and old.tree.count_neighbors(new.tree, max(old.reach_mm, new.reach_mm)) > 0
    count, group = sparse.csgraph.connected_components(met, directed=False)
    for one in range(count):
        own = np.flatnonzero(group == one)
        yield own[own < len(before)].tolist(), (own[own >= len(before)] - len(before)).tolist()


def structures_of_bone(bone: str, structures: Structures) -> list[str]:
    """The bone and its cartilages."""
    return [bone, *(name for name, of in structures.cartilages.items() if of.bone == bone)]
