"""The demonstration: phantoms through nnU-Net's own commands, naive against anomaly-aware, and a report."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunetv2_anomaly.conversion.manifest import write_table
from nnunetv2_anomaly.dataset_conversion.Dataset500_SimulatedKnees import convert
from nnunetv2_anomaly.device import chosen_device
from nnunetv2_anomaly.environment import create_nnunet_folders, nnunet_environment
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.plans.settings import SECTION
from nnunetv2_anomaly.prediction.detector_quality import measure_detector
from nnunetv2_anomaly.simulation.simulate import simulate_folder
from nnunetv2_anomaly.workflows.demo_report import MODELS, write_demo_report
from nnunetv2_anomaly.workflows.runner import Chain, Step

DATASET_ID = 500
DATASET_NAME = "Dataset500_SimulatedKnees"
PLANS = "nnUNetDemoPlans"
CONFIGURATION = "3d_demo"
FOLD = 0
PRESTAGE, AWARE = "AnomalyPreStageTrainer", "AnomalyAwareTrainer"
#: the paper's 50 voxels of the OAI's images across their slices; in a slice they are 18 mm, which would part the two
#: plates of tibial cartilage
MAX_DISTANCE_MM = 35


@dataclass(frozen=True)
class DemoSize:
    """How large the demonstration is. The naive trainer is nnU-Net's own; both segmenters train equally long."""

    num_training: int  # validation cases included
    num_validation: int
    num_test: int
    size: tuple[int, int, int]  # voxels, SimpleITK order
    spacing_mm: tuple[float, float, float]
    features: tuple[int, ...]
    naive_trainer: str
    anomaly: dict[str, Any]


FULL = DemoSize(
    num_training=128,
    num_validation=8,
    num_test=12,
    size=(28, 44, 44),
    spacing_mm=(3.3, 2.45, 2.45),
    features=(8, 16, 32, 64, 64, 64),
    naive_trainer="nnUNetTrainer_5epochs",
    anomaly={
        "erase_margin_voxels": 7,
        "inpainting_epochs": 4,
        "distillation_epochs": 3,
        "num_epochs": 5,
        "num_val_iterations_per_epoch": 15,
    },
)
QUICK = DemoSize(
    num_training=40,
    num_validation=4,
    num_test=4,
    size=(24, 32, 32),
    spacing_mm=(3.9, 3.4, 3.4),
    features=(8, 16, 32, 64, 64, 64),
    naive_trainer="nnUNetTrainer_1epoch",
    anomaly={"erase_margin_voxels": 5, "inpainting_epochs": 1, "distillation_epochs": 1, "num_epochs": 1},
)


def write_demo_plans(preprocessed_folder: Path, size: DemoSize) -> None:
    """Plans of their own name with a configuration that inherits the planned one: narrower network, short training."""
    plans = json.loads((preprocessed_folder / "nnUNetPlans.json").read_text())
    planned = plans["configurations"]["3d_fullres"]
    architecture = copy.deepcopy(planned["architecture"])
    keywords = architecture["arch_kwargs"]
    keywords["features_per_stage"] = list(size.features[: keywords["n_stages"]])
    plans["plans_name"] = PLANS
    plans["configurations"][CONFIGURATION] = {
        "inherits_from": "3d_fullres",
        "batch_size": 2,
        "architecture": architecture,
        SECTION: size.anomaly,
    }
    _write_json(preprocessed_folder / f"{PLANS}.json", plans)


def write_split(raw_folder: Path, preprocessed_folder: Path, num_validation: int) -> None:
    """splits_final.json with one fold: nnU-Net's own five-fold split would spend the demo's time on validation."""
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (raw_folder / "labelsTr").glob("*.nii.gz"))
    split = [{"train": cases[num_validation:], "val": cases[:num_validation]}]
    _write_json(preprocessed_folder / "splits_final.json", split)


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2))


