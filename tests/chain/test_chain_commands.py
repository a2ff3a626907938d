"""The whole chain through nnU-Net's own commands as a user types them, each a process of its own.

The chain of every run is the toy family's, in tests/families/test_toy_chain.py; test_stock_commands.py runs many more
commands. Both run theirs in one process.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from stock_commands import WHILE_PLANNING

from nnunetv2_anomaly.environment import nnunet_command, nnunet_environment

pytestmark = pytest.mark.exhaustive

DATASET_NUMBER = "802"
DATASET_NAME = "Dataset802_ChainKnee"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
PRESTAGE = ("-tr", "AnomalyPreStageTrainer")
SEGMENTATION = ("-tr", "AnomalyAwareTrainer")
MODEL = ("-d", DATASET_NUMBER, "-c", "3d_small", "-f", "0")


def run_as_processes(base: Path, entries: Sequence[dict], **variables: str) -> dict[str, dict]:
    """As stock_commands.run_commands, with each command as its own process."""
    results = {}
    for entry in entries:
        finished = subprocess.run(
            [nnunet_command(entry["command"][0]), *entry["command"][1:]],
            env=nnunet_environment(base, **{**variables, **entry["variables"]}),
            capture_output=True,
            text=True,
            timeout=280,
        )
        results[entry["name"]] = {"status": finished.returncode, "output": (finished.stdout + finished.stderr)[-4000:]}
    return results


@dataclass(frozen=True)
class Chain:
    """What the commands left: the base folder of the training, that of another machine, status and output by name."""

    base: Path
    other_base: Path
    results: dict[str, dict]

    def fold(self, trainer):
        return self.base / "nnUNet_results" / DATASET_NAME / f"{trainer}__nnUNetPlans__3d_small" / "fold_0"

    @property
    def images(self):
        return self.base / "nnUNet_raw" / DATASET_NAME / "imagesTs"


def commands(base: Path, other_base: Path) -> list[dict]:
    """All but planning, in their order."""
    listed = []

    def add(name, *command, **variables):
        listed.append({"name": name, "command": [str(word) for word in command], "variables": variables})

    train = ("nnUNetv2_train", DATASET_NUMBER, "3d_small", "0", "-device", "cpu")
    add("train without pre-stage", *train, *SEGMENTATION)
    add("train pre-stage", *train, *PRESTAGE)
    add("train", *train, *SEGMENTATION)
    images = ("-i", base / "nnUNet_raw" / DATASET_NAME / "imagesTs", "-device", "cpu")
    predict = ("nnUNetv2_predict", *MODEL, *SEGMENTATION, *images, "-npp", "1", "-nps", "1")
    add("predict", *predict, "-o", base / "predicted")
    for trainer in (PRESTAGE, SEGMENTATION):
        output = ("-o", base / "errors" / trainer[1])
        add(f"error images {trainer[1]}", "nnUNetv2_anomaly", "anomaly_maps", *images, *output, *MODEL, *trainer)
    add("export", "nnUNetv2_export_model_to_zip", *MODEL, *SEGMENTATION, "-o", base / "model.zip")
    elsewhere = {name: str(other_base / name) for name in FOLDERS}
    add("install", "nnUNetv2_install_pretrained_model_from_zip", base / "model.zip", **elsewhere)
    add("predict elsewhere", *predict, "-o", other_base / "predicted", **elsewhere)
    return listed


@pytest.fixture(scope="module")
def chain(tmp_path_factory, write_tiny_raw_dataset, add_small_configurations):
    base, other_base = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("elsewhere")
    write_tiny_raw_dataset(base / "nnUNet_raw" / DATASET_NAME)
    for folder in (base / name for base in (base, other_base) for name in FOLDERS):
        folder.mkdir(exist_ok=True)
    words = ["nnUNetv2_plan_and_preprocess", "-d", DATASET_NUMBER, "-npfp", "1", "-np", "1", "-c", "3d_fullres",
             "--verify_dataset_integrity"]  # fmt: skip
    results = run_as_processes(base, [{"name": "plan", "command": words, "variables": {}}], **WHILE_PLANNING)
    assert results["plan"]["status"] == 0, results["plan"]["output"]
    add_small_configurations(base / "nnUNet_preprocessed" / DATASET_NAME / "nnUNetPlans.json")
    results = run_as_processes(base, commands(base, other_base))
    for name, result in results.items():
        assert result["status"] == 0 or name == "train without pre-stage", f"{name}: {result['output']}"
    return Chain(base, other_base, results)


def assert_same_geometry(first, second):
    assert first.GetSize() == second.GetSize()
    np.testing.assert_allclose(first.GetSpacing(), second.GetSpacing())
    np.testing.assert_allclose(first.GetOrigin(), second.GetOrigin())
    np.testing.assert_allclose(first.GetDirection(), second.GetDirection())


def test_segmentation_without_prestage_ends_with_a_sentence_and_no_traceback(chain):
    result = chain.results["train without pre-stage"]
    assert result["status"] == 1
    assert "Traceback" not in result["output"]
    command = f"nnUNetv2_train {DATASET_NUMBER} 3d_small 0 -tr AnomalyPreStageTrainer -device cpu"
    assert result["output"].strip().endswith(f"run: {command}")


def test_prestage_leaves_its_checkpoint_progress_and_validation(chain):
    folder = chain.fold("AnomalyPreStageTrainer")
    for name in ("checkpoint_final.pth", "progress.png", "validation/summary.json"):
        assert (folder / name).is_file(), name


def test_prestages_validation_images_have_the_geometry_of_the_raw_images(chain):
    validation = chain.fold("AnomalyPreStageTrainer") / "validation"
    splits = json.loads((chain.base / "nnUNet_preprocessed" / DATASET_NAME / "splits_final.json").read_text())
    assert splits[0]["val"]
    for case in splits[0]["val"]:
        raw = sitk.ReadImage(str(chain.base / "nnUNet_raw" / DATASET_NAME / "imagesTr" / f"{case}_0000.nii.gz"))
        for kind in ("reconstruction", "error"):
            assert_same_geometry(sitk.ReadImage(str(validation / f"{case}_{kind}.nii.gz")), raw)
        assert (validation / f"{case}.png").is_file()


def test_preprocessed_configuration_folder_holds_nnunets_files_alone(chain):
    folder = chain.base / "nnUNet_preprocessed" / DATASET_NAME / "nnUNetPlans_3d_fullres"
    cases = [f"case_{number}" for number in range(5)]
    expected = {f"{case}{ending}" for case in cases for ending in (".b2nd", "_seg.b2nd", ".pkl")}
    assert {path.name for path in folder.iterdir()} == expected


def test_segmentation_leaves_what_nnunet_leaves(chain):
    folder = chain.fold("AnomalyAwareTrainer")
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    assert "foreground_mean" in summary
    assert (folder / "checkpoint_final.pth").is_file()
    assert (folder.parent / "plans.json").is_file()
    assert "anomaly" in json.loads((folder.parent / "plans.json").read_text())["configurations"]["3d_small"]


def test_prediction_writes_a_segmentation_in_the_geometry_of_each_image(chain):
    (image,) = chain.images.iterdir()
    prediction = sitk.ReadImage(str(chain.base / "predicted" / "case_5.nii.gz"))
    assert_same_geometry(prediction, sitk.ReadImage(str(image)))
    assert set(np.unique(sitk.GetArrayFromImage(prediction))) <= {0, 1, 2, 3}


def test_installed_model_predicts_the_same_without_prestage_and_without_data(chain):
    results = chain.other_base / "nnUNet_results" / DATASET_NAME
    assert [path.name for path in results.iterdir()] == ["AnomalyAwareTrainer__nnUNetPlans__3d_small"]
    assert not any((chain.other_base / "nnUNet_preprocessed").iterdir())
    assert not any((chain.other_base / "nnUNet_raw").iterdir())
    here, elsewhere = (base / "predicted" / "case_5.nii.gz" for base in (chain.base, chain.other_base))
    assert here.read_bytes() == elsewhere.read_bytes()


@pytest.mark.parametrize("trainer", [PRESTAGE, SEGMENTATION], ids=["pre-stage", "segmentation"])
def test_error_images_of_new_images_come_from_either_model(chain, trainer):
    errors = chain.base / "errors" / trainer[1]
    (image,) = chain.images.iterdir()
    raw = sitk.ReadImage(str(image))
    assert {path.name for path in errors.iterdir()} == {
        "case_5_reconstruction.nii.gz",
        "case_5_error.nii.gz",
        "case_5.png",
        "anomaly_maps.json",
    }
    for kind in ("reconstruction", "error"):
        written = sitk.ReadImage(str(errors / f"case_5_{kind}.nii.gz"))
        assert_same_geometry(written, raw)
        voxels = sitk.GetArrayFromImage(written)
        assert voxels.min() >= 0
        assert voxels.max() <= 1
    record = json.loads((errors / "anomaly_maps.json").read_text())
    assert record["trainer"] == trainer[1]
    assert record["cases"] == ["case_5"]
