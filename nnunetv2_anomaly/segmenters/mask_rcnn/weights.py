"""Weights that a training of Mask R-CNN starts from, and what is recorded of them."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import sha256_of
from nnunetv2_anomaly.segmenters.mask_rcnn.network import MaskRCNNSegmenter
from nnunetv2_anomaly.segmenters.mask_rcnn.settings import NONE
from nnunetv2_anomaly.training.safe_loading import load_file
from nnunetv2_anomaly.training.torchvision_weights import weights_file

#: what torchvision's older files call otherwise, in this order: DenseNet, pyramid, proposals, mask branch
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)"), r"\1\2"),
    (re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
)
_MASK_LAYER = re.compile(r"mask_fcn(\d)\.(weight|bias)")
_BODY = "backbone.body."
#: what a file may hold for which there is no place: class layers, and counters that no frozen normalisation has
_LEFT_OUT = re.compile(r"backbone\.body\.(fc|classifier)\.|\.num_batches_tracked$")


def start_from(network: MaskRCNNSegmenter, source: str, backbone: str) -> dict[str, Any]:
    """Put a source's weights into a network, in place: all tensors that it has, but for those of other classes.

    Args: source, backbone: the settings ``mask_rcnn_weights`` and ``mask_rcnn_backbone``.
    Returns: the record for checkpoints: source, sha256 of its file, tensors that were taken, of how many, torchvision.
    Raises: UserError if the file is missing, cannot be read, lacks weights of the backbone, or is of a larger network.
    """
    own = network.rcnn.state_dict()
    record = {"source": source, "sha256": None, "tensors": 0, "of": len(own), "torchvision": version("torchvision")}
    if source == NONE:
        return record
    wanted = f"the weights of torchvision's {backbone}, or of a Mask R-CNN on it"
    file = weights_file(source, backbone, wanted, "mask_rcnn_weights")
    content = load_file(file, "give another file as 'mask_rcnn_weights'")
    given = _as_named_here(content) if isinstance(content, dict) else {}
    taken = {name: of for name, of in given.items() if name in own and _fits(of, own[name])}
    if missing := [name for name in own if name.startswith(_BODY) and name not in taken]:
        fault = f"{file} lacks {len(missing)} tensors of {backbone}, {missing[0].removeprefix(_BODY)} the first"
        raise UserError(f"{fault}; expected {wanted}, so give another file as 'mask_rcnn_weights'")
    if strange := [name for name in given if name not in own and not _LEFT_OUT.search(name)]:
        fault = f"{file} holds {len(strange)} tensors that this network has no place for, {strange[0]} the first"
        expected = f"expected the weights of torchvision's {backbone}, or of maskrcnn_resnet50_fpn for resnet50"
        raise UserError(f"{fault}; {expected}, so give another file or another 'mask_rcnn_backbone'")
    with torch.no_grad():
        for name, of in taken.items():
            # A first convolution for more than three channels keeps its zeros for the others.
            target = own[name][:, : of.shape[1]] if of.shape != own[name].shape else own[name]
            target.copy_(of)
    return {**record, "sha256": sha256_of(file), "tensors": len(taken)}


def _as_named_here(content: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of a backbone's or a whole Mask R-CNN's state dict, of any release, under today's names."""
    whole = any(name.startswith(_BODY) for name in content)
    named = {}
    for name, of in content.items():
        if isinstance(of, Tensor):
            name = name if whole else _BODY + name.removeprefix("features.")
            for pattern, replacement in _RENAMED:
                name = pattern.sub(replacement, name)
            named[_MASK_LAYER.sub(lambda match: f"{int(match[1]) - 1}.0.{match[2]}", name)] = of
    return named


def _fits(given: Tensor, own: Tensor) -> bool:
    """Whether the shapes are equal, or the own one is a first convolution for more channels than three."""
    wider = given.ndim == 4 and given.shape[1] == 3 < own.shape[1] and given.shape[0] == own.shape[0]
    return given.shape == own.shape or (wider and given.shape[2:] == own.shape[2:])
