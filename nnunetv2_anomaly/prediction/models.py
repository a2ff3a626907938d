"""Loads a trained model through nnU-Net's own predictor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_anomaly.environment import environment_folder, let_nnunet_find_trainers
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import read_json
from nnunetv2_anomaly.plans.settings import check_configuration
from nnunetv2_anomaly.training.safe_loading import UNREADABLE, first_line, load_file


def trained_folds(model_folder: Path, checkpoint: str = "checkpoint_final.pth") -> list[int | str]:
    """The folds of a model that have a checkpoint: numbers, or "all" where there is no other."""
    names = [path.parent.name.removeprefix("fold_") for path in sorted(model_folder.glob(f"fold_*/{checkpoint}"))]
    return [int(name) for name in names if name.isdecimal()] or [*names]


def load_model(
    model_folder: Path, *, folds: Sequence[int | str], device: torch.device, checkpoint: str = "checkpoint_final.pth"
) -> nnUNetPredictor:
    """nnU-Net's predictor with the network of the first of some folds, and the weights of all (``each_fold``).

    Raises: UserError if the folder holds no such model, or its checkpoint cannot be read, is none, or does not fit the
        plans beside it.
    """
    let_nnunet_find_trainers()
    for path in filter(Path.is_file, (model_folder / f"fold_{fold}" / checkpoint for fold in folds)):
        # Before nnU-Net, which would run what a hostile file names, and fail in many ways at one that is no checkpoint.
        content = load_file(path, "give another model or checkpoint, or train it again")
        needed = ("network_weights", "init_args", "trainer_name")
        if not (isinstance(content, dict) and content.keys() >= set(needed)):
            raise UserError(f"{path} is no checkpoint of nnU-Net's; expected one with {', '.join(needed)}")
        try:
            recursive_find_trainer_class_by_name(content["trainer_name"])
        except RuntimeError as error:
            fault = f"{path} was written by the trainer {content['trainer_name']}, which nnU-Net does not find here"
            advice = "install the package that brings it, or give another model"
            raise UserError(f"{fault} ({first_line(error)}); {advice}") from error
    predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    try:
        predictor.initialize_from_trained_model_folder(str(model_folder), tuple(folds), checkpoint)
        for _ in each_fold(predictor):
            pass  # their weights fit
    except UserError:
        raise
    except (*UNREADABLE, AssertionError) as error:
        model = f"the model in {model_folder}, fold {' '.join(map(str, folds))}, {checkpoint}"
        expected = "a model folder of nnU-Net with the plans.json and dataset.json that the checkpoint was trained with"
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{model} cannot be loaded ({reason}); expected {expected}") from error
    check_configuration(predictor.configuration_manager.configuration)
    # nnU-Net does both where its sliding window begins, which is not the only way that a detector is asked.
    predictor.network.to(device).eval()
    return predictor


def untrained_model(
    dataset: str, *, configuration: str, plans: str, trainer: str, device: torch.device
) -> nnUNetPredictor:
    """The same with a network that nothing was trained of, for the preprocessed data set.

    Args: dataset: its name, as nnU-Net's folders have it. trainer: whose network it is.
    Raises: UserError if it was not planned.
    """
    let_nnunet_find_trainers()
    folder = environment_folder("nnUNet_preprocessed") / dataset
    plans_manager, dataset_json = PlansManager(read_json(folder / f"{plans}.json")), read_json(folder / "dataset.json")
    if configuration not in plans_manager.available_configurations:
        known = ", ".join(plans_manager.available_configurations)
        raise UserError(f"{folder / f'{plans}.json'} has no configuration {configuration}; expected one of {known}")
    configuration_manager = plans_manager.get_configuration(configuration)
    check_configuration(configuration_manager.configuration)
    num_channels = determine_num_input_channels(plans_manager, configuration_manager, dataset_json)
    heads = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
    found = recursive_find_trainer_class_by_name(trainer)
    network = found.build_network_architecture(plans_manager, configuration_manager, num_channels, heads, False)
    predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    planned = plans_manager, configuration_manager, [network.state_dict()], dataset_json
    predictor.manual_initialization(network.to(device).eval(), *planned, trainer, None)
    return predictor


def each_fold(predictor: nnUNetPredictor) -> Iterator[None]:
    """Put the weights of one fold after the other into the predictor's network, which may be compiled."""
    network = getattr(predictor.network, "_orig_mod", predictor.network)
    for weights in predictor.list_of_parameters:
        network.load_state_dict(weights)
        yield
