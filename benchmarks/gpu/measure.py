"""One trainer on one device: a training step, a prediction of a window, their memory, and correctness beside the CPU.

python benchmarks/gpu/measure.py AnomalyAwareTrainer 501 3d_fullres nnUNetPlans -o row.json
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.artefact import detector_of
from nnunetv2_anomaly.detectors.base import Detector
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.inspection.training_memory import PUBLISHED_NETWORKS, estimate_network
from nnunetv2_anomaly.plans.memory import GIB
from nnunetv2_anomaly.registry import detector_families

#: of windows with more voxels a part is computed on the CPU as well: the middle of each axis, at most so many voxels
MOST_VOXELS_ON_CPU, MOST_OF_AN_AXIS = 2_000_000, 96


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_and_gib(action: Callable[[], object], repeats: int, device: torch.device) -> tuple[float, float]:
    """Median seconds of an action after two rounds of warm-up; peak of torch's memory on a GPU in GiB, else NaN."""
    seconds, gpu = [], device.type == "cuda"
    for repeat in range(repeats + 2):
        if repeat == 2 and gpu:
            torch.cuda.reset_peak_memory_stats()
        wait_for(device)
        began = perf_counter()
        action()
        wait_for(device)
        if repeat >= 2:
            seconds.append(perf_counter() - began)
    return float(np.median(seconds)), torch.cuda.max_memory_allocated() / GIB if gpu else math.nan


class WithBones(nn.Module):
    """A detector that is given the bones: one that fills the middle half of the window."""

    def __init__(self, detector: Detector) -> None:
        """Wrap it."""
        super().__init__()
        self.detector = detector

    def forward(self, window: Tensor) -> Tensor:
        """Anomaly map of a window."""
        bones = torch.zeros(len(window), *window.shape[2:], dtype=torch.int64, device=window.device)
        quarter = window.shape[-1] // 4
        bones[..., quarter:-quarter] = 1
        return self.detector.maps_in(window, bones)[1]


def first(output: Any) -> Tensor:
    """The output at full resolution, of networks with several."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


@torch.no_grad()
def correctness(network: nn.Module, window: Tensor) -> dict[str, float]:
    """How far outputs on the device are off those on the CPU in float32, relative to the largest one.

    Args: network: on the device. window: (1, C, *voxels), on the device.
    Returns: of "float32", of "autocast" in float16 (bfloat16 on a CPU) and of "compiled".
    """
    device = window.device
    if math.prod(window.shape) > MOST_VOXELS_ON_CPU:
        for axis, size in enumerate(window.shape[2:], start=2):
            kept = min(size, MOST_OF_AN_AXIS)
            window = window.narrow(axis, (size - kept) // 2, kept)
    exact = first(copy.deepcopy(network).cpu().eval()(window.cpu().float()))
    kind = torch.float16 if device.type == "cuda" else torch.bfloat16
    torch.compiler.reset()
    ways = {
        "float32": (network, nullcontext()),
        "autocast": (network, torch.autocast(device.type, kind)),
        "compiled": (torch.compile(network), nullcontext()),
    }
    off = {}
    for name, (way, context) in ways.items():
        with context:
            found = first(way(window)).float().cpu()
        off[name] = float((found - exact).abs().max() / exact.abs().max().clamp(min=1e-12))
    return off


def measure(trainer: nnUNetTrainer, repeats: int) -> dict[str, Any]:
    """All that is measured of one trainer; it has not begun to train."""
    name, device = type(trainer).__name__, trainer.device
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    step_s, step_gib = seconds_and_gib(lambda: trainer.train_step(batch), repeats, device)
    trainer.optimizer.zero_grad(set_to_none=True)
    network = getattr(trainer.network, "_orig_mod", trainer.network).eval()
    trainer.set_deep_supervision_enabled(False)
    if name in {family.trainer for family in detector_families().values()}:
        detector = detector_of(network)  # what is trained takes more than an image
        network = WithBones(detector) if detector is not None and detector.needs_bones else detector or network
    shape = batch["data"].shape
    size = (1, trainer.num_input_channels, *trainer.configuration_manager.patch_size)
    window = torch.from_numpy(np.random.default_rng(0).normal(size=size)).float().to(device)

    def predict() -> None:
        with torch.inference_mode(), torch.autocast("cuda") if device.type == "cuda" else nullcontext():
            network(window)

    window_s, window_gib = seconds_and_gib(predict, repeats, device)
    row = {
        "trainer": name,
        "shape": " x ".join(map(str, shape)),
        "parameters": sum(of.numel() for of in network.parameters()),
        **{"step_s": step_s, "step_gib": step_gib, "window_s": window_s, "window_gib": window_gib},
        "estimate_gib": estimated_gib(name, trainer),
    }
    return row | correctness(network, window)


def estimated_gib(name: str, trainer: Any) -> float:
    """What plans.memory estimates of its training step at batch 1; NaN of networks that it does not know."""
    known = {of: network for network, of in PUBLISHED_NETWORKS.items()}
    if name not in known:
        return math.nan
    classes = trainer.label_manager.num_segmentation_heads
    found = estimate_network(known[name], trainer.configuration_manager, trainer.num_input_channels, classes)
    return found.mixed_precision_bytes / GIB


def main() -> None:
    """Measure, and write the row whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("trainer", "dataset", "configuration", "plans"):
        parser.add_argument(name)
    parser.add_argument("-o", type=Path, required=True)
    parser.add_argument("-device", "--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True  # as nnU-Net's commands set it
    given = options.dataset, options.configuration, 0, options.trainer, options.plans
    row = measure(get_trainer_from_args(*given, device=torch.device(options.device)), options.repeats)
    options.o.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.o, json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
