"""Where the focal weight lies: its mean over bones, lesions, cartilages and the rest of held-out knees."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from benchmarks.experiment import Experiment
from nnunetv2_anomaly.labels import BONES, CARTILAGES
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.reporting.table import Cell, Table, number, word_cell


def focal_weight_table(experiment: Experiment) -> Table:
    """Mean focal weight by tissue and detector, from the error images that ``measure_detector`` wrote."""
    rows = []
    for detector in experiment.detectors:
        found = [
            tissue_weights(*(sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files))
            for fold in experiment.arguments.folds
            for error in sorted(
                (experiment.folder / "detectors" / f"{detector.name}_fold{fold}").glob("*_error.nii.gz")
            )
            for name in [error.name.replace("_error", "")]
            for files in [(error, experiment.references / name, experiment.anomalies / name)]
        ]
        means = {tissue: float(np.nanmean([of[tissue] for of in found])) for tissue in found[0]}
        cells = (Cell(number(mean, 1), values={tissue: mean}) for tissue, mean in means.items())
        rows.append((word_cell("detector", experiment.detector_title(detector)), *cells))
    return Table(
        f"Focal weight 1 + {default('beta'):g} E on held-out knees: means over voxels, then knees",
        ("detector", "bones", "lesions", "cartilages", "elsewhere"),
        tuple(rows),
    )


def tissue_weights(error: NDArray, labels: NDArray, anomalies: NDArray) -> dict[str, float]:
    """Mean of F (Eq. 4) over each tissue; NaN where there is none. All arrays are (Z, Y, X), the error unitless."""
    bones, lesions, cartilages = np.isin(labels, BONES) & (anomalies == 0), anomalies > 0, np.isin(labels, CARTILAGES)
    tissues = {"bones": bones, "lesions": lesions, "cartilages": cartilages & ~lesions}
    tissues["elsewhere"] = ~np.logical_or.reduce(list(tissues.values()))
    weights = 1 + default("beta") * error.astype(float)
    return {name: float(weights[where].mean()) if where.any() else float("nan") for name, where in tissues.items()}
