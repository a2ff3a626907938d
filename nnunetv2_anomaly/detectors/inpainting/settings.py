"""Settings of the inpainting family G/C/A."""

from __future__ import annotations

from nnunetv2_anomaly.plans.settings import Setting, is_not_negative, is_positive, is_truth_value, is_whole, or_none

SETTINGS: dict[str, Setting] = {
    # The networks: read again at prediction, so that plans must keep them as they were in training.
    "detector_features": Setting(
        8,
        "a whole number from 1 to 256",
        is_whole(1, 256),
        "feature maps of G and A at full resolution; doubled at each level, where 256 take gigabytes",
    ),
    "detector_downsamplings": Setting(
        4,
        "a whole number from 1 to 4",
        is_whole(1, 4),
        "downsamplings of G, A and C: the first ones of the planned network",
    ),
    "compressor_code_length": Setting(
        100,
        "a whole number from 1 to 10000",
        is_whole(1, 10_000),
        "units of C's narrow dense layer; a larger one restores anomalies",
    ),
    # The training.
    "intensity_clip": Setting(
        5.0, "a number above 0", is_positive, "A and G see the normalised image clipped to [-clip, clip]"
    ),
    "erase_margin_mm": Setting(
        18.0,
        "a number from 0 to 1000",
        lambda value: is_not_negative(value) and value <= 1000,
        "what is no farther than this from the foreground is erased with it",
    ),
    "erase_margin_voxels": Setting(
        None,
        "a whole number from 0 to 10000, or null for the margin in mm",
        or_none(is_whole(0, 10_000)),
        "instead: the foreground is dilated by this many voxels, as published with 50",
    ),
    "inpainting_epochs": Setting(100, "a whole number from 1", is_whole(1), "epochs of phase 1: G with C (Eq. 1)"),
    "distillation_epochs": Setting(80, "a whole number from 1", is_whole(1), "epochs of phase 2: A (Eq. 2)"),
    "prestage_learning_rate": Setting(
        None,
        "a number above 0, or null for the automatic choice",
        or_none(is_positive),
        "Adam's learning rate; automatic: the published constant 5e-4 at full length, 2e-3 with decay for short runs",
    ),
    "start_detector_from_inpainter": Setting(
        True, "true or false", is_truth_value, "A starts with G's weights instead of random ones"
    ),
    "inpainter_from_fold_all": Setting(
        False,
        "true or false",
        is_truth_value,
        "a fold's A is distilled from the G of fold 'all', as in the paper; that G has seen the validation cases",
    ),
    "prestage_augmentation": Setting(
        True, "true or false", is_truth_value, "nnU-Net's augmentation in the pre-stage; the paper used none"
    ),
    "skip_cases_without_foreground": Setting(
        False,
        "true or false",
        is_truth_value,
        "leave cases without foreground out of the pre-stage instead of stopping",
    ),
}
