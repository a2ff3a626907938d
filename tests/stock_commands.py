"""Runs nnU-Net's commands one after another in one process, which imports torch once, for its worker processes, too.

Tests call ``run_commands``, which runs this file in a process of its own:

    python stock_commands.py COMMANDS.json RESULTS.json

COMMANDS.json: a list of {"name", "command": [word, ...], "variables": {name: value}}. RESULTS.json: name -> {"status",
"output"}; the output's last 4000 characters.
"""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from quick import start_workers_with_torch

from nnunetv2_anomaly.environment import nnunet_environment

#: the shortest trainings there are, of the smallest detector
SETTINGS = {
    "detector_features": 4,
    "compressor_code_length": 8,
    "erase_margin_voxels": 2,
    "inpainting_epochs": 1,
    "distillation_epochs": 1,
    "num_epochs": 1,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
}

#: The planner takes the number of augmentation processes for a thread count, which 0 is not.
WHILE_PLANNING = {"nnUNet_n_proc_DA": "1"}


def run_commands(base: Path, label: str, entries: Sequence[dict[str, Any]], **variables: str) -> dict[str, dict]:
    """Run commands, one after another in one process, on nnU-Net's folders below ``base``.

    Args:
        base: gets LABEL.json with the commands, and LABEL_results.json.
        entries: as COMMANDS.json holds them; "variables" may be missing.
        variables: of the environment of all of them.

    Returns: name -> {"status", "output"}.
    """
    commands, results = base / f"{label}.json", base / f"{label}_results.json"
    commands.write_text(json.dumps(entries))
    alone = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1", "nnUNet_compile": "0"}
    environment = nnunet_environment(base, **{**alone, **variables})
    subprocess.run([sys.executable, __file__, str(commands), str(results)], check=True, env=environment, timeout=1500)
    return json.loads(results.read_text())


def main() -> None:
    commands, results_file = (Path(word) for word in sys.argv[1:])
    import torch

    torch.set_num_threads(1)
    start_workers_with_torch(pytest.MonkeyPatch())
    places = {point.name: point.value for point in entry_points(group="console_scripts") if "nUNetv2" in point.name}
    results = {}
    for entry in json.loads(commands.read_text()):
        module, _, function = places[entry["command"][0]].partition(":")
        before = dict(os.environ)
        os.environ.update(entry.get("variables", {}))
        sys.argv = list(entry["command"])
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
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


if __name__ == "__main__":
    main()
