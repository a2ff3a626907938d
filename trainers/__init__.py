"""The trainers that nnU-Net runs: first ``-tr AnomalyPreStageTrainer``, then ``-tr AnomalyAwareTrainer``.

The registry lists them all; each is imported when it is first asked for.
"""

from typing import Any

from nnunetv2_anomaly.registry import TRAINERS, load_trainer

__all__ = sorted(TRAINERS)


def __getattr__(name: str) -> Any:
    if name in TRAINERS:
        return load_trainer(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
