"""config.yaml of a workflow: read and checked; the environment and resources of its steps."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from nnunetv2_anomaly.environment import FOLDER_VARIABLES, environment_folder, nnunet_environment
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.registry import DEFAULT_DETECTOR, SEGMENTERS, TRAINERS, detector_families
from nnunetv2_anomaly.workflows.steps import PLANS, Dataset

#: file of a workflow's folder that says what is done
CONFIG = "config.yaml"
HERE = Path(__file__).resolve().parent
SNAKEFILE = HERE / "Snakefile"
#: what bash reads before every command
PREFIX = f"source {shlex.quote(str(HERE / 'step.sh'))};"

COHORT, PUBLISHED_CHAIN = "cohort", "published_chain"
#: kinds of steps, by which resources are given
KINDS = ("convert", "plan", "preprocess", "train", "predict", "measure", "report")


@dataclass(frozen=True)
class Shared:
    """What every workflow's config.yaml holds; paths are relative to its folder."""

    plans: str = PLANS
    configuration: str = "3d_fullres"
    device: str = "cuda"
    base: str | None = None  # holds nnU-Net's three folders; None: as their environment variables say
    processes: int = 2  # of commands that take -np
    variables: Mapping[str, Any] = field(default_factory=dict)  # environment of all commands
    resources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # kind -> threads, mem_mb, runtime, gpu

    def data_set(self, name: str) -> Dataset:
        """A data set in the workflow's nnU-Net folders."""
        if self.base is not None:
            return Dataset.below(Path(self.base), name)
        return Dataset(name, *(environment_folder(variable) for variable in FOLDER_VARIABLES))


@dataclass(frozen=True)
class Cohort(Shared):
    """Images, or a data set, from conversion to one report."""

    dataset: str = ""  # DatasetXXX_Name
    title: str = "Cohort"
    #: texts of the report: its first sentence, its third, and paragraphs on what was compared; by default its own
    compared: str = ""
    worth: str = ""
    notes: tuple[str, ...] = ()
    convert: str | None = None  # the command that makes the raw data set; None: it is there
    plan_changes: str | None = None  # JSON that makes ``plans`` from nnU-Net's (nnUNetv2_anomaly change_plans)
    detector: str = DEFAULT_DETECTOR
    trainers: Mapping[str, str] = field(default_factory=dict)  # name in tables -> trainer; the first is the baseline
    folds: tuple[str, ...] = ("0", "1", "2", "3", "4")
    images: str | None = None  # folder of new images; None: the folds' validation cases are evaluated
    references: str | None = None  # their labels; None: nothing to compare with
    anomalies: str | None = None  # true lesions of new images that no label has, as of simulated knees
    parts: int = 1  # in which images are predicted, cleaned, measured and evaluated
    anomaly_maps: bool = False  # of the images, by the detector
    #: further options of the verbs; None leaves the verb out
    postprocess: str | None = ""
    measure: str | None = ""
    evaluate: str | None = ""


@dataclass(frozen=True)
class Chain(Shared):
    """The chain of trainings that the method's paper publishes."""

    zib: int = 501
    uq: int = 502
    akoa: int = 503
    networks: tuple[str, ...] = ()


_CLASSES: dict[str, type[Shared]] = {COHORT: Cohort, PUBLISHED_CHAIN: Chain}


def read_configuration(folder: Path) -> dict[str, Any]:
    """config.yaml of a workflow's folder. Raises: UserError if it is missing or no YAML."""
    import yaml

    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"{folder} has no {CONFIG}; make one with nnUNetv2_anomaly workflow init -o {folder}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no YAML ({str(error).partition(chr(10))[0]}); correct it") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no settings; expected NAME: VALUE in each line")
    return content


def parsed(config: Mapping[str, Any]) -> Cohort | Chain:
    """The settings of config.yaml.

    Raises: UserError for a setting that does not exist or has a value of another kind, or a trainer or detector that
        this workflow cannot train.
    """
    name = config.get("workflow", COHORT)
    if name not in _CLASSES:
        raise UserError(f"{CONFIG}: workflow is {name}; expected {' or '.join(_CLASSES)}")
    of_class, found = _CLASSES[name], {}
    known = {of.name: of for of in fields(of_class)}
    for key, value in config.items():
        if key == "workflow":
            continue
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UserError(f"{CONFIG}: there is no setting {key}; expected {near[0] if near else ', '.join(known)}")
        found[key] = _checked(key, value, known[key])
    settings = of_class(**found)
    assert isinstance(settings, Cohort | Chain)
    if unknown := sorted(set(settings.resources) - {*KINDS, "default"}):
        raise UserError(f"{CONFIG}: resources has {unknown[0]}; expected default, {', '.join(KINDS)}")
    if settings.device not in ("cuda", "cpu", "mps"):
        raise UserError(f"{CONFIG}: device is {settings.device}; expected cuda, cpu or mps")
    return settings


