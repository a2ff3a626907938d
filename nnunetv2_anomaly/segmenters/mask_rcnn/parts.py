"""What is put together to a Mask R-CNN that torchvision does not have: backbones, resizing of masks, the improved mask
branch, a focal mask loss.

Imports torchvision, which is an extra: import this module where it is needed (``network.check_torchvision``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from torchvision.models import densenet121, resnet50, resnet101
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import RoIHeads, project_masks_on_boxes
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, roi_align

#: levels of the pyramid that boxes are cut out of
LEVELS = ("0", "1", "2", "3")
#: channels of ``small`` at strides of 4, 8, 16 and 32 pixels
_SMALL = (16, 32, 64, 128)
_OF_RESNET = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
_OF_DENSENET = {"denseblock1": "0", "denseblock2": "1", "denseblock3": "2", "norm5": "3"}


def learned_norm(channels: int) -> nn.Module:
    """A normalisation that learns and does not depend on the batch, which is small: groups of at least 4 channels."""
    return nn.GroupNorm(min(32, channels // 4), channels)


def build_backbone(name: str, features: int, *, learns_norm: bool) -> BackboneWithFPN:
    """A feature pyramid: (B, 3, Y, X) -> levels "0" to "3" and "pool", strides 4 to 64, (B, features, ...) each.

    Args: name: of ``settings.BACKBONES``. learns_norm: group normalisation; else batch normalisation frozen, for
        weights from elsewhere.
    """
    if name == "small":
        body, layers, channels = _small_body(), dict(zip(LEVELS, LEVELS, strict=True)), list(_SMALL)
    elif name == "densenet121":
        body, layers, channels = densenet121(weights=None).features, _OF_DENSENET, [256, 512, 1024, 1024]
    else:
        build = {"resnet50": resnet50, "resnet101": resnet101}[name]
        body, layers, channels = build(weights=None), _OF_RESNET, [256, 512, 1024, 2048]
    _with_norm(body, learned_norm if learns_norm else FrozenBatchNorm2d)
    return BackboneWithFPN(body, layers, channels, features)


def _small_body() -> nn.Sequential:
    body, before = nn.Sequential(), 3
    for level, channels in zip(LEVELS, _SMALL, strict=True):
        steps = [(before, channels), (channels, channels)]
        stage = nn.Sequential()
        for place, (into, out) in enumerate(steps):
            stride = 2 if place == 0 or level == "0" else 1  # the first stage has a stride of 4
            stage.extend([nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)])
        body.add_module(level, stage)
        before = channels
    return body


def _with_norm(module: nn.Module, make: Callable[[int], nn.Module]) -> None:
    """Replace every batch normalisation in a network, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, make(child.num_features))
        else:
            _with_norm(child, make)


