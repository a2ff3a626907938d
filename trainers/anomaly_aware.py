"""The anomaly-aware segmentation as nnU-Net trainers."""

from __future__ import annotations

from nnunetv2_anomaly.trainers.segmentation import AnomalyAwareSegmentation

#: weight of the focal cross-entropy (method paper, Section 4)
PUBLISHED_ALPHA = 10.0


class AnomalyAwareTrainer(AnomalyAwareSegmentation):
    """nnU-Net's planned network, fed with [image, error image], and Dice + alpha * focal cross-entropy (Eq. 4, 5).

    All that is not the method's is nnU-Net's: plans, optimiser, schedule, augmentation, Dice, deep supervision. So is
    alpha, with which nnU-Net balances Dice and cross-entropy: 1 (docs/benchmarks.md).
    """


class AnomalyAwarePublishedTrainer(AnomalyAwareTrainer):
    """The same with the paper's alpha, 10."""

    alpha: float = PUBLISHED_ALPHA
