"""What is compared: models by name, each a trainer of nnU-Net's or ours with settings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import nnunetv2_anomaly.trainers as trainers
from benchmarks.ablation import check_choices
from nnunetv2_anomaly.detectors.base import detector_class
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.plans.settings import default, known_settings
from nnunetv2_anomaly.registry import DEFAULT_DETECTOR, SEGMENTERS, TRAINERS, detector_families, setting_tables
from nnunetv2_anomaly.segmenters.mask_rcnn.settings import SETTINGS as MASK_RCNN

#: trainer of a detector -> its family
DETECTOR_TRAINERS = {family.trainer: family.name for family in detector_families().values()}

#: family whose phases are repeated -> settings of their epochs; the sum of ``asc_cycles`` says how often
_REPEATED = {"asc_net": ("asc_discriminator_epochs", "asc_main_epochs")}

#: keys of a model that choose the maps of ``ablation.AblationTrainer``
_ABLATION_KEYS = ("channel", "weight", "mask_known", "larger_of")
#: keys of a model that say which pre-stage it has, and how that is trained
_DETECTOR_KEYS = ("family", "detector", "margin", "augmentation")

_PASTED = ("paste_anomalies",)
#: settings that models may differ in; the others are the pre-stage's, or would leave budget and seed
_OF_ALL = ("segmentation_learning_rate", "num_epochs", *_PASTED)
_OF_PLANNED = ("mirror_axes",)
_OF_AWARE = ("alpha", "beta", "error_channel")
#: of the pre-stage and of the network that its detector goes into
_OF_BOTH = ("detector_resolution",)
_OF_SLICES = tuple(MASK_RCNN)

#: trainers on nnU-Net's planned network
_PLANNED = ("AnomalyAwareTrainer", "AnomalyAwarePublishedTrainer")

#: nnU-Net's own trainer, with a budget and a seed
PLAIN = "BudgetedNNUNetTrainer"

#: the paper's 50 voxels in a slice of the OAI's images
MARGIN_MM = 50 * 0.3646

#: without --models: nnU-Net as it is, which mirrors; and first, as the one that the others are tested against, without
DEFAULTS = ("no_mirroring=nnUNetTrainer:mirror_axes=[]", "nnUNetTrainer", "AnomalyAwareTrainer")

#: each part of the method alone, together, and in other forms, from plain nnU-Net to the upper bound
ABLATIONS = (
    "no_mirroring=nnUNetTrainer:mirror_axes=[]",  # first, as what the others are tested against: none of them mirrors
    "nnUNetTrainer",
    "channel_only=AnomalyAwareTrainer:weight=none",
    "focal_only=AnomalyAwareTrainer:channel=none",
    "AnomalyAwareTrainer",
    "AnomalyAwarePublishedTrainer",
    "cross_entropy_x10=AnomalyAwareTrainer:channel=none,weight=none,alpha=10",
    "beta_999=AnomalyAwareTrainer:beta=999",
    "squared=AnomalyAwareTrainer:error_channel=squared",
    "signed=AnomalyAwareTrainer:error_channel=signed",
    "brighter=AnomalyAwareTrainer:channel=brighter,weight=brighter",
    "darker=AnomalyAwareTrainer:channel=darker,weight=darker",
    "short_detector=AnomalyAwareTrainer:detector=0.1",
    "medium_detector=AnomalyAwareTrainer:detector=0.3",
    "no_augmentation=AnomalyAwareTrainer:augmentation=off",
    "narrow=AnomalyAwareTrainer:margin=6",
    "shuffled=AnomalyAwareTrainer:channel=shuffled,weight=shuffled",
    "mask_known=AnomalyAwareTrainer:mask_known=true",
)


@dataclass(frozen=True)
class Detector:
    """How a pre-stage is trained; models with an equal one share it.

    Attributes:
        share: of the pre-stage's iterations.
        margin_mm: by which the foreground is dilated before it is erased; of the inpainting family.
        augmentation: "on" or "off"; None: as the plans have it, off for whole images; of the inpainting family.
        family: in the registry.
        seed: of the training.
        settings: of its own, name and value.
    """

    share: float = 1.0
    margin_mm: float = MARGIN_MM
    augmentation: str | None = None
    family: str = DEFAULT_DETECTOR
    seed: int = 0
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def trainer(self) -> str:
        """The class that nnU-Net is given."""
        return detector_families()[self.family].trainer

    @property
    def name(self) -> str:
        """In files."""
        parts = [f"{'detector' if self.family == DEFAULT_DETECTOR else self.family}{round(100 * self.share)}"]
        parts += [f"margin{self.margin_mm:g}".replace(".", "p")] if self.margin_mm != MARGIN_MM else []
        parts += [f"augmentation_{self.augmentation}"] if self.augmentation else []
        parts += [re.sub(r"[^A-Za-z0-9]+", "", f"{name}{value}") for name, value in self.settings]
        parts += [f"seed{self.seed}"] if self.seed else []
        return "_".join(parts)

    @property
    def of_slices(self) -> bool:
        """Whether it takes whole slices, and the bones that another detector segments."""
        return detector_class(self.family).contract.dimensions == (2,)

    @property
    def cycles(self) -> int:
        """How often its phases are repeated."""
        return sum(dict(self.settings).get("asc_cycles", default("asc_cycles"))) if self.family in _REPEATED else 1

    @property
    def configuration(self) -> str:
        """Name of its configuration in the plans."""
        return f"{'2d' if self.of_slices else '3d'}_{self.name}"

    def epochs(self, budget: Sequence[int], per_epoch: int) -> dict[str, int]:
        """Whole epochs of each phase by its setting, one at least, for the iterations of a full pre-stage's phases.

        The iterations are those of the inpainting family's phases; another family shares out their sum as its
        defaults do, over all its cycles.
        """
        phases = getattr(getattr(trainers, self.trainer), "phase_settings", {"": "num_epochs"})
        settings = _REPEATED.get(self.family, tuple(phases.values()))
        if self.family != DEFAULT_DETECTOR:
            shares = np.array([known_settings()[name].default for name in settings], dtype=float)
            budget = (sum(budget) * shares / shares.sum() / self.cycles).tolist()
        epochs = [max(1, round(self.share * iterations / per_epoch)) for iterations in budget]
        return dict(zip(settings, epochs, strict=True))

    def title(self, budget: Sequence[int], per_epoch: int) -> str:
        """In tables; another one for each detector, also where shares come to the same whole epochs."""
        iterations = " + ".join(str(epochs * per_epoch) for epochs in self.epochs(budget, per_epoch).values())
        share = f" (for {round(100 * self.share)} %)" if self.share != 1 else ""
        parts = [self.family] if self.family != DEFAULT_DETECTOR else []
        repeated = f" in each of {self.cycles} cycles" if self.cycles > 1 else ""
        parts += [f"{iterations} iterations{repeated}{share}"]
        parts += [f"margin {self.margin_mm:g} mm"] if self.family == DEFAULT_DETECTOR else []
        parts += [f"augmentation {self.augmentation}"] if self.augmentation else []
        parts += [f"{name} {value}" for name, value in self.settings]
        return ", ".join(parts + ([f"seed {self.seed}"] if self.seed else []))


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        name: in tables and files.
        trainer: the class that nnU-Net is given; that of the pre-stage for a detector alone.
        settings: of the section ``anomaly`` of its configuration; what makes up the method in full.
        ablation: of the section ``ablation``.
        detector: where its error images come from; None if it has none.
    """

    name: str
    trainer: str
    settings: dict[str, Any] = field(default_factory=dict)
    ablation: dict[str, Any] = field(default_factory=dict)
    detector: Detector | None = None

    @property
    def segments(self) -> bool:
        """Whether a segmenter is trained, and not a detector alone."""
        return self.trainer not in DETECTOR_TRAINERS

    @property
    def of_slices(self) -> bool:
        """Whether its segmenter takes slices."""
        return self.trainer in TRAINERS and self.segments and SEGMENTERS[TRAINERS[self.trainer].family].of_slices

    @property
    def mirrors(self) -> bool:
        """Whether it is nnU-Net's own with the mirroring that nnU-Net plans."""
        return self.trainer == PLAIN and "mirror_axes" not in self.settings

    @property
    def mask_known(self) -> bool:
        """Whether it sees the hole mask as one more image channel."""
        return bool(self.ablation.get("mask_known"))

    @property
    def detectors(self) -> tuple[Detector, ...]:
        """That of its error images, and the one whose map counts where it is larger."""
        other = self.ablation.get("larger_of")
        found = (self.detector, Detector(family=other) if other else None)
        return tuple(detector for detector in found if detector)


