import math

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, conv3d

from nnunetv2_anomaly.networks.blocks import (
    ConvolutionBlock,
    SummingTrunk,
    SummingUNet,
    initialize_glorot,
    initialize_identity_or_glorot,
)
from nnunetv2_anomaly.segmenters.published.networks import CAN, UNET, ClassScores, NetworkShape, PublishedNetwork

SMALL_UNET = NetworkShape("UNET", 2, 2, ())
SMALL_CAN = NetworkShape("CAN", 2, 2, (2, 4))
SHAPES = pytest.mark.parametrize("shape", [SMALL_UNET, SMALL_CAN], ids=lambda shape: shape.name)
PLAIN_AND_PLUS = pytest.mark.parametrize("additive", [False, True], ids=["plain", "plus"])
STRIDES = [(2, 2, 2)] * 2


def build(shape, additive, strides=STRIDES, in_channels=1, num_classes=3):
    torch.manual_seed(0)
    return PublishedNetwork(
        shape=shape,
        in_channels=in_channels,
        num_classes=num_classes,
        strides=strides,
        additive_supervision=additive,
    )


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("shape", "additive", "in_channels", "num_classes", "expected"),
    [
        (UNET, False, 1, 5, 5_887_765),
        (CAN, False, 1, 5, 852_565),
        # a score layer has (maps + 1) * classes parameters: 5 * (33 + 65 + 129 + 257) and 5 * (33 + 129) more
        (UNET, True, 1, 5, 5_887_765 + 2_420),
        (CAN, True, 1, 5, 852_565 + 810),
        # a second input channel: 27 * 16 weights; five more classes: 5 * 17, then as above
        (UNET, True, 2, 10, 5_887_765 + 432 + 85 + 4_840),
        (CAN, True, 2, 10, 852_565 + 432 + 85 + 1_620),
    ],
)
def test_published_networks_have_the_papers_number_of_parameters(shape, additive, in_channels, num_classes, expected):
    network = build(shape, additive, [(2, 2, 2)] * shape.downsamplings, in_channels, num_classes)
    assert parameter_count(network) == expected


def test_context_aggregation_module_is_strided_dilated_and_plain_blocks():
    module = build(CAN, False).encoder[-1]
    convolutions = [block[0] for block in module]
    assert [layer.stride for layer in convolutions] == [(2, 2, 2)] + [(1, 1, 1)] * 4
    assert [layer.dilation[0] for layer in convolutions] == [1, 2, 4, 8, 1]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [
        (32, 64),
        (64, 64),
        (64, 64),
        (64, 64),
        (64, 128),
    ]