def run_demo(folder: Path, *, device: str | None = None, quick: bool = False) -> Path:
    """Run the whole chain, or what is left of it.

    Args:
        folder: gets the data, nnU-Net's three folders, predictions, logs and report.html.
        device: cuda, cpu or mps; None takes the best there is.
        quick: smaller, with results that show that the chain works and nothing else.
    Returns: the report.
    Raises: UserError if a step fails or the folder holds something else.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    torch_device = chosen_device(device)
    folder = folder.absolute()
    size = QUICK if quick else FULL
    processes = min(4, os.cpu_count() or 1)
    environment = nnunet_environment(
        folder,
        **_cpu_tuning(),
        nnUNet_n_proc_DA=os.environ.get("nnUNet_n_proc_DA", processes),  # noqa: SIM112
        nnUNet_def_n_proc=os.environ.get("nnUNet_def_n_proc", processes),  # noqa: SIM112
    )
    chain = Chain(folder, {"quick": quick, "device": device}, environment)
    # What runs in this process looks at the same folders as the commands.
    for variable, value in environment.items():
        if variable.startswith("nnUNet_"):
            os.environ[variable] = value
    create_nnunet_folders(folder)
    layout = DemoLayout(folder)
    chain.run(_steps(layout, size, device, torch_device, processes))
    trainers = {"prestage": PRESTAGE, "naive": size.naive_trainer, "aware": AWARE}
    report = write_demo_report(folder / "report.html", layout, chain.state, trainers)
    print(f"Report: {report}")
    return report


def _cpu_tuning() -> dict[str, str]:
    """Variables that let training on few CPU cores waste less; those that the user has set are left alone.

    Waiting OpenMP threads give their core to nnU-Net's augmentation workers instead of spinning on it. glibc keeps
    freed memory instead of returning it: a third of a training step was spent on getting it back page by page.
    """
    tuning = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_TRIM_THRESHOLD_": str(2**31),
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
        "MALLOC_TOP_PAD_": str(2**26),
    }
    return {name: value for name, value in tuning.items() if name not in os.environ}


@dataclass(frozen=True)
class DemoLayout:
    """Where things lie in the demonstration's folder."""

    folder: Path

    @property
    def simulated(self) -> Path:
        """What simulate wrote."""
        return self.folder / "simulated"

    @property
    def raw(self) -> Path:
        """The raw data set."""
        return self.folder / "nnUNet_raw" / DATASET_NAME

    @property
    def preprocessed(self) -> Path:
        """The preprocessed data set."""
        return self.folder / "nnUNet_preprocessed" / DATASET_NAME

    @property
    def detector(self) -> Path:
        """What measure_detector wrote."""
        return self.folder / "detector"

    @property
    def error_images(self) -> Path:
        """What the verb error_images wrote."""
        return self.folder / "error_images"

    @property
    def lesions(self) -> Path:
        """Which test cases hold a lesion, as a table for the evaluation."""
        return self.folder / "lesions.csv"

    @property
    def evaluation(self) -> Path:
        """What the verb evaluate wrote."""
        return self.folder / "evaluation"

    def model(self, trainer: str) -> Path:
        """A trainer's model folder."""
        return self.folder / "nnUNet_results" / DATASET_NAME / f"{trainer}__{PLANS}__{CONFIGURATION}"

    def predictions(self, trainer: str) -> Path:
        """A trainer's predictions of the test cases."""
        return self.folder / "predictions" / trainer


