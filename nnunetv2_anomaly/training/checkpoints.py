"""Checkpoints of nnU-Net's form: read safely, and compared with a training, with one sentence for what does not fit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.training.safe_loading import load_file

#: in the order in which nnU-Net's --c looks for them
NAMES = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
#: key of a checkpoint, of a pre-stage and of a segmentation alike, under which its detector is described
DETECTOR_KEY = "anomaly_detector"
#: what a configuration decides about weights and voxels; all else may change while a training is interrupted
_DECISIVE = (
    *("data_identifier", "preprocessor_name", "spacing", "normalization_schemes", "use_mask_for_norm"),
    *("patch_size", "architecture"),
)


def way_on_without(path: str | Path) -> str:
    """What to do where a checkpoint is of no use, in words: --c takes the next one in its folder, if there is one."""
    others = [name for name in NAMES if name != Path(path).name and (Path(path).parent / name).is_file()]
    resuming = f", and --c resumes with {others[0]}" if others else " and start the training again without --c"
    return f"move it away{resuming}"


def read_own_checkpoint(path: str | Path, trainer_name: str) -> dict[str, Any]:
    """A checkpoint with which a trainer is to continue.

    Raises: UserError if it cannot be read, is no checkpoint of a training, or is another trainer's.
    """
    advice = way_on_without(path)
    checkpoint = load_file(path, advice)
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
        raise UserError(f"{path} is not the checkpoint of a training; {advice}")
    writer = checkpoint.get("trainer_name")
    if writer != trainer_name:
        fault = f"the checkpoint {path} was written by the trainer {writer}, and {trainer_name} cannot continue it"
        raise UserError(f"{fault}; give -tr {writer}, or {advice}")
    return checkpoint


def differing_plans(
    arguments: Mapping[str, Any], plans: Mapping[str, Any], configuration: str, fold: int | str, dataset_json: dict
) -> tuple[list[str], list[str]]:
    """What a checkpoint's training had otherwise, in words.

    Args: arguments: ``init_args`` of the checkpoint; all others are of the training that is to continue.
    Returns: what makes it another training, and what may change while one is interrupted.
    """
    theirs, decisive, harmless = arguments["plans"], list[str](), list[str]()

    def compare(name: str, there: Any, here: Any, into: list[str]) -> None:
        if as_text(there) != as_text(here):
            into.append(f"{name} was {_shown(there)} and is {_shown(here)}")

    compare("the data set", theirs.get("dataset_name"), plans.get("dataset_name"), decisive)
    compare("the configuration", arguments["configuration"], configuration, decisive)
    compare("the fold", arguments["fold"], fold, decisive)
    if decisive:
        return decisive, harmless
    there = PlansManager(theirs).get_configuration(configuration).configuration
    here = PlansManager(dict(plans)).get_configuration(configuration).configuration
    for name in _DECISIVE:
        compare(f"'{name}'", there.get(name), here.get(name), decisive)
    for name in ("labels", "channel_names"):
        compare(f"'{name}'", arguments["dataset_json"].get(name), dataset_json.get(name), decisive)
    for name in sorted((there.keys() | here.keys()) - {*_DECISIVE, "anomaly", "inherits_from"}):
        compare(f"'{name}'", there.get(name), here.get(name), harmless)
    settings_there, settings_here = there.get("anomaly") or {}, here.get("anomaly") or {}
    for name in sorted(settings_there.keys() | settings_here.keys()):
        compare(f"the setting '{name}'", settings_there.get(name), settings_here.get(name), harmless)
    return decisive, harmless


def first_difference(
    there: Mapping[str, Tensor], here: Mapping[str, Tensor], names: Iterable[str] = (), but_for_classes: str = ""
) -> str | None:
    """The first tensor, by name, that only one side has or that has another shape there, in words; None if all fit.

    Args: names: of the tensors to compare; all if there are none. but_for_classes: part of the names of output layers
        whose first axis, the classes, is left aside.
    """
    for name in sorted(names or there.keys() | here.keys()):
        start = int(bool(but_for_classes) and but_for_classes in name)
        shapes = [str(tuple(state[name].shape[start:])) if name in state else "nothing" for state in (there, here)]
        if shapes[0] != shapes[1]:
            return f"'{name}' is {shapes[0]} there and {shapes[1]} here"
    return None


def as_text(value: Any) -> str:
    """A value of plans as JSON: equal texts mean equal values, whether these are tuples, lists or numpy's numbers."""

    def plain(other: Any) -> Any:  # plans from a file hold plain numbers, plans handed over in Python may hold numpy's
        return other.item() if hasattr(other, "item") else str(other)

    return json.dumps(value, sort_keys=True, default=plain)


def _shown(value: Any) -> str:
    text = as_text(value)
    return text if len(text) <= 80 else "another one"
