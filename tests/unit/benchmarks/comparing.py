"""The comparison of models as a command, for its tests."""

import os
import subprocess
import sys

from places import ROOT


def compare(folder, *words):
    """The command on small phantoms, two iterations a training."""
    common = [
        "--folder", str(folder), "--data", "phantoms", "--seeds", "0", "--budget", "2", "--iterations_per_epoch", "1",
        "--detector_budget", "1", "1", "--size", "16", "24", "24", "--features", "2", "--device", "cpu", "--jobs", "2",
        "-np", "1",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    command = [sys.executable, "-m", "benchmarks.naive_vs_aware", *common, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
