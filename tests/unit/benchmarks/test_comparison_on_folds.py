"""The comparison of models on folds beside a detector alone, from images to tables."""

import json

import pandas as pd
import pytest
from comparing import compare


@pytest.mark.exhaustive
def test_comparison_on_folds_with_lesions_as_labels(tmp_path):
    folder = tmp_path / "work"
    done = compare(
        folder, "--num_phantoms", "5", "--num_test", "0", "--folds", "0", "1", "--whole_image", "--keep_lesion_labels",
        "--models", "UNETPlusTrainer", "UNETSTrainer=UNETSTrainer:margin=2.5,augmentation=off",
        "--size", "24", "32", "24",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = (folder / "results.md").read_text()
    assert "Detectors on held-out knees" in results
    narrow = "detector100_margin2p5_augmentation_off"
    folds = json.loads(next(folder.glob("nnUNet_preprocessed/*/splits_final.json")).read_text())
    for fold in (0, 1):  # a detector is measured on the knees that it did not see
        measured = json.loads((folder / "detectors" / f"{narrow}_fold{fold}" / "summary.json").read_text())
        assert [case["case"] for case in measured["metric_per_case"]] == sorted(folds[fold]["val"])
    assert "Lesion detection, bone by bone" in results
    assert "Minus UNETPlusTrainer, knee by knee" in results
    for fold in (0, 1):
        for change in ("zero", "in_random_order"):
            again = folder / "channel_use" / "UNETSTrainer" / f"seed0_fold{fold}" / change
            assert {file.name for file in again.glob("*.nii.gz")} == {f"{case}.nii.gz" for case in folds[fold]["val"]}
    cases = pd.read_csv(folder / "evaluation" / "tables" / "cases.csv")
    wanted = {f"{case}--seed0-fold{fold}" for fold in (0, 1) for case in folds[fold]["val"]}
    assert set(cases["case"]) == wanted
    assert {"femoral_bone", "femoral_lesion"} <= set(cases["label"])
    detection = pd.read_csv(folder / "evaluation" / "tables" / "lesion_detection.csv")
    assert set(detection["model"]) == {"UNETPlusTrainer", "UNETSTrainer"}
    table = pd.read_csv(folder / "tables" / "detectors.csv")
    assert set(table["detector"]) == {"1 + 1 iterations, margin 2.5 mm, augmentation off"}
    plans = json.loads(next(folder.glob("nnUNet_preprocessed/*/nnUNetComparisonPlans.json")).read_text())
    configurations = plans["configurations"]
    settings = configurations[f"3d_{narrow}"]["anomaly"]
    assert settings["erase_margin_voxels"] == round(2.5 / min(configurations["3d_fullres"]["spacing"]))
    assert settings["prestage_augmentation"] is False
