import pytest
import torch
from torch import nn

from nnunetv2_anomaly.training.finite import LossWatch

CASES = ["a", "b"]


class Halves(nn.Module):
    """A loss of two terms, each with a factor."""

    def __init__(self, first=1.0, second=1.0):
        super().__init__()
        self.dice = Scaled(first)
        self.second = second

    def forward(self, output, target):
        return self.dice(output, target) + self.second * (output - target).mean()


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, output, target):
        return self.factor * (output - target).mean()


def told(loss, images=None, output=None, error_image=None):
    images = torch.ones(2, 1, 3, 3) if images is None else images
    output = torch.ones(2, 4, 3, 3) if output is None else output
    with LossWatch(loss) as watch:
        loss(output, torch.zeros(2, 4, 3, 3))
        return watch.culprit(images, CASES, error_image)


def spoiled(*shape, at=1, value=float("nan")):
    tensor = torch.ones(shape)
    tensor[at, 0, 1, 1] = value
    return tensor


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_come_first_and_are_named_by_their_case(value):
    images = spoiled(2, 1, 3, 3, value=value)
    assert told(Halves(), images, output=spoiled(2, 4, 3, 3)) == (
        "the preprocessed image of b holds NaN or infinite voxels",
        True,
    )


def test_error_image_comes_next():
    what, is_image = told(Halves(), output=spoiled(2, 4, 3, 3), error_image=spoiled(2, 1, 3, 3, at=0))
    assert (what, is_image) == ("the detector's error image of a is not finite", False)


def test_network_output_is_named_by_its_case():
    assert told(Halves(), output=spoiled(2, 4, 3, 3))[0] == "the network's output for b is not finite, its input is"


@pytest.mark.parametrize("loss", [Halves(first=float("inf")), Halves(second=float("nan"))])
def test_loss_comes_last(loss):
    assert told(loss)[0] == "the network's output is finite, and the loss is not"


def test_watch_leaves_nothing_behind():
    loss = Halves()
    with LossWatch(loss) as watch:
        loss(torch.ones(1), torch.ones(1))
        assert watch.given
    assert not watch.given
    assert not loss._forward_hooks


def test_loss_that_is_no_module_is_judged_without_a_cause():
    with LossWatch(lambda output, target: output) as watch:
        assert watch.culprit(torch.ones(2, 1, 3, 3), CASES) == ("what it was made of is not known", False)
