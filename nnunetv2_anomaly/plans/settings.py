"""The settings of the trainers: one table, served as class attributes and through plans.json.

Every setting is a class attribute of the trainers. A configuration in plans.json may hold a section ``anomaly`` that
overrides them without a subclass; nnU-Net stores plans.json with the model, so that training and prediction agree::

    "configurations": {
        "3d_fullres": {...},
        "3d_short": {"inherits_from": "3d_fullres", "anomaly": {"inpainting_epochs": 20, "distillation_epochs": 20}}
    }
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2_anomaly.detectors.error_channel import ERROR_CHANNELS
from nnunetv2_anomaly.errors import UserError

SECTION = "anomaly"


def _is_whole(minimum: int, maximum: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_not_negative(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _is_axes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(_is_whole(0, 2)(axis) for axis in value)


def _is_truth_value(value: Any) -> bool:
    return isinstance(value, bool)


@dataclass(frozen=True)
class Setting:
    """One setting: its default, what it accepts, and what it does."""

    default: Any
    accepts: str
    check: Callable[[Any], bool]
    meaning: str


SETTINGS: dict[str, Setting] = {
    # The networks: read again at prediction, so that a subclass or the plans must keep them as they were in training.
    "detector_features": Setting(
        8, "a whole number from 1", _is_whole(1), "feature maps of G and A at full resolution; doubled at each level"
    ),
    "detector_downsamplings": Setting(
        4,
        "a whole number from 1 to 4",
        _is_whole(1, 4),
        "downsamplings of G, A and C: the first ones of the planned network",
    ),
    "compressor_code_length": Setting(
        100, "a whole number from 1", _is_whole(1), "units of C's narrow dense layer; a larger one restores anomalies"
    ),
    # The pre-stage.
    "intensity_clip": Setting(
        5.0, "a number above 0", _is_positive, "A and G see the normalised image clipped to [-clip, clip]"
    ),
    "erase_margin_voxels": Setting(
        50, "a whole number from 0", _is_whole(0), "the foreground is dilated by so many voxels before it is erased"
    ),
    "inpainting_epochs": Setting(100, "a whole number from 1", _is_whole(1), "epochs of phase 1: G with C (Eq. 1)"),
    "distillation_epochs": Setting(80, "a whole number from 1", _is_whole(1), "epochs of phase 2: A (Eq. 2)"),
    "prestage_learning_rate": Setting(
        None,
        "a number above 0, or null for the automatic choice",
        _or_none(_is_positive),
        "Adam's learning rate; automatic: the published constant 5e-4 at full length, 2e-3 with decay for short runs",
    ),
    "start_detector_from_inpainter": Setting(
        True, "true or false", _is_truth_value, "A starts with G's weights instead of random ones"
    ),
    "inpainter_from_fold_all": Setting(
        False,
        "true or false",
        _is_truth_value,
        "a fold's A is distilled from the G of fold 'all', as in the paper; that G has seen the validation cases",
    ),
    "prestage_augmentation": Setting(
        True, "true or false", _is_truth_value, "nnU-Net's augmentation in the pre-stage; the paper used none"
    ),
    "skip_cases_without_foreground": Setting(
        False, "true or false", _is_truth_value, "leave cases without foreground out of the pre-stage, not stop there"
    ),
    "lesion_labels": Setting(
        None,
        "a list of label names, or null for all labels with 'lesion' in their name",
        _or_none(_is_names),
        "labels that the pre-stage's validation counts as lesion",
    ),
    "bone_labels": Setting(
        None,
        "a list of label names, or null for all labels with 'bone' in their name",
        _or_none(_is_names),
        "labels that the pre-stage's validation compares lesions with",
    ),
    # The anomaly-aware segmentation.
    "alpha": Setting(
        1.0,
        "a number from 0",
        _is_not_negative,
        "weight of the focal cross-entropy (Eq. 5): as nnU-Net weighs its own; 10 in AnomalyAwarePublishedTrainer and "
        "the paper's networks, as published",
    ),
    "beta": Setting(99.0, "a number from 0", _is_not_negative, "slope of the focal weight F = 1 + beta * E (Eq. 4)"),
    "error_channel": Setting(
        "published",
        f"one of {', '.join(ERROR_CHANNELS)}",
        lambda value: isinstance(value, str) and value in ERROR_CHANNELS,
        "what the segmenter sees of the reconstruction error: its square as published, 100 times that (squared), or 10 "
        "times x - A(x) with its sign (signed)",
    ),
    "num_epochs": Setting(
        1000, "a whole number from 1", _is_whole(1), "epochs of the anomaly-aware segmentation, as in nnU-Net"
    ),
    "prestage_trainer": Setting(
        "AnomalyPreStageTrainer", "the name of a trainer class", _is_text, "whose results folder the detector is in"
    ),
    "prestage_folder": Setting(
        None,
        "a folder, or null for the one of the same data set, plans and configuration",
        _or_none(_is_text),
        "pre-stage model folder (it holds fold_0 and so on) or one fold's folder to take the detector from",
    ),
    "allow_detector_trained_on_validation_cases": Setting(
        False, "true or false", _is_truth_value, "accept a detector that was trained on the fold's validation cases"
    ),
    "allow_changed_data": Setting(
        False, "true or false", _is_truth_value, "accept a detector although the data set has changed since; logged"
    ),
    "segmentation_learning_rate": Setting(
        None,
        "a number above 0, or null for the trainer's own",
        _or_none(_is_positive),
        "initial learning rate; the trainer's own: 0.01 as in nnU-Net, 5e-4 as published, 2.5e-4 in transfer",
    ),
    # Both.
    "mirror_axes": Setting(
        (),
        "a list of axes (0, 1, 2), empty for none, or null for nnU-Net's choice",
        _or_none(_is_axes),
        "axes mirrored in training and at prediction; the detector knows which way a knee is up",
    ),
    "seed": Setting(
        None,
        "a whole number from 0, or null for none",
        _or_none(_is_whole(0)),
        "of initial weights, augmentation and order; on a CPU and with nnUNet_n_proc_DA=0 two runs agree, "
        "interrupted or not",
    ),
    "num_iterations_per_epoch": Setting(250, "a whole number from 1", _is_whole(1), "training batches in an epoch"),
    "num_val_iterations_per_epoch": Setting(50, "a whole number from 1", _is_whole(1), "validation batches an epoch"),
}


def default(name: str) -> Any:
    """The default of a setting. Raises: KeyError if there is no such setting."""
    return SETTINGS[name].default


def section_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The checked section ``anomaly`` of a configuration (its inheritance resolved); empty where there is none.

    Args: configuration: a configuration of plans.json as a dict.
    Raises: UserError if the section is no dict, holds an unknown key, or a value that the setting does not accept.
    """
    section = configuration.get(SECTION, {})
    if not isinstance(section, dict):
        raise UserError(f"the section '{SECTION}' of plans.json is {section!r}; expected a dictionary of settings")
    unknown = sorted(set(section) - set(SETTINGS))
    if unknown:
        raise UserError(
            f"the section '{SECTION}' of plans.json holds unknown setting(s) {', '.join(unknown)}; "
            f"known are {', '.join(sorted(SETTINGS))}"
        )
    for name, value in section.items():
        if not SETTINGS[name].check(value):
            raise UserError(
                f"the setting '{name}' in the section '{SECTION}' of plans.json is {value!r}; "
                f"expected {SETTINGS[name].accepts}"
            )
    return dict(section)
