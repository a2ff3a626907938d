"""What the measurements of seconds share."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np


def timed(function: Callable[..., object], *arguments: object) -> float:
    """Seconds that a call takes."""
    start = perf_counter()
    function(*arguments)
    return perf_counter() - start


def shown(seconds: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return f"{middle:.2f} s ({low:.2f} to {high:.2f})"