def _steps(layout: DemoLayout, size: DemoSize, device: str, torch_device: torch.device, processes: int) -> list[Step]:
    def train(trainer: str, title: str) -> Step:
        return Step(
            name=f"train_{trainer}",
            title=title,
            command=(
                "nnUNetv2_train", str(DATASET_ID), CONFIGURATION, str(FOLD),
                "-tr", trainer, "-p", PLANS, "-device", device,
            ),
            training_folder=layout.model(trainer) / f"fold_{FOLD}",
        )  # fmt: skip

    def predict(trainer: str, title: str) -> Step:
        return Step(
            name=f"predict_{trainer}",
            title=title,
            command=(
                "nnUNetv2_predict", "-i", str(layout.raw / "imagesTs"), "-o", str(layout.predictions(trainer)),
                "-d", str(DATASET_ID), "-c", CONFIGURATION, "-f", str(FOLD), "-tr", trainer, "-p", PLANS,
                "-device", device, "-npp", "1", "-nps", "1", "--continue_prediction",
            ),
        )  # fmt: skip

    def in_process(name: str, title: str, function: Callable[[], object]) -> Step:
        return Step(name=name, title=title, function=function)

    return [
        in_process(
            "simulate",
            "Drawing phantoms",
            lambda: simulate_folder(
                layout.simulated,
                num_phantoms=size.num_training + size.num_test,
                size=size.size,
                spacing_mm=size.spacing_mm,
                num_processes=processes,
            ),
        ),
        in_process(
            "convert",
            "Writing the raw data set",
            lambda: layout.raw.is_dir() or convert(layout.simulated, layout.raw, num_test=size.num_test),
        ),
        Step(
            name="plan_and_preprocess",
            title="Planning and preprocessing",
            command=(
                "nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-c", "3d_fullres", "--verify_dataset_integrity",
                "-npfp", str(processes), "-np", str(processes),
            ),
        ),
        in_process("plans", "Writing the demo's plans", lambda: write_demo_plans(layout.preprocessed, size)),
        in_process(
            "split",
            "Writing the split",
            lambda: write_split(layout.raw, layout.preprocessed, size.num_validation),
        ),
        train(PRESTAGE, "Pre-stage: G with C, then A"),
        train(size.naive_trainer, "Naive nnU-Net"),
        train(AWARE, "Anomaly-aware nnU-Net"),
        predict(size.naive_trainer, "Predicting with the naive network"),
        predict(AWARE, "Predicting with the anomaly-aware network"),
        Step(
            name="error_images",
            title="Error images of the test cases",
            command=(
                "nnUNetv2_anomaly", "error_images", "-i", str(layout.raw / "imagesTs"), "-o", str(layout.error_images),
                "-d", str(DATASET_ID), "-p", PLANS, "-c", CONFIGURATION, "-f", str(FOLD), "-device", device,
                "--continue_prediction",
            ),
        ),
        in_process(
            "measure_detector",
            "Measuring the error images",
            lambda: measure_detector(
                layout.raw / "imagesTs",
                layout.raw / "labelsTs",
                layout.raw / "anomaliesTs",
                layout.detector,
                layout.model(PRESTAGE),
                fold=FOLD,
                device=torch_device,
                show_progress=False,
            ),
        ),
        in_process("lesions", "Writing which cases hold a lesion", lambda: _write_lesions(layout)),
        Step(
            name="evaluate",
            title="Evaluating both",
            command=(
                "nnUNetv2_anomaly", "evaluate", "-ref", str(layout.raw / "labelsTs"), "-o", str(layout.evaluation),
                "-pred", f"{MODELS['naive']}={layout.predictions(size.naive_trainer)}",
                f"{MODELS['aware']}={layout.predictions(AWARE)}", "--max_distance_mm", str(MAX_DISTANCE_MM),
                "--subjects", str(layout.lesions), "--group_by", "holds", "-np", str(processes),
                "--images", str(layout.raw / "imagesTs"), "--error_images", str(layout.error_images),
            ),
        ),
    ]  # fmt: skip


def _write_lesions(layout: DemoLayout) -> None:
    manifest = json.loads((layout.simulated / "manifest.json").read_text())
    rows = [
        {"case": case, "holds": "no lesion" if entry["intensity_auc"] is None else "a lesion"}
        for case, entry in manifest["cases"].items()
    ]
    write_table(layout.lesions, ("case", "holds"), rows)
