"""Settings of the family of knowledge distillation."""

from __future__ import annotations

from nnunetv2_anomaly.detectors.mkd.teacher import TORCHVISION, is_source
from nnunetv2_anomaly.plans.settings import NOT_NEGATIVE, TRUE_OR_FALSE, Setting, is_list, is_whole, one_of

SETTINGS: dict[str, Setting] = {
    "teacher_weights": Setting(
        TORCHVISION,
        "torchvision, file:PATH or random:SEED",
        is_source,
        "weights of the teacher, VGG-16: torchvision's own, a file with them, or random ones, which say nothing of the "
        "method",
    ),
    "allow_random_teacher": Setting(False, *TRUE_OR_FALSE, "train with random weights of the teacher all the same"),
    "lambda_value": Setting(0.01, *NOT_NEGATIVE, "weight of the values of features beside their direction"),
    "score_pools": Setting(
        [3, 4, 5],
        "a list of whole numbers from 2 to 5",
        lambda value: is_list(is_whole(2, 5))(value) and len(value) > 0,
        "max-pools whose features score a slice; training compares 2 to 5",
    ),
    "mkd_map": Setting(
        "gbp",
        *one_of(("gbp", "gradients", "smooth_grad")),
        "how a score is traced back to voxels: guided back-propagation, plain gradients, or those of 50 noisy copies",
    ),
    "teacher_normalisation": Setting(
        "imagenet",
        *one_of(("imagenet", "none")),
        "what the networks see: images as ImageNet's are normalised, or 0 to 1",
    ),
}
