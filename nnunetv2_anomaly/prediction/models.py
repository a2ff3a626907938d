"""Loads a trained model through nnU-Net's own predictor."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_anomaly.environment import let_nnunet_find_trainers
from nnunetv2_anomaly.errors import UserError


def load_model(
    model_folder: Path, *, fold: int | str, device: torch.device, checkpoint: str = "checkpoint_final.pth"
) -> nnUNetPredictor:
    """nnU-Net's predictor with the network of one fold.

    Raises: UserError if the folder holds no such model, or its checkpoint cannot be read.
    """
    let_nnunet_find_trainers()
    predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    try:
        predictor.initialize_from_trained_model_folder(str(model_folder), (fold,), checkpoint)
    except (OSError, EOFError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise UserError(
            f"the model in {model_folder}, fold {fold}, {checkpoint} cannot be loaded ({type(error).__name__}: "
            f"{reason}); expected a model folder of nnU-Net with plans.json, dataset.json and that checkpoint"
        ) from error
    return predictor
