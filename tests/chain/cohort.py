"""A cohort of a few tiny phantoms, for the tests of workflows; every training is seeded, so tables can be compared."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
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
TRAINER = "AnomalyAwareTrainer"
TABLES = (
    "evaluation/tables/cases.csv", f"cleaned/{TRAINER}/removed.csv", f"measures/{TRAINER}/measurements.csv",
)  # fmt: skip


def verb(*words: object) -> list[str]:
    """A command line of ours."""
    return [sys.executable, "-m", "nnunetv2_anomaly.command_line.main", *map(str, words)]


def prepare(folder: Path) -> None:
    """The cohort up to its preprocessed data; nnU-Net's planning finds its statistics there, of a few voxels."""
    demo.init_demo(folder, device="cpu", size=SIZE)
    config = folder / "config.yaml"
    one = {**yaml.safe_load(config.read_text()), "trainers": {"anomaly-aware": TRAINER}, "processes": 1}
    one["variables"]["nnUNet_def_n_proc"] = "1"  # a second process would only import torch once more
    config.write_text(json.dumps(one, indent=1))
    subprocess.run(verb("workflow", "run", folder, "--", "--until", "convert"), check=True)
    extract_fingerprint(folder, "500")
    subprocess.run(verb("workflow", "run", folder, "--", "--until", "preprocess_500"), check=True)
    config.write_text(config.read_text().replace('"nnUNet_n_proc_DA": "', '"nnUNet_n_proc_DA": "0", "was": "'))


def copy_of(prepared: Path, folder: Path) -> Path:
    """Another cohort with the same data, files no older than each other."""
    return Path(shutil.copytree(prepared, folder, symlinks=True))


def run(folder: Path, *words: object, seconds: float = 900) -> subprocess.CompletedProcess:
    """Run what is left of it."""
    done = subprocess.run(
        verb("workflow", "run", folder, *words), capture_output=True, text=True, timeout=seconds, env=environment()
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def environment() -> dict[str, str]:
    """Variables of a run, without nnU-Net's folders and with one thread."""
    return {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}


def tables(folder: Path) -> dict[str, str]:
    """All tables by name."""
    return {name: (folder / name).read_text() for name in TABLES}


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
