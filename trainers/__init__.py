"""The trainers that nnU-Net runs: first ``-tr AnomalyPreStageTrainer``, then ``-tr AnomalyAwareTrainer``."""

from nnunetv2_anomaly.trainers.anomaly_aware import AnomalyAwareTrainer
from nnunetv2_anomaly.trainers.prestage import AnomalyPreStageTrainer

__all__ = ["AnomalyAwareTrainer", "AnomalyPreStageTrainer"]
