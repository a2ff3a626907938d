"""Adversarial cutting of what is no knee: discs like brains with dark blobs, through nnU-Net's commands."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprint_dataset,
    plan_experiment_dataset,
    preprocess_dataset,
)
from quick import pools_of_threads, sample_few_voxels

from nnunetv2_anomaly.command_line.main import main

NUMBER, NAME = 811, "Dataset811_Discs"


def disc(seed, sign):
    """Image and labels of eight slices of 40 x 40: an elliptic brain in air, blobs in three of its slices."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :40]
    inside = ((y - 20) / 17) ** 2 + ((x - 20) / 14) ** 2 < 1
    image = np.zeros((8, 40, 40), np.float32)
    labels = np.zeros(image.shape, np.uint8)
    for index in range(8):
        image[index] = inside * (100 + 10 * np.sin(x / 4) + rng.normal(0, 3, inside.shape))
        if index in (2, 3, 5):
            centre = 20 + rng.integers(-6, 7, 2)
            blob = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 9
            labels[index] = blob & inside
            image[index] += sign * 60.0 * labels[index]
    return image, labels


@pytest.mark.exhaustive
def test_dark_blobs_of_discs_like_brains_are_cut_and_masked_without_bones(nnunet_environment, tmp_path, monkeypatch):
    from nnunetv2.run.run_training import run_training

    polarity, sign = "dark", -1
    for kind in ("raw", "preprocessed", "results"):
        (tmp_path / kind).mkdir()
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    pools_of_threads(monkeypatch)
    sample_few_voxels(monkeypatch)
    raw = tmp_path / "raw" / NAME
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / part).mkdir(parents=True)
    for seed in range(6):
        image, labels = (sitk.GetImageFromArray(of) for of in disc(seed, sign))
        for of in (image, labels):
            of.SetSpacing((1.0, 1.0, 3.0))
        sitk.WriteImage(image, str(raw / ("imagesTr" if seed < 5 else "imagesTs") / f"disc_{seed}_0000.nii.gz"))
        if seed < 5:
            sitk.WriteImage(labels, str(raw / "labelsTr" / f"disc_{seed}.nii.gz"))
    description = {"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "lesion": 1}}
    (raw / "dataset.json").write_text(json.dumps({**description, "numTraining": 5, "file_ending": ".nii.gz"}))
    extract_fingerprint_dataset(NUMBER, num_processes=1, verbose=False, show_progress_bar=False)
    with pytest.MonkeyPatch.context() as planning:
        planning.setenv("nnUNet_n_proc_DA", "1")
        plan_experiment_dataset(NUMBER)
    assert main(["plan_whole_image", "-d", str(NUMBER), "-c", "2d", "--size", "48"]) == 0
    file = tmp_path / "preprocessed" / NAME / "nnUNetWholeSlice48Plans.json"
    plans = json.loads(file.read_text())
    of = plans["configurations"]["2d"]
    assert of["patch_size"] == [64, 64]  # 48 voxels, rounded up to a multiple of 32
    of["batch_size"] = 4
    own = {"asc_features": 4, "asc_cycles": [1, 1], "asc_discriminator_epochs": 1, "asc_main_epochs": 3, "seed": 0}
    own |= {"num_iterations_per_epoch": 10, "num_val_iterations_per_epoch": 2, "polarity": polarity}
    of["anomaly"].update(own, prestage_learning_rate=2e-3, mask_rule="fitted")
    file.write_text(json.dumps(plans))
    plans_name = "nnUNetWholeSlice48Plans"
    preprocess_dataset(NUMBER, plans_name, configurations=["2d"], num_processes=[1], show_progress_bar=False)
    import torch

    run_training(NAME, "2d", 0, "ASCNetTrainer", plans_name, device=torch.device("cpu"))
    log = next((tmp_path / "results" / NAME).glob("ASCNetTrainer__*/fold_0/training_log*")).read_text()
    assert "slices to cut" in log
    words = ["anomaly_maps", "-i", str(raw / "imagesTs"), "-o", str(tmp_path / "maps"), "-d", str(NUMBER)]
    assert main([*words, "-p", plans_name, "-c", "2d", "-tr", "ASCNetTrainer", "-device", "cpu"]) == 0
    made = {file.name for file in (tmp_path / "maps").iterdir()}
    assert {"disc_5_error.nii.gz", "disc_5_reconstruction.nii.gz", "disc_5_lesions.nii.gz"} <= made
    image, labels = disc(5, sign)
    maps = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "maps" / "disc_5_error.nii.gz")))
    assert maps.shape == image.shape
    # So short a training gives a reconstruction that is a smooth copy: blobs of the polarity stand out in it.
    brain = image > 20
    assert maps[labels > 0].mean() > maps[brain & (labels == 0)].mean()
