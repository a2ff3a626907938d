"""Evaluations made up row by row, for tests of what is made of them."""

from __future__ import annotations

import math

import pandas as pd

from nnunetv2_anomaly.evaluation.results import (
    BONE_COLUMNS,
    BOTH,
    CASE_COLUMNS,
    CLEANED,
    INVENTED,
    LESION_COLUMNS,
    MISSED,
    NEITHER,
    RAW,
    Evaluation,
)
from nnunetv2_anomaly.measurements.lesions import SIZE
from nnunetv2_anomaly.measurements.surface import METRICS

#: what stands for an undefined distance, mm
DIAGONAL_MM = 100.0


def row(case, model, label, processing, *, dsc=0.9, hd=2.0, status=BOTH, replaced=True, fold=None, group=None):
    """A row of ``Evaluation.cases``: ASD is a tenth of HD, HD95 a half; undefined as ``evaluate_case`` has it."""
    values = dict.fromkeys(METRICS, math.nan)
    values |= {"reference_volume_mm3": 1000.0 * (status in (BOTH, MISSED))}
    values |= {"prediction_volume_mm3": 900.0 * (status in (BOTH, INVENTED))}
    if status in (MISSED, INVENTED):
        dsc, hd = 0.0, DIAGONAL_MM if replaced else math.nan
    if status != NEITHER:
        values |= {"dsc": dsc, "iou": dsc / (2 - dsc), "hd_mm": hd, "asd_mm": hd / 10, "hd95_mm": hd / 2}
    of = {"case": case, "model": model, "fold": fold, "group": group, "label": label, "processing": processing}
    return {**of, "status": status, **values, "components": 1}


def evaluation_of(rows, *, bones=(), lesions=(), groups=()):
    """An evaluation with the models and labels that the rows have, in their order."""
    cases = pd.DataFrame(rows, columns=[*CASE_COLUMNS, *METRICS, "components"])
    labels = {label: (place,) for place, label in enumerate(cases["label"].unique(), start=1)}
    return Evaluation(
        tuple(cases["model"].unique()),
        labels,
        tuple(groups),
        cases,
        pd.DataFrame(list(bones), columns=list(BONE_COLUMNS)),
        pd.DataFrame(list(lesions), columns=list(LESION_COLUMNS)),
    )


def bone_row(case, model, bone, threshold, reference, prediction, dsc, outcome, rule=SIZE):
    """A row of ``Evaluation.bones``."""
    of = {"case": case, "model": model, "bone": bone, "lesion": bone.replace("bone", "lesion")}
    volumes = {"reference_mm3": reference, "prediction_mm3": prediction}
    return {**of, "rule": rule, "threshold": threshold, **volumes, "dsc": dsc, "outcome": outcome}


def lesion_row(case, model, bone, of_map, volume, found):
    """A row of ``Evaluation.lesions``."""
    of = {"case": case, "model": model, "bone": bone, "lesion": bone.replace("bone", "lesion")}
    return {**of, "map": of_map, "volume_mm3": volume, "overlap": float(found), "found": found}


def small_evaluation(models=("A", "B"), labels=("femoral_bone", "femoral_lesion"), num_cases=3):
    """Every kind of data, with values that differ: model by model worse, case by case better."""
    rows, bones, lesions = [], [], []
    for number, model in enumerate(models):
        for place in range(num_cases):
            case = f"case_{place}"
            of = {"fold": str(place % 2), "group": ("low", "high")[place % 2]}
            for label in labels:
                for processing in (RAW, CLEANED):
                    dsc, hd = 0.9 - 0.01 * number + 0.001 * place, 4.0 + number - 0.1 * place
                    rows.append(row(case, model, label, processing, dsc=dsc, hd=hd + (processing == RAW), **of))
            reference, prediction = 100.0 * (place != 1), 80.0 + 5 * number
            outcome = "FP" if place == 1 else "TP"
            for threshold in (0.0, 6.0):
                dsc = 0.0 if place == 1 else 0.6 + 0.01 * place
                bones.append(bone_row(case, model, "femoral_bone", threshold, reference, prediction, dsc, outcome))
            if place != 1:
                lesions.append(lesion_row(case, model, "femoral_bone", "reference", 100.0, True))
            lesions.append(lesion_row(case, model, "femoral_bone", "prediction", prediction, place != 1))
    return evaluation_of(rows, bones=bones, lesions=lesions, groups=("low", "high"))
