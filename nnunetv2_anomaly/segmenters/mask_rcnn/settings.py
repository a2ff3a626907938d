"""Settings of Mask R-CNN on slices."""

from __future__ import annotations

from nnunetv2_anomaly.plans.settings import SHARE, Setting, one_of, or_null, whole
from nnunetv2_anomaly.training.torchvision_weights import named_file

#: as published ResNet-101 and a DenseNet, whose depth is not stated; ``small`` is ours, for CPUs
BACKBONES = ("resnet50", "resnet101", "densenet121", "small")
IMAGENET, NONE = "imagenet", "none"


def _is_source(value: object) -> bool:
    return isinstance(value, str) and (value in (IMAGENET, NONE) or named_file(value) is not None)


SETTINGS: dict[str, Setting] = {
    "mask_rcnn_backbone": Setting(
        "resnet101",
        *one_of(BACKBONES),
        "network beneath the feature pyramid: as published, or four small stages for CPUs",
    ),
    "mask_rcnn_weights": Setting(
        IMAGENET,
        f"{IMAGENET}, file:PATH or {NONE}",
        _is_source,
        "weights that the training starts from: torchvision's of ImageNet, from its cache or downloaded; a file of a "
        "torchvision backbone or Mask R-CNN; or none, with group normalisation, which learns, in place of frozen "
        "batch normalisation",
    ),
    "mask_rcnn_features": Setting(
        256,
        *whole(4, 1024),
        "channels of the feature pyramid and of the mask branch; the box branch has four times so many",
    ),
    "mask_rcnn_size": Setting(
        1024,
        *or_null(whole(32, 4096), "that of the slice"),
        "pixels of the longer side to which the network resizes a slice",
    ),
    "mask_rcnn_skip_level": Setting(
        None,
        *or_null(whole(0, 3), "the one that suits the box"),
        "level of the pyramid, 0 the finest, from which the improved mask branch takes its 56 x 56 features",
    ),
    "mask_rcnn_score": Setting(0.5, *SHARE, "least score of an instance in a segmentation"),
    "mask_rcnn_boxes": Setting(
        512,
        *whole(4),
        "boxes of each training slice whose class is learned, as in torchvision; at most a quarter of them have masks "
        "to learn, which is what training takes most time for",
    ),
    "mask_rcnn_batch_size": Setting(
        2, *or_null(whole(1), "that of the plans"), "slices in a batch, on each GPU where there are several"
    ),
    "min_instance_pixels": Setting(
        4, *whole(1), "smaller parts of a label in a preprocessed slice are no instances to learn"
    ),
    "empty_slice_rate": Setting(
        0.1, *SHARE, "share of training slices without any label, of cases that have such slices"
    ),
}
