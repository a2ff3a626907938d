"""A tiny data set that nnU-Net itself planned and preprocessed, and trainers on it without a command line."""

import os

# nnU-Net and torch read these while they are imported: no worker processes, no compiler.
os.environ.update(nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1", nnUNet_compile="0")
# Idle threads give way: the commands under test take every core, also where other work wants it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import copy
import json
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from places import ROOT
from quick import draw_progress_figures, pools_of_threads, sample_few_voxels, skip_progress_figures

from nnunetv2_anomaly.environment import shim_folder

# The benchmarks are no part of the package: they are taken from the checkout, after whatever is installed.
sys.path.append(str(ROOT))

# A shell starts what runs in its background with Ctrl-C ignored, which the commands under test would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread: on such small tensors a second one mostly waits, and badly so beside other work on the machine.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Files in the order of their names, which begins with the long ones; pytest-xdist would count their tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


DATASET_NUMBER = 801
DATASET_NAME = f"Dataset{DATASET_NUMBER}_TinyKnee"
PATCH_SIZE = [16, 16, 16]
SPACING_MM = (1.0, 1.0, 1.0)
#: what every test trainer gets unless it asks for something else
TINY_SETTINGS = {
    "detector_features": 4,
    "compressor_code_length": 8,
    "erase_margin_voxels": 2,
    "inpainting_epochs": 2,
    "distillation_epochs": 2,
    "level_epochs": 2,
    "pasting_epochs": 2,
    "lama_features": 4,
    "lama_downsamplings": 2,
    "lama_blocks": 1,
    "discriminator_features": 2,
    "asc_features": 2,
    "asc_cycles": [1, 1],
    "asc_discriminator_epochs": 1,
    "asc_main_epochs": 1,
    "teacher_weights": "random:0",
    "allow_random_teacher": True,
    "mask_rcnn_backbone": "small",
    "mask_rcnn_weights": "none",
    "mask_rcnn_features": 8,
    "mask_rcnn_size": None,
    "mask_rcnn_boxes": 32,
    "num_epochs": 2,
    "num_iterations_per_epoch": 3,
    "num_val_iterations_per_epoch": 1,
}


def tiny_case(seed: int, shape=(20, 22, 24)) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels, (X, Y, Z): a bone with a cartilage rim and a bright lesion in grey tissue."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    centre = np.array(shape) / 2 + random.normal(0, 1, 3)
    distance = np.sqrt((((grid - centre) / (np.array(shape) * 0.27)) ** 2).sum(-1))
    labels = np.zeros(shape, np.uint8)
    labels[distance < 1.3] = 2
    labels[distance < 1.0] = 1
    image = np.where(labels == 1, 200.0, np.where(labels == 2, 600.0, 350.0)) + random.normal(0, 20, shape)
    lesion = (((grid - centre - 2) ** 2).sum(-1) < 5) & (labels == 1)
    labels[lesion] = 3
    image[lesion] += 250
    return image.astype(np.float32), labels


def write_image(array: np.ndarray, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_MM)
    sitk.WriteImage(image, str(path))


def write_raw_dataset(folder: Path, num_training: int = 5, num_test: int = 1) -> None:
    """A raw data set as nnU-Net wants it, cases case_0 and so on; the test cases follow in imagesTs."""
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    for number in range(num_training + num_test):
        image, labels = tiny_case(number)
        training = number < num_training
        write_image(image, folder / ("imagesTr" if training else "imagesTs") / f"case_{number}_0000.nii.gz")
        if training:
            write_image(labels, folder / "labelsTr" / f"case_{number}.nii.gz")
    dataset = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "femoral_bone": 1, "femoral_cartilage": 2, "femoral_lesion": 3},
        "numTraining": num_training,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))


def tiny_configuration(planned: dict, settings: Mapping[str, Any] = TINY_SETTINGS) -> dict:
    """What makes a planned configuration tiny: network, patch, batch, and our settings; the rest stays as planned."""
    dimensions = len(planned["patch_size"])
    architecture = copy.deepcopy(planned["architecture"])
    architecture["arch_kwargs"].update(
        n_stages=3,
        features_per_stage=[4, 8, 16],
        kernel_sizes=[[3] * dimensions] * 3,
        strides=[[1] * dimensions, [2] * dimensions, [2] * dimensions],
        n_conv_per_stage=[1, 1, 1],
        n_conv_per_stage_decoder=[1, 1],
    )
    return {
        "patch_size": PATCH_SIZE[:dimensions],
        "batch_size": 2,
        "architecture": architecture,
        "anomaly": dict(settings),
    }


def small_configurations(configurations: dict) -> dict:
    """3d_small and 2d_small: a planned configuration each, with tiny networks and patches, on the 3D data.

    2d_whole is the second with whole slices, as detectors of such need them.
    """
    identifier = configurations["3d_fullres"]["data_identifier"]
    small = {
        name: {
            "inherits_from": parent,
            "data_identifier": identifier,
            **tiny_configuration(configurations[parent]),
        }
        for name, parent in (("3d_small", "3d_fullres"), ("2d_small", "2d"))
    }
    return {**small, "2d_whole": {**copy.deepcopy(small["2d_small"]), "patch_size": [32, 32]}}


