"""What a comparison records about where it runs: machine and versions."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path


@functools.cache
def _gpu_name() -> str:
    # In another process: this one would start CUDA and hold memory of the GPU beside the trainings.
    words = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def machine(device: str) -> str:
    """Processor and device of this machine."""
    if device == "cuda":
        try:
            name = _gpu_name()
        except subprocess.CalledProcessError:  # not cached: it may be in use for a moment
            name = "a GPU without a name"
        return f"{platform.machine()}, {name}"
    return f"{platform.machine()}, {device}, {os.cpu_count()} cores"


def versions() -> str:
    """Of what the results depend on, and the revision of the checkout."""
    names = ("nnunetv2_anomaly", "nnunetv2", "torch")
    text = ", ".join(f"{name} {version(name)}" for name in names)
    command = ["git", "describe", "--always", "--dirty"]
    with suppress(OSError):  # no git here
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        if described.returncode == 0:
            text += f", the comparison at revision {described.stdout.strip()}"
    return text