class ExactTransform(GeneralizedRCNNTransform):
    """torchvision's resizing, with masks that stay where their image is.

    torchvision takes the pixel to the upper left of each place: masks lie up to half a pixel beside their image.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """As in torchvision: image (C, Y, X), masks (N, Y, X) in the target."""
        masks = (target or {}).get("masks")
        others = None if target is None else {name: of for name, of in target.items() if name != "masks"}
        image, others = super().resize(image, others)
        if masks is not None and others is not None:
            others["masks"] = interpolate(masks[:, None].float(), image.shape[-2:], mode="nearest-exact")[:, 0].byte()
        return image, others


def in_full_precision(module: nn.Module, given: Any, returned: Any) -> Any:
    """Forward hook: what a module returns in float32. Boxes in float16 lie on whole or half pixels from 512 on."""
    if isinstance(returned, Tensor):
        return returned.float()
    return type(returned)(in_full_precision(module, given, of) for of in returned)


class TwoSizeRoIAlign(MultiScaleRoIAlign):
    """Features of boxes at 14 x 14 and, for the skip connection, at 56 x 56 (Felfeliyan et al., Section 2.2)."""

    def __init__(self, skip_level: int | None) -> None:
        """Args: skip_level: of the pyramid, for the second; None: the one that suits the box, as for the first."""
        super().__init__(list(LEVELS), 14, 2)
        self.fine = MultiScaleRoIAlign(list(LEVELS) if skip_level is None else [str(skip_level)], 56, 2)

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """(boxes, features, 14, 14) and (boxes, features, 56, 56) of a pyramid; boxes (N, 4) for each slice, pixels."""
        return super().forward(x, boxes, image_shapes), self.fine(x, boxes, image_shapes)


class TwoSizeHead(MaskRCNNHeads):
    """The mask branch's convolutions of the 14 x 14 features; the 56 x 56 ones pass."""

    def forward(self, features: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The pair that ``TwoSizeRoIAlign`` returns, of the same sizes."""
        coarse, fine = features
        return super().forward(coarse), fine


class ImprovedMaskPredictor(nn.Module):
    """Two transposed convolutions, 14 to 28 to 56, then the 56 x 56 features are concatenated (Felfeliyan et al.).

    The 3 x 3 convolution that joins them is ours: the paper says no more than "concatenated".
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(features, features, 2, 2)
        self.conv6_mask = nn.ConvTranspose2d(features, features, 2, 2)
        self.fuse = nn.Conv2d(2 * features, features, 3, padding=1)
        self.mask_fcn_logits = nn.Conv2d(features, num_classes, 1)
        self.relu = nn.ReLU(inplace=True)
        for layer in (self.conv5_mask, self.conv6_mask, self.fuse, self.mask_fcn_logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's

    def forward(self, features: tuple[Tensor, Tensor]) -> Tensor:
        """(N, features, 14, 14) and (N, features, 56, 56) -> mask logits (N, num_classes, 56, 56)."""
        coarse, fine = features
        decoded = self.relu(self.conv6_mask(self.relu(self.conv5_mask(coarse))))
        return self.mask_fcn_logits(self.relu(self.fuse(torch.cat((decoded, fine), dim=1))))


class FocalRoIHeads(RoIHeads):
    """torchvision's heads, whose mask loss is weighted where targets have a ``weight`` (Y, X) of the slice's size."""

    def __init__(self, heads: RoIHeads) -> None:
        """Args: heads: whose parts and thresholds are taken over."""
        nn.Module.__init__(self)
        self.__dict__.update(heads.__dict__)
        self._weighted = False

    def has_mask(self) -> bool:
        """Not for torchvision while masks are weighted here."""
        return not self._weighted and super().has_mask()

    def select_training_samples(self, proposals: list[Tensor], targets: Any) -> tuple:
        """As in torchvision, and kept for the mask loss."""
        self._samples = super().select_training_samples(proposals, targets)
        return self._samples

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As in torchvision."""
        weights = [target["weight"] for target in targets or () if "weight" in target]
        self._weighted = bool(weights) and self.training
        try:
            result, losses = super().forward(features, proposals, image_shapes, targets)
        finally:
            weighted, self._weighted = self._weighted, False
        if weighted and targets:
            losses["loss_mask"] = self._mask_loss(features, image_shapes, targets, weights)
        return result, losses

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        image_shapes: Sequence[tuple[int, int]],
        targets: Sequence[dict[str, Tensor]],
        weights: Sequence[Tensor],
    ) -> Tensor:
        proposals, matched, labels, _ = self._samples
        del self._samples
        positive = [of > 0 for of in labels]
        boxes = [of[chosen] for of, chosen in zip(proposals, positive, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, list(image_shapes))))
        if not len(logits):
            return logits.sum() * 0
        size = logits.shape[-1]
        expected, factors = [], []
        for place, (target, weight) in enumerate(zip(targets, weights, strict=True)):
            own = matched[place][positive[place]]
            expected.append(project_masks_on_boxes(target["masks"], boxes[place], own, size))
            scale = weight.shape[-1] / image_shapes[place][1]
            factors.append(roi_align(weight[None, None].float(), [boxes[place].float()], size, scale)[:, 0])
        classes = torch.cat([of[chosen] for of, chosen in zip(labels, positive, strict=True)])
        own_logits = logits[torch.arange(len(classes), device=classes.device), classes]
        losses = binary_cross_entropy_with_logits(own_logits.float(), torch.cat(expected), reduction="none")
        return (losses * torch.cat(factors)).mean()
