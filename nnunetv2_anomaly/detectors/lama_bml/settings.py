"""Settings of the family of LaMa's inpainting."""

from __future__ import annotations

from nnunetv2_anomaly.detectors.lama_bml.perceptual import SOURCES
from nnunetv2_anomaly.detectors.settings import FILE
from nnunetv2_anomaly.plans.settings import Setting, is_number, one_of, or_null, whole

#: what training fills: the bone, as Qin et al. do, or lines and boxes, as LaMa's authors do
BONE, DRAWN = "bone", "drawn"

SETTINGS: dict[str, Setting] = {
    "lama_features": Setting(64, *whole(1, 256), "feature maps of the generator at full resolution"),
    "lama_downsamplings": Setting(3, *whole(1, 5), "downsamplings of the generator"),
    "lama_blocks": Setting(9, *whole(1), "residual blocks of the generator: 9 make lama-fourier, 18 big-lama"),
    "lama_global_share": Setting(
        0.75,
        "a number between 0 and 1",
        lambda value: is_number(value) and 0 < value < 1,
        "share of the features in the blocks that are convolved in the frequencies of the whole slice",
    ),
    "discriminator_features": Setting(64, *whole(1, 256), "feature maps of the discriminator's first stage"),
    "hole": Setting(
        BONE,
        *one_of((BONE, DRAWN)),
        "what training erases and fills: all bones of a slice, as published, or random lines and boxes",
    ),
    "perceptual": Setting(
        "none",
        *one_of(("none", *SOURCES)),
        "network whose features of the filled slice and of the true one are to agree; its weights are "
        "'perceptual_weights'",
    ),
    "perceptual_weights": Setting(None, *or_null(FILE, "none"), "file with the weights of 'perceptual'"),
}
