"""The demonstration: phantoms from images to one report, naive nnU-Net against the anomaly-aware one."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunetv2_anomaly.device import chosen_device
from nnunetv2_anomaly.errors import UserError, counted
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.workflows.configuration import CONFIG, read_configuration
from nnunetv2_anomaly.workflows.create import init_workflow

DATASET = "Dataset500_SimulatedKnees"
PLANS, CONFIGURATION = "nnUNetDemoPlans", "3d_demo"
#: file of ``change_plans`` in the demonstration's folder
CHANGES = "plan_changes.json"


@dataclass(frozen=True)
class DemoSize:
    """How large the demonstration is; both segmenters take length, seed and mirroring from ``anomaly``."""

    num_training: int  # validation cases included
    num_validation: int
    num_test: int
    size: tuple[int, int, int]  # voxels, SimpleITK order
    spacing_mm: tuple[float, float, float]
    anomaly: dict[str, Any]
    features: tuple[int, ...]  # of each stage; as many as nnU-Net plans for that size


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
    features=(8, 16, 32, 64),
)
QUICK = DemoSize(
    num_training=40,
    num_validation=4,
    num_test=4,
    size=(24, 32, 32),
    spacing_mm=(3.9, 3.4, 3.4),
    anomaly={"erase_margin_voxels": 5, "inpainting_epochs": 1, "distillation_epochs": 1, "num_epochs": 1, "seed": 0},
    features=(8, 16, 32, 64),
)
#: name in the report -> trainer; the first is the baseline
TRAINERS = {"naive nnU-Net": "SegmentationTrainer", "anomaly-aware": "AnomalyAwareTrainer"}


def init_demo(folder: Path, *, device: str | None = None, size: DemoSize = FULL, parts: int = 1) -> None:
    """Make the demonstration's workflow in a folder, or find it there.

    Args: device: cuda, cpu or mps; None takes the best available. size: ``QUICK`` shows that the chain works and
        nothing else.
    Raises: UserError if the folder holds something else, or a demonstration of another size or device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    chosen_device(device)
    changes = {"configurations": {CONFIGURATION: _configuration(size)}}
    there = folder / CHANGES
    if (folder / CONFIG).is_file():
        before = read_configuration(folder)
        if not there.is_file() or json.loads(there.read_text()) != changes or before.get("device") != device:
            fault = f"{folder} holds another workflow, or a demonstration of another size or device"
            raise UserError(f"{fault}; give another folder with -o")
    init_workflow(folder, _settings(size, device, parts))
    if not there.is_file():
        write_text(there, json.dumps(changes, indent=2))


def _configuration(size: DemoSize) -> dict[str, Any]:
    """A narrower network, trained shortly."""
    return {
        "inherits_from": "3d_fullres",
        "batch_size": 2,
        "architecture": {"arch_kwargs": {"features_per_stage": list(size.features)}},
        "anomaly": size.anomaly,
    }


def _settings(size: DemoSize, device: str, parts: int) -> dict[str, Any]:
    raw, processes = f"nnUNet_raw/{DATASET}", min(4, os.cpu_count() or 1)
    convert = [
        "nnUNetv2_anomaly", "simulate", "-o", "simulated", "--phantoms", size.num_training + size.num_test,
        "--size", *size.size, "--spacing", *size.spacing_mm, "-d", 500, "--num_test", size.num_test,
        "--num_val", size.num_validation, "-np", processes,
    ]  # fmt: skip
    return {
        "title": "Anomaly-aware segmentation: demonstration",
        **_texts(size),
        "base": ".",
        "dataset": DATASET,
        "convert": shlex.join(map(str, convert)),
        "plans": PLANS,
        "configuration": CONFIGURATION,
        "plan_changes": CHANGES,
        "trainers": TRAINERS,
        "folds": ("0",),
        "device": device,
        "images": f"{raw}/imagesTs",
        "references": f"{raw}/labelsTs",
        "anomalies": f"{raw}/anomaliesTs",
        "parts": parts,
        "anomaly_maps": True,
        "postprocess": "",
        "measure": "--quantities volumes cartilage --no_reports --no_maps",
        "evaluate": "--subjects simulated/cases.csv --group_by holds",
        "variables": _cpu_tuning() | {name: str(processes) for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc")},
        "resources": {"default": {"threads": processes, "mem_mb": 3000, "runtime": 120, **_gpu(device)}},
    }


def _texts(size: DemoSize) -> dict[str, Any]:
    """What the report says of it, but for its results."""
    knees, epochs = counted(size.num_test, "simulated knee"), size.anomaly
    compared = (
        f"Naive nnU-Net and the anomaly-aware network segmented {knees} that no training had seen; both have the same "
        "layers, first weights, training knees and number of iterations, neither mirrors, and the second alone sees a "
        "detector's error image."
    )
    prestage = epochs["inpainting_epochs"] + epochs["distillation_epochs"]
    notes = (
        f"{size.num_training} simulated knees for training and validation, {size.num_test} for testing, of "
        f"{' x '.join(map(str, size.size))} voxels of {' x '.join(map(str, size.spacing_mm))} mm. The training labels "
        "are the anatomy, lesions counted as bone; no network was given the lesions.",
        f"Both segmenters were trained for {counted(epochs['num_epochs'], 'epoch')} of nnU-Net's 1000, from one seed "
        "and without mirroring, in training or at prediction. What the anomaly-aware one has besides is the method: "
        "the error image as a further channel and as weight of its loss, and anomalies that are pasted into bones "
        f"while it trains. Its detector was trained before, for {counted(prestage, 'epoch')} on the same knees, which "
        "nnU-Net has no use for. So the tables show what each has learnt in a short time, not what either is worth in "
        "the end. Results are reported whatever they are.",
    )
    worth = "This quick run shows that the chain works and nothing else: its networks are hardly trained, and "
    worth += f"{counted(size.num_test, 'knee')} are too few to test a difference."
    return {"compared": compared, "notes": notes, **({"worth": worth} if size is QUICK else {})}


def _gpu(device: str) -> dict[str, int]:
    return {"gpu": 1} if device == "cuda" else {}


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
