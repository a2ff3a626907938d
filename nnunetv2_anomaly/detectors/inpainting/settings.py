"""Settings of the inpainting family G/C/A."""

from __future__ import annotations

from nnunetv2_anomaly.plans.settings import POSITIVE, TRUE_OR_FALSE, Setting, is_number, one_of, or_null, whole

#: at which A and G compute
RESOLUTIONS = FULL, HALF = ("full", "half")

SETTINGS: dict[str, Setting] = {
    "detector_resolution": Setting(
        FULL,
        *one_of(RESOLUTIONS),
        "of A and G: full as published, or half, without their first level",
    ),
    "compressor_code_length": Setting(
        100, *whole(1, 10_000), "units of C's narrow dense layer; a larger one restores anomalies"
    ),
    "intensity_clip": Setting(5.0, *POSITIVE, "A and G see the normalised image clipped to [-clip, clip]"),
    "erase_margin_mm": Setting(
        18.0,
        "a number from 0 to 1000",
        lambda value: is_number(value) and 0 <= value <= 1000,
        "what is no farther than this from the foreground is erased with it",
    ),
    "erase_margin_voxels": Setting(
        None,
        *or_null(whole(0, 10_000), "the margin in mm"),
        "instead: the foreground is dilated by this many voxels, as published with 50",
    ),
    "inpainting_epochs": Setting(100, *whole(1), "epochs of phase 1: G with C (Eq. 1)"),
    "distillation_epochs": Setting(80, *whole(1), "epochs of phase 2: A (Eq. 2)"),
    "start_detector_from_inpainter": Setting(True, *TRUE_OR_FALSE, "A starts with G's weights instead of random ones"),
    "inpainter_from_fold_all": Setting(
        False,
        *TRUE_OR_FALSE,
        "a fold's A is distilled from the G of fold 'all', as in the paper; that G has seen the validation cases",
    ),
    "prestage_augmentation": Setting(
        True, *TRUE_OR_FALSE, "nnU-Net's augmentation in the pre-stage; the paper used none"
    ),
    "skip_cases_without_foreground": Setting(
        False, *TRUE_OR_FALSE, "leave cases without foreground out of the pre-stage instead of stopping"
    ),
}