@dataclass(frozen=True)
class TinyDataset:
    """Where the data set lies, its plans with 3d_small and 2d_small, and its dataset.json."""

    base: Path
    plans: dict
    dataset_json: dict

    @property
    def preprocessed(self) -> Path:
        return self.base / "nnUNet_preprocessed" / DATASET_NAME

    @property
    def raw(self) -> Path:
        return self.base / "nnUNet_raw" / DATASET_NAME


@pytest.fixture(scope="session", autouse=True)
def nnunet_environment(tmp_path_factory):
    """nnU-Net's variables, all inside the session's temporary folder; nnU-Net reads these whenever it needs them."""
    base = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (base / name).mkdir()
            patch.setenv(name, str(base / name))
        patch.setenv("nnUNet_extTrainer", str(shim_folder()))
        yield base


@pytest.fixture(scope="session")
def write_tiny_raw_dataset():
    """Function that writes a raw data set: (folder, num_training=5, num_test=1)."""
    return write_raw_dataset


@pytest.fixture(scope="session")
def make_tiny():
    """Function that gives what makes a planned configuration tiny: (planned, settings=TINY_SETTINGS)."""
    return tiny_configuration


@pytest.fixture(scope="session")
def add_small_configurations():
    """Function that adds 3d_small and 2d_small to a plans file and returns the plans."""

    def add(plans_file: Path) -> dict:
        plans = json.loads(plans_file.read_text())
        plans["configurations"].update(small_configurations(plans["configurations"]))
        plans_file.write_text(json.dumps(plans))
        return plans

    return add


@pytest.fixture(scope="session")
def tiny_dataset(nnunet_environment, add_small_configurations) -> TinyDataset:
    """Raw images, planned and preprocessed by nnU-Net's own functions."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
        preprocess_dataset,
    )

    base = nnunet_environment
    write_raw_dataset(base / "nnUNet_raw" / DATASET_NAME)
    with pytest.MonkeyPatch.context() as patch:
        pools_of_threads(patch)
        sample_few_voxels(patch)
        extract_fingerprint_dataset(DATASET_NUMBER, num_processes=1, verbose=False, show_progress_bar=False)
        with pytest.MonkeyPatch.context() as planning:
            planning.setenv("nnUNet_n_proc_DA", "1")  # the planner takes it for a thread count
            plan_experiment_dataset(DATASET_NUMBER)
        preprocess_dataset(DATASET_NUMBER, configurations=["3d_fullres"], num_processes=[1], show_progress_bar=False)
    folder = base / "nnUNet_preprocessed" / DATASET_NAME
    plans = add_small_configurations(folder / "nnUNetPlans.json")
    return TinyDataset(base, plans, json.loads((folder / "dataset.json").read_text()))


@pytest.fixture(scope="session")
def build_trainer(tiny_dataset):
    """Function that builds a trainer on the tiny data set, on the CPU, by name or class; it writes to nnUNet_results.

    ``anomaly`` changes settings in the configuration's section, ``changes`` other keys of the configuration.
    """
    from nnunetv2_anomaly import trainers

    def build(
        trainer,
        *,
        fold=0,
        configuration="3d_small",
        anomaly=None,
        changes=None,
        dataset_json=None,
    ):
        trainer_class = getattr(trainers, trainer) if isinstance(trainer, str) else trainer
        plans = copy.deepcopy(tiny_dataset.plans)
        plans["continue_training"] = False
        plans["configurations"][configuration].setdefault("anomaly", {}).update(anomaly or {})
        plans["configurations"][configuration].update(changes or {})
        return trainer_class(
            plans=plans,
            configuration=configuration,
            fold=fold,
            dataset_json=copy.deepcopy(tiny_dataset.dataset_json if dataset_json is None else dataset_json),
            device=torch.device("cpu"),
        )

    with pytest.MonkeyPatch.context() as patch:
        skip_progress_figures(patch)
        yield build


@pytest.fixture
def results_folder(tmp_path, monkeypatch) -> Path:
    """An empty nnUNet_results for one test."""
    folder = tmp_path / "nnUNet_results"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_results", str(folder))
    return folder


@pytest.fixture
def trainer_factory(build_trainer, results_folder, monkeypatch):
    """build_trainer with an empty results folder of the test's own."""
    pools_of_threads(monkeypatch)
    return build_trainer


@pytest.fixture
def drawn_figures(build_trainer, monkeypatch):
    """Figures of the progress are drawn, as outside of tests."""
    draw_progress_figures(monkeypatch)


@pytest.fixture
def own_preprocessed(tiny_dataset, tmp_path, monkeypatch) -> Path:
    """A copy of the preprocessed data set that a test may change, without caches; nnUNet_preprocessed points to it."""
    folder = tmp_path / "nnUNet_preprocessed" / DATASET_NAME
    shutil.copytree(
        tiny_dataset.preprocessed, folder, ignore=shutil.ignore_patterns("anomaly_erased_regions", "splits_final.json")
    )
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    return folder


@pytest.fixture(scope="session")
def trained_results(build_trainer, tmp_path_factory) -> Path:
    """A results folder with a whole, if short, pre-stage of fold 0. Copy it before changing anything in it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(folder))
        pools_of_threads(patch)
        trainer = build_trainer("AnomalyPreStageTrainer")
        trainer.run_training()
        trainer.perform_actual_validation()
    return folder


@pytest.fixture
def after_prestage(trained_results, results_folder) -> Path:
    """A results folder of the test's own with the pre-stage of fold 0 in it."""
    shutil.copytree(trained_results, results_folder, dirs_exist_ok=True)
    return results_folder