def _checked(key: str, value: Any, of: Any) -> Any:
    """The value of one setting, sequences as tuples of text. Raises: UserError if it is of another kind."""
    default = of.default_factory() if of.default is MISSING else of.default
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(map(str, value))
    if key == "trainers" and isinstance(value, list):
        value = {name: name for name in value}
    kinds = {int: (int,), bool: (bool,), str: (str,), dict: (dict,), type(None): (str,), tuple: (tuple,)}
    accepted = kinds[type(default)]
    optional = default is None or of.type.endswith("| None")
    if not (isinstance(value, accepted) and (bool in accepted or not isinstance(value, bool))):
        if value is None and optional:
            return None
        wanted = {int: "a whole number", bool: "true or false", str: "text", dict: "NAME: VALUE pairs", tuple: "a list"}
        raise UserError(f"{CONFIG}: {key} is {value!r}; expected {wanted[accepted[0]]}")
    if isinstance(value, int) and accepted == (int,) and value < 1:
        raise UserError(f"{CONFIG}: {key} is {value}; expected 1 or more")
    return value


def environment_of(config: Mapping[str, Any], folder: str) -> dict[str, str]:
    """Environment variables of all steps: nnU-Net's folders and trainers, our commands before others in PATH."""
    base = config.get("base")
    environment = nnunet_environment(None if base is None else Path(folder, base), **config.get("variables") or {})
    beside_python = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join((beside_python, os.environ.get("PATH", "")))
    return environment


def environment_lines(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """What a user types before the commands of the steps."""
    environment = environment_of(config, str(folder.resolve()))
    changed = sorted(name for name, value in environment.items() if os.environ.get(name) != value)
    return [
        f"cd {shlex.quote(str(folder.resolve()))}",
        *(f"export {of}={shlex.quote(environment[of])}" for of in changed),
    ]


def resources_of(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """threads, mem_mb, runtime in minutes, gpu and others of a kind of step."""
    given = config.get("resources") or {}
    return {**(given.get("default") or {}), **(given.get(kind) or {})}


def detector_trainer(family: str) -> str:
    """The trainer of a family of detectors. Raises: UserError if there is none of that name."""
    families = detector_families()
    if family not in families:
        raise UserError(f"{CONFIG}: detector is {family}; expected one of {', '.join(families)}")
    return families[family].trainer


def check_trainers(settings: Cohort) -> None:
    """Check that a cohort's trainers are segmenters that it can train.

    Raises: UserError if there is none, one is named twice, is a detector's, a transfer's or of slices in a 3d
        configuration, or has nearly the name of one of ours.
    """
    named = list(settings.trainers.values())
    if not named:
        raise UserError(f"{CONFIG}: trainers names none; expected one or several, such as [AnomalyAwareTrainer]")
    for trainer in named:
        known = TRAINERS.get(trainer)
        if named.count(trainer) > 1:
            raise UserError(f"{CONFIG}: trainers names {trainer} twice; expected each once")
        if known is None:
            if near := difflib.get_close_matches(trainer, TRAINERS, n=1, cutoff=0.85):
                raise UserError(f"{CONFIG}: there is no trainer {trainer}; expected {near[0]}, or one of another name")
        elif known.family not in SEGMENTERS:
            raise UserError(f"{CONFIG}: trainers names a detector's trainer, {trainer}; expected segmenters")
        elif known.module == "transfer":
            raise UserError(f"{CONFIG}: {trainer} begins with weights of another data set, which a cohort has none of")
        elif SEGMENTERS[known.family].of_slices and not settings.configuration.startswith("2d"):
            fault = f"{trainer} takes slices, and configuration is {settings.configuration}"
            raise UserError(f"{CONFIG}: {fault}; expected 2d, or another trainer")


def needs_detector(trainer: str) -> bool:
    """Whether a training starts from a trained detector of its fold."""
    return trainer in TRAINERS and TRAINERS[trainer].anomaly_aware and TRAINERS[trainer].module != "transfer"
