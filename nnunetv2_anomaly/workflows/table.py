"""The table of steps that the engine runs: of a config.yaml, or as it was made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2_anomaly.workflows.cohort import cohort_steps
from nnunetv2_anomaly.workflows.configuration import Cohort, parsed
from nnunetv2_anomaly.workflows.published_chain import chain_steps
from nnunetv2_anomaly.workflows.steps import Step


def steps_of(config: Mapping[str, Any]) -> list[Step]:
    """All steps of a workflow, each after those it needs.

    Args: config: of config.yaml; or "steps", a table of steps that were made elsewhere, as of the benchmarks.
    Raises: as ``parsed``; UserError for data sets that are missing.
    """
    if "steps" in config:
        return [Step(**{**row, **_as_tuples(row)}) for row in config["steps"]]
    settings = parsed(config)
    return cohort_steps(settings) if isinstance(settings, Cohort) else chain_steps(settings)


def _as_tuples(row: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(row[name]) for name in ("needs", "follows") if name in row}
