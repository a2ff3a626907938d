"""From label maps of slices to instances, and back from what was detected to class scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import grid_sample

#: class scores, 0 to 1, become logits of so many units, so that a softmax of a sure instance is 0.99
LOGIT_SCALE = 10.0
#: what a class that goes before others is given in a tie; above the steps of float16, in which nnU-Net adds up windows
TIE = 1e-3
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)


def instances_of(labels: NDArray[np.integer], values: Collection[int], min_pixels: int) -> dict[str, Tensor]:
    """Connected parts (8 neighbours) of each label in a slice, as torchvision takes instances.

    Args: labels: (Y, X). values: of the labels that are learned. min_pixels: smaller parts are left out.
    Returns: "boxes" (N, 4), float32: x1, y1, x2, y2 in pixels, the right and lower ends beyond the last pixel, so that
        none has a width of 0; "labels" (N,), int64; "masks" (N, Y, X), uint8. N is 0 in an empty slice.
    """
    boxes, classes, masks = [], [], []
    for value in sorted(values):
        parts, number = ndimage.label(labels == value, _EIGHT_NEIGHBOURS)
        sizes = np.bincount(parts.ravel(), minlength=number + 1)
        for part, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
            if sizes[part] >= min_pixels:
                boxes.append((columns.start, rows.start, columns.stop, rows.stop))
                classes.append(value)
                masks.append(parts == part)
    shape = (len(masks), *labels.shape)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(classes, dtype=torch.int64),
        "masks": torch.from_numpy(np.array(masks, dtype=np.uint8).reshape(shape)),
    }


def pasted(mask: Tensor, box: Tensor, size: Sequence[int], scale: float = 1.0) -> tuple[tuple[slice, slice], Tensor]:
    """A mask of a box's own size where it lies in the slice, as exactly as training cuts it out.

    torchvision pastes half a pixel to a pixel beside where it cuts out (by index, not by the pixels' middles, and to
    whole pixels). Of a ring of 4 pixels in a box of 180 its way back leaves a Dice of 0.81, this one 0.97.

    Args: mask: (M, M), probabilities. box: x1, y1, x2, y2 in pixels of the slice. size: Y, X of the slice.
        scale: pixels of the network's resized slice for one of the slice.
    Returns: rows and columns of the slice, and the probabilities there.
    """
    start, extent = box[:2], (box[2:] - box[:2]).clamp(min=1e-3)
    shift = 0.5 - 0.5 / scale
    axes = []
    for axis, voxels in enumerate((size[1], size[0])):  # x, y
        low = max(0, int(start[axis]) - 1)
        high = min(voxels, int(start[axis] + extent[axis]) + 2)
        place = torch.arange(low, max(low, high), device=mask.device)
        axes.append((slice(low, max(low, high)), 2 * (place + shift - start[axis]) / extent[axis] - 1))
    (columns, x), (rows, y) = axes
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    return (rows, columns), grid_sample(mask[None, None], grid[None].to(mask.dtype), align_corners=False)[0, 0]


def class_logits(
    detections: Sequence[Mapping[str, Tensor]],
    num_classes: int,
    size: Sequence[int],
    first: Tensor,
    scale: float = 1.0,
) -> Tensor:
    """What nnU-Net's prediction takes for logits: their argmax is the semantic label.

    A class's score at a pixel is the largest mask probability of its instances there; a class counts from 0.5 on, and
    the background wins below. Ties go to the classes that are first.

    Args: detections: of each slice, "labels" (N,), "boxes" (N, 4) and "masks" (N, 1, M, M), 0 to 1. size: Y, X.
        first: (num_classes,), above 0 for classes that go before others. scale: as ``pasted`` takes it.
    Returns: (B, num_classes, Y, X), float32: 0 for the background, else ``LOGIT_SCALE`` times score less 0.5.
    """
    scores = torch.zeros((len(detections), num_classes, *size), device=first.device)
    for own, detected in zip(scores, detections, strict=True):
        for value, box, mask in zip(detected["labels"], detected["boxes"], detected["masks"], strict=True):
            where, probability = pasted(mask[0].float(), box.float(), size, scale)
            own[value][where] = torch.maximum(own[value][where], probability)
    ahead = TIE * first.view(1, -1, 1, 1) * (scores >= 0.5)
    logits = LOGIT_SCALE * (scores - 0.5 + ahead)
    logits[:, 0] = 0
    # A score of exactly 0.5 counts, and argmax takes the first of equals, the background.
    return torch.where((logits == 0) & (scores > 0), TIE, logits)


def listed_instances(detected: Mapping[str, Tensor], names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Instances of a slice in plain numbers, best first: label, class, score, box (x1, y1, x2, y2 in pixels).

    Args: detected: of one slice, "labels" (N,), "scores" (N,), "boxes" (N, 4). names: of label values.
    """
    found = zip(detected["labels"].tolist(), detected["scores"].tolist(), detected["boxes"].tolist(), strict=True)
    rows = [{"label": value, "class": names[value], "score": score, "box": box} for value, score, box in found]
    return sorted(rows, key=lambda row: -row["score"])
