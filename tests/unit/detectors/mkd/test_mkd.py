"""Networks of the published sizes, the loss by hand, gradients that are guided, and no map where nothing differs."""

import pytest
import torch
from torch import nn

from nnunetv2_anomaly.detectors.mkd.localisation import gradient_map
from nnunetv2_anomaly.detectors.mkd.loss import LAMBDA, distance
from nnunetv2_anomaly.detectors.mkd.networks import (
    CLONER_WIDTHS,
    CRITICAL,
    SCORED,
    FeatureNetwork,
    build_cloner,
    build_teacher,
    load_vgg16,
)


def number_of(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_networks_have_the_published_numbers_of_parameters():
    assert number_of(build_cloner()) == 343_984
    with torch.device("meta"):
        assert number_of(FeatureNetwork(CLONER_WIDTHS, bias=True, norm=True)) == 345_536
        teacher = build_teacher()
    assert number_of(teacher) == 14_714_688
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("size", [320, 448])
def test_maps_of_both_networks_match_where_they_are_compared(size):
    with torch.device("meta"):
        of_both = [network(torch.zeros(1, 3, size, size)) for network in (build_cloner(), build_teacher())]
    assert [len(maps) for maps in of_both] == [13, 13]
    shapes = [[tuple(maps[layer].shape) for layer in CRITICAL] for maps in of_both]
    assert shapes[0] == shapes[1]
    assert shapes[0] == [
        (1, width, size // step, size // step) for width, step in ((128, 4), (256, 8), (512, 16), (512, 32))
    ]


def test_batch_norm_stands_everywhere_but_before_a_pool():
    for group in build_cloner().groups:
        norms = [any(isinstance(layer, nn.BatchNorm2d) for layer in layers) for layers in group]
        assert norms == [True] * (len(norms) - 1) + [False]


def maps_of(value):
    maps = [torch.zeros(2, 1, 1, 1)] * 13
    for layer in CRITICAL:
        maps[layer] = value.clone()
    return maps


def test_the_loss_by_hand():
    one = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 2.0]]]])
    other = torch.tensor([[[[0.0, 1.0]]], [[[2.0, 0.0]]]])
    assert distance(maps_of(one), maps_of(one)).abs().max() < 1e-6
    doubled = distance(maps_of(2 * one), maps_of(one))  # the same direction; mean squares 1/2 and 2, in four layers
    torch.testing.assert_close(doubled, LAMBDA * torch.tensor([4 * 0.5, 4 * 2.0]))
    across = distance(maps_of(one), maps_of(other), lambda_value=0)
    torch.testing.assert_close(across, torch.tensor([4.0, 4.0]))
    order = torch.tensor([1, 0])
    mixed = distance([m[order] for m in maps_of(one)], [m[order] for m in maps_of(other)])
    torch.testing.assert_close(mixed, distance(maps_of(one), maps_of(other))[order])


def test_the_score_leaves_the_second_pool_out():
    value = torch.rand(2, 3, 2, 2)
    teacher, cloner = maps_of(value), maps_of(value)
    cloner[CRITICAL[0]] = torch.rand(2, 3, 2, 2)
    assert distance(cloner, teacher, SCORED).abs().max() < 1e-6
    assert distance(cloner, teacher).min() > 1e-3


def test_guided_gradients_are_those_by_hand_and_end_with_their_context():
    """One convolution of each sign: with guidance the negative gradient of the second layer is dropped."""
    network = FeatureNetwork([[1, 1]], bias=False, norm=False)
    for layer, weight in zip(network.groups[0], (1.0, -1.0), strict=True):
        layer[0].weight.data.zero_()
        layer[0].weight.data[0, 0, 1, 1] = weight
    image = torch.full((1, 3, 2, 2), -1.0)
    image[0, 0] = torch.tensor([[3.0, 2.0], [1.0, 4.0]])
    # The first map is the image's first channel; the second convolution makes it negative, so nothing passes its ReLU.
    network.groups[0][1][0].weight.data *= -1
    image.requires_grad_()
    network(image)[1].sum().backward()
    plain = image.grad.clone()
    assert plain[0, 0].tolist() == [[0, 0], [0, 1]]  # the largest of the pool
    image.grad = None
    with network.guided_gradients():
        (-network(image)[1]).sum().backward()  # its gradient is negative everywhere
    assert image.grad.abs().max() == 0
    image.grad = None
    (-network(image)[1]).sum().backward()
    torch.testing.assert_close(image.grad, -plain)


def networks_of_one_shape():
    cloner, teacher = build_cloner().eval(), build_teacher()
    for layer in teacher.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return cloner, teacher


@pytest.mark.parametrize("method", ["gbp", "gradients"])
def test_maps_are_made_where_gradients_are_switched_off(method):
    torch.manual_seed(0)
    cloner, teacher = networks_of_one_shape()
    with torch.inference_mode():
        image = torch.rand(2, 3, 64, 64)
        found, score = gradient_map(cloner, teacher, image, method)
    assert found.shape == (2, 64, 64)
    assert score.shape == (2,)
    assert 0 <= found.min() < found.max() <= 1
    assert not cloner.guided


def test_a_slice_without_a_gradient_has_an_empty_map():
    cloner, teacher = networks_of_one_shape()
    for network in (cloner, teacher):
        for parameter in network.parameters():
            parameter.data.zero_()
    found, _ = gradient_map(cloner, teacher, torch.rand(1, 3, 32, 32))
    assert found.abs().max() == 0


def test_torchvisions_weights_are_taken_and_others_refused():
    teacher = build_teacher()
    layers = [layer for layer in teacher.modules() if isinstance(layer, nn.Conv2d)]
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    state = {}
    for number, layer in zip(numbers, layers, strict=True):
        state[f"features.{number}.weight"] = torch.full_like(layer.weight, number)
        state[f"features.{number}.bias"] = torch.full_like(layer.bias, -number)
    load_vgg16(teacher, {**state, "classifier.0.weight": torch.zeros(1)})
    assert layers[4].weight.unique().tolist() == [10]
    assert layers[12].bias.unique().tolist() == [-28]
    with pytest.raises(ValueError, match="they have 12 convolutions"):
        load_vgg16(teacher, {name: of for name, of in state.items() if ".28." not in name})
    state["features.5.weight"] = torch.zeros(1, 64, 3, 3)
    with pytest.raises(ValueError, match=r"convolution 5 is \(1, 64, 3, 3\)"):
        load_vgg16(teacher, state)
