"""Where an image's bones are, for detectors that have to know."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.level import bone_numbers
from nnunetv2_anomaly.errors import UserError, worded
from nnunetv2_anomaly.files import sha256_of
from nnunetv2_anomaly.label_roles import ROLES_KEY, label_roles, with_their_lesions
from nnunetv2_anomaly.networks.planned import planned_network
from nnunetv2_anomaly.training.checkpoints import first_difference
from nnunetv2_anomaly.training.safe_loading import load_file


class BoneFinder(nn.Module):
    """The segmentation network that nnU-Net planned, and which of its labels are bones."""

    bone_of_label: Tensor

    def __init__(self, network: nn.Module, num_labels: int) -> None:
        """Take a network with a logit for each label; until ``set_bones`` is called, each label is a bone."""
        super().__init__()
        self.network = network
        self.register_buffer("bone_of_label", torch.arange(num_labels))

    @classmethod
    def build(cls, configuration_manager: ConfigurationManager, num_channels: int, num_labels: int) -> BoneFinder:
        """The planned network, untrained. Args: num_labels: with the background."""
        return cls(planned_network(configuration_manager, num_channels, num_labels), num_labels)

    @torch.no_grad()
    def set_bones(self, bones: Sequence[Collection[int]]) -> None:
        """Say which labels are bones. Args: bones: label values of each."""
        labels = torch.arange(len(self.bone_of_label), device=self.bone_of_label.device)
        self.bone_of_label.copy_(bone_numbers(labels, bones))

    def numbers(self, logits: Tensor) -> Tensor:
        """Logits (B, labels, *axes) -> (B, *axes): 0 outside bones, another number for each."""
        return self.bone_of_label.to(logits.device)[logits.argmax(dim=1)]

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *window), as nnU-Net normalised it -> (B, *window): 0 outside bones, another number for each."""
        return self.numbers(self.network(image))


def take_bone_model(
    finder: BoneFinder, folder: Path, fold: int | str, dataset: str, configuration: Mapping[str, Any]
) -> str:
    """Load a segmentation that nnU-Net or ``BoneContrastTrainer`` has trained on images prepared alike.

    Args:
        folder: the model folder, or one fold's.
        fold: which one to take.
        dataset: of whoever takes it: a model of the same one has to be of the same fold.
        configuration: of plans.json, of whoever takes it.
    Returns: SHA-256 of the checkpoint.
    Raises: UserError if there is no finished checkpoint, its network, fold or the preparation of its images is another,
        its labels are regions, or none is a bone.
    """
    folder = Path(os.path.expandvars(folder)).expanduser()
    places = [folder / f"fold_{fold}" / "checkpoint_final.pth", folder / "checkpoint_final.pth"]
    path = next((of for of in places if of.is_file()), None)
    if path is None:
        fault = f"the setting 'bone_model' is {folder}, and {places[0]} does not exist"
        raise UserError(f"{fault}; expected a finished training, so train it, or leave 'bone_model' out")
    elsewhere = "give other models to anomaly_maps with --bones, and leave 'bone_model' out"
    content = load_file(path, "give another model as 'bone_model'")
    try:
        given, weights = content["init_args"], content["network_weights"]
        plans = PlansManager(given["plans"])
        theirs = plans.get_configuration(given["configuration"]).configuration
        labels, regions = given["dataset_json"]["labels"], plans.get_label_manager(given["dataset_json"]).has_regions
        seen_fold = given["fold"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no checkpoint of nnU-Net's; expected one, so {elsewhere}") from error
    if regions:
        raise UserError(f"the bone model {path} has region-based labels; expected plain ones, so {elsewhere}")
    if plans.dataset_name == dataset and str(seen_fold) != str(fold):
        fault = f"the bone model {path} is of fold {seen_fold}, and has seen validation cases of fold {fold}"
        raise UserError(f"{fault}; expected one of the same fold, so train that, or {elsewhere}")
    for name in ("spacing", "normalization_schemes"):
        if theirs.get(name) != configuration.get(name):
            fault = f"the bone model {path} was trained with the {name} {worded(theirs.get(name))}"
            expected = f"{worded(configuration.get(name))}, as this configuration has"
            raise UserError(f"{fault}; expected {expected}, so train one with the same plans, or {elsewhere}")
    inside = "detector.bones.network."
    own = {name.removeprefix(inside): of for name, of in weights.items() if name.startswith(inside)} or weights
    if difference := first_difference(own, finder.network.state_dict()):
        fault = f"the bone model {path} does not fit: {difference}"
        raise UserError(f"{fault}; expected one of the same plans and as many labels, so train that, or {elsewhere}")
    roles = label_roles(labels, given["dataset_json"].get(ROLES_KEY))
    if not roles.bones:
        raise UserError(f"no label of the bone model {path} is a bone ({', '.join(labels)}); {elsewhere}")
    finder.network.load_state_dict(own)
    finder.set_bones(with_their_lesions(roles.bones, labels, roles))
    return sha256_of(path)
