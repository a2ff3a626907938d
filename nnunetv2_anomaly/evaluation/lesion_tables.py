"""Tables of the detection of lesions, and of the agreement of their volumes."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd

from nnunetv2_anomaly.evaluation import detection
from nnunetv2_anomaly.evaluation.lesion_slices import slice_tables
from nnunetv2_anomaly.evaluation.results import Evaluation
from nnunetv2_anomaly.measurements.lesions import PROBABILITY, SIZE
from nnunetv2_anomaly.reporting.table import (
    Column,
    Table,
    best_cells,
    in_groups,
    in_words,
    p_column,
    percent_column,
    table_of,
)

_BONE = Column("bone", digits=None, text=lambda row: in_words(row["bone"]))
_MODEL = Column("model", digits=None)


def lesion_tables(evaluation: Evaluation, tested: Evaluation) -> dict[str, Table]:
    """Tables of the detection of lesions, by the name of their files; none where no label is a lesion's.

    Volumes are those of ``tested``, as ``Findings.of`` takes it.
    """
    tables = {}
    if len(evaluation.bones):
        summary = detection.summary(detection.counts(evaluation.bones))
        tables["lesion_detection"] = detection_table(detection.distinct(summary))
        tables["lesion_volumes"] = volume_table(detection.distinct(detection.volume_agreement(tested.bones)))
    if len(evaluation.lesions):
        found = detection.lesion_wise(evaluation.lesions)
        # Bones in the order of the other tables, whichever of them has the first lesion.
        places = {bone: place for place, bone in enumerate([*evaluation.bones["bone"].unique(), detection.ALL])}
        found = found.sort_values("bone", key=lambda bones: bones.map(places), kind="stable")
        tables["lesion_sizes"] = lesion_wise_table(detection.distinct(found))
    if len(evaluation.slices):
        tables |= slice_tables(evaluation.slices)
    return tables


def detection_table(summary: pd.DataFrame) -> Table:
    """The paper's table of lesion detection (method paper, Table 4), from ``detection.summary``."""
    scores = {name: name for name in ("sensitivity", "specificity", "accuracy")} | {"auc": "AUC"}
    frame = in_groups(summary, ["bone"])
    # Models are evaluated on the same bones; where one lacks some, none is named best.
    same = frame.groupby("bone")[["positives", "negatives"]].transform("nunique").eq(1).all(axis=1)
    rated = [*scores, "mean_dsc", "dacc", "ddsc"]
    bold = {(place, name) for place, name in best_cells(frame, ["bone"], rated) if same[place]}
    columns = (
        _BONE,
        _MODEL,
        *(Column("positives", "positive"), Column("negatives", "negative")),
        *(Column(name, title, 3) for name, title in scores.items()),
        percent_column("mean_dsc", "DSC [%]"),
        _best_column(Column("dacc", "dAcc", 3)),
        _best_column(percent_column("ddsc", "dDSC [%]")),
    )
    notes = (
        "A bone is positive where the reference has a lesion in it, and detected from a DSC of 5 % on. Sensitivity, "
        "specificity, accuracy and DSC (mean over the positive bones) of the predictions as they are; AUC over all "
        "thresholds. dAcc, dDSC: the best accuracy and the best mean DSC over the thresholds, and the threshold that "
        "gives it; it is chosen on these very cases and tells what post-processing could give at best.",
    )
    return table_of(frame, columns, "Lesion detection, bone by bone", notes, grouped=1, bold=bold)


def _best_column(score: Column) -> Column:
    """A score at its best threshold, which stands beneath it."""
    also = f"{score.name}_rule", f"{score.name}_threshold"
    return dataclasses.replace(score, beneath=lambda row: threshold_in_words(*(row[key] for key in also)), also=also)


def threshold_in_words(rule: str | None, threshold: float) -> str:
    """A threshold of ``Evaluation.bones``, as readers see it; empty where there is none."""
    if rule == SIZE:
        return f"lesions ≥ {threshold:g} mm³" if threshold else "as predicted"
    return f"softmax ≥ {threshold:g}" if rule == PROBABILITY else ""


def lesion_wise_table(lesion_wise: pd.DataFrame) -> Table:
    """Lesions that are found, one by one, by their size, from ``detection.lesion_wise``."""
    by = ["bone", "from_mm3", "to_mm3"]
    frame = in_groups(lesion_wise, by)
    columns = (
        _BONE,
        Column(
            "from_mm3", "volume [mm³]", None, lambda of: size_in_words(*(of[key] for key in by[1:])), also=["to_mm3"]
        ),
        _MODEL,
        *(Column("reference", "lesions"), Column("found"), Column("sensitivity", digits=3)),
        *(Column("predicted"), Column("true"), Column("precision", digits=3)),
    )
    notes = (
        "A lesion of the reference is found where any of its voxels is predicted; one of the prediction is true where "
        "any of its voxels is in the reference. Each counts by its own volume.",
    )
    bold = best_cells(frame, by, ["sensitivity", "precision"])
    return table_of(frame, columns, "Lesions, one by one", notes, grouped=2, bold=bold)


def size_in_words(low: float, high: float) -> str:
    """A bin of volumes in mm3, as readers see it."""
    if math.isinf(high):
        return f"≥ {low:g}"
    return f"< {high:g}" if low == 0 else f"{low:g} to {high:g}"


def volume_table(agreement: pd.DataFrame) -> Table:
    """How far lesion volumes agree, from ``detection.volume_agreement``."""
    volumes = {"bias": "bias", "sd": "sd", "lower": "lower limit", "upper": "upper limit"}
    columns = (
        _BONE,
        _MODEL,
        Column("n"),
        Column("pearson_r", "Pearson r", 3),
        p_column("pearson_p", "p"),
        *(Column(f"{name}_mm3", f"{title} [mm³]", 1) for name, title in volumes.items()),
    )
    notes = (
        "n: bones in which at least one of the maps has a lesion. Bias: mean of prediction - reference; limits of "
        "agreement: bias -+ 1.96 standard deviations.",
    )
    return table_of(in_groups(agreement, ["bone"]), columns, "Lesion volumes: agreement", notes, grouped=1)
