"""Looks into a model that somebody else has made: is it whole, what is it, would it run code, how good is its detector?

nnU-Net loads checkpoints with ``torch.load(weights_only=False)``, which calls whatever they name: a checkpoint is a
program. Here torch's restricted loader reads them. Nothing of the model is executed, imported or unpacked.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_anomaly.detectors.quality import describe_quality
from nnunetv2_anomaly.environment import FOLDER_VARIABLES, TRAINER_VARIABLE
from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.inspection import members
from nnunetv2_anomaly.inspection.disclosure import disclosures
from nnunetv2_anomaly.inspection.findings import Finding, warning_if
from nnunetv2_anomaly.inspection.installation import SET_TRAINERS, find_trainer
from nnunetv2_anomaly.plans.settings import SECTION, check_configuration, section_of
from nnunetv2_anomaly.registry import DETECTORS, TRAINERS
from nnunetv2_anomaly.training.checkpoints import DETECTOR_KEY
from nnunetv2_anomaly.training.safe_loading import first_line, shown

#: the last line of the report, without and with a fault
VERDICTS = (
    "no fault found, which is no proof that its author means well",
    "this model should not, or could not, be used here",
)

_NAME = r"(?:(?!__)[^/])+"
_MODEL = re.compile(rf"(?:.*/)?(Dataset\d{{3}}_[^/]+)/({_NAME})__{_NAME}__({_NAME})/")
_CHECKPOINT = re.compile(r"(?P<model>(?:.*/)?)fold_(?P<fold>\d+|all)/checkpoint_\w+\.pth")
#: classes and layers that plans may name. Exact depth: a longer path leads out of a module into what that has imported
_KNOWN_CLASS = re.compile(
    r"(?:torch\.nn(?:\.modules\.\w+)?|dynamic_network_architectures\.(?:architectures|building_blocks)\.\w+"
    r"|nnunetv2_anomaly\.(?:networks|segmenters)\.\w+)\.[A-Z]\w*"
)


def inspect_model(path: Path) -> list[Finding]:
    """Look into a model: a zip file of nnUNetv2_export_model_to_zip, a folder with models, or a checkpoint (.pth).

    Raises: UserError if there is nothing at the path that could be a model.
    """
    path = path.expanduser()
    expected = "expected the zip file of an exported model, a model folder, or a checkpoint (.pth)"
    if not path.exists():
        raise UserError(f"{path} does not exist; {expected}")
    no_model = f"{path} holds no plans.json, and so no model of nnU-Net's; {expected}"
    try:
        if path.is_dir():
            findings, files = members.folder_members(path)
            return [*findings, *_inspect_members(files, path, no_model)]
        with path.open("rb") as file:
            if path.suffix.lower() in members.CHECKPOINT_SUFFIXES or members.is_torch_archive(file):
                return list(_inspect_single(path))
            with zipfile.ZipFile(file) as archive:
                findings, files = members.zip_members(archive)
                return [*findings, *_inspect_members(files, None, no_model)]
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path} is no zip file, or not a whole one ({first_line(error)}); {expected}") from error


def _inspect_single(path: Path) -> Iterator[Finding]:
    """One checkpoint alone; its plans are those that it was trained with."""
    findings, content = members.inspect_member(members.Member("x.pth", lambda: path.open("rb")), shown(path.name))
    yield from findings
    yield from disclosures(shown(path.name), content)
    if content is not None:
        yield from _checkpoint_findings(shown(path.name), content)
        told = _facts(content)
        yield _trainer_finding(told["trainer"], None)
        yield from _plans_findings("the plans in the checkpoint", told["plans"], told["configuration"])


def _inspect_members(files: list[members.Member], folder: Path | None, no_model: str) -> Iterator[Finding]:
    """Every file, then every model. folder: that was given; None for a zip file."""
    prefixes = [m.name.removesuffix("plans.json") for m in files if m.name.rpartition("/")[2] == "plans.json"]
    if not prefixes:
        raise UserError(no_model)
    contents: dict[str, Any] = {}  # of JSON files; of checkpoints what they say of their training
    for member in files:
        label = shown(member.name.removeprefix(prefixes[0] if len(prefixes) == 1 else ""))
        findings, content = members.inspect_member(member, label)
        yield from findings
        yield from disclosures(label, content)
        if content is not None and not member.name.endswith(".json"):
            yield from _checkpoint_findings(label, content)
            content = _facts(content)
        contents[member.name] = content
    for prefix in prefixes:
        yield from _model_findings(prefix, contents, folder)


def _model_findings(prefix: str, contents: Mapping[str, Any], folder: Path | None) -> Iterator[Finding]:
    """What a model is, whether it is whole, and whether its parts belong together."""
    place = prefix if folder is None else "/".join((*folder.resolve().parts[-2:], prefix))
    named = _MODEL.fullmatch(place)
    dataset, trainer, configuration = named.groups() if named else (None, None, None)
    if named is None and (folder is None or prefix):  # nnU-Net predicts from a folder of any name
        text = f"plans.json lies at {shown(prefix)}plans.json; expected DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION/"
        yield Finding("model", "fault", text, "ask for a zip file of nnUNetv2_export_model_to_zip")
    checkpoints = [found for name in contents if (found := _CHECKPOINT.fullmatch(name)) and found["model"] == prefix]
    text = f"{shown(dataset or place)}: trainer {shown(trainer)}, configuration {shown(configuration)}"
    if checkpoints:
        folds = ", ".join(sorted({found["fold"] for found in checkpoints}))
        yield Finding("model", "ok", f"{text}, folds {folds}")
    else:
        yield Finding("model", "fault", f"{text}, without a checkpoint", members.FETCH_AGAIN)
    facts = {found[0]: contents[found[0]] for found in checkpoints if contents[found[0]]}
    for name in dict.fromkeys(str(fact["trainer"]) for fact in facts.values()):
        yield _trainer_finding(name, folder)
    plans = contents[prefix + "plans.json"]
    told = next((fact["configuration"] for fact in facts.values()), configuration)  # prediction asks the first one
    yield from _plans_findings(f"{shown(trainer)}'s plans.json" if trainer else "plans.json", plans, told)
    yield _dataset_finding(contents.get(prefix + "dataset.json"))
    yield from _agreement({"trainer": trainer, "configuration": configuration, "plans": plans}, facts)
    if folder is None and dataset is not None:
        yield from _installation_findings(prefix, dataset)


def _facts(checkpoint: Any) -> dict[str, Any]:
    """What a checkpoint says of its training; the weights are let go."""
    checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
    given = checkpoint.get("init_args")
    given = given if isinstance(given, dict) else {}
    return {"trainer": checkpoint.get("trainer_name"), **{n: given.get(n) for n in ("configuration", "fold", "plans")}}


def _checkpoint_findings(label: str, content: Any) -> Iterator[Finding]:
    """Weights and detector of a checkpoint that was read."""
    weights, facts = content.get("network_weights") if isinstance(content, dict) else None, _facts(content)
    said = isinstance(facts["trainer"], str) and isinstance(facts["configuration"], str)
    if not isinstance(weights, dict) or not all(map(_is_stored, weights.values() or [None])) or not said:
        text = f"{label} is no checkpoint of nnU-Net's: it lacks network weights, trainer or configuration"
        yield Finding("weights", "fault", text, "use a checkpoint that nnU-Net has written")
        return
    broken = [shown(name, 60) for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if broken:
        text = f"{label}: {len(broken)} tensors hold NaN or infinity ({listed(broken)})"
        yield Finding("weights", "fault", text, "the training has failed; ask for another checkpoint")
    axes = content.get("inference_allowed_mirroring_axes")
    text = f"{label}: {len(weights)} tensors, trained by {shown(facts['trainer'])} on {shown(facts['configuration'])}"
    mirrors = f"axes {shown(list(axes))}" if axes else "no axis"
    place = f"fold {shown(facts['fold'])}, epoch {shown(content.get('current_epoch'))}"
    yield Finding("weights", "ok", f"{text}, {place}, mirrors {mirrors}")
    yield from _detector_findings(label, content)


def _is_stored(value: Any) -> bool:
    """A plain tensor that is no larger in memory than in the file."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return plain and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _trainer_finding(name: Any, folder: Path | None) -> Finding:
    """Whether nnU-Net finds a trainer in this installation; never in the inspected folder, which it would import."""
    for entry in filter(str.strip, os.environ.get(TRAINER_VARIABLE, "").split(os.pathsep)):
        ours, theirs = (Path(os.path.realpath(place)) if place else None for place in (folder, entry))
        if ours and theirs and (theirs.is_relative_to(ours) or ours.is_relative_to(theirs)):
            text = f"{shown(name)} was not looked up: {TRAINER_VARIABLE} names {entry}, where the inspected files lie"
            return Finding("trainer", "warning", text, f"take {entry} out of {TRAINER_VARIABLE}")
    try:
        return Finding("trainer", "ok", f"{name} in {inspect.getfile(find_trainer(name))}")
    except Exception as error:  # a search imports everybody's trainers, and they fail in many ways
        text = f"{shown(name)} is not found in this installation ({type(error).__name__})"
        remedy = f"{SET_TRAINERS}, or install what brings that trainer; read code that came along first"
        return Finding("trainer", "fault", text, remedy)


