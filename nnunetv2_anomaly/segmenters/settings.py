"""Settings of the segmentations, and what a segmenter may see of a detector's error."""

from __future__ import annotations

from nnunetv2_anomaly.plans.settings import (
    NOT_NEGATIVE,
    POSITIVE,
    TRUE_OR_FALSE,
    Setting,
    is_text,
    one_of,
    or_null,
    whole,
)
from nnunetv2_anomaly.registry import DEFAULT_DETECTOR
from nnunetv2_anomaly.training.pasting import AUTO, OPTIONS, is_pasting

#: Of the difference d and the anomaly map E a segmenter sees a * d + b * E: name -> (a, b). Published is E as it is
#: (method paper, Section 3.3). The others are ours, as large as the normalised image beside it; docs/benchmarks.md says
#: why.
ERROR_CHANNELS = {"published": (0.0, 1.0), "squared": (0.0, 100.0), "signed": (10.0, 0.0)}
#: E of unit variance over the training cases, which nnU-Net's own normalisation gives every image channel
NORMALISED = "normalised"

SETTINGS: dict[str, Setting] = {
    "alpha": Setting(
        1.0,
        *NOT_NEGATIVE,
        "weight of the focal cross-entropy (Eq. 5), as nnU-Net weights its own; 10 in AnomalyAwarePublishedTrainer and "
        "the paper's networks, as published",
    ),
    "beta": Setting(99.0, *NOT_NEGATIVE, "slope of the focal weight F = 1 + beta * E (Eq. 4)"),
    "error_channel": Setting(
        "published",
        *one_of((*ERROR_CHANNELS, NORMALISED)),
        "what the segmenter sees of the reconstruction error: its square as published, 100 times that (squared), its "
        "square with unit variance over the training cases (normalised), or 10 times x - A(x) with its sign (signed)",
    ),
    "paste_anomalies": Setting(
        AUTO,
        *or_null((f"auto, a dictionary of {', '.join(OPTIONS)}", is_pasting), "none"),
        "synthetic anomalies pasted into bones while training, labels unchanged (docs/how-to/paste-anomalies.md); auto "
        "pastes where there are bones and no lesion is a label; null in all trainers but AnomalyAwareTrainer and "
        "PastingTrainer",
    ),
    "num_epochs": Setting(1000, *whole(1), "epochs of the anomaly-aware segmentation, as in nnU-Net"),
    "detector": Setting(
        DEFAULT_DETECTOR, "the name of a detector family", is_text, "family of the detector in the network"
    ),
    "prestage_folder": Setting(
        None,
        *or_null(("a folder", is_text), "the one of the same data set, plans and configuration"),
        "pre-stage model folder (it holds fold_0 and so on) or one fold's folder to take the detector from",
    ),
    "allow_detector_trained_on_validation_cases": Setting(
        False, *TRUE_OR_FALSE, "accept a detector that was trained on the fold's validation cases"
    ),
    "allow_changed_data": Setting(
        False, *TRUE_OR_FALSE, "accept a detector although the data set has changed since; logged"
    ),
    "segmentation_learning_rate": Setting(
        None,
        *or_null(POSITIVE, "the trainer's own"),
        "initial learning rate; the trainer's own: 0.01 as in nnU-Net, 5e-4 as published, 2.5e-4 in transfer, 1e-3 in "
        "Mask R-CNN",
    ),
}
