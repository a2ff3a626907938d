"""A detector family as another package would bring it: the image minus its median and a learned level."""

import torch
from torch import nn

from nnunetv2_anomaly.detectors.base import Contract, Detector
from nnunetv2_anomaly.registry import DetectorFamily
from nnunetv2_anomaly.trainers.detector import DetectorTrainer

FAMILY = DetectorFamily("median", "toy_family:MedianDetector", "MedianTrainer", "image minus its median")


class MedianDetector(Detector):
    """Slice by slice; one map for all image channels."""

    contract = Contract("median", error_channels=1, dimensions=(2,), window="any", multiple_of=4)

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    @classmethod
    def build(cls, configuration_manager, num_channels, settings):
        return cls()

    def difference(self, image):
        mean = image.float().mean(dim=1, keepdim=True)
        return mean - mean.flatten(1).median(dim=1).values.view(-1, 1, 1, 1) - self.level


class MedianTrainer(DetectorTrainer):
    """Learns the level that leaves the least error."""

    family = "median"
    num_epochs = 2

    def _build_loss(self):
        return lambda error, target: error.mean()
