"""What is compared: models by name, each a trainer of nnU-Net's or ours with settings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.ablation import check_choices
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.settings import SETTINGS
from nnunetv2_anomaly.trainer_shim.nnunetv2_anomaly_trainers import TRAINERS

#: keys of a model that choose the maps of ``ablation.AblationTrainer``
_ABLATION_KEYS = ("channel", "weight", "mask_known")

#: settings that models may differ in; the others are the pre-stage's, or would leave budget and seed
_OF_ALL = ("segmentation_learning_rate",)
_OF_PLANNED = ("mirror_axes",)
_OF_AWARE = ("alpha", "beta")

#: each part of the method alone, together, and in other forms, from plain nnU-Net to the upper bound
ABLATIONS = (
    "no_mirroring=nnUNetTrainer:mirror_axes=[]",  # first, as what the others are tested against: none of them mirrors
    "nnUNetTrainer",
    "cross_entropy_x10=AnomalyAwareTrainer:channel=none,weight=none",
    "channel_only=AnomalyAwareTrainer:weight=none,alpha=1",
    "focal_only=AnomalyAwareTrainer:channel=none",
    "AnomalyAwareTrainer",
    "alpha_1=AnomalyAwareTrainer:alpha=1",
    "beta_999=AnomalyAwareTrainer:beta=999",
    "brighter=AnomalyAwareTrainer:channel=brighter,weight=brighter",
    "darker=AnomalyAwareTrainer:channel=darker,weight=darker",
    "short_detector=AnomalyAwareTrainer:detector=0.1",
    "shuffled=AnomalyAwareTrainer:channel=shuffled,weight=shuffled",
    "scaled=AnomalyAwareTrainer:channel=scaled",
    "scaled_only=AnomalyAwareTrainer:channel=scaled,weight=none,alpha=1",
    "mask_known=AnomalyAwareTrainer:mask_known=true",
)


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        name: in tables and files.
        trainer: the class that nnU-Net is given.
        settings: of the section ``anomaly`` of its configuration.
        ablation: of the section ``ablation``.
        detector: share of the pre-stage's iterations after which its detector was ready; 0 if it has none.
    """

    name: str
    trainer: str
    settings: dict[str, Any] = field(default_factory=dict)
    ablation: dict[str, Any] = field(default_factory=dict)
    detector: float = 0.0

    @property
    def mask_known(self) -> bool:
        """Whether it sees the hole mask as one more image channel."""
        return bool(self.ablation.get("mask_known"))


def parse_model(word: str) -> Model:
    """``TRAINER``, ``NAME=TRAINER`` or ``NAME=TRAINER:KEY=VALUE,...`` as a model.

    Keys are settings of the trainer; ``channel``, ``weight`` and ``mask_known`` of ``ablation.AblationTrainer``; and
    ``detector``, the share of the pre-stage's iterations. Values are JSON, or plain words.

    Raises: UserError for whatever is unknown, or has no effect on that trainer.
    """
    head, _, tail = word.partition(":")
    name, _, trainer = head.rpartition("=")
    name = name or trainer
    if not re.fullmatch(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*", name):
        raise UserError(f"the model's name '{name}' is not usable; expected letters, digits and single underscores.")
    options = {}
    for option in re.findall(r"[^,\[]+(?:\[[^\]]*\])?", tail):
        key, _, value = option.partition("=")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    if trainer != "nnUNetTrainer" and (
        trainer not in TRAINERS or trainer == "AnomalyPreStageTrainer" or "Transfer" in trainer
    ):
        raise UserError(
            f"the model '{word}' names the trainer {trainer}; expected nnUNetTrainer, AnomalyAwareTrainer, or one of "
            "the published UNETTrainer, UNETPlusTrainer, UNETSTrainer, CANTrainer, CANPlusTrainer, CANSTrainer."
        )
    aware = trainer in ("AnomalyAwareTrainer", "UNETSTrainer", "CANSTrainer")
    known = [*_OF_ALL, *(_OF_AWARE if aware else ()), *(("detector",) if aware else ())]
    known += _OF_PLANNED if trainer in ("nnUNetTrainer", "AnomalyAwareTrainer") else ()
    known += _ABLATION_KEYS if trainer == "AnomalyAwareTrainer" else ()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(
            f"the model '{word}' changes {', '.join(unknown)}; of {trainer} can be changed: {', '.join(sorted(known))}."
        )
    share = options.pop("detector", 1.0)
    if not isinstance(share, (int, float)) or not 0 < share <= 1 or abs(100 * share - round(100 * share)) > 1e-9:
        raise UserError(f"the model '{word}' has a detector of {share}; expected a share from 0.01 to 1 in hundredths.")
    ablation = {key: options.pop(key) for key in _ABLATION_KEYS if key in options}
    check_choices(ablation)
    for key, value in options.items():
        if not SETTINGS[key].check(value):
            raise UserError(f"the model '{word}' has {key} {value!r}; expected {SETTINGS[key].accepts}.")
    if trainer == "nnUNetTrainer":
        return Model(name, "BudgetedNNUNetTrainer", options)
    return Model(name, "AblationTrainer" if ablation else trainer, options, ablation, float(share) if aware else 0.0)


def parse_models(words: Sequence[str]) -> list[Model]:
    """Several models; each word as ``parse_model`` takes it.

    Raises: UserError if two have the same name.
    """
    models = [parse_model(word) for word in words]
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"several models are called {', '.join(twice)}; give them names: NAME=TRAINER:KEY=VALUE.")
    return models