@SHAPES
@PLAIN_AND_PLUS
@pytest.mark.parametrize(
    ("size", "strides"),
    [
        ((13, 17, 11), [(2, 2, 2)] * 2),
        ((5, 12, 14), [(1, 2, 2), (2, 2, 2)]),
        ((7, 14, 9), [(1, 3, 2)]),
        ((33, 21), [(2, 2)] * 2),
        ((16, 7), [(2, 1), (2, 2)]),
    ],
    ids=str,
)
def test_logits_have_the_size_of_the_image(shape, additive, size, strides):
    network = build(shape, additive, strides, in_channels=2)
    with torch.no_grad():
        logits = network(torch.rand(2, 2, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@SHAPES
@pytest.mark.parametrize("bottleneck_channels", [0, 1])
def test_trunk_names_the_channels_of_its_feature_maps_deepest_first(shape, bottleneck_channels):
    trunk = SummingTrunk(
        in_channels=1, features=2, strides=STRIDES, bottleneck_channels=bottleneck_channels, dilations=shape.dilations
    )
    code = torch.rand(1, 1, 2, 3, 2) if bottleneck_channels else None
    with torch.no_grad():
        maps = trunk.feature_maps(torch.rand(1, 1, 8, 9, 8), code)
    assert [feature_map.shape[1] for feature_map in maps] == trunk.map_channels
    assert [tuple(feature_map.shape[2:]) for feature_map in maps] == [(2, 3, 2), (4, 5, 4), (8, 9, 8)]


@SHAPES
def test_plus_network_with_zero_deeper_scores_equals_the_plain_network(shape):
    plain, plus = build(shape, False), build(shape, True)
    missing, unexpected = plus.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert set(missing) == {f"scores.seg_layers.{level}.{name}" for level in (1, 2) for name in ("weight", "bias")}
    for layer in plus.scores.seg_layers[1:]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    image = torch.rand(1, 1, 9, 8, 7)
    with torch.no_grad():
        torch.testing.assert_close(plus(image), plain(image), rtol=0, atol=0)


def test_scores_are_upsampled_to_the_nearest_voxel_and_added_level_by_level():
    scores = ClassScores([1, 1, 1], num_classes=1, dimensions=2)
    for layer, factor in zip(scores.seg_layers, (1.0, 10.0, 100.0), strict=True):
        nn.init.constant_(layer.weight, factor)
        nn.init.zeros_(layer.bias)
    full = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    middle = torch.tensor([[1.0, 2.0, 3.0]])
    deep = torch.tensor([[1.0, 2.0]])
    # middle: 10 + 100, 20 + 100, 30 + 200; every one covers two voxels of five, the last one only one
    expected = torch.tensor([[111.0, 112.0, 123.0, 124.0, 235.0]])
    with torch.no_grad():
        torch.testing.assert_close(scores([tensor[None, None] for tensor in (full, middle, deep)])[0, 0], expected)


@SHAPES
def test_every_parameter_gets_a_gradient(shape):
    network = build(shape, True)
    logits = network(torch.rand(1, 1, 8, 9, 8))
    (logits * torch.rand(logits.shape)).sum().backward()
    layers = network.scores.seg_layers
    assert len(layers) == 3
    assert all(layer.weight.grad.abs().sum() > 0 for layer in layers)
    assert all(layer.bias.grad.abs().sum() > 0 for layer in layers)
    assert all(parameter.grad is not None for parameter in network.parameters())


@SHAPES
@PLAIN_AND_PLUS
def test_bfloat16_autocast_gives_finite_float32_logits(shape, additive):
    network = build(shape, additive)
    inner = []
    network.encoder[0].register_forward_hook(lambda module, inputs, output: inner.append(output.dtype))
    image = torch.rand(1, 1, 8, 9, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(image)
    assert inner == [torch.bfloat16]  # autocast was really at work
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    logits.sum().backward()
    torch.testing.assert_close(logits.detach(), network(image).detach(), atol=0.3, rtol=0.1)


@pytest.mark.parametrize("dilation", [2, 4, 8])
@pytest.mark.parametrize("size", [(17, 5), (3, 1), (7, 2, 9), (1, 1, 1)], ids=str)
def test_fresh_dilated_convolution_passes_its_input_through(dilation, size):
    block = ConvolutionBlock(3, 3, (1,) * len(size), dilation).apply(initialize_identity_or_glorot)
    assert max(block[0].dilation) == dilation
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(block[0](image), image, rtol=0, atol=0)


def test_dilated_convolution_looks_dilation_voxels_away():
    convolution = ConvolutionBlock(1, 1, (1, 1), 4)[0]
    nn.init.ones_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    image = torch.zeros(1, 1, 1, 11)
    image[..., 5] = 1
    with torch.no_grad():
        assert convolution(image).flatten().tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0]


@PLAIN_AND_PLUS
@pytest.mark.parametrize("shape", [UNET, CAN], ids=lambda shape: shape.name)
def test_a_fresh_network_is_glorot_but_for_identity_in_dilated_convolutions(shape, additive):
    network = build(shape, additive)
    dilated = 0
    for layer in network.modules():
        if not isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
            continue
        assert (layer.bias == 0).all()
        weight = layer.weight.detach()
        if layer.dilation[0] > 1:
            dilated += 1
            identity = torch.zeros_like(weight)
            identity[range(64), range(64), 1, 1, 1] = 1
            assert torch.equal(weight, identity)
            continue
        voxels = layer.kernel_size[0] ** 3
        bound = math.sqrt(6 / (voxels * (layer.in_channels + layer.out_channels)))
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.8 * bound
        # uniform on [-bound, bound] has the mean size bound / 2
        assert weight.abs().mean() == pytest.approx(bound / 2, rel=0.25)
    assert dilated == len(shape.dilations)


def test_unet_draws_its_random_numbers_layer_by_layer_and_keeps_its_keys():
    # Checkpoints and seeded runs from before the trunk was split off must stay as they are.
    torch.manual_seed(4)
    network = SummingUNet(in_channels=2, out_channels=3, features=2, strides=[(2, 2, 1)], bottleneck_channels=1)
    state_after = torch.get_rng_state()
    torch.manual_seed(4)
    replay = [nn.Conv3d(2, 2, 3), nn.Conv3d(2, 2, 3), nn.Conv3d(2, 4, 3), nn.Conv3d(4, 4, 3)]
    replay += [nn.ConvTranspose3d(5, 2, 3), nn.Conv3d(2, 2, 3), nn.Conv3d(2, 2, 3), nn.Conv3d(2, 3, 1)]
    for layer in replay:
        initialize_glorot(layer)
    assert torch.equal(torch.get_rng_state(), state_after)  # what is built next draws the same numbers too
    blocks = [f"{stage}.{block}" for stage in ("encoder.0", "encoder.1", "decoder.0") for block in (0, 1)]
    convolutions = [f"{block}.0" for block in blocks[:4]] + ["upsampling.0.transposed"]
    convolutions += [f"{block}.0" for block in blocks[4:]] + ["output"]
    norms = [f"{block}.1" for block in blocks] + ["upsampling.0.norm"]
    state = network.state_dict()
    assert set(state) == {f"{layer}.{name}" for layer in convolutions + norms for name in ("weight", "bias")}
    for name, layer in zip(convolutions, replay, strict=True):
        torch.testing.assert_close(state[f"{name}.weight"], layer.weight.detach(), rtol=0, atol=0)


@SHAPES
def test_fewer_strides_leave_levels_out_and_say_so(shape):
    assert build(shape, True).levels_left_out == 0
    shallow = build(shape, True, [(2, 2, 2)])
    assert shallow.levels_left_out == 1
    assert len(shallow.scores.seg_layers) == 2


@SHAPES
def test_score_layers_have_keys_that_nnunets_pretrained_weights_leaves_out(shape):
    state = build(shape, True).state_dict()
    left_out = {key for key in state if ".seg_layers." in key}
    other = {key for key in build(shape, True, num_classes=7).state_dict() if ".seg_layers." not in key}
    assert left_out == {f"scores.seg_layers.{level}.{name}" for level in range(3) for name in ("weight", "bias")}
    assert set(state) - left_out == other


@pytest.mark.parametrize(("dimensions", "convolve"), [(2, conv2d), (3, conv3d)])
def test_plain_scores_are_the_pointwise_convolution_of_the_full_resolution_map(dimensions, convolve):
    network = build(SMALL_CAN, False, [(2,) * dimensions] * 2)
    image = torch.rand(1, 1, *(8,) * dimensions)
    layer = network.scores.seg_layers[0]
    with torch.no_grad():
        expected = convolve(network.feature_maps(image)[-1], layer.weight, layer.bias)
        torch.testing.assert_close(network(image), expected)
