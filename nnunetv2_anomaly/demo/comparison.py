"""Dice and Hausdorff distance of several models on the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import label as connected_components

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.evaluation import surface_metrics


@dataclass(frozen=True)
class LabelResult:
    """One label of one case of one model.

    dsc: 1 = perfect; NaN where the label is in neither map. hausdorff_mm: NaN where it is missing from one or both.
    islands: components of the prediction beyond the largest, face-connected; NaN where the label was not predicted.
    """

    case: str
    model: str
    label: str
    has_lesion: bool
    dsc: float
    hausdorff_mm: float
    islands: float


def compare_label(reference: sitk.Image, prediction: sitk.Image) -> tuple[float, float, float]:
    """Dice, Hausdorff distance in mm (method paper, Eq. B.3) and islands of two binary masks of one geometry."""
    a, b = sitk.GetArrayViewFromImage(reference) > 0, sitk.GetArrayViewFromImage(prediction) > 0
    metrics = surface_metrics(a, b, reference.GetSpacing()[::-1])
    return metrics["dsc"], metrics["hd_mm"], connected_components(b)[1] - 1.0 if b.any() else float("nan")


def compare_models(
    reference_folder: Path,
    predictions: Mapping[str, Path],
    labels: Mapping[str, int],
    lesion_cases: Sequence[str],
    file_ending: str = ".nii.gz",
) -> list[LabelResult]:
    """Compare every case of the reference folder, every label, every model.

    Args:
        reference_folder, predictions: folders of label maps; model name -> folder.
        labels: label name -> value; background is left out.
        lesion_cases: cases that hold a lesion.
    Raises: UserError if a prediction is missing or lies on another grid.
    """
    results = []
    for reference_file in sorted(reference_folder.glob(f"*{file_ending}")):
        case = reference_file.name[: -len(file_ending)]
        reference = sitk.ReadImage(str(reference_file), sitk.sitkUInt8)
        for model, folder in predictions.items():
            prediction_file = folder / reference_file.name
            if not prediction_file.is_file():
                raise UserError(f"{prediction_file} does not exist; expected a prediction of every case of {folder}")
            prediction = sitk.ReadImage(str(prediction_file), sitk.sitkUInt8)
            if not same_geometry(reference, prediction):
                raise UserError(
                    f"{prediction_file} has size {prediction.GetSize()} and spacing {prediction.GetSpacing()}, its "
                    f"reference {reference.GetSize()} and {reference.GetSpacing()}; expected one geometry"
                )
            for name, value in labels.items():
                if value != 0:
                    dsc, distance, islands = compare_label(reference == value, prediction == value)
                    results.append(LabelResult(case, model, name, case in lesion_cases, dsc, distance, islands))
    return results


def same_geometry(first: sitk.Image, second: sitk.Image, tolerance: float = 1e-4) -> bool:
    """Size equal; spacing, origin (mm) and direction equal within the tolerance."""
    return first.GetSize() == second.GetSize() and all(
        np.allclose(a, b, atol=tolerance)
        for a, b in (
            (first.GetSpacing(), second.GetSpacing()),
            (first.GetOrigin(), second.GetOrigin()),
            (first.GetDirection(), second.GetDirection()),
        )
    )


def mean_and_count(values: Sequence[float]) -> tuple[float, int, int]:
    """Mean of the defined values (NaN where none is), their number, and how many were undefined."""
    array = np.asarray(values, dtype=float)
    defined = array[np.isfinite(array)]
    return (float(defined.mean()) if defined.size else float("nan")), int(defined.size), int(array.size - defined.size)
