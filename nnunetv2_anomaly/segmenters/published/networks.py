"""The segmentation networks of the method paper: UNET and CAN, plain and with additive supervision ("+")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import interpolate

from nnunetv2_anomaly.networks import blocks
from nnunetv2_anomaly.plans.strides import Stride


@dataclass(frozen=True)
class NetworkShape:
    """What tells the published networks apart (method paper, Appendix A, Fig. 2, 3)."""

    name: str  # the paper's
    features: int  # feature maps at full resolution
    downsamplings: int  # how often the network halves the image
    dilations: tuple[int, ...]  # of the context aggregation module, in voxels of the last level; none for a U-Net


#: 5,887,765 parameters with one input channel and 5 classes in 3D
UNET = NetworkShape("UNET", 16, 4, ())
#: 852,565 parameters with one input channel and 5 classes in 3D
CAN = NetworkShape("CAN", 16, 2, (2, 4, 8))


class ClassScores(nn.Module):
    """Class scores at full resolution, from one feature map or as the sum over several (additive deep supervision).

    ``seg_layers[0]`` belongs to full resolution, ``seg_layers[1]`` to the level below it, and so on: the key of the
    full-resolution layer is the same in a plain and in a "+" network. nnU-Net's ``-pretrained_weights`` leaves out the
    state-dict keys that contain ``.seg_layers.``, so that the number of classes may change.
    """

    def __init__(self, map_channels: Sequence[int], num_classes: int, dimensions: int) -> None:
        """Build one layer per entry of map_channels, the channels of the feature maps, full resolution first."""
        super().__init__()
        self.seg_layers = nn.ModuleList(
            blocks.pointwise_convolution(channels, num_classes, dimensions) for channels in map_channels
        )

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:
        """Add up the scores of the levels, each upsampled to the next.

        Args: feature_maps: (B, C_i, ...), full resolution first, at least as many as there are layers.
        Returns: (B, num_classes, ...) of the first map's size, float32 also under autocast, before the softmax.
        """
        scores: Tensor | None = None
        with blocks.full_precision(feature_maps[0]):
            # the deepest level first; a plain network has one layer and leaves the deeper maps alone
            for layer, feature_map in reversed(list(zip(self.seg_layers, feature_maps, strict=False))):
                level_scores = layer(feature_map.float())
                if scores is not None:
                    # In place: at full resolution the scores of a whole image are large, and no gradient needs them.
                    level_scores += interpolate(scores, size=level_scores.shape[2:], mode="nearest")
                scores = level_scores
        assert scores is not None, "there is at least one layer"
        return scores


class PublishedNetwork(blocks.SummingTrunk):
    """UNET, CAN, UNET+ or CAN+ in 2D or 3D (method paper, Appendix A, Fig. 2, 3).

    Plain: scores of the decoder's full-resolution map. "+": additive deep supervision, where the bottleneck and every
    decoder level give scores, and the deepest are upsampled (nearest) and added to the next, and so on up. Either way
    there is one output and one loss at full resolution; nnU-Net's own deep supervision has one loss per scale.

    A plain network's state dict fits the "+" network of the same shape but for the missing ``scores.seg_layers.1``
    and further, the deeper score layers.
    """

    def __init__(
        self,
        *,
        shape: NetworkShape,
        in_channels: int,
        num_classes: int,
        strides: Sequence[Stride],
        additive_supervision: bool,
    ) -> None:
        """Build and initialise the network: dilated convolutions as identity, all others Glorot uniform, biases zero.

        Args:
            shape: UNET or CAN.
            in_channels: image channels, with the error image where the network sees it.
            num_classes: classes, background included.
            strides: one entry per downsampling, each with one stride per spatial axis; two or three spatial axes.
                Fewer than shape.downsamplings leave levels out, for patches too small for all of them.
            additive_supervision: True for the "+" form.
        """
        super().__init__(in_channels=in_channels, features=shape.features, strides=strides, dilations=shape.dilations)
        self.shape = shape
        scored = self.map_channels[::-1] if additive_supervision else self.map_channels[-1:]
        self.scores = ClassScores(scored, num_classes, self.dimensions)
        self.apply(blocks.initialize_identity_or_glorot)

    @property
    def levels_left_out(self) -> int:
        """Downsamplings of the published shape that this network lacks because it was given fewer strides."""
        return self.shape.downsamplings - len(self.upsampling)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, ...) -> logits (B, num_classes, ...) of the same size, float32, before the softmax."""
        return self.scores(self.feature_maps(image)[::-1])
