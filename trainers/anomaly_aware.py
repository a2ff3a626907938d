"""The anomaly-aware segmentation as an nnU-Net trainer."""

from __future__ import annotations

from nnunetv2_anomaly.trainers.segmentation import AnomalyAwareSegmentation


class AnomalyAwareTrainer(AnomalyAwareSegmentation):
    """nnU-Net's planned network, fed with [image, error image], and Dice + alpha * focal cross-entropy (Eq. 4, 5).

    All that is not the method's is nnU-Net's: plans, optimiser, schedule, augmentation, Dice, deep supervision.
    """
