"""A trained detector on its way from its pre-stage to a segmentation: what it is, what it saw, how good it is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.base import Contract, Detector
from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.files import written_beside
from nnunetv2_anomaly.training.checkpoints import DETECTOR_KEY, first_difference
from nnunetv2_anomaly.training.safe_loading import load_file

_PREFIX = "detector."


@dataclass(frozen=True)
class Artefact:
    """A trained detector and what is known of it."""

    contract: Contract
    state: Mapping[str, Tensor]
    fitted_on: frozenset[str]  # cases of every fitted part: networks, bone model, reference set, threshold
    data: Mapping[str, Any] | None  # training/data_record.py's record of what it saw
    quality: Mapping[str, float]  # numbers by name, unitless; ``quality.describe_quality`` reads them
    sources: Mapping[str, str]  # external weights -> SHA-256
    comparable: bool  # False where a part is random or a stand-in, so that its quality says nothing of the method
    finished: bool  # False while its training has phases left
    threshold: Mapping[str, Any] | None = None  # of its maps, for lesions: ``thresholds.fit_threshold``
    path: Path | None = None  # the checkpoint that it comes from

    def description(self) -> dict[str, Any]:
        """What stands under ``DETECTOR_KEY``: all but the weights, in plain numbers, text and containers of them."""
        return {
            "contract": asdict(self.contract),
            "fitted_on": sorted(self.fitted_on),
            "data": self.data,
            "quality": dict(self.quality),
            "sources": dict(self.sources),
            "comparable": self.comparable,
            "finished": self.finished,
            "threshold": None if self.threshold is None else dict(self.threshold),
        }


def detector_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The detector's part of a network's weights; all of them where the network is a detector."""
    part = {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}
    return part or dict(weights)


def detector_of(network: nn.Module) -> Detector | None:
    """The detector in a network, or the network where it is one; None where there is none."""
    found = network if isinstance(network, Detector) else getattr(network, "detector", None)
    return found if isinstance(found, Detector) else None


def read_artefact(path: Path) -> Artefact:
    """The detector of a checkpoint.

    Raises: UserError if the file cannot be read, describes no detector, or its weights are not finite.
    """
    advice = "remove it and continue the pre-stage from an earlier checkpoint with --c, or train it again"
    checkpoint = load_file(path, advice)
    entry = checkpoint.get(DETECTOR_KEY) if isinstance(checkpoint, dict) else None
    if entry is None:
        writer = checkpoint.get("trainer_name", "unknown") if isinstance(checkpoint, dict) else "unknown"
        fault = f"was written by the trainer {writer} and describes no detector; expected one of a pre-stage"
        raise UserError(f"the checkpoint {path} {fault}, so train that first")
    state = detector_state(checkpoint["network_weights"])
    if not all(torch.isfinite(value).all() for value in state.values()):
        fault = f"the detector in {path} holds weights that are NaN or infinite"
        raise UserError(f"{fault}; expected finite ones, so train the pre-stage again")
    known = {name: entry[name] for name in ("data", "quality", "sources", "comparable", "finished", "threshold")}
    return Artefact(Contract(**entry["contract"]), state, frozenset(entry["fitted_on"]), path=path, **known)


def add_what_validation_found(path: Path, quality: Mapping[str, float], threshold: Mapping[str, Any]) -> None:
    """Add what a validation measured to the description of a checkpoint's detector; the rest stays as it is.

    Raises: UserError if the checkpoint cannot be read.
    """
    checkpoint = load_file(path, "train again")
    checkpoint[DETECTOR_KEY]["quality"].update(quality)
    checkpoint[DETECTOR_KEY]["threshold"] = dict(threshold) or None
    with written_beside(path) as temporary:
        torch.save(checkpoint, temporary)


def find_checkpoint(folder: str | Path, fold: int | str, train_command: str) -> Path:
    """The finished checkpoint of a fold's pre-stage.

    Args:
        folder: the pre-stage's model folder (it holds fold_0 and so on), or one fold's folder.
        fold: number or "all".
        train_command: what to run where it is missing.
    Raises: UserError naming that command if there is no finished pre-stage.
    """
    folder = Path(os.path.expandvars(folder)).expanduser()
    fold_folder = folder / f"fold_{fold}"
    if not fold_folder.is_dir() and (folder / "checkpoint_final.pth").is_file():
        fold_folder = folder
    final = fold_folder / "checkpoint_final.pth"
    if final.is_file():
        return final
    unfinished = any((fold_folder / name).is_file() for name in ("checkpoint_latest.pth", "checkpoint_best.pth"))
    state = "is not finished" if unfinished else "has not been trained"
    needed = f"{final} does not exist, and the anomaly-aware segmentation needs its detector"
    command = f"{train_command}{' --c' if unfinished else ''}"
    raise UserError(f"the pre-stage of fold {fold} {state}: {needed}; run: {command}")


def install_detector(detector: Detector, artefact: Artefact) -> None:
    """Load trained weights into a detector.

    Raises: UserError if they are of another family, or of another patch size, network or number of image channels, or
        not trained to the end.
    """
    if artefact.contract != detector.contract:
        found, expected = (f"'{of.family}' ({asdict(of)})" for of in (artefact.contract, detector.contract))
        advice = "set 'detector' in the section 'anomaly' of plans.json, or train its pre-stage"
        fault = f"the detector in {artefact.path} is of the family {found}"
        raise UserError(f"{fault}; expected {expected}, so {advice}")
    if not artefact.finished:
        fault = "was written before its detector was trained; expected a finished pre-stage"
        raise UserError(f"the checkpoint {artefact.path} {fault}, so continue it with --c")
    difference = first_difference(artefact.state, detector.state_dict())
    if difference:
        expected = "a pre-stage with the same patch size, strides, image channels and detector settings"
        fault = f"the detector in {artefact.path} does not fit: {difference}; expected {expected}"
        raise UserError(f"{fault}, so train it with the same plans and configuration")
    detector.load_state_dict(artefact.state)


def check_fold_rule(artefact: Artefact, validation_cases: Iterable[str], allowed: bool) -> str | None:
    """Check that no part of a detector was fitted on the fold's validation cases (method paper, stage 2).

    Returns: None where the rule holds; where it is broken and ``allowed``, the sentence for the log.
    Raises: UserError where it is broken and not allowed.
    """
    seen = sorted(artefact.fitted_on.intersection(validation_cases))
    if not seen:
        return None
    cases = f"{len(seen)} of this fold's validation cases ({listed(seen)})"
    fact = f"the detector in {artefact.path} was trained on {cases}"
    setting = "'allow_detector_trained_on_validation_cases'"
    if allowed:
        return f"{fact}; accepted because {setting} is set"
    advice = f"train the pre-stage for this fold, or set {setting} to true in the section 'anomaly' of plans.json"
    raise UserError(f"{fact}; expected a detector that never saw them, so {advice}")
