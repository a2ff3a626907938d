"""A detector family of another package through nnU-Net's own commands, without a line changed elsewhere."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from stock_commands import SETTINGS, run_commands

DATASET_NUMBER, DATASET_NAME = 801, "Dataset801_TinyKnee"  # of tiny_dataset
CONFIGURATION = "3d_toy"
#: the same, with the detector of fold 0 whatever the fold
GIVEN = "3d_given"
AWARE, TOY = "AnomalyAwareTrainer", "MedianTrainer"


def prestage_of(base: Path) -> Path:
    return base / "nnUNet_results" / DATASET_NAME / f"{TOY}__nnUNetPlans__{CONFIGURATION}" / "fold_0"


@pytest.fixture(scope="module")
def base(tiny_dataset, tmp_path_factory) -> Path:
    """nnU-Net's folders with the tiny data set, and a configuration that names the toy family."""
    base = tmp_path_factory.mktemp("toy_chain")
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.copytree(tiny_dataset.base / name / DATASET_NAME, base / name / DATASET_NAME)
    (base / "nnUNet_results").mkdir()
    plans_file = base / "nnUNet_preprocessed" / DATASET_NAME / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    small = plans["configurations"]["3d_small"]
    settings = {**small["anomaly"], **SETTINGS, "detector": "median"}
    plans["configurations"][CONFIGURATION] = {"inherits_from": "3d_small", "anomaly": settings}
    given = {**settings, "prestage_folder": str(prestage_of(base))}
    plans["configurations"][GIVEN] = {"inherits_from": "3d_small", "anomaly": given}
    plans_file.write_text(json.dumps(plans))
    return base


def commands(base: Path) -> list[dict]:
    images, zipped = base / "nnUNet_raw" / DATASET_NAME / "imagesTs", base / "model.zip"
    of_model = ["-d", DATASET_NUMBER, "-c", CONFIGURATION, "-tr", AWARE, "-f", 0, "-i", images, "-device", "cpu",
                "-npp", 0, "-nps", 0]  # fmt: skip

    def entry(name, *words, **variables):
        return {"name": name, "command": [str(word) for word in words], "variables": variables}

    def train(name, trainer, fold, *more, configuration=CONFIGURATION):
        return entry(
            name, "nnUNetv2_train", DATASET_NUMBER, configuration, fold, "-tr", trainer, "-device", "cpu", *more
        )

    elsewhere = {"nnUNet_results": str(base / "elsewhere")}
    return [
        train("too early", AWARE, 0),
        train("pre-stage", TOY, 0),
        train("pre-stage again", TOY, 0, "--c"),
        train("segmentation", AWARE, 0),
        train("other fold", AWARE, 1, configuration=GIVEN),
        entry("predict", "nnUNetv2_predict", "-o", base / "here", *of_model),
        entry("maps", "nnUNetv2_anomaly", "error_images", "-i", images, "-o", base / "maps", "-d", DATASET_NUMBER,
              "-c", CONFIGURATION, "-tr", AWARE, "-device", "cpu"),
        entry("export", "nnUNetv2_export_model_to_zip", "-d", DATASET_NUMBER, "-c", CONFIGURATION, "-tr", AWARE,
              "-f", 0, "-o", zipped),
        entry("import", "nnUNetv2_install_pretrained_model_from_zip", zipped, **elsewhere),
        entry("predict there", "nnUNetv2_predict", "-o", base / "there", *of_model, **elsewhere),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(base, toy_family):
    (base / "elsewhere").mkdir()
    return run_commands(base, "toy", commands(base))


@pytest.mark.parametrize(
    "name",
    ["pre-stage", "pre-stage again", "segmentation", "predict", "maps", "export", "import", "predict there"],
)
def test_command_ends_well(done, name):
    assert done[name]["status"] == 0, done[name]["output"]


def test_segmentation_without_its_prestage_names_the_families_command(done):
    assert done["too early"]["status"] == 1
    assert (
        f"run: nnUNetv2_train {DATASET_NUMBER} {CONFIGURATION} 0 -tr {TOY} -device cpu" in done["too early"]["output"]
    )


def test_imported_model_predicts_bitwise_the_same(base, done):
    (here,), (there,) = ((base / name).glob("*.nii.gz") for name in ("here", "there"))
    assert here.name == there.name
    first, second = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (here, there))
    assert np.array_equal(first, second)


def test_one_map_is_written_however_many_channels_the_image_has(base, done):
    assert sorted(path.name for path in (base / "maps").iterdir()) == [
        "anomaly_maps.json",
        "case_5.png",
        "case_5_error.nii.gz",
        "case_5_reconstruction.nii.gz",
    ]
    assert json.loads((base / "maps" / "anomaly_maps.json").read_text())["detector"] == "median"


def test_fold_rule_holds_at_the_command(base, done):
    assert (prestage_of(base) / "checkpoint_final.pth").is_file()
    assert done["other fold"]["status"] == 1
    assert "was trained on 1 of this fold's validation cases" in done["other fold"]["output"]
