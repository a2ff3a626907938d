"""Settings that several families of detectors have."""

from __future__ import annotations

from nnunetv2_anomaly.detectors.level import POLARITIES
from nnunetv2_anomaly.detectors.thresholds import CASE, DATASET, FITTED, RULES
from nnunetv2_anomaly.plans.settings import NOT_NEGATIVE, POSITIVE, Kind, Setting, is_text, one_of, or_null, whole

#: of a file or folder
FILE: Kind = ("a path", is_text)

SETTINGS: dict[str, Setting] = {
    # The networks: read again at prediction, so that plans must keep them as they were in training.
    "detector_features": Setting(
        8, *whole(1, 256), "feature maps of a detector's networks at full resolution; doubled at each level"
    ),
    "detector_downsamplings": Setting(
        4, *whole(1, 4), "downsamplings of a detector's networks: the first ones of the planned network"
    ),
    "polarity": Setting(
        "bright",
        *one_of(POLARITIES),
        "which anomalies the detectors that know bones look for; bone marrow lesions are bright in DESS and in "
        "fluid-sensitive sequences, dark in T1",
    ),
    "level_mm": Setting(
        14.0, *POSITIVE, "standard deviation of the Gaussian that a bone's local level is taken with, mm"
    ),
    "bone_model": Setting(
        None,
        *or_null(FILE, "none"),
        "model folder of a segmentation with the same plans, which is to travel in a detector that needs bones",
    ),
    # The training.
    "lesion_free_slices": Setting(
        None,
        *or_null(FILE, "what the labels tell"),
        "CSV of the slices without a lesion, from which detectors of slices learn",
    ),
    "bias_field": Setting(
        0.5, *NOT_NEGATIVE, "strength of the random bias fields in the augmentation of detectors of slices; 0 for none"
    ),
    # From maps to lesions.
    "mask_rule": Setting(
        FITTED,
        *one_of(RULES),
        "how a map becomes lesions: by one threshold that validation fits, by 0.5, by Otsu's threshold of each slice's "
        "bones, or at the rightmost peak of the validation cases' histogram or the valley before it; the last three "
        "with opening and closing, whose sizes validation fits. LaMa-BML and MKD have otsu, ASC-Net peak",
    ),
    "peak_scope": Setting(
        DATASET,
        *one_of((DATASET, CASE)),
        "whether the peak is that of all validation cases, or of each case by itself",
    ),
    "min_difference": Setting(
        0.0, *NOT_NEGATIVE, "least anomaly map of a lesion by Otsu's rule, which else finds one in every slice"
    ),
    "candidates_per_bone": Setting(
        1.0, *POSITIVE, "at most so many lesion candidates a bone has on average over the validation cases, where no "
        "lesion is labelled; it sets the threshold of detect_lesions"
    ),
    "min_lesion_mm3": Setting(30.0, *NOT_NEGATIVE, "smaller lesion candidates do not count"),
    "prestage_learning_rate": Setting(
        None,
        *or_null(POSITIVE, "the automatic choice"),
        "Adam's learning rate; automatic: 2e-3 with decay, in the inpainting family at full length the published "
        "constant 5e-4",
    ),
}  # fmt: skip
