"""Draws docs/figures/evaluate-*.png:  python docs/figures/evaluation.py

What `nnUNetv2_anomaly evaluate` makes of simulated knees. The predictions are their labels, warped, with lesions left
out and invented: they illustrate the figures and are no result.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.labels import BONE_OF_LESION, LABELS

FIGURES = Path(__file__).parent
#: file of the evaluation -> figure of the documentation
DRAWN = {
    "case_*.png": "evaluate-case.png",
    "box_hd_raw_mm.png": "evaluate-hausdorff.png",
    "roc.png": "evaluate-roc.png",
    "lesion_volumes.png": "evaluate-volumes.png",
}
#: model -> how far its outlines are off, voxels, and which share of lesions it leaves out and invents
MODELS = {"model A": (1.4, 0.4, 0.5), "model B": (0.9, 0.2, 0.25)}


def predicted(labels, off, missed, invented, random):
    """Labels, (Z, Y, X), as a model might see them."""
    noise = random.normal(size=(3, *labels.shape))
    warp = np.stack([gaussian_filter(of, 6) for of in noise])
    places = np.indices(labels.shape) + off * warp / warp.std()
    found = map_coordinates(labels, places, order=0, mode="nearest")
    for lesion, bone in BONE_OF_LESION.items():
        if random.random() < missed:
            found[found == lesion] = bone
        inside = np.argwhere(found == bone)
        if random.random() < invented and len(inside):
            centre = inside[random.integers(len(inside))]
            near = np.square(np.indices(labels.shape) - centre[:, None, None, None]).sum(axis=0) < 9
            found[near & (found == bone)] = lesion
    return found


def draw(folder):
    """Simulate, predict, evaluate in an empty folder, and take the figures."""
    knees, random = folder / "knees", np.random.default_rng(0)
    words = ["--phantoms", "12", "--seed", "5", "--size", "40", "72", "72", "-np", "1"]
    assert main(["simulate", "-o", str(knees), *words]) == 0
    (knees / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
    for model, how in MODELS.items():
        (folder / model).mkdir()
        for file in sorted((knees / "labels").glob("*.nii.gz")):
            image = sitk.ReadImage(str(file))
            made = sitk.GetImageFromArray(predicted(sitk.GetArrayFromImage(image), *how, random))
            made.CopyInformation(image)
            sitk.WriteImage(made, str(folder / model / file.name))
    models = [f"{model}={folder / model}" for model in MODELS]
    words = ["-pred", *models, "-o", str(folder / "evaluation"), "--images", str(knees / "images"), "-np", "1"]
    assert main(["evaluate", "-ref", str(knees / "labels"), *words]) == 0
    for pattern, figure in DRAWN.items():
        shutil.copy(sorted((folder / "evaluation" / "figures").glob(pattern))[0], FIGURES / figure)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        draw(Path(name))
