"""Mask R-CNN as a segmenter: slices in, class scores out, instances between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.networks.planned import see_more_channels
from nnunetv2_anomaly.segmenters.mask_rcnn.instances import class_logits
from nnunetv2_anomaly.segmenters.mask_rcnn.settings import NONE


def check_torchvision() -> None:
    """Check that torchvision is there and its operators load.

    Raises: UserError if not.
    """
    try:
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        fault = f"torchvision, which Mask R-CNN is made of, does not work here ({type(error).__name__}: {error})"
        expected = "expected the release that was built for the installed torch"
        raise UserError(f'{fault}; {expected}, so run: pip install "nnunetv2-anomaly[mask_rcnn]"') from error


@dataclass(frozen=True)
class MaskRCNNShape:
    """What tells the networks apart."""

    backbone: str  # of settings.BACKBONES
    features: int  # channels of pyramid and mask branch
    improved: bool  # two RoIAligns and a deeper decoder; else torchvision's own mask branch
    skip_level: int | None  # of the pyramid, for the second RoIAlign; None: by the size of the box
    learns_norm: bool  # group normalisation, for a start without weights
    size: int  # pixels of the longer side of a slice in the network
    score: float  # least one of an instance
    boxes: int = 512  # of each training slice

    @classmethod
    def of(cls, settings: Mapping[str, Any], improved: bool, patch_size: tuple[int, ...]) -> MaskRCNNShape:
        """As the settings of a trainer say. Args: patch_size: voxels, Y, X."""
        return cls(
            backbone=settings["mask_rcnn_backbone"],
            features=settings["mask_rcnn_features"],
            improved=improved,
            skip_level=settings["mask_rcnn_skip_level"],
            learns_norm=settings["mask_rcnn_weights"] == NONE,
            size=settings["mask_rcnn_size"] or max(patch_size),
            score=settings["mask_rcnn_score"],
            boxes=settings["mask_rcnn_boxes"],
        )


class MaskRCNNSegmenter(nn.Module):
    """Mask R-CNN, plain or improved, of slices as nnU-Net normalises them (Felfeliyan et al. 2022).

    Parameters with 5 classes, plain and improved, where the normalisation learns: ResNet-50 43,991,661 and 45,433,965,
    ResNet-101 62,983,789 and 64,426,093, DenseNet-121 27,175,341 and 28,617,645.

    nnU-Net's normalisation stands for that of ImageNet: both have mean 0 and standard deviation 1. One channel is seen
    thrice, of two the first twice, three as they are; more widen the first convolution by weights of 0.
    """

    goes_first: Tensor
    #: instances of the slices that come next in training mode, as ``instances_of`` makes them: nnU-Net's training step
    #: hands a network images alone
    targets: list[dict[str, Tensor]] | None = None
    #: weight of the mask loss of each pixel, (B, 1, Y, X), of the slices that are about to be learned; None: all alike
    mask_weight: Callable[[], Tensor] | None = None

    def __init__(self, shape: MaskRCNNShape, in_channels: int, num_classes: int) -> None:
        """Build it, without weights from elsewhere.

        Args: in_channels: of the slices. num_classes: background included.
        Raises: UserError if torchvision is missing or does not work.
        """
        super().__init__()
        check_torchvision()
        self.num_classes, self.size = num_classes, shape.size
        self.rcnn: Any = _build(shape, max(3, in_channels), num_classes)
        #: 1 for classes that win ties, as thin ones before those that they lie on
        self.register_buffer("goes_first", torch.zeros(num_classes))

    @torch.no_grad()
    def detect(self, image: Tensor) -> list[dict[str, Tensor]]:
        """Instances of slices (B, C, Y, X), in evaluation mode.

        Returns: for each slice "boxes" (N, 4), x1, y1, x2, y2 in pixels; "labels" (N,); "scores" (N,), from the least
            score on; "masks" (N, 1, 28, 28) or (N, 1, 56, 56), probabilities in the boxes.
        """
        # torchvision's own forward pass but for its last step, which pastes masks less exactly than instances.py.
        slices, _ = self.rcnn.transform(list(_three_channels(image)))
        features = self.rcnn.backbone(slices.tensors)
        proposals, _ = self.rcnn.rpn(slices, features)
        found, _ = self.rcnn.roi_heads(features, proposals, slices.image_sizes)
        for detected, size in zip(found, slices.image_sizes, strict=True):
            factors = [own / resized for own, resized in zip(image.shape[2:], size, strict=True)]
            detected["boxes"] = detected["boxes"] * detected["boxes"].new_tensor((*factors[::-1], *factors[::-1]))
        return found

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """Class scores of slices, or in training mode the losses of ``targets``.

        Args: image: (B, C, Y, X), as nnU-Net normalised it.
        Returns: in evaluation mode (B, num_classes, Y, X), as ``class_logits`` has it; in training mode the losses of
            class, box, mask, objectness and proposals, scalars by name.
        """
        if not self.training:
            size = image.shape[2:]
            scale = self.size / max(size)
            return class_logits(self.detect(image), self.num_classes, size, self.goes_first, scale)
        targets, self.targets = self.targets, None
        if targets is not None and self.mask_weight is not None:
            weights = self.mask_weight()[:, 0]
            targets = [{**target, "weight": weight} for target, weight in zip(targets, weights, strict=True)]
        return self.rcnn(list(_three_channels(image)), targets)


class SumOfLosses(nn.Module):
    """The loss that nnU-Net's steps ask for: the sum of what the network gives in training mode.

    Its validation step asks with class scores, and is given the sum of the latest training pass.
    """

    latest: Mapping[str, Tensor]

    def forward(self, output: Tensor | Mapping[str, Tensor], target: Any) -> Tensor:
        """Args: output: of the network. target: (B, 1, Y, X), not used. Returns: scalar."""
        if isinstance(output, Mapping):
            self.latest = output
        return torch.stack(list(self.latest.values())).sum()


def _three_channels(image: Tensor) -> Tensor:
    image = image.float()
    return image[:, [0, 0, image.shape[1] - 1]] if image.shape[1] < 3 else image


def _build(shape: MaskRCNNShape, channels: int, num_classes: int) -> nn.Module:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    from nnunetv2_anomaly.segmenters.mask_rcnn import parts

    features = shape.features
    backbone = parts.build_backbone(shape.backbone, features, learns_norm=shape.learns_norm)
    if channels > 3:
        see_more_channels(backbone, channels - 3)
    if shape.improved:
        pool: MultiScaleRoIAlign = parts.TwoSizeRoIAlign(shape.skip_level)
        predictor: nn.Module = parts.ImprovedMaskPredictor(features, num_classes)
    else:
        pool = MultiScaleRoIAlign(list(parts.LEVELS), 14, 2)
        predictor = MaskRCNNPredictor(features, features, num_classes)
    head = (parts.TwoSizeHead if shape.improved else MaskRCNNHeads)(features, [features] * 4, 1)
    rcnn = MaskRCNN(
        backbone,
        box_head=TwoMLPHead(features * 7**2, 4 * features),
        box_predictor=FastRCNNPredictor(4 * features, num_classes),
        box_score_thresh=shape.score,
        box_batch_size_per_image=shape.boxes,
        mask_roi_pool=pool,
        mask_head=head,
        mask_predictor=predictor,
    )
    rcnn.roi_heads = parts.FocalRoIHeads(rcnn.roi_heads)
    rcnn.transform = parts.ExactTransform(shape.size, shape.size, [0.0] * channels, [1.0] * channels)
    for returns_boxes in (rcnn.rpn.head, rcnn.roi_heads.box_predictor):
        returns_boxes.register_forward_hook(parts.in_full_precision)
    return rcnn
