"""Settings of the family of selective cutting."""

from __future__ import annotations

from nnunetv2_anomaly.plans.settings import NOT_NEGATIVE, TRUE_OR_FALSE, Setting, is_list, is_whole, one_of, whole

#: what of the second stage's disjoint loss has a gradient
PAPER, OFF = "paper", "off"

SETTINGS: dict[str, Setting] = {
    "asc_features": Setting(32, *whole(1, 128), "feature maps of the first block; they double at each of four levels"),
    "asc_cycles": Setting(
        [3, 1],
        "two whole numbers from 0, of which one is above",
        lambda value: is_list(is_whole(0), 2)(value) and sum(value) > 0,
        "cycles of stages 1 and 2; the paper has 3 and 1 for MS, 2 and 1 for BraTS, 2 and 2 for LiTS",
    ),
    "asc_discriminator_epochs": Setting(10, *whole(1), "epochs of the discriminator in a cycle"),
    "asc_main_epochs": Setting(20, *whole(1), "epochs of the main network in a cycle"),
    "stage2_disjoint": Setting(
        PAPER,
        *one_of((PAPER, OFF)),
        "whether the cuts are kept disjoint in stage 2, too, as the paper says, or not, as the public code does",
    ),
    "reinit_discriminator": Setting(
        False, *TRUE_OR_FALSE, "begin every cycle with a fresh discriminator, as the public code does"
    ),
    "asc_weight_penalty": Setting(
        2e-4, *NOT_NEGATIVE, "weight of the squared 3 x 3 kernels in both losses, as in the public code"
    ),
    "transductive": Setting(
        False,
        *TRUE_OR_FALSE,
        "let the main network see the validation cases' slices, without labels; the fold rule then refuses it there",
    ),
}
