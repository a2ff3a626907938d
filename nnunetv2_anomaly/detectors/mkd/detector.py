"""Where a small network does not give what its teacher gives, of slices unlike those that it learnt from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.base import Contract, refuse_to_segment
from nnunetv2_anomaly.detectors.intensity import RescalingDetector, as_colours, as_imagenet
from nnunetv2_anomaly.detectors.mkd.localisation import gradient_map
from nnunetv2_anomaly.detectors.mkd.loss import distance
from nnunetv2_anomaly.detectors.mkd.networks import CRITICAL, FeatureNetwork, build_cloner
from nnunetv2_anomaly.detectors.mkd.teacher import digest_of, is_random, load_teacher
from nnunetv2_anomaly.errors import UserError


class MKDDetector(RescalingDetector):
    """The gradient of the distance between cloner and teacher, 0 to 1 in each slice (Salehi et al. 2021).

    The teacher's weights are ImageNet's and 59 MB, the same for every model: they are not in the state dict, but read
    from where ``teacher_weights`` says when they are first needed; the state dict knows them by their SHA-256.
    """

    contract = Contract(family="mkd", error_channels=1, dimensions=(2,), window="whole", multiple_of=32)
    reconstructs = False
    clips = True
    teacher_digest: Tensor

    def __init__(self, num_channels: int, settings: Mapping[str, Any]) -> None:
        """Build the cloner. Args: settings: of the family's table."""
        super().__init__(num_channels)
        self.cloner = build_cloner()
        self.register_buffer("teacher_digest", torch.zeros(32, dtype=torch.uint8))
        self.source: str = settings["teacher_weights"]
        self.comparable = not is_random(self.source)
        self.normalised = settings["teacher_normalisation"] == "imagenet"
        self.lambda_value, self.method = settings["lambda_value"], settings["mkd_map"]
        self.scored = [CRITICAL[pool - 2] for pool in settings["score_pools"]]
        self._teacher: list[FeatureNetwork] = []  # a list, so that it is no part of the state dict

    @classmethod
    def build(
        cls, configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]
    ) -> MKDDetector:
        """The untrained cloner."""
        return cls(num_channels, settings)

    @property
    def teacher(self) -> FeatureNetwork:
        """The frozen teacher, on the cloner's device.

        Raises: UserError if its weights are missing, or are others than those that the cloner was trained with.
        """
        if not self._teacher:
            with torch.inference_mode(False):  # gradients have to pass it, also where nnU-Net's prediction asks first
                teacher, identity = load_teacher(self.source)
                teacher = teacher.to(self.teacher_digest.device)
            digest = digest_of(identity).to(self.teacher_digest.device)
            if self.teacher_digest.any() and not torch.equal(digest, self.teacher_digest):
                fault = f"the teacher's weights of {self.source} are not those that the detector was trained with"
                raise UserError(f"{fault}; expected the same file, so set 'teacher_weights' in the model's plans.json")
            self.teacher_digest.copy_(digest)
            self.sources = {"teacher (VGG-16)": identity}
            self._teacher.append(teacher)
        return self._teacher[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MKDDetector:
        for teacher in self._teacher:
            teacher._apply(fn)
        super()._apply(fn, recurse)
        return self

    def seen(self, image: Tensor) -> Tensor:
        """An image as both networks take it: (B, C, Y, X) as nnU-Net normalised it -> (B, 3, Y, X).

        Three channels are taken for colours; of any other number both networks see the mean.
        """
        colours = as_colours(self.rescale(image))
        return as_imagenet(colours) if self.normalised else colours

    def distance(self, image: Tensor) -> Tensor:
        """What training lessens, of slices (B, C, Y, X): (B,)."""
        seen = self.seen(image)
        with torch.no_grad():
            of_teacher = self.teacher(seen)
        return distance(self.cloner(seen), of_teacher, CRITICAL, self.lambda_value)

    @torch.no_grad()
    def scores(self, image: Tensor) -> Tensor:
        """How unusual slices are, which their maps do not say: (B, C, Y, X) -> (B,), unitless."""
        seen = self.seen(image)
        return distance(self.cloner(seen), self.teacher(seen), self.scored, self.lambda_value)

    def difference(self, image: Tensor) -> Tensor:
        """The map of slices: (B, C, Y, X) -> (B, 1, Y, X), float32, in [0, 1]; it has no sign."""
        _let_gradients_pass(self.cloner)
        maps = [
            gradient_map(self.cloner, self.teacher, of, self.method, self.lambda_value, self.scored)[0]
            for of in self.seen(image).split(1)
        ]
        return torch.cat(maps)[:, None]

    def error(self, image: Tensor, difference: Tensor) -> Tensor:
        """The map itself: (B, 1, Y, X)."""
        return difference


def _let_gradients_pass(network: nn.Module) -> None:
    """Take copies of weights that were moved in inference mode, as nnU-Net does to predict: those have no gradient."""
    with torch.inference_mode(False):
        for layer in network.modules():
            for name, weight in layer.named_parameters(recurse=False):
                if weight.is_inference():
                    setattr(layer, name, nn.Parameter(weight.clone(), weight.requires_grad))
            for name, buffer in layer.named_buffers(recurse=False):
                if buffer.is_inference():
                    setattr(layer, name, buffer.clone())


class Distillation(nn.Module):
    """The detector as it is trained."""

    def __init__(self, detector: MKDDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> Tensor:
        """Distances of slices: (B, C, Y, X) -> (B,).

        Raises: UserError in nnU-Net's prediction, which wants a segmentation.
        """
        if torch.is_inference_mode_enabled():
            raise refuse_to_segment(self.detector)
        return self.detector.distance(image)
