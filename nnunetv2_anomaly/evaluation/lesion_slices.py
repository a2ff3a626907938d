"""Lesions slice by slice and voxel by voxel, in the bone or in the whole image (Qin et al. 2025, Table 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunetv2_anomaly.measurements.frame import Mask
from nnunetv2_anomaly.reporting.table import Column, Table, best_cells, in_groups, percent_column, table_of

#: where voxels count: in the bones of the reference with their lesions, or everywhere
ROI, IMAGE = "roi", "image"
#: of ``confusion``
COUNTS = ("tp", "fp", "fn", "tn")
METRICS = ("dice", "iou", "sensitivity", "specificity", "accuracy")


def confusion(reference: Mask, prediction: Mask, domain: Mask) -> NDArray[np.int64]:
    """Voxels of a domain: true positive, false positive, false negative, true negative. Args: masks of one shape."""
    # 0 where both are lesion, 1 in the reference alone, 2 in the prediction alone, 3 elsewhere
    return np.bincount(3 - 2 * reference[domain].astype(int) - prediction[domain], minlength=4)[[0, 2, 1, 3]]


def mask_metrics(counts: NDArray[np.int64]) -> dict[str, float]:
    """``METRICS`` of ``confusion``'s counts, one slice's or the sum of many, in [0, 1]; NaN where one has no voxels."""
    true, false, missed, rest = (int(count) for count in counts)
    wrong = false + missed
    parts = 2 * true, true, true, rest, true + rest
    wholes = 2 * true + wrong, true + wrong, true + missed, rest + false, true + wrong + rest
    shares = (part / whole if whole else math.nan for part, whole in zip(parts, wholes, strict=True))
    return dict(zip(METRICS, shares, strict=True))


def slice_rows(reference: Mask, prediction: Mask, bones: Mask, spacing_mm: Sequence[float]) -> list[dict[str, Any]]:
    """A row per slice that holds bone, and domain; slices lie across the axis with the largest spacing.

    Args: reference, prediction: lesions, (X, Y, Z). bones: those of the reference, with their lesions.
    Returns: slice, domain, lesion_mm2 and false_mm2 (what is predicted and not so), and ``COUNTS``.
    """
    axis = int(np.argmax(spacing_mm))
    area = math.prod(spacing_mm) / spacing_mm[axis]
    masks = [np.moveaxis(mask, axis, 0) for mask in (reference, prediction, bones)]
    rows = []
    for index in np.flatnonzero(masks[2].any(axis=(1, 2))):
        lesion, found, bone = (mask[index] for mask in masks)
        for domain, where in ((ROI, bone), (IMAGE, np.ones_like(bone))):
            counts = confusion(lesion, found, where)
            areas = {"lesion_mm2": float(lesion.sum()) * area, "false_mm2": float(counts[1]) * area}
            counted = dict(zip(COUNTS, counts.tolist(), strict=True))
            rows.append({"slice": int(index), "domain": domain, **areas, **counted})
    return rows


def slice_summary(slices: pd.DataFrame) -> pd.DataFrame:
    """Means over slices with a lesion, and pooled over their voxels; false area in those without.

    Args: slices: ``slice_rows`` with the column model. Returns: a row per domain, model and way ("mean", "pooled").
    """
    found = []
    for (domain, model), own in slices.groupby(["domain", "model"], sort=False):
        with_lesion = own[own["lesion_mm2"] > 0]
        counts = with_lesion[[*COUNTS]].to_numpy()
        single = pd.DataFrame([mask_metrics(of) for of in counts], columns=[*METRICS])
        free = own.loc[own["lesion_mm2"] == 0, "false_mm2"]
        common = {"domain": domain, "model": model, "slices": len(with_lesion)}
        common |= {"free_slices": len(free), "false_mm2": float(free.mean())}
        found.append({**common, "way": "mean", **single.mean().to_dict()})
        found.append({**common, "way": "pooled", **mask_metrics(counts.sum(axis=0))})
    return pd.DataFrame(found)


def slice_groups(slices: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice in bones of five groups of slices by the area of their lesions: a row per group and model.

    Groups are as equal in number as there can be, the smallest areas in the first; fewer slices make fewer groups.
    """
    own = slices[(slices["domain"] == ROI) & (slices["lesion_mm2"] > 0)]
    found = []
    for model, of_model in own.groupby("model", sort=False):
        order = np.argsort(of_model["lesion_mm2"].to_numpy(), kind="stable")
        for group, places in enumerate(np.array_split(order, min(5, len(order))), start=1):
            members = of_model.iloc[places]
            dice = [mask_metrics(of)["dice"] for of in members[[*COUNTS]].to_numpy()]
            areas = members["lesion_mm2"]
            common = {"group": group, "from_mm2": areas.min(), "to_mm2": areas.max(), "slices": len(members)}
            found.append({**common, "model": model, "dice": float(np.mean(dice))})
    return pd.DataFrame(found).sort_values("group", kind="stable") if found else pd.DataFrame()


def slice_tables(slices: pd.DataFrame) -> dict[str, Table]:
    """Tables of ``slice_summary`` and ``slice_groups`` by the name of their files; none without a lesion."""
    if not (slices["lesion_mm2"] > 0).any():
        return {}
    by = ["domain", "way"]
    frame = in_groups(slice_summary(slices), by)
    frame["way"] = frame["way"].map({"mean": "mean of slices", "pooled": "all voxels"})
    columns = (
        *(Column("domain", digits=None), Column("way", "over", digits=None), Column("model", digits=None)),
        Column("slices"),
        *(percent_column(name, f"{title} [%]") for name, title in (("dice", "DSC"), ("iou", "IoU"))),
        *(Column(name, digits=3) for name in METRICS[2:]),
        *(Column("free_slices", "slices without"), Column("false_mm2", "false area in these [mm²]", 1)),
    )
    notes = (
        "Slices with a lesion, across the axis with the largest spacing; roi counts voxels in the reference's bones, "
        "image all. The last two columns are of slices with bone and no lesion.",
    )
    bold = best_cells(frame, by, [*METRICS])
    tables = {"lesion_slices": table_of(frame, columns, "Lesions, slice by slice", notes, grouped=2, bold=bold)}
    groups = in_groups(slice_groups(slices), ["group"])

    def area(row: Any) -> str:
        return f"{row['from_mm2']:.0f} to {row['to_mm2']:.0f} mm²"

    columns = (
        Column("group", "lesions' area", None, area, also=["from_mm2", "to_mm2"]),
        *(Column("model", digits=None), Column("slices"), percent_column("dice", "mean DSC [%]")),
    )
    notes = ("Five groups of slices, as equal in number as can be, by the area of their lesions; DSC within bones.",)
    tables["lesion_slice_sizes"] = table_of(groups, columns, "Slices by the area of their lesions", notes, grouped=1)
    return tables
