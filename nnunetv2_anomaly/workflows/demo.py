"""The demonstration: phantoms through nnU-Net's own commands, naive against anomaly-aware, and a report."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.dataset_conversion.Dataset500_SimulatedKnees import convert
from nnunetv2_anomaly.device import chosen_device
from nnunetv2_anomaly.environment import create_nnunet_folders, nnunet_environment
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import read_json, take_output_folder, write_text
from nnunetv2_anomaly.plans.settings import SECTION
from nnunetv2_anomaly.prediction.validation import measure_detector
from nnunetv2_anomaly.reporting.table import csv_text
from nnunetv2_anomaly.simulation.simulate import simulate_folder
from nnunetv2_anomaly.workflows.demo_report import CONFIGURATION, MODELS, PLANS, DemoFolders, write_demo_report
from nnunetv2_anomaly.workflows.runner import Runner, Step, locked, training_step

DATASET_ID = "500"
FOLD = "0"
#: file that marks the folder of a demo
STATE = "demo.json"


@dataclass(frozen=True)
class DemoSize:
    """How large the demonstration is; both segmenters take length, seed and mirroring from ``anomaly``."""

    num_training: int  # validation cases included
    num_validation: int
    num_test: int
    size: tuple[int, int, int]  # voxels, SimpleITK order
    spacing_mm: tuple[float, float, float]
    anomaly: dict[str, Any]
    features: tuple[int, ...] = (8, 16, 32, 64, 64, 64)  # of each stage


FULL = DemoSize(
    num_training=128,
    num_validation=8,
    num_test=12,
    size=(28, 44, 44),
    spacing_mm=(3.3, 2.45, 2.45),
    anomaly={
        "erase_margin_voxels": 7,
        "inpainting_epochs": 4,
        "distillation_epochs": 3,
        "num_epochs": 5,
        "num_val_iterations_per_epoch": 15,
        "seed": 0,
    },
)
QUICK = DemoSize(
    num_training=40,
    num_validation=4,
    num_test=4,
    size=(24, 32, 32),
    spacing_mm=(3.9, 3.4, 3.4),
    anomaly={"erase_margin_voxels": 5, "inpainting_epochs": 1, "distillation_epochs": 1, "num_epochs": 1, "seed": 0},
)


def write_demo_plans(preprocessed_folder: Path, size: DemoSize) -> None:
    """Plans of their own name with a configuration that inherits the planned one: narrower network, short training."""
    plans = read_json(preprocessed_folder / "nnUNetPlans.json")
    architecture = copy.deepcopy(plans["configurations"]["3d_fullres"]["architecture"])
    keywords = architecture["arch_kwargs"]
    keywords["features_per_stage"] = list(size.features[: keywords["n_stages"]])
    plans["plans_name"] = PLANS
    planned = {"inherits_from": "3d_fullres", "batch_size": 2, "architecture": architecture, SECTION: size.anomaly}
    plans["configurations"][CONFIGURATION] = planned
    write_text(preprocessed_folder / f"{PLANS}.json", json.dumps(plans, indent=2))


def write_split(raw_folder: Path, preprocessed_folder: Path, num_validation: int) -> None:
    """splits_final.json with one fold: nnU-Net's own five-fold split would spend the demo's time on validation."""
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (raw_folder / "labelsTr").glob("*.nii.gz"))
    split = [{"train": cases[num_validation:], "val": cases[:num_validation]}]
    write_text(preprocessed_folder / "splits_final.json", json.dumps(split, indent=2))


def run_demo(folder: Path, *, device: str | None = None, quick: bool = False) -> Path:
    """Run the whole chain, or what is left of it.

    Args: folder: gets the data, nnU-Net's three folders, predictions, logs, records and report.html. device: cuda, cpu
        or mps; None takes the best available. quick: smaller; its results show that the chain works and nothing else.
    Returns: the report.
    Raises: UserError if a step fails, or the folder holds something else, a demo with other arguments, or another run.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    processes = min(4, os.cpu_count() or 1)
    demo = Demo(folder.absolute(), QUICK if quick else FULL, chosen_device(device), processes)
    variables = {name: os.environ.get(name, processes) for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc")}
    environment = nnunet_environment(demo.folder, **_cpu_tuning(), **variables)
    # Functions that run in this process look at the same folders as the commands.
    os.environ.update({name: value for name, value in environment.items() if name.startswith("nnUNet_")})
    take_folder(demo.folder, {"quick": quick, "device": device})
    create_nnunet_folders(demo.folder)
    with locked(demo.folder, "give another folder with -o") as lock:
        runner = Runner(environment, demo.folder, lock)
        steps = demo.steps()
        runner.run(steps)
        records = [record for step in steps if (record := runner.record(step))]
        report = write_demo_report(demo.folder / "report.html", demo, records, quick=quick)
    print(f"Report: {report}")
    return report


def take_folder(folder: Path, arguments: dict[str, Any]) -> None:
    """Begin a demo in a folder, or continue the one there."""
    state = folder / STATE
    if not state.is_file():
        take_output_folder(folder, STATE, "demo")
        write_text(state, json.dumps({"version": __version__, "arguments": arguments}, indent=2))
    elif (before := read_json(state).get("arguments")) != arguments:
        fault = f"{folder} holds a demo with other arguments ({before}, now {arguments})"
        raise UserError(f"{fault}; give another folder with -o, or remove that one")


def _cpu_tuning() -> dict[str, str]:
    """Variables that make training on few CPU cores waste less, without those that the user has set.

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


class Demo(DemoFolders):
    """The demonstration in a folder: the steps that make its files; ``processes`` for all but training."""

    def __init__(self, folder: Path, size: DemoSize, device: torch.device, processes: int) -> None:
        super().__init__(folder)
        self.size, self.device, self.processes = size, device, processes

    def steps(self) -> list[Step]:
        """All steps, each after those it needs."""
        data = self._data_steps()
        prestage = self._train("prestage", "Pre-stage: G with C, then A", data[-1])
        naive = self._train("naive", "Naive nnU-Net", data[-1])
        aware = self._train("aware", "Anomaly-aware nnU-Net", prestage)
        predictions = [
            self._predict("naive", "Predicting with the naive network", naive),
            self._predict("aware", "Predicting with the anomaly-aware network", aware),
        ]
        return [*data, prestage, naive, aware, *predictions, *self._comparison_steps(prestage, predictions)]

    def _data_steps(self) -> list[Step]:
        """Images, plans and split; the last one needs all others."""
        size, preprocessed, processes = self.size, self.preprocessed, str(self.processes)
        planning = (
            "nnUNetv2_plan_and_preprocess", "-d", DATASET_ID, "-c", "3d_fullres", "--verify_dataset_integrity",
            "-npfp", processes, "-np", processes,
        )  # fmt: skip
        drawn = (self.simulated / "overview.png",)
        simulate = Step("simulate", drawn, title="Drawing phantoms", function=self._simulate)
        dataset = Step(
            "convert", (self.raw,), title="Writing the raw data set", after=(simulate,),
            function=lambda: convert(self.simulated, self.raw, num_test=size.num_test),
        )  # fmt: skip
        plan = Step(
            "plan_and_preprocess",
            (preprocessed / "nnUNetPlans_3d_fullres" / "*.pkl", preprocessed / "gt_segmentations" / "*"),
            planning, title="Planning and preprocessing", after=(dataset,), num_files=size.num_training,
        )  # fmt: skip
        plans = Step(
            "plans", (preprocessed / f"{PLANS}.json",), title="Writing the demo's plans", after=(plan,),
            function=lambda: write_demo_plans(preprocessed, size),
        )  # fmt: skip
        split = Step(
            "split", (preprocessed / "splits_final.json",), title="Writing the split", after=(plans,),
            function=lambda: write_split(self.raw, preprocessed, size.num_validation),
        )  # fmt: skip
        return [simulate, dataset, plan, plans, split]

    def _train(self, model: str, title: str, needed: Step) -> Step:
        trainer = self.trainers[model]
        return training_step(
            self.results, (DATASET_ID, CONFIGURATION, FOLD), trainer, PLANS, "-device", self.device.type,
            name=f"train_{trainer}", title=title, after=(needed,),
        )  # fmt: skip

    def _predict(self, model: str, title: str, needed: Step) -> Step:
        trainer = self.trainers[model]
        command = (
            "nnUNetv2_predict", "-i", str(self.raw / "imagesTs"), "-o", str(self.predictions(trainer)),
            "-d", DATASET_ID, "-c", CONFIGURATION, "-f", FOLD, "-tr", trainer, "-p", PLANS,
            "-device", self.device.type, "-npp", "1", "-nps", "1", "--continue_prediction",
        )  # fmt: skip
        makes = (self.predictions(trainer) / "*.nii.gz",)
        return Step(f"predict_{trainer}", makes, command, title=title, after=(needed,), num_files=self.size.num_test)

    def _comparison_steps(self, prestage: Step, predictions: list[Step]) -> list[Step]:
        """Error images, what they find, and the evaluation of the predictions."""
        images, folder = str(self.raw / "imagesTs"), str(self.error_images)
        making = (
            "nnUNetv2_anomaly", "anomaly_maps", "-i", images, "-o", folder, "-d", DATASET_ID, "-p", PLANS,
            "-c", CONFIGURATION, "-f", FOLD, "-device", self.device.type, "--continue_prediction",
        )  # fmt: skip
        evaluating = (
            "nnUNetv2_anomaly", "evaluate", "-ref", str(self.raw / "labelsTs"), "-o", str(self.evaluation), "-pred",
            *(f"{name}={self.predictions(self.trainers[model])}" for model, name in MODELS.items()),
            "--subjects", str(self.lesions), "--group_by", "holds",
            "-np", str(self.processes), "--images", images, "--error_images", folder,
        )  # fmt: skip
        error_images = Step(
            "error_images", (self.error_images / "anomaly_maps.json",), making,
            title="Error images of the test cases", after=(prestage,),
        )  # fmt: skip
        measure = Step(
            "measure_detector", (self.detector / "summary.json",), function=self._measure_detector,
            title="Measuring the error images", after=(prestage,),
        )  # fmt: skip
        title = "Writing which cases hold a lesion"
        lesions = Step("lesions", (self.lesions,), function=self._write_lesions, title=title)
        evaluate = Step(
            "evaluate", (self.evaluation / "report.html",), evaluating,
            title="Evaluating both", after=(*predictions, error_images, lesions),
        )  # fmt: skip
        return [error_images, measure, lesions, evaluate]

    def _simulate(self) -> None:
        simulate_folder(
            self.simulated,
            num_phantoms=self.size.num_training + self.size.num_test,
            size=self.size.size,
            spacing_mm=self.size.spacing_mm,
            num_processes=self.processes,
        )

    def _measure_detector(self) -> None:
        images, labels, anomalies = (self.raw / name for name in ("imagesTs", "labelsTs", "anomaliesTs"))
        folders = (images, labels, anomalies, self.detector, self.model(self.trainers["prestage"]))
        measure_detector(*folders, fold=FOLD, device=self.device, show_progress=False)

    def _write_lesions(self) -> None:
        manifest = read_json(self.simulated / "manifest.json")
        rows = [
            {"case": case, "holds": "no lesion" if entry["intensity_auc"] is None else "a lesion"}
            for case, entry in manifest["cases"].items()
        ]
        write_text(self.lesions, csv_text(pd.DataFrame(rows)))
