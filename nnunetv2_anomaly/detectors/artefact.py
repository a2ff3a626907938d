"""From the pre-stage to the segmentation: what a pre-stage checkpoint holds, and how the detector is taken out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_anomaly.detectors.inpainting.networks import AnomalyDetector
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.training.checkpoints import entry_of, first_difference, load_file

#: key of a pre-stage checkpoint under which what nnU-Net does not know is kept
CHECKPOINT_KEY = "anomaly"
#: what is under it since the first version; "data" (data_record.py) and the epochs of the phases have come later
ENTRIES = ("distilling", "training_cases", "quality")
PRESTAGE_TRAINER = "AnomalyPreStageTrainer"
TRAIN_AGAIN = "train the pre-stage again"
_PREFIX = "detector."


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A pre-stage checkpoint as a dict, on the CPU.

    Raises: UserError if the file cannot be read or was not written by a pre-stage trainer, or by an older version.
    """
    checkpoint = load_file(
        path, "remove it and continue the pre-stage from an earlier checkpoint with --c, or train it again"
    )
    writer = checkpoint.get("trainer_name", "unknown") if isinstance(checkpoint, dict) else "unknown"
    if not isinstance(checkpoint, dict) or (CHECKPOINT_KEY not in checkpoint and writer != PRESTAGE_TRAINER):
        raise UserError(
            f"the checkpoint {path} was written by the trainer {writer}; expected one of the pre-stage, so train it "
            f"with nnUNetv2_train ... -tr {PRESTAGE_TRAINER}"
        )
    entry_of(checkpoint, CHECKPOINT_KEY, ENTRIES, path, TRAIN_AGAIN)
    return checkpoint


@dataclass(frozen=True)
class TrainedDetector:
    """A detector as the pre-stage left it."""

    path: Path
    state: dict[str, Tensor]
    training_cases: list[str]
    quality: dict[str, float]
    #: data_record.py's record of what it saw; None from an older version
    data: dict[str, Any] | None = None


def find_checkpoint(folder: str | Path, fold: int | str, train_command: str) -> Path:
    """The finished checkpoint of a fold.

    Args:
        folder: the pre-stage's model folder (it holds fold_0 and so on), or one fold's folder.
        fold: number or "all".
        train_command: what to tell the user to run where it is missing.
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
    raise UserError(
        f"the pre-stage of fold {fold} {state}: {final} does not exist, and the anomaly-aware segmentation needs its "
        f"detector; run: {train_command}{' --c' if unfinished else ''}"
    )


def read_detector(path: Path) -> TrainedDetector:
    """The detector of a pre-stage checkpoint.

    Raises: UserError if the file is no readable pre-stage checkpoint, A was not yet distilled in it, or its weights
        are not finite.
    """
    checkpoint = read_checkpoint(path)
    extra = checkpoint[CHECKPOINT_KEY]
    if not extra["distilling"]:
        raise UserError(
            f"the checkpoint {path} was written before A was distilled; expected a finished pre-stage, so continue it "
            f"with nnUNetv2_train ... -tr AnomalyPreStageTrainer --c"
        )
    state = {
        name.removeprefix(_PREFIX): value
        for name, value in checkpoint["network_weights"].items()
        if name.startswith(_PREFIX)
    }
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise UserError(
            f"the detector in {path} holds weights that are NaN or infinite; expected finite ones, so {TRAIN_AGAIN}"
        )
    return TrainedDetector(
        path=path,
        state=state,
        training_cases=list(extra["training_cases"]),
        quality=dict(extra["quality"]),
        data=extra.get("data"),
    )


def install_detector(detector: AnomalyDetector, trained: TrainedDetector) -> None:
    """Load the trained weights, and the intensity range with them.

    Raises: UserError if they were trained for another patch size, network or number of image channels.
    """
    difference = first_difference(trained.state, detector.state_dict())
    if difference:
        raise UserError(
            f"the detector in {trained.path} does not fit: {difference}; expected a pre-stage with the same patch "
            f"size, strides, image channels and detector settings, so train it with the same plans and configuration"
        )
    detector.load_state_dict(trained.state)


def check_fold_rule(trained: TrainedDetector, validation_cases: Sequence[str], allowed: bool) -> str | None:
    """A detector must not have seen the fold's validation cases (method paper, stage 2).

    Returns: None where the rule holds; where it is broken and ``allowed``, the sentence for the log.
    Raises: UserError where it is broken and not allowed.
    """
    seen = sorted(set(trained.training_cases) & set(validation_cases))
    if not seen:
        return None
    shown = ", ".join(seen[:5]) + (", ..." if len(seen) > 5 else "")
    fact = f"the detector in {trained.path} was trained on {len(seen)} of this fold's validation cases ({shown})"
    if allowed:
        return f"{fact}; accepted because 'allow_detector_trained_on_validation_cases' is set"
    raise UserError(
        f"{fact}; expected a detector that never saw them, so train the pre-stage for this fold, or set "
        f"'allow_detector_trained_on_validation_cases' to true in the section 'anomaly' of plans.json"
    )


def describe_quality(quality: dict[str, float]) -> tuple[str, bool]:
    """One sentence on the detector's validation quality, and whether it beats a constant and a blurred image."""
    mse, constant, blurred = (quality[name] for name in ("mse_erased", "mse_constant", "mse_blurred"))
    beats = mse < constant and mse < blurred
    sentence = (
        f"MSE inside the erased region on validation patches {mse:.5f}, of a constant image {constant:.5f}, "
        f"of a blurred image {blurred:.5f}"
    )
    return sentence, beats
