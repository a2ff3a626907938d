"""The trainers that nnU-Net runs: first ``-tr AnomalyPreStageTrainer``, then ``-tr AnomalyAwareTrainer``.

The paper's own networks and protocol, and transfer learning, are beside them.
"""

from nnunetv2_anomaly.trainers.anomaly_aware import AnomalyAwarePublishedTrainer, AnomalyAwareTrainer
from nnunetv2_anomaly.trainers.prestage import AnomalyPreStageTrainer
from nnunetv2_anomaly.trainers.published import (
    CANPlusTrainer,
    CANSTrainer,
    CANTrainer,
    UNETPlusTrainer,
    UNETSTrainer,
    UNETTrainer,
)
from nnunetv2_anomaly.trainers.transfer import (
    AnomalyAwareTransferTrainer,
    CANPlusTransferTrainer,
    CANSTransferTrainer,
    CANTransferTrainer,
    UNETPlusTransferTrainer,
    UNETSTransferTrainer,
    UNETTransferTrainer,
)

__all__ = [
    "AnomalyAwarePublishedTrainer",
    "AnomalyAwareTrainer",
    "AnomalyAwareTransferTrainer",
    "AnomalyPreStageTrainer",
    "CANPlusTrainer",
    "CANPlusTransferTrainer",
    "CANSTrainer",
    "CANSTransferTrainer",
    "CANTrainer",
    "CANTransferTrainer",
    "UNETPlusTrainer",
    "UNETPlusTransferTrainer",
    "UNETSTrainer",
    "UNETSTransferTrainer",
    "UNETTrainer",
    "UNETTransferTrainer",
]
