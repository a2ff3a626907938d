"""What a file of a model tells of the computer and the people that its data come from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from nnunetv2_anomaly.errors import listed
from nnunetv2_anomaly.inspection.findings import Finding, warning_if
from nnunetv2_anomaly.training.checkpoints import DETECTOR_KEY
from nnunetv2_anomaly.training.data_record import CHECKPOINT_KEY
from nnunetv2_anomaly.training.safe_loading import shown

#: how a path begins, on whatever system
_PATH = re.compile(r"/[^/]+/|~/|[A-Za-z]:[\\/]|\\\\[^\\]+\\")
#: nnU-Net exports them, and reads them neither for installing nor for predicting
_NOT_NEEDED = ("debug.json", "summary.json")


def disclosures(label: str, content: Any) -> Iterator[Finding]:
    """What a file, a JSON file or a checkpoint, names: paths, a computer, cases; a warning where it is not needed."""
    content = content if isinstance(content, dict) else {}
    paths, told = list(dict.fromkeys(_paths(content))), []
    if paths:
        told.append(f"{len(paths)} paths ({shown(paths[0], 80)}{', ...' * (len(paths) > 1)})")
    if "hostname" in content:
        told.append(f"the computer {shown(content['hostname'])}")
    if cases := _cases(content):
        told.append(f"{len(cases)} cases ({listed(cases)})")
    if told:
        remedy = "before you hand it on, take the file out with zip -d"
        yield warning_if(label.endswith(_NOT_NEEDED), "disclosure", f"{label} names {' and '.join(told)}", remedy)


def _paths(value: Any) -> Iterator[str]:
    """The texts in nested lists and dictionaries that are paths."""
    if isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(part)
    elif isinstance(value, str) and _PATH.match(value):
        yield value


def _cases(content: Mapping[str, Any]) -> list[str]:
    """Names of cases, or files of theirs: of a validation's summary, or those that a checkpoint was trained on."""
    try:
        names = [row.get("case", row.get("reference_file")) for row in content.get("metric_per_case", [])]
        trained = content.get(DETECTOR_KEY, {}).get("fitted_on", []), content.get(CHECKPOINT_KEY, {}).get("cases", [])
        return sorted({shown(name).replace("\\", "/").split("/")[-1] for part in (names, *trained) for name in part})
    except (AttributeError, TypeError):  # of another form than any that names cases
        return []
