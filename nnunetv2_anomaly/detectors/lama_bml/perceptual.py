"""The perceptual loss, whose network is chosen and whose weights are a file that the user gives.

LaMa takes ResNet-50 with dilated convolutions, trained to segment ADE20K (its high receptive field loss); its authors'
ablations take the same trained on ImageNet. A bone segmentation of nnU-Net, whose field is as wide, is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from nnunetv2_anomaly.detectors.intensity import as_colours, as_imagenet
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.networks.planned import planned_network
from nnunetv2_anomaly.training.checkpoints import first_difference
from nnunetv2_anomaly.training.safe_loading import load_file


@dataclass(frozen=True)
class Source:
    """A network whose features are compared."""

    build: Callable[[dict[str, Any], Path], nn.Module]  # of a file's content
    weight: float  # of the loss
    natural: bool  # whether it takes three channels, normalised as ImageNet's


class PerceptualLoss(nn.Module):
    """Sum over a frozen network's stages of the mean squared difference of features (Suvorov et al. 2022, Eq. 2)."""

    def __init__(self, features: nn.Module, weight: float, natural: bool) -> None:
        """Args: features: image -> list of its stages' features."""
        super().__init__()
        self.features = features.requires_grad_(False).eval()
        self.weight, self.natural = weight, natural

    def forward(self, predicted: Tensor, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Scalar, weighted. Args: predicted, image: (B, C, Y, X) in [0, 1]. low, high: (C,), what 0 and 1 were."""
        mine, theirs = (self.features(self._seen(of, low, high)) for of in (predicted, image))
        losses = [mse_loss(a, b) for a, b in zip(mine, theirs, strict=True)]
        return self.weight * torch.stack(losses).sum()

    def _seen(self, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        if not self.natural:
            return image * (high - low)[:, None, None] + low[:, None, None]  # as nnU-Net normalised it
        return as_imagenet(as_colours(image.mean(dim=1, keepdim=True)))


class _ResNetStages(nn.Module):
    """ResNet-50 down to an eighth of the resolution: the features of its four stages."""

    def __init__(self, deep_stem: bool) -> None:
        """Args: deep_stem: three convolutions of 3 x 3 instead of one of 7 x 7, as the network of ADE20K has."""
        super().__init__()
        from torchvision.models.resnet import Bottleneck, ResNet

        width = 128 if deep_stem else 64

        class Dilated(ResNet):
            def _make_layer(self, block: Any, planes: int, *arguments: Any, **keywords: Any) -> nn.Sequential:
                if planes == 64:
                    self.inplanes = width
                return super()._make_layer(block, planes, *arguments, **keywords)

        network = Dilated(Bottleneck, [3, 4, 6, 3], replace_stride_with_dilation=[False, True, True])
        if deep_stem:
            widths = ((3, 64, 2), (64, 64, 1), (64, 128, 1))
            for number, (inputs, outputs, stride) in enumerate(widths, start=1):
                setattr(network, f"conv{number}", nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False))
                setattr(network, f"bn{number}", nn.BatchNorm2d(outputs))
        del network.fc
        self.network, self.stem = network, 3 if deep_stem else 1

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, Y, X) -> four maps, of a quarter, an eighth, an eighth and an eighth of the size."""
        for number in range(1, self.stem + 1):
            convolved = getattr(self.network, f"conv{number}")(image)
            image = torch.relu(getattr(self.network, f"bn{number}")(convolved))
        image, found = self.network.maxpool(image), []
        for layer in (self.network.layer1, self.network.layer2, self.network.layer3, self.network.layer4):
            image = layer(image)
            found.append(image)
        return found


def _resnet(state: dict[str, Any], file: Path, deep_stem: bool) -> nn.Module:
    stages = _ResNetStages(deep_stem)
    weights = {name: of for name, of in state.items() if not name.startswith("fc.")}
    # Batch counters came with later releases of torch; running statistics do not need them.
    counters = {name: of for name, of in stages.network.state_dict().items() if name.endswith("num_batches_tracked")}
    if difference := first_difference({**counters, **weights}, stages.network.state_dict()):
        expected = "the dilated ResNet-50 of ADE20K" if deep_stem else "torchvision's ResNet-50"
        raise UserError(f"{file} holds other weights ({difference}); expected those of {expected}")
    stages.network.load_state_dict({**counters, **weights})
    return stages


def _encoder(checkpoint: dict[str, Any], file: Path) -> nn.Module:
    try:
        given, weights = checkpoint["init_args"], checkpoint["network_weights"]
        plans = PlansManager(given["plans"])
        configuration = plans.get_configuration(given["configuration"])
        heads = plans.get_label_manager(given["dataset_json"]).num_segmentation_heads
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is no checkpoint of nnU-Net's; expected one of a 2d bone segmentation") from error
    if len(configuration.patch_size) != 2:
        raise UserError(f"{file} is of a network with {len(configuration.patch_size)} axes; expected a 2d one")
    num_channels = len(given["dataset_json"]["channel_names"])
    network = planned_network(configuration, num_channels, heads)
    if difference := first_difference(weights, network.state_dict()):
        raise UserError(f"{file} is of another network than its plans ({difference}); expected one of nnU-Net's own")
    network.load_state_dict(weights)
    return network.get_submodule("encoder")


SOURCES = {
    "ade20k": Source(partial(_resnet, deep_stem=True), 30.0, natural=True),
    "imagenet_dilated": Source(partial(_resnet, deep_stem=False), 1.0, natural=True),
    "segnet": Source(_encoder, 1.0, natural=False),
}


def perceptual_loss(source: str, file: Path) -> PerceptualLoss:
    """The loss with the network of a source, of ``SOURCES``.

    Raises: UserError if the file is missing, cannot be read, or holds another network's weights.
    """
    if not file.is_file():
        fault = f"{file} does not exist; expected the weights of the perceptual loss '{source}'"
        raise UserError(f"{fault}, so give their file as 'perceptual_weights', or set 'perceptual' to none")
    chosen = SOURCES[source]
    content = load_file(file, "give another file as 'perceptual_weights'")
    return PerceptualLoss(chosen.build(content, file), chosen.weight, chosen.natural)
