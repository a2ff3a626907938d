"""Settings of the trainers, served as class attributes and through plans.json.

A configuration in plans.json may hold a section ``anomaly``, such as {"inpainting_epochs": 20}, that overrides the
attributes without a subclass; nnU-Net stores plans.json with the model, so that training and prediction agree. Families
have tables of their own, which the registry names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.registry import DETECTORS, DetectorFamily, detector_families, setting_tables

SECTION = "anomaly"


#: what a setting accepts: in words, and whether a value is one
Kind: TypeAlias = tuple[str, Callable[[Any], bool]]


def is_whole(minimum: int, maximum: float = math.inf) -> Callable[[Any], bool]:
    """Whether a value is a whole number in the range."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_positive(value: Any) -> bool:
    """Whether a value is a number above 0."""
    return is_number(value) and value > 0


def is_text(value: Any) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)


def is_list(check: Callable[[Any], bool], *lengths: int) -> Callable[[Any], bool]:
    """Whether a value is a list of acceptable values, and of one of these lengths if any are given."""
    return lambda value: (
        isinstance(value, (list, tuple)) and all(map(check, value)) and (not lengths or len(value) in lengths)
    )


def whole(minimum: int, maximum: int | None = None) -> Kind:
    """A whole number in the range."""
    to = "" if maximum is None else f" to {maximum}"
    return f"a whole number from {minimum}{to}", is_whole(minimum, maximum or math.inf)


def one_of(words: Iterable[str]) -> Kind:
    """One of some words."""
    known = tuple(words)
    return f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known


def or_null(kind: Kind, meaning: str) -> Kind:
    """The kind or null, which stands for ``meaning``."""
    words, check = kind
    return f"{words}, or null for {meaning}", lambda value: value is None or check(value)


POSITIVE: Kind = ("a number above 0", is_positive)
NOT_NEGATIVE: Kind = ("a number from 0", lambda value: is_number(value) and value >= 0)
SHARE: Kind = ("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
TRUE_OR_FALSE: Kind = ("true or false", lambda value: isinstance(value, bool))


@dataclass(frozen=True)
class Setting:
    """One setting: its default, what it accepts, and what it does."""

    default: Any
    accepts: str
    check: Callable[[Any], bool]
    meaning: str


_LABELS = or_null(("a list of label names", is_list(is_text)), "those that dataset.json or their names tell")
#: settings of every trainer; the labels are those that a detector's validation looks at
SHARED: dict[str, Setting] = {
    "mirror_axes": Setting(
        (),
        *or_null(("a list of axes (0, 1, 2), empty for none", is_list(is_whole(0, 2))), "nnU-Net's choice"),
        "axes mirrored in training and at prediction; the detector knows which way a knee is up",
    ),
    "seed": Setting(
        None,
        *or_null(whole(0), "none"),
        "seed of initial weights, augmentation and order; on a CPU and with nnUNet_n_proc_DA=0 before nnUNetv2_train "
        "two runs agree, interrupted or not",
    ),
    "num_iterations_per_epoch": Setting(250, *whole(1), "training batches per epoch"),
    "num_val_iterations_per_epoch": Setting(50, *whole(1), "validation batches per epoch"),
    "lesion_labels": Setting(None, *_LABELS, "labels that the pre-stage's validation counts as lesions"),
    "bone_labels": Setting(None, *_LABELS, "labels that the pre-stage's validation compares lesions with"),
}


def known_settings(families: Mapping[str, DetectorFamily] | None = None) -> dict[str, Setting]:
    """All settings by name, those of the families included; of all that are installed if None."""
    families = detector_families() if families is None else families
    return {name: setting for table in setting_tables(families).values() for name, setting in table.items()}


def default(name: str) -> Any:
    """The default of a setting of ours. Raises: KeyError if there is no such setting."""
    # Trainers ask while they are imported: the families of other packages import trainers themselves.
    return known_settings(DETECTORS)[name].default


def section_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The checked section ``anomaly`` of a configuration (its inheritance resolved); empty where there is none.

    Raises: UserError if the section is no dict, holds an unknown key, or a value that the setting does not accept.
    """
    section = configuration.get(SECTION, {})
    known = known_settings()
    if not isinstance(section, dict):
        raise UserError(f"the section '{SECTION}' of plans.json is {section!r}; expected a dictionary of settings")
    unknown = sorted(set(section) - set(known))
    if unknown:
        fault = f"holds unknown setting(s) {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        raise UserError(f"the section '{SECTION}' of plans.json {fault}")
    for name, value in section.items():
        if not known[name].check(value):
            fault = f"is {value!r}; expected {known[name].accepts}"
            raise UserError(f"the setting '{name}' in the section '{SECTION}' of plans.json {fault}")
    return dict(section)


def check_configuration(configuration: Mapping[str, Any]) -> None:
    """Check the numbers of a configuration of plans.json (its inheritance resolved) that shape batches and networks.

    Raises: UserError for the first that is missing or of another kind.
    """
    patch_size = configuration.get("patch_size")
    axes = len(patch_size) if isinstance(patch_size, (list, tuple)) else 3
    per_axis = is_list(is_whole(1), axes)
    strides = configuration.get("architecture", {}).get("arch_kwargs", {}).get("strides", [])
    for name, value, check, accepts in (
        ("patch_size", patch_size, is_list(is_whole(1), 2, 3), "2 or 3 whole numbers from 1"),
        ("batch_size", configuration.get("batch_size"), is_whole(1), "a whole number from 1"),
        ("spacing", configuration.get("spacing"), is_list(is_positive, axes), f"{axes} numbers above 0"),
        ("strides", strides, is_list(lambda stride: is_whole(1)(stride) or per_axis(stride)), "whole numbers from 1"),
    ):
        if not check(value):
            advice = "correct it, or run nnUNetv2_plan_experiment again"
            raise UserError(f"'{name}' in plans.json is {value!r}; expected {accepts}, so {advice}")
