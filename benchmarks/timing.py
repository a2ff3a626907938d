"""What the measurements of seconds share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

from nnunetv2_anomaly.simulation.simulate import label_files, simulate_folder


def timed(function: Callable[..., object], *arguments: object) -> float:
    """Seconds that a call takes."""
    start = perf_counter()
    function(*arguments)
    return perf_counter() - start


def shown(seconds: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return f"{middle:.2f} s ({low:.2f} to {high:.2f})"


def label_maps(labels: Path | None, folder: Path, cases: int) -> list[Path]:
    """So many label maps of a folder, or phantoms of the OAI's size, which are drawn into the other one."""
    if labels is None:
        simulate_folder(folder / "drawn", num_phantoms=cases)
        labels = folder / "drawn" / "labels"
    return list(label_files(labels).values())[:cases]
