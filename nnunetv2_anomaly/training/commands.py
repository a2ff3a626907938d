"""The nnU-Net command that a user has to run, in words."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def train_command(trainer: nnUNetTrainer, trainer_name: str, fold: int | str | None = None) -> str:
    """``nnUNetv2_train`` for another trainer on the same data set, plans and configuration.

    Args: trainer: that runs now. trainer_name: the class to train. fold: another fold; None for the same.
    Returns: the command, without the options that have nnU-Net's default.
    """
    plans, device = trainer.plans_manager, trainer.device.type
    number = int(plans.dataset_name[len("Dataset") :].split("_")[0])
    command = f"nnUNetv2_train {number} {trainer.configuration_name} {trainer.fold if fold is None else fold}"
    options = f" -p {plans.plans_name}" if plans.plans_name != "nnUNetPlans" else ""
    options += f" -device {device}" if device != "cuda" else ""
    return f"{command} -tr {trainer_name}{options}"
