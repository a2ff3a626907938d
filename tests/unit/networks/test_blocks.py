import math

import pytest
import torch
from torch import nn

from nnunetv2_anomaly.networks.blocks import (
    ConvolutionBlock,
    SummingUNet,
    UpsamplingSum,
    initialize_glorot,
)
from nnunetv2_anomaly.plans.strides import downsampled_size


def test_network_of_the_paper_has_5887765_parameters():
    network = SummingUNet(in_channels=1, out_channels=5, features=16, strides=[(2, 2, 2)] * 4)
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_887_765


@pytest.mark.parametrize(
    ("size", "strides"),
    [
        ((17, 16, 16), [(2, 2, 2)] * 4),
        ((13, 17, 11), [(2, 2, 2)] * 2),
        ((5, 20, 23), [(1, 2, 2), (1, 2, 2), (2, 2, 2)]),
        ((9, 14, 7), [(2, 3, 1)]),
        ((33, 21), [(2, 2)] * 3),
        ((16, 7), [(2, 1), (2, 2)]),
    ],
    ids=str,
)
def test_output_has_the_size_of_the_input(size, strides):
    network = SummingUNet(in_channels=2, out_channels=3, features=2, strides=strides)
    with torch.no_grad():
        assert network(torch.rand(1, 2, *size)).shape == (1, 3, *size)


def test_output_is_float32_under_bfloat16_autocast_and_close_to_full_precision():
    torch.manual_seed(0)
    network = SummingUNet(in_channels=1, out_channels=2, features=4, strides=[(2, 2, 2)] * 2).eval()
    image = torch.rand(1, 1, 8, 8, 8)
    inner = []
    network.encoder[0].register_forward_hook(lambda module, inputs, output: inner.append(output.dtype))
    with torch.no_grad():
        full = network(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = network(image)
    assert torch.bfloat16 in inner  # autocast was really at work
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, full, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(("size", "stride"), [((9, 12, 7), (2, 1, 2)), ((13, 10), (1, 2))], ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
def test_single_sample_without_gradients_goes_to_onednn_and_gives_the_same_values(size, stride, dilation):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch comes without oneDNN")
    torch.manual_seed(0)
    convolution = ConvolutionBlock(3, 4, stride, dilation)[0]
    image = torch.randn(1, 3, *size)
    with torch.no_grad(), torch.profiler.profile() as profile:
        single = convolution(image)
    assert any("mkldnn" in event.key for event in profile.key_averages())
    torch.testing.assert_close(single, convolution(image).detach(), atol=1e-5, rtol=1e-5)
    # With gradients torch chooses by itself.
    assert convolution(image).requires_grad


def test_channels_concatenated_at_the_bottleneck_change_the_output():
    torch.manual_seed(0)
    network = SummingUNet(in_channels=1, out_channels=1, features=2, strides=[(2, 2)], bottleneck_channels=1)
    image = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        first, second = (network(image, torch.rand(1, 1, 4, 4)) for _ in range(2))
    assert not torch.allclose(first, second)


def test_upsampling_adds_the_encoders_feature_map_before_the_normalisation():
    torch.manual_seed(0)
    block = UpsamplingSum(2, 3, (2, 2))
    deeper, skip = torch.rand(1, 2, 4, 4), torch.rand(1, 3, 7, 8)
    summed = block.transposed(deeper, output_size=(7, 8)) + skip
    mean = summed.mean(dim=(2, 3), keepdim=True)
    normalised = (summed - mean) / torch.sqrt(summed.var(dim=(2, 3), keepdim=True, unbiased=False) + 1e-5)
    expected = torch.where(normalised > 0, normalised, 0.1 * normalised)
    torch.testing.assert_close(block(deeper, skip), expected, atol=1e-5, rtol=1e-5)


def test_convolution_block_is_convolution_instance_norm_and_leaky_relu_of_slope_a_tenth():
    convolution, norm, activation = ConvolutionBlock(1, 2, (2, 2, 1))
    assert (convolution.kernel_size, convolution.stride) == ((3, 3, 3), (2, 2, 1))
    assert convolution.bias is not None
    assert isinstance(norm, nn.InstanceNorm3d)
    assert norm.affine
    assert activation.negative_slope == 0.1


def test_glorot_initialisation_stays_in_its_bound_with_zero_bias():
    layer = nn.Linear(20, 10)
    initialize_glorot(layer)
    bound = math.sqrt(6 / 30)
    assert layer.weight.abs().max() <= bound
    assert layer.weight.abs().max() > 0.8 * bound
    assert (layer.bias == 0).all()


@pytest.mark.parametrize(
    ("size", "strides", "expected"),
    [
        ((160, 384, 384), [(2, 2, 2)] * 4, (10, 24, 24)),
        ((5, 20), [(2, 1), (2, 3)], (2, 7)),
        ((7,), [(1,)], (7,)),
    ],
)
def test_downsampled_size_rounds_up_axis_by_axis(size, strides, expected):
    assert downsampled_size(size, strides) == expected


def test_downsampled_size_is_what_the_convolutions_leave():
    size, strides = (11, 6, 13), [(2, 1, 2), (1, 3, 2)]
    x = torch.rand(1, 1, *size)
    for stride in strides:
        x = ConvolutionBlock(1, 1, stride)(x)
    assert tuple(x.shape[2:]) == downsampled_size(size, strides)
