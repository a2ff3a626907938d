"""Knees without lesions, and the same knees with lesions that no training showed: how a segmentation stands them."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_anomaly.images.files import write_image
from nnunetv2_anomaly.labels import BONE_OF_LESION, BONES, CARTILAGES, NAMES
from nnunetv2_anomaly.measurements import evaluate_case
from nnunetv2_anomaly.postprocessing.components import count_components
from nnunetv2_anomaly.simulation.dess import STRESS

CLEAN = "clean"
#: each a simulation of all held-out knees; all but the first with ``simulate --stress KIND``
KINDS = (CLEAN, *STRESS)

#: a bone whose prediction has a voxel farther from it, or misses one by more, has a far error
FAR_MM = 25.0


def write_healthy_maps(labels: Path, target: Path) -> None:
    """Copy label maps, with lesions as the bone that they are in."""
    made = target.with_name(f"part_{target.name}")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for file in sorted(labels.glob("*.nii.gz")):
        changed = sitk.ChangeLabel(sitk.ReadImage(str(file)), {float(k): float(v) for k, v in BONE_OF_LESION.items()})
        write_image(changed, made / file.name)
    os.replace(made, target)


def link_images(folder: Path, cases: Collection[str], target: Path) -> None:
    """All kinds' images of some cases in one folder, CASE_KIND_0000.nii.gz, for one prediction command."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for kind in KINDS:
        for case in cases:
            os.symlink(folder / kind / "images" / f"{case}_0000.nii.gz", target / f"{case}_{kind}_0000.nii.gz")


def measure_files(prediction: Path, reference: Path, anomalies: Path) -> list[dict[str, Any]]:
    """``measure`` on files of one grid."""
    images = [sitk.ReadImage(str(file)) for file in (prediction, reference, anomalies)]
    return measure(*map(sitk.GetArrayFromImage, images), spacing_mm=images[1].GetSpacing()[::-1])


def measure(
    prediction: NDArray, reference: NDArray, anomalies: NDArray, spacing_mm: tuple[float, ...]
) -> list[dict[str, Any]]:
    """How well bones and cartilages came out, before any clean-up.

    Args:
        prediction, reference: (Z, Y, X), labels 0 to 9; lesions count as their bone.
        anomalies: (Z, Y, X), 0 or the lesion label of the bone; what lies beyond the bone takes no part.
        spacing_mm: distance of voxels, same order.
    Returns: a row per label that the reference has: label (name), dsc, hd_mm (a missing label: the image's diagonal),
        far (whether that is above ``FAR_MM``), parts (whether there is more than one); of bones also holes, the share
        of the filled bone that it encloses without being it, and, where a lesion lies in the bone, covered, the share
        of the lesion that was segmented as its bone.
    """
    prediction, reference = (with_lesions_as_bone(labels) for labels in (prediction, reference))
    present = [label for label in (*BONES, *CARTILAGES) if (reference == label).any()]
    diagonal = math.dist((0,) * reference.ndim, np.multiply(reference.shape, spacing_mm))
    found = evaluate_case(reference, prediction, spacing_mm, present, missing_distance_mm=diagonal)
    parts = count_components(prediction, present)
    rows = []
    for label in present:
        distance = found[label]["hd_mm"]
        row = {"label": NAMES[label], "dsc": found[label]["dsc"], "hd_mm": distance}
        row |= {"far": float(distance > FAR_MM), "parts": float(parts[label] > 1)}
        if label in BONES:
            own = prediction == label
            filled = int(ndimage.binary_fill_holes(own).sum())
            row["holes"] = (filled - int(own.sum())) / filled if filled else math.nan
            lesion = lesion_in_bone(anomalies, reference) == label
            row["covered"] = float(own[lesion].mean()) if lesion.any() else math.nan
        rows.append(row)
    return rows


def lesion_in_bone(anomalies: NDArray, reference: NDArray) -> NDArray[np.uint8]:
    """The bone's label where a lesion lies within the bone that holds it, else 0. Args: label maps of one shape."""
    bones, held_by = with_lesions_as_bone(reference), with_lesions_as_bone(anomalies)
    return np.where((anomalies > 0) & (bones == held_by), bones, 0).astype(np.uint8)


def with_lesions_as_bone(labels: NDArray) -> NDArray[np.uint8]:
    """The labels with those of lesions replaced by the bone's."""
    table = np.arange(256, dtype=np.uint8)
    table[list(BONE_OF_LESION)] = list(BONE_OF_LESION.values())
    return table[labels.astype(np.uint8)]
