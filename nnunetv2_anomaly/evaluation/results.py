"""The results of an evaluation as data frames, from which statistics, tables, figures and report are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from nnunetv2_anomaly.evaluation.lesion_slices import COUNTS

_OF_CASE = ("case", "model", "fold", "group")
#: columns of ``Evaluation.cases`` before the metrics of ``surface.METRICS``
CASE_COLUMNS = (*_OF_CASE, "label", "processing", "status")

#: values of the column ``processing``: the prediction as it is (the paper's HD*), and after post-processing
RAW, CLEANED = "raw", "cleaned"

#: values of the column ``status``: which of the two maps has the label
BOTH, NEITHER, MISSED, INVENTED = "both", "neither", "missed", "invented"

#: columns of ``Evaluation.bones``
BONE_COLUMNS = (*_OF_CASE, "bone", "lesion", "rule", "threshold", "reference_mm3", "prediction_mm3", "dsc", "outcome")

#: columns of ``Evaluation.lesions``
LESION_COLUMNS = (*_OF_CASE, "bone", "lesion", "map", "volume_mm3", "overlap", "found")

#: columns of ``Evaluation.slices``
SLICE_COLUMNS = (*_OF_CASE, "slice", "domain", "lesion_mm2", "false_mm2", *COUNTS)


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured of some models on the same cases."""

    models: tuple[str, ...]  # names, in the order in which they were given; the first one is the baseline
    labels: Mapping[str, tuple[int, ...]]  # name -> its values in the label map, in their order; no background
    groups: tuple[str, ...]  # names of the groups of cases, in order; empty where the cases were not grouped
    #: a row per case, model, label and processing: ``CASE_COLUMNS``, ``surface.METRICS`` and ``components``, the number
    #: of connected components of the label in the prediction. Undefined distances are replaced already where the
    #: settings say so; ``status`` shows which.
    cases: pd.DataFrame
    #: a row per case, model, bone, rule and threshold (``BONE_COLUMNS``); empty without lesion labels. ``dsc`` is NaN
    #: where neither map has a lesion; ``outcome`` is TP, FN, TN or FP.
    bones: pd.DataFrame
    #: a row per case, model and lesion (``LESION_COLUMNS``): a connected component of the ``map``, "reference" or
    #: "prediction"; ``overlap`` is the share of its voxels with the same label in the other map, ``found`` whether any.
    lesions: pd.DataFrame
    #: a row per case, model, slice and domain (``lesion_slices.slice_rows``); empty without lesion labels
    slices: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*SLICE_COLUMNS]))
