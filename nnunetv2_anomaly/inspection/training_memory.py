"""Memory of a training step of each network of the method paper: G and A, UNET and CAN."""

from __future__ import annotations

from functools import partial

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor

from nnunetv2_anomaly.detectors.inpainting.loss import PreStageLoss
from nnunetv2_anomaly.detectors.inpainting.networks import AnomalyDetector, build_prestage_network
from nnunetv2_anomaly.plans.memory import MemoryEstimate, TrainingStep, estimate
from nnunetv2_anomaly.plans.settings import known_settings, section_of
from nnunetv2_anomaly.plans.strides import planned_strides
from nnunetv2_anomaly.segmenters.base import AnomalyAwareNetwork
from nnunetv2_anomaly.segmenters.loss import AnomalyAwareLoss, DiceAndFocalCrossEntropy
from nnunetv2_anomaly.segmenters.published.loss import MultiClassDiceLoss
from nnunetv2_anomaly.segmenters.published.networks import CAN, UNET, NetworkShape, PublishedNetwork

#: name -> shape, additive deep supervision, anomaly-aware (method paper, Appendix A)
PUBLISHED_NETWORKS: dict[str, tuple[NetworkShape, bool, bool]] = {
    "UNET": (UNET, False, False),
    "UNET+": (UNET, True, False),
    "UNET-S": (UNET, True, True),
    "CAN": (CAN, False, False),
    "CAN+": (CAN, True, False),
    "CAN-S": (CAN, True, True),
}
#: phase of the pre-stage -> A is distilled (else G is trained)
PRESTAGE_NETWORKS = {"G": False, "A": True}


def build_step(
    name: str, configuration_manager: ConfigurationManager, num_channels: int, num_classes: int
) -> TrainingStep:
    """Network and loss as their trainer has them.

    Args: name: a key of PUBLISHED_NETWORKS or PRESTAGE_NETWORKS. configuration_manager: whose patch size, strides and
        section ``anomaly`` count. num_channels: of the image. num_classes: background included.
    Raises: UserError if the planned patch and strides do not suit the networks.
    """
    settings = {name: setting.default for name, setting in known_settings().items()}
    settings |= section_of(configuration_manager.configuration)
    if name in PRESTAGE_NETWORKS:
        prestage = build_prestage_network(configuration_manager, num_channels, settings)
        prestage.set_distilling(PRESTAGE_NETWORKS[name])
        return TrainingStep(prestage, PreStageLoss(), num_channels + 1)  # the hole mask is the last channel
    shape, additive_supervision, anomaly_aware = PUBLISHED_NETWORKS[name]
    segmenter = PublishedNetwork(
        shape=shape,
        in_channels=2 * num_channels if anomaly_aware else num_channels,
        num_classes=num_classes,
        strides=planned_strides(configuration_manager, shape.downsamplings),
        additive_supervision=additive_supervision,
    )
    dice = MultiClassDiceLoss(None)
    if not anomaly_aware:
        return TrainingStep(segmenter, dice, num_channels)
    detector = AnomalyDetector.build(configuration_manager, num_channels, settings)
    network = AnomalyAwareNetwork(detector, segmenter, "published")

    def latest_error_image() -> Tensor:
        assert network.latest_error_image is not None, "the loss is called after the forward pass"
        return network.latest_error_image

    scale = DiceAndFocalCrossEntropy(dice, settings["alpha"], None)
    return TrainingStep(network, AnomalyAwareLoss(scale, settings["beta"], latest_error_image), num_channels)


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
