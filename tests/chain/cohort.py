"""A cohort of a few tiny phantoms, for the tests of workflows; every training is seeded, so tables can be compared."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import yaml
from offline import Offline
from stock_commands import extract_fingerprint

from nnunetv2_anomaly.workflows import demo

SIZE = demo.DemoSize(
    num_training=5, num_validation=1, num_test=3, size=(16, 24, 24), spacing_mm=(6.0, 5.0, 5.0),
    anomaly={
        "erase_margin_voxels": 5, "inpainting_epochs": 2, "distillation_epochs": 2, "num_epochs": 3, "seed": 7,
        "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "detector_features": 4,
    },
    features=(2, 2, 2),
)  # fmt: skip
TRAINER, NAME = "AnomalyAwareTrainer", "anomaly-aware"
TABLES = (
    "evaluation/tables/cases.csv", f"cleaned/{TRAINER}/removed.csv", f"measures/{TRAINER}/measurements.csv",
)  # fmt: skip


def verb(*words: object) -> list[str]:
    """A command line of ours."""
    return [sys.executable, "-m", "nnunetv2_anomaly.command_line.main", *map(str, words)]


def prepare(folder: Path) -> None:
    """The demonstration up to its preprocessed data; nnU-Net's planning finds its statistics there, of a few voxels."""
    demo.init_demo(folder, device="cpu", size=SIZE)
    config = folder / "config.yaml"
    one = {**yaml.safe_load(config.read_text()), "processes": 1}
    one["variables"]["nnUNet_def_n_proc"] = "1"  # a second process would only import torch once more
    config.write_text(json.dumps(one, indent=1))
    subprocess.run(verb("workflow", "run", folder, "--", "--until", "convert"), check=True)
    extract_fingerprint(folder, "500")
    subprocess.run(verb("workflow", "run", folder, "--", "--until", "preprocess_500"), check=True)
    config.write_text(config.read_text().replace('"nnUNet_n_proc_DA": "', '"nnUNet_n_proc_DA": "0", "was": "'))


def copy_of(prepared: Path, folder: Path) -> Path:
    """Another cohort with the same data, files no older than each other."""
    return Path(shutil.copytree(prepared, folder, symlinks=True))


def with_one_trainer(folder: Path) -> Path:
    """The same cohort without nnU-Net's own network."""
    config = folder / "config.yaml"
    config.write_text(json.dumps({**yaml.safe_load(config.read_text()), "trainers": {NAME: TRAINER}}, indent=1))
    return folder


def run(folder: Path, without_network: Offline | None = None, words: Sequence[str] = ()) -> subprocess.CompletedProcess:
    """Run what is left of it, or other words."""
    words, variables = words or verb("workflow", "run", folder), environment()
    if without_network:
        words, variables = [*without_network.prefix, *words], without_network.environment
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, env=variables)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def environment() -> dict[str, str]:
    """Variables of a run, without nnU-Net's folders and with one thread."""
    return {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}


def tables(folder: Path) -> dict[str, str]:
    """All tables by name, of ``TRAINER`` alone."""
    found = {name: pd.read_csv(folder / name, dtype=str) for name in TABLES}
    return {name: (t[t["model"] == NAME] if "model" in t else t).to_csv(index=False) for name, t in found.items()}


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def processes_of(folder: Path) -> Sequence[int]:
    """Numbers of all processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")).is_relative_to(folder):
                found.append(int(process.name))
        except OSError:  # it has ended
            continue
    return found
