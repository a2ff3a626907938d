"""Memory of a training step of each network of the method paper: G and A, UNET and CAN."""

from __future__ import annotations

from functools import partial
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_anomaly.detectors.inpainting.loss import PreStageLoss
from nnunetv2_anomaly.plans.memory import MemoryEstimate, TrainingStep, estimate
from nnunetv2_anomaly.registry import DEFAULT_DETECTOR, DETECTORS, TRAINERS, load_trainer
from nnunetv2_anomaly.segmenters.loss import AnomalyAwareLoss, DiceAndFocalCrossEntropy
from nnunetv2_anomaly.segmenters.published.loss import MultiClassDiceLoss

#: name -> its trainer (method paper, Appendix A)
PUBLISHED_NETWORKS = {trainer.summary: name for name, trainer in TRAINERS.items() if trainer.module == "published"}
#: what the pre-stage trains -> its phase
PRESTAGE_NETWORKS = {"G": 0, "A": 1}


def build_step(
    name: str, configuration_manager: ConfigurationManager, num_channels: int, num_classes: int
) -> TrainingStep:
    """Network and loss as their trainer has them.

    Args: name: a key of PUBLISHED_NETWORKS or PRESTAGE_NETWORKS. configuration_manager: whose patch size, strides and
        section ``anomaly`` count. num_channels: of the image. num_classes: background included.
    Raises: UserError if the planned patch and strides do not suit the networks.
    """
    trainer: Any = load_trainer(PUBLISHED_NETWORKS.get(name, DETECTORS[DEFAULT_DETECTOR].trainer))
    network = trainer.build_network_architecture(None, configuration_manager, num_channels, num_classes)
    if name in PRESTAGE_NETWORKS:
        network.set_phase(PRESTAGE_NETWORKS[name])
        return TrainingStep(network, PreStageLoss(), num_channels + 1)  # the hole mask is the last channel
    dice, settings = MultiClassDiceLoss(None), trainer.settings(configuration_manager)
    if not TRAINERS[PUBLISHED_NETWORKS[name]].anomaly_aware:
        return TrainingStep(network, dice, num_channels)
    scale, beta = DiceAndFocalCrossEntropy(dice, settings["alpha"], None), settings["beta"]
    return TrainingStep(network, AnomalyAwareLoss(scale, beta, lambda: network.latest_error_image), num_channels)


def estimate_network(
    name: str, configuration_manager: ConfigurationManager, num_channels: int, num_classes: int
) -> MemoryEstimate:
    """Estimate of one network's training step. Args and Raises: as ``build_step``."""
    build = partial(build_step, name, configuration_manager, num_channels, num_classes)
    return estimate(name, build, configuration_manager.patch_size)


def estimate_all(
    configuration_manager: ConfigurationManager, num_channels: int, num_classes: int
) -> list[MemoryEstimate]:
    """Estimates of G, A and the six published networks. Args and Raises: as ``build_step``."""
    names = (*PRESTAGE_NETWORKS, *PUBLISHED_NETWORKS)
    return [estimate_network(name, configuration_manager, num_channels, num_classes) for name in names]
