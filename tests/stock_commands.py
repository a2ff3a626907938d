"""Runs nnU-Net's commands one after another in one process, which need not import torch for each, nor at all."""

import contextlib
import importlib
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import pools_of_threads, run_with_torch, sample_few_voxels, skip_progress_figures

from nnunetv2_anomaly.environment import nnunet_environment

#: the shortest trainings there are, of the smallest detector
SETTINGS = {
    "detector_features": 4,
    "compressor_code_length": 8,
    "erase_margin_voxels": 2,
    "inpainting_epochs": 1,
    "distillation_epochs": 1,
    "level_epochs": 1,
    "pasting_epochs": 1,
    "num_epochs": 1,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
}

#: The planner takes the number of augmentation processes for a thread count, which 0 is not.
WHILE_PLANNING = {"nnUNet_n_proc_DA": "1"}


def run_commands(base: Path, label: str, entries: Sequence[dict[str, Any]], **variables: str) -> dict[str, dict]:
    """Run commands, one after another in one process, on nnU-Net's folders below ``base``.

    Args:
        base: gets LABEL_results.json.
        entries: a dict for each: "name"; "command", a list of words; and, where they are wanted, "variables" of its
            environment, and "figures", true for a training that draws its progress as it does outside of tests.
        variables: of the environment of all of them.

    Returns: name -> {"status", "output"}; the output's last 4000 characters.
    """
    results = base / f"{label}_results.json"
    alone = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1", "nnUNet_compile": "0"}
    environment = nnunet_environment(base, **{**alone, **variables})
    run_with_torch(_run_all, list(entries), results, environment=environment, seconds=1500)
    return json.loads(results.read_text())


def extract_fingerprint(base: Path, number: str) -> None:
    """Let nnU-Net find a raw data set's statistics in a few voxels, which its planning then takes as they are."""
    command = ["nnUNetv2_extract_fingerprint", "-d", number, "-np", "1"]
    (found,) = run_commands(base, "fingerprint", [{"name": number, "command": command}]).values()
    assert found["status"] == 0, found["output"]


def _run_all(entries: Sequence[dict[str, Any]], results_file: Path) -> None:
    torch.set_num_threads(1)
    # nnU-Net's commands take every core. On tensors as small as these the threads mostly wait for each other.
    torch.set_num_threads = lambda number: None
    pools_of_threads(pytest.MonkeyPatch())
    sample_few_voxels(pytest.MonkeyPatch())
    places = {point.name: point.value for point in entry_points(group="console_scripts") if "nUNetv2" in point.name}
    results = {}
    for entry in entries:
        module, _, function = places[entry["command"][0]].partition(":")
        before = dict(os.environ)
        os.environ.update(entry.get("variables", {}))
        sys.argv = list(entry["command"])
        text = io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(text),
            contextlib.redirect_stderr(text),
        ):
            try:
                if not entry.get("figures"):
                    skip_progress_figures(patch)
                returned = getattr(importlib.import_module(module), function)()
                status = returned if isinstance(returned, int) else 0
            except SystemExit as end:  # a sentence of ours is one, and ends with status 1
                status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
                print(end)
            except BaseException:
                status = 99
                traceback.print_exc(file=text)
        os.environ.clear()
        os.environ.update(before)
        results[entry["name"]] = {"status": status, "output": text.getvalue()[-4000:]}
        results_file.write_text(json.dumps(results))
        print(f"{entry['name']}: {status}", flush=True)
