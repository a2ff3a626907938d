"""What a comparison records about where it runs: machine, versions, memory of its steps."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import time
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


def memory_mib(pid: int, *, on_gpu: bool) -> dict[str, float]:
    """Memory of a running process: the peak of its own from Linux's /proc, its GPU's now from nvidia-smi.

    0 where these do not know. Worker processes are not counted.
    """
    own = 0.0
    with suppress(OSError, ValueError, IndexError):  # a process that has ended has no such line
        own = float(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    return {
        "memory_mib": own,
        "gpu_memory_mib": _gpu_memory_mib(int(time.monotonic())).get(pid, 0.0) if on_gpu else 0.0,
    }


@functools.lru_cache(maxsize=1)
def _gpu_memory_mib(second: int) -> dict[int, float]:
    """Process id -> memory; asked once a second."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError):
        lines = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
        return {int(pid): float(memory) for pid, memory in (line.split(",") for line in lines)}
    return {}
