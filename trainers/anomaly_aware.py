"""The anomaly-aware segmentation as nnU-Net trainers."""

from __future__ import annotations

from nnunetv2_anomaly.trainers.segmentation import AnomalyAwareSegmentation

#: weight of the focal cross-entropy (method paper, Eq. 5)
PUBLISHED_ALPHA = 10.0


class AnomalyAwareTrainer(AnomalyAwareSegmentation):
    """nnU-Net's planned network, fed with [image, error channel], and Dice + alpha * focal cross-entropy (Eq. 4, 5).

    All that is not the method's is nnU-Net's: plans, optimiser, schedule, augmentation, Dice, deep supervision. Two of
    the method's numbers are ours, because they serve nnU-Net's loss and optimiser better (docs/benchmarks.md): alpha is
    1, and the error channel is x - A(x) with its sign.
    """


class AnomalyAwarePublishedTrainer(AnomalyAwareTrainer):
    """AnomalyAwareTrainer with the paper's numbers: alpha 10, the squared error as it is."""

    alpha: float = PUBLISHED_ALPHA
    error_channel: str = "published"
