"""What is compared: models by name, each a trainer of nnU-Net's or ours with settings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.settings import SETTINGS
from nnunetv2_anomaly.trainer_shim.nnunetv2_anomaly_trainers import TRAINERS

#: keys of a model that choose the maps of ``ablation.AblationTrainer``
_ABLATION_KEYS = ("channel", "weight", "mask_known")

#: each part of the method alone, together, and in other forms, from plain nnU-Net to the upper bound
ABLATIONS = (
    "nnUNetTrainer",
    "no_mirroring=nnUNetTrainer:mirror_axes=[]",
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

    Keys are the package's settings; ``channel``, ``weight`` and ``mask_known`` of ``ablation.AblationTrainer``; and
    ``detector``, the share of the pre-stage's iterations. Values are JSON, or plain words.

    Raises: UserError for whatever is unknown.
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
    ablation = {key: options.pop(key) for key in _ABLATION_KEYS if key in options}
    share = options.pop("detector", 1.0)
    unknown = sorted(set(options) - set(SETTINGS))
    if unknown:
        known = ", ".join(sorted((*_ABLATION_KEYS, "detector", *SETTINGS)))
        raise UserError(f"the model '{word}' has unknown settings {', '.join(unknown)}; known are {known}.")
    if trainer == "nnUNetTrainer" and not ablation:
        return Model(name, "BudgetedNNUNetTrainer", options)
    if ablation and trainer != "AnomalyAwareTrainer":
        raise UserError(f"the model '{word}' changes a part of the method; that is possible with AnomalyAwareTrainer.")
    if trainer not in TRAINERS or trainer == "AnomalyPreStageTrainer" or "Transfer" in trainer:
        raise UserError(
            f"the model '{word}' names the trainer {trainer}; expected nnUNetTrainer, AnomalyAwareTrainer, or one of "
            "the published UNETTrainer, UNETPlusTrainer, UNETSTrainer, CANTrainer, CANPlusTrainer, CANSTrainer."
        )
    aware = trainer in ("AnomalyAwareTrainer", "UNETSTrainer", "CANSTrainer")
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
