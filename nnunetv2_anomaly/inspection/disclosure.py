"""What a file of a model tells of the computer and the people that its data come from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from nnunetv2_anomaly.errors import listed
from nnunetv2_anomaly.inspection.findings import Finding
from nnunetv2_anomaly.training.checkpoints import DETECTOR_KEY
from nnunetv2_anomaly.training.data_record import CHECKPOINT_KEY
from nnunetv2_anomaly.training.safe_loading import shown

#: how a path begins, on whatever system
_PATH = re.compile(r"/[^/]+/|~/|[A-Za-z]:[\\/]|\\\\[^\\]+\\")
#: nnU-Net exports them, and reads them neither for installing nor for predicting
_NOT_NEEDED = {"debug.json", "summary.json"}
#: entries of a checkpoint that hold numbers alone, and many of them
_NUMBERS = {"network_weights", "optimizer_state", "grad_scaler_state", "logging", CHECKPOINT_KEY, DETECTOR_KEY}


def disclosures(label: str, content: Any) -> Iterator[Finding]:
    """What a file names: paths, a computer, cases; a warning where prediction does not need the file.

    Args: label: its place in the model. content: of a JSON file or a checkpoint, of any form.
    """
    content = content if isinstance(content, dict) else {}
    paths = list(dict.fromkeys(_paths({name: value for name, value in content.items() if name not in _NUMBERS})))
    cases, told = _cases(content), []
    if paths:
        first = ", ".join(shown(path, 80) for path in paths[:2])
        told.append(f"{len(paths)} paths ({first}{', ...' * (len(paths) > 2)})")
    if isinstance(content.get("hostname"), str):
        told.append(f"the computer {shown(content['hostname'])}")
    if cases:
        told.append(f"{len(cases)} cases ({listed([shown(case) for case in cases])})")
    text = f"{label} names {' and '.join(told)}"
    if told and PurePosixPath(label).name in _NOT_NEEDED:
        yield Finding("disclosure", "warning", text, "before you hand it on, take the file out with zip -d")
    elif told:
        yield Finding("disclosure", "ok", text)


def _paths(value: Any) -> Iterator[str]:
    """The texts in nested lists and dictionaries that are paths."""
    if isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(part)
    elif isinstance(value, str) and _PATH.match(value):
        yield value


def _cases(content: Mapping[str, Any]) -> list[str]:
    """Names of cases: those of a validation's summary, or those that a checkpoint was trained on."""
    measured = content.get("metric_per_case")
    rows = [row for row in measured if isinstance(row, dict)] if isinstance(measured, list) else []
    names = [row.get("case") or str(row.get("reference_file")).replace("\\", "/").rpartition("/")[2] for row in rows]
    for key, part in ((DETECTOR_KEY, "fitted_on"), (CHECKPOINT_KEY, "cases")):
        found = content[key].get(part) if isinstance(content.get(key), dict) else None
        names += found if isinstance(found, (list, dict)) else []
    return sorted(set(map(str, names)))
