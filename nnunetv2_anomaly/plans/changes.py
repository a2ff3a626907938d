"""Plans of another name with some values changed, so that no file of nnU-Net's is edited by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_anomaly.environment import environment_folder
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import read_json, write_failures_as_user_errors, write_text
from nnunetv2_anomaly.plans.dataset_name import dataset_name

#: key of a configuration of nnU-Net's that names the one whose values it takes
INHERITS = "inherits_from"


def change_plans(dataset: str, changes: Mapping[str, Any], plans_name: str, source_plans: str = "nnUNetPlans") -> Path:
    """Write plans with changes next to those that they are made from.

    Args: changes: as in plans.json, only what differs; a configuration that inherits from another may give parts of its
        dictionaries, such as "features_per_stage" alone.
    Returns: the new file.
    Raises: UserError if there are no such plans, the names are the same, or a configuration inherits from none.
    """
    if plans_name == source_plans:
        raise UserError(f"-p and -o are both {plans_name}; expected another name with -o, nnU-Net's plans are kept")
    folder = environment_folder("nnUNet_preprocessed") / dataset_name(dataset)
    plans = changed_plans(read_json(folder / f"{source_plans}.json"), changes)
    plans["plans_name"] = plans_name
    file = folder / f"{plans_name}.json"
    with write_failures_as_user_errors(file, "check the permissions of nnUNet_preprocessed"):
        write_text(file, json.dumps(plans, indent=2))
    return file


def changed_plans(plans: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plans with the changes; the given ones stay as they are. Raises: UserError as ``change_plans``."""
    configurations = changes.get("configurations", {})
    result = _merged(plans, {key: value for key, value in changes.items() if key != "configurations"})
    for name, values in configurations.items():
        base = result["configurations"].get(values.get(INHERITS, name))
        if base is None:
            known = ", ".join(result["configurations"])
            raise UserError(f"the configuration {name} inherits from none of {known}; name one as {INHERITS!r}")
        own = result["configurations"].get(name, {})
        filled = {
            key: _merged(base[key], value) if isinstance(value, Mapping) and key in base else value
            for key, value in values.items()
        }
        result["configurations"][name] = {**own, **filled}
    return result


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(base))
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
