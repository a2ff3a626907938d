"""Improved Mask R-CNN by nnU-Net's own commands, on coronal slices of hips with one label, effusion."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from effusion_phantoms import drawn_effusions
from stock_commands import WHILE_PLANNING, run_commands

pytestmark = pytest.mark.exhaustive

NUMBER, NAME, TRAINER = "805", "Dataset805_Hips", "IMaskRCNNTrainer"
PLANS = "nnUNetWholeSlicePlans"
SETTINGS = {
    "mask_rcnn_backbone": "small",
    "mask_rcnn_weights": "none",
    "mask_rcnn_features": 8,
    "mask_rcnn_size": None,
    "mask_rcnn_boxes": 32,
    "mask_rcnn_score": 0.2,
    "num_epochs": 2,
    "num_iterations_per_epoch": 20,
    "num_val_iterations_per_epoch": 1,
    "seed": 0,
}


def write_raw(folder):
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, case in enumerate(drawn_effusions(0, 6)):
        part = "imagesTr" if number < 5 else "imagesTs"
        sitk.WriteImage(case.image(random), str(folder / part / f"hip_{number}_0000.nii.gz"))
        if number < 5:
            sitk.WriteImage(case.labels(), str(folder / "labelsTr" / f"hip_{number}.nii.gz"))
    description = {"channel_names": {"0": "STIR"}, "labels": {"background": 0, "effusion": 1}, "numTraining": 5}
    (folder / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Base folder, and per command its status and output."""
    base = tmp_path_factory.mktemp("hips")
    write_raw(base / "nnUNet_raw" / NAME)
    for name in ("nnUNet_preprocessed", "nnUNet_results", "elsewhere"):
        (base / name).mkdir()
    words = ["-d", NUMBER, "-npfp", "1", "--no_pp"]
    plan = [
        {"name": "plan", "command": ["nnUNetv2_plan_and_preprocess", *words]},
        {"name": "whole", "command": ["nnUNetv2_anomaly", "plan_whole_image", "-d", NUMBER, "-c", "2d"]},
    ]
    preprocess = ["nnUNetv2_preprocess", "-d", NUMBER, "-plans_name", PLANS, "-c", "2d", "-np", "1"]
    results = run_commands(base, "plan", [*plan, {"name": "pp", "command": preprocess}], **WHILE_PLANNING)
    file = base / "nnUNet_preprocessed" / NAME / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["2d"]["anomaly"] = SETTINGS
    file.write_text(json.dumps(plans))
    train = ["nnUNetv2_train", NUMBER, "2d", "0", "-p", PLANS, "-tr", TRAINER, "-device", "cpu"]
    images, out = str(base / "nnUNet_raw" / NAME / "imagesTs"), base / "out"
    of = ["-d", NUMBER, "-p", PLANS, "-c", "2d", "-tr", TRAINER, "-f", "0"]
    predict = ["nnUNetv2_predict", "-i", images, *of, "-device", "cpu", "-npp", "0", "-nps", "0", "-o"]
    model = base / "nnUNet_results" / NAME / f"{TRAINER}__{PLANS}__2d"
    from_folder = ["nnUNetv2_predict_from_modelfolder", "-i", images, "-m", model, "-f", "0", "-device", "cpu"]
    elsewhere = {"nnUNet_results": str(base / "elsewhere")}
    entries = [
        {"name": "train", "command": train},
        {"name": "c", "command": [*train, "--c"]},
        {"name": "val", "command": [*train, "--val"]},
        {"name": "predict", "command": [*predict, out / "one", "--save_probabilities"]},
        {"name": "modelfolder", "command": [*from_folder, "-o", out / "modelfolder", "-npp", "1", "-nps", "1"]},
        {"name": "export", "command": ["nnUNetv2_export_model_to_zip", *of, "-o", base / "model.zip"]},
        {"name": "install", "command": ["nnUNetv2_install_pretrained_model_from_zip", base / "model.zip"],
         "variables": elsewhere},
        {"name": "again", "command": [*predict, out / "again"], "variables": elsewhere},
        {"name": "instances", "command": ["nnUNetv2_anomaly", "instances", "-i", images, *of, "-device", "cpu", "-o",
                                          out / "instances"]},
        {"name": "doctor", "command": ["nnUNetv2_anomaly", "doctor", "--model", base / "model.zip"]},
    ]  # fmt: skip
    entries = [{**entry, "command": [str(word) for word in entry["command"]]} for entry in entries]
    return base, results | run_commands(base, "commands", entries)


def test_every_command_ends_well(done):
    _, results = done
    assert {name: of["output"] for name, of in results.items() if of["status"]} == {}


def test_predictions_lie_on_the_images_grid_and_agree_after_export_and_installation(done):
    base, _ = done
    image = sitk.ReadImage(str(base / "nnUNet_raw" / NAME / "imagesTs" / "hip_5_0000.nii.gz"))
    predicted = sitk.ReadImage(str(base / "out" / "one" / "hip_5.nii.gz"))
    for of in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(predicted, of)() == getattr(image, of)()
    found, fluid = (sitk.GetArrayFromImage(of) > 0 for of in (predicted, drawn_effusions(0, 6)[5].labels()))
    assert 2 * (found & fluid).sum() / (found.sum() + fluid.sum()) > 0.5  # 0.79 after 40 steps
    expected = (base / "out" / "one" / "hip_5.nii.gz").read_bytes()
    assert (base / "out" / "modelfolder" / "hip_5.nii.gz").read_bytes() == expected
    assert (base / "out" / "again" / "hip_5.nii.gz").read_bytes() == expected
    summary = base / "nnUNet_results" / NAME / f"{TRAINER}__{PLANS}__2d" / "fold_0" / "validation" / "summary.json"
    assert summary.is_file()


def test_instances_lie_where_fluid_is(done):
    base, _ = done
    found = json.loads((base / "out" / "instances" / "hip_5_instances.json").read_text())
    assert found["axes"] == {"slice": 1, "y": 2, "x": 0}  # coronal
    fluid = sitk.GetArrayFromImage(drawn_effusions(0, 6)[5].labels()) > 0  # z, y, x
    covered = np.zeros_like(fluid)
    for row in (row for row in found["instances"] if row["score"] >= 0.5):
        x1, y1, x2, y2 = (round(edge) for edge in row["box"])
        covered[y1:y2, row["slice"], x1:x2] = True
    assert (covered & fluid).sum() > 0.9 * fluid.sum()
    assert covered.mean() < 0.25  # 0.19 after 40 steps, with 0.96 of the fluid