def parse_model(word: str) -> Model:
    """``TRAINER``, ``NAME=TRAINER`` or ``NAME=TRAINER:KEY=VALUE,...`` as a model.

    Keys are settings of the trainer; ``channel``, ``weight``, ``mask_known`` and ``larger_of`` of
    ``ablation.AblationTrainer``; and of its pre-stage ``detector``, the share of the iterations, ``margin`` in mm and
    ``augmentation``, on or off. Values are JSON, or plain words. The pre-stage's own trainer stands for a detector
    without a segmentation.

    Raises: UserError for whatever is unknown, or has no effect on that trainer.
    """
    head, _, tail = word.partition(":")
    name, _, trainer = head.rpartition("=")
    name = name or trainer
    if not re.fullmatch(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*", name):
        raise UserError(f"the model's name '{name}' is not usable; expected letters, digits and single underscores")
    options = {}
    for option in re.findall(r"[^,\[{]+(?:\[[^\]]*\]|\{[^}]*\})?", tail):
        key, _, value = option.partition("=")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    if trainer != "nnUNetTrainer" and (trainer not in TRAINERS or "Transfer" in trainer):
        raise UserError(
            f"the model '{word}' names the trainer {trainer}; expected nnUNetTrainer, {', '.join(_PLANNED)}, one of "
            "the published UNETTrainer, UNETPlusTrainer, UNETSTrainer, CANTrainer, CANPlusTrainer, CANSTrainer, "
            "MaskRCNNTrainer and IMaskRCNNTrainer, or "
            f"{' or '.join(DETECTOR_TRAINERS)} for a detector alone"
        )
    aware = trainer in (*_PLANNED, "UNETSTrainer", "CANSTrainer")
    alone = trainer in DETECTOR_TRAINERS
    with_detector = aware or alone
    known = [*((*_OF_AWARE, *_OF_BOTH) if aware else ()), *(_DETECTOR_KEYS if with_detector else ())]
    known += _own_settings(DETECTOR_TRAINERS[trainer]) if alone else _OF_ALL
    known += _OF_PLANNED if trainer in ("nnUNetTrainer", *_PLANNED) else ()
    known += _OF_SLICES if trainer in ("MaskRCNNTrainer", "IMaskRCNNTrainer") else ()
    known += _ABLATION_KEYS if trainer == "AnomalyAwareTrainer" else ()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(
            f"the model '{word}' changes {', '.join(unknown)}; of {trainer} can be changed: {', '.join(sorted(known))}"
        )
    of_detector = {key: options.pop(key) for key in _DETECTOR_KEYS if key in options}
    own = {key: options.pop(key) for key in [*options] if alone}
    own |= {key: options[key] for key in _OF_BOTH if key in options}
    for key, value in {**own, **options}.items():
        if key not in _ABLATION_KEYS and not known_settings()[key].check(value):
            raise UserError(f"the model '{word}' has {key} {value!r}; expected {known_settings()[key].accepts}")
    detector = _detector(word, of_detector | ({"family": DETECTOR_TRAINERS[trainer]} if alone else {}), own)
    ablation = {key: options.pop(key) for key in _ABLATION_KEYS if key in options}
    check_choices(ablation)
    if ablation.get("mask_known") and detector.margin_mm != MARGIN_MM:
        raise UserError(f"the model '{word}' has a mask and a margin; expected one of them: the mask's is fixed")
    if trainer == "nnUNetTrainer":
        return Model(name, PLAIN, options)
    # Also where a model leaves them at their default, which another version may change.
    noted = (
        *(_PASTED if not alone else ()),
        *(_OF_AWARE if aware else ()),
        *(_OF_PLANNED if trainer in _PLANNED else ()),
    )
    settings = {key: getattr(getattr(trainers, trainer), key) for key in noted} | options
    if aware and detector.family != DEFAULT_DETECTOR:
        settings["detector"] = detector.family
    trainer = "AblationTrainer" if ablation else trainer
    return Model(name, trainer, settings, ablation, detector if with_detector else None)


def _own_settings(family: str) -> tuple[str, ...]:
    """Settings that its training may have: those of its table that are no budget, and the learning rate."""
    table = setting_tables(detector_families()).get(family, {})
    return "prestage_learning_rate", *(name for name in table if not name.endswith("_epochs"))


def _detector(word: str, options: dict[str, Any], own: dict[str, Any]) -> Detector:
    share, margin = options.get("detector", 1.0), options.get("margin", MARGIN_MM)
    if not isinstance(share, (int, float)) or not 0 < share <= 1 or abs(100 * share - round(100 * share)) > 1e-9:
        raise UserError(f"the model '{word}' has a detector of {share}; expected a share from 0.01 to 1 in hundredths")
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < 1000:
        raise UserError(f"the model '{word}' has a margin of {margin}; expected mm from 0")
    if options.get("augmentation") not in (None, "on", "off"):
        raise UserError(f"the model '{word}' has the augmentation {options['augmentation']}; expected on or off")
    family = options.get("family", DEFAULT_DETECTOR)
    if family not in detector_families():
        raise UserError(f"the model '{word}' has the family {family}; expected {', '.join(detector_families())}")
    if family != DEFAULT_DETECTOR and {"margin", "augmentation"} & set(options):
        raise UserError(f"the model '{word}' has a margin or an augmentation; expected none with the family {family}")
    settings = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in sorted(own.items()))
    return Detector(float(share), float(margin), options.get("augmentation"), family, settings=settings)


def parse_models(words: Sequence[str]) -> list[Model]:
    """Several models; each word as ``parse_model`` takes it.

    Raises: UserError if two have the same name.
    """
    models = [parse_model(word) for word in words]
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"several models are called {', '.join(twice)}; give them names: NAME=TRAINER:KEY=VALUE")
    return models