def _detector_findings(label: str, content: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the detector travels along, and how good it is; nothing for a model without one."""
    record, trainer = content.get(DETECTOR_KEY), TRAINERS.get(content["trainer_name"])
    remedy = "ask for a checkpoint as the trainer has written it"
    if record is None:
        if trainer and (trainer.anomaly_aware or trainer.family in DETECTORS):
            text = f"{label} holds no detector, although {shown(content['trainer_name'])} needs one"
            yield Finding("detector", "fault", text, remedy)
        return
    try:
        text = f"{label}: {shown(record['contract']['family'])} detector, fitted on {len(record['fitted_on'])} cases"
        finished, comparable = bool(record["finished"]), bool(record["comparable"])
        sentence, beats = describe_quality(record["quality"])
    except (LookupError, TypeError, ValueError) as error:
        text = f"{label} describes its detector in a way that is not ours ({type(error).__name__})"
        yield Finding("detector", "fault", text, remedy)
        return
    if not finished:
        text = f"{text}; its pre-stage was not finished"
        yield Finding("detector", "warning", text, "use the checkpoint_final.pth of a finished pre-stage")
        return
    sentence += "" if comparable else "; a part of it is random or a stand-in, so its figures say nothing of the method"
    sentence += "" if beats else ": no better than those, so its error image may point away from anomalies"
    remedy = "train the pre-stage for longer before you rely on it"
    yield warning_if(not beats, "detector", f"{text}; {sentence}", remedy)


def _plans_findings(label: str, plans: Any, configuration: Any) -> Iterator[Finding]:
    """What plans name that prediction would import and call, and what they are."""
    try:
        for name in _imported_names(plans):
            text = f"{label} names {shown(name)!r}, neither nnU-Net's, torch's nor ours: prediction would import it"
            yield Finding("plans", "fault", text, members.DO_NOT_LOAD)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # plans of older versions are read all the same
            resolved = PlansManager(plans).get_configuration(configuration).configuration
        check_configuration(resolved)
        network = str(resolved["architecture"]["network_class_name"]).rpartition(".")[2]
        text = f"{label}: {shown(plans['plans_name'])}, {shown(configuration)}: {shown(network)}"
        text += f", patch {shown(resolved['patch_size'])}, spacing {shown(resolved['spacing'])} mm"
        text += f", {shown(', '.join(resolved['normalization_schemes']))}"
        if SECTION in resolved:
            text = f"{text}; section '{SECTION}': {shown(json.dumps(section_of(resolved)), 400)}"
        yield Finding("plans", "ok", text)
    except UserError as error:  # of a number or a setting
        yield Finding("plans", "fault", f"{label}: {shown(error, 400)}", "correct it, or ask its author")
    except Exception as error:  # of plans of any form
        text = f"{label} has no configuration {shown(configuration)} that nnU-Net could read ({type(error).__name__}: "
        yield Finding("plans", "fault", f"{text}{first_line(error)})", members.FETCH_AGAIN)


def _imported_names(plans: Any) -> list[Any]:
    """Networks and layers that are imported by their dotted path, and that nobody knows here."""
    names = []
    for configuration in plans["configurations"].values():
        architecture = configuration.get("architecture", {})
        names.append(architecture.get("network_class_name"))
        names += [architecture["arch_kwargs"].get(key) for key in architecture.get("_kw_requires_import", ())]
    return [name for name in names if name is not None and not _KNOWN_CLASS.fullmatch(str(name))]


def _dataset_finding(dataset: Any) -> Finding:
    try:
        channels, labels = dataset.get("channel_names", dataset.get("modality")), dataset["labels"]
        told = f"channels {shown(', '.join(map(str, channels.values())))}; labels {shown(', '.join(labels), 300)}"
        return Finding("plans", "ok", f"dataset.json: {told}; files {shown(dataset['file_ending'])}")
    except (LookupError, AttributeError, TypeError):
        text = "dataset.json is missing, or lacks channel_names, labels or file_ending, which prediction reads"
        return Finding("plans", "fault", text, members.FETCH_AGAIN)


def _agreement(names: Mapping[str, Any], facts: Mapping[str, dict[str, Any]]) -> Iterator[Finding]:
    """Do the checkpoints agree with plans.json and with the folder's name, and so with each other?"""
    agree = bool(facts)
    for place, fact in facts.items():
        told = {**fact, "fold": f"fold_{fact['fold']}"}
        for what, expected in {**names, "fold": place.split("/")[-2]}.items():
            # As JSON: in a checkpoint a list may be a tuple.
            own, other = (json.dumps(of, sort_keys=True, default=str) for of in (told[what], expected))
            if expected is not None and own != other:
                agree = False
                text = f"{shown(place)} was trained with another {what} than its folder or plans.json says"
                yield Finding("agreement", "warning", text, "ask its author which holds, and what was changed")
    if agree:
        yield Finding("agreement", "ok", "checkpoints, plans.json and the folder's name say the same")


def _installation_findings(prefix: str, dataset: str) -> Iterator[Finding]:
    """What nnUNetv2_install_pretrained_model_from_zip would overwrite or confuse in nnU-Net's folders."""
    remedy, texts = "set nnU-Net's folders to other ones before you install it, or move that one away", []
    for folder in (Path(os.environ[variable]) for variable in FOLDER_VARIABLES if os.environ.get(variable)):
        if folder.name and (folder / prefix).is_dir():
            texts.append(f"{folder / prefix} exists; installing would write over its files without asking")
        others = [path.name for path in folder.glob(f"{dataset[:11]}*") if path.name != dataset]
        if others:
            texts.append(f"{folder} holds {shown(others[0])}, of the same number as {shown(dataset)}")
    yield from (Finding("installation", "warning", text, remedy) for text in texts)
