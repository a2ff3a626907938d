"""The teacher's weights, from where the setting says, and what they are."""

from __future__ import annotations

import hashlib
import re

import torch
from torch import nn

from nnunetv2_anomaly.detectors.mkd.networks import FeatureNetwork, build_teacher, load_vgg16
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import sha256_of
from nnunetv2_anomaly.training.safe_loading import load_file
from nnunetv2_anomaly.training.torchvision_weights import named_file, weights_file

TORCHVISION = "torchvision"
_RANDOM = re.compile(r"random:(\d+)")


def is_source(value: object) -> bool:
    """Whether a value names where the weights are: torchvision, file:PATH or random:SEED."""
    return isinstance(value, str) and (value == TORCHVISION or is_random(value) or named_file(value) is not None)


def is_random(source: str) -> bool:
    """Whether a source has no trained weights."""
    return bool(_RANDOM.fullmatch(source))


def load_teacher(source: str) -> tuple[FeatureNetwork, str]:
    """The frozen teacher with a source's weights, and their SHA-256.

    Args: source: as ``is_source`` has it; torchvision's are downloaded where its cache has none.
    Raises: UserError if the file is missing, cannot be read, or holds another network's weights.
    """
    teacher = build_teacher()
    if seed := _RANDOM.fullmatch(source):
        return _drawn(teacher, int(seed[1])), source
    file = weights_file(source, "vgg16", "the weights of torchvision's VGG-16", "teacher_weights")
    try:
        load_vgg16(teacher, load_file(file, "give another file as 'teacher_weights'"))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        fault = f"{file} holds other weights than torchvision's VGG-16 ({error})"
        raise UserError(f"{fault}; give its file as 'teacher_weights'") from error
    return teacher, sha256_of(file)


def _drawn(teacher: FeatureNetwork, seed: int) -> FeatureNetwork:
    generator = torch.Generator().manual_seed(seed)
    for layer in teacher.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return teacher


def digest_of(identity: str) -> torch.Tensor:
    """32 bytes that tell one teacher from another, as they stand with the weights of a detector."""
    return torch.frombuffer(bytearray(hashlib.sha256(identity.encode()).digest()), dtype=torch.uint8)
