"""The whole chain through nnU-Net's own commands, as a user types them."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_anomaly.environment import nnunet_command, nnunet_environment

pytestmark = pytest.mark.slow

DATASET_NUMBER = "802"
DATASET_NAME = "Dataset802_ChainKnee"
PRESTAGE = ("-tr", "AnomalyPreStageTrainer")
SEGMENTATION = ("-tr", "AnomalyAwareTrainer")
MODEL = ("-d", DATASET_NUMBER, "-c", "3d_small", "-f", "0")


def run(base, *command, check=True, **variables):
    """A command as its own process; nnU-Net's folders lie below ``base``."""
    finished = subprocess.run(
        [nnunet_command(command[0]), *map(str, command[1:])],
        env=nnunet_environment(base, **variables),
        capture_output=True,
        text=True,
        timeout=280,
    )
    if check:
        shown = f"{' '.join(map(str, command))}\n{finished.stdout[-3000:]}\n{finished.stderr[-3000:]}"
        assert finished.returncode == 0, shown
    return finished


@dataclass(frozen=True)
class Chain:
    """What the commands left: the base folder of the training, that of another machine, and predictions of both."""

    base: Path
    other_base: Path
    without_prestage: subprocess.CompletedProcess
    predicted: Path
    predicted_elsewhere: Path

    def fold(self, trainer):
        return self.base / "nnUNet_results" / DATASET_NAME / f"{trainer}__nnUNetPlans__3d_small" / "fold_0"

    @property
    def images(self):
        return self.base / "nnUNet_raw" / DATASET_NAME / "imagesTs"


@pytest.fixture(scope="module")
def chain(tmp_path_factory, write_tiny_raw_dataset, add_small_configurations):
    base, other_base = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("elsewhere")
    write_tiny_raw_dataset(base / "nnUNet_raw" / DATASET_NAME)
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        (base / name).mkdir()
    planning = ("-npfp", "1", "-np", "1", "-c", "3d_fullres", "--verify_dataset_integrity")
    # The planner takes the number of worker processes for a thread count, which 0 is not.
    run(base, "nnUNetv2_plan_and_preprocess", "-d", DATASET_NUMBER, *planning, nnUNet_n_proc_DA="1")
    add_small_configurations(base / "nnUNet_preprocessed" / DATASET_NAME / "nnUNetPlans.json")

    train = ("nnUNetv2_train", DATASET_NUMBER, "3d_small", "0", "-device", "cpu")
    without_prestage = run(base, *train, *SEGMENTATION, check=False)
    run(base, *train, *PRESTAGE)
    run(base, *train, *SEGMENTATION)

    predict = ("nnUNetv2_predict", *MODEL, *SEGMENTATION, "-device", "cpu", "-npp", "1", "-nps", "1")
    images = base / "nnUNet_raw" / DATASET_NAME / "imagesTs"
    run(base, *predict, "-i", images, "-o", base / "predicted")

    run(base, "nnUNetv2_export_model_to_zip", *MODEL, *SEGMENTATION, "-o", base / "model.zip")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (other_base / name).mkdir()
    run(other_base, "nnUNetv2_install_pretrained_model_from_zip", base / "model.zip")
    run(other_base, *predict, "-i", images, "-o", other_base / "predicted")
    return Chain(base, other_base, without_prestage, base / "predicted", other_base / "predicted")


def assert_same_geometry(first, second):
    assert first.GetSize() == second.GetSize()
    np.testing.assert_allclose(first.GetSpacing(), second.GetSpacing())
    np.testing.assert_allclose(first.GetOrigin(), second.GetOrigin())
    np.testing.assert_allclose(first.GetDirection(), second.GetDirection())


def test_segmentation_without_prestage_ends_with_a_sentence_and_no_traceback(chain):
    finished = chain.without_prestage
    assert finished.returncode != 0
    assert "Traceback" not in finished.stderr
    command = f"nnUNetv2_train {DATASET_NUMBER} 3d_small 0 -tr AnomalyPreStageTrainer -device cpu"
    assert finished.stderr.strip().endswith(f"run: {command}")


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
    prediction = sitk.ReadImage(str(chain.predicted / "case_5.nii.gz"))
    assert_same_geometry(prediction, sitk.ReadImage(str(image)))
    assert set(np.unique(sitk.GetArrayFromImage(prediction))) <= {0, 1, 2, 3}


def test_installed_model_predicts_the_same_without_prestage_and_without_data(chain):
    results = chain.other_base / "nnUNet_results" / DATASET_NAME
    assert [path.name for path in results.iterdir()] == ["AnomalyAwareTrainer__nnUNetPlans__3d_small"]
    assert not any((chain.other_base / "nnUNet_preprocessed").iterdir())
    assert not any((chain.other_base / "nnUNet_raw").iterdir())
    here, elsewhere = (folder / "case_5.nii.gz" for folder in (chain.predicted, chain.predicted_elsewhere))
    assert here.read_bytes() == elsewhere.read_bytes()


@pytest.mark.parametrize("trainer", [PRESTAGE, SEGMENTATION], ids=["pre-stage", "segmentation"])
def test_error_images_of_new_images_come_from_either_model(chain, tmp_path, trainer):
    arguments = ("-i", chain.images, "-o", tmp_path / "errors", *MODEL, *trainer, "-device", "cpu")
    run(chain.base, "nnUNetv2_anomaly", "error_images", *arguments)
    (image,) = chain.images.iterdir()
    raw = sitk.ReadImage(str(image))
    assert {path.name for path in (tmp_path / "errors").iterdir()} == {
        "case_5_reconstruction.nii.gz",
        "case_5_error.nii.gz",
        "case_5.png",
        "error_images.json",
    }
    for kind in ("reconstruction", "error"):
        written = sitk.ReadImage(str(tmp_path / "errors" / f"case_5_{kind}.nii.gz"))
        assert_same_geometry(written, raw)
        voxels = sitk.GetArrayFromImage(written)
        assert voxels.min() >= 0
        assert voxels.max() <= 1
    record = json.loads((tmp_path / "errors" / "error_images.json").read_text())
    assert record["trainer"] == trainer[1]
    assert record["cases"] == ["case_5"]
