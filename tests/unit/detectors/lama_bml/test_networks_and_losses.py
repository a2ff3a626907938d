"""LaMa's networks have the published sizes and see whole slices; its losses look where they should."""

import pytest
import torch
from torch.nn.functional import softplus

from nnunetv2_anomaly.detectors.lama_bml.loss import (
    discriminator_loss,
    feature_matching_loss,
    generator_adversarial_loss,
    gradient_penalty,
    reconstruction_loss,
)
from nnunetv2_anomaly.detectors.lama_bml.networks import (
    Discriminator,
    FourierUnit,
    Generator,
    GeneratorShape,
    ResidualBlock,
    padded,
)

TINY = GeneratorShape(features=4, downsamplings=2, blocks=1)


def number_of(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("channels", "blocks", "number"),
    [(3, 9, 27_048_835), (3, 18, 50_975_875), (1, 9, 27_036_289), (1, 18, 50_963_329)],
)
def test_the_generator_has_the_published_number_of_parameters(channels, blocks, number):
    with torch.device("meta"):
        assert number_of(Generator(channels, GeneratorShape(blocks=blocks))) == number


def test_a_residual_block_and_the_discriminator_have_the_published_numbers():
    with torch.device("meta"):
        assert number_of(ResidualBlock((128, 384))) == 2_658_560  # with a local Fourier unit it would be more
        assert number_of(Discriminator(3)) == 6_962_369
        assert number_of(Discriminator(1)) == 6_960_321


def test_the_discriminator_judges_patches():
    logits, features = Discriminator(1, features=4)(torch.zeros(2, 1, 256, 256))
    assert logits.shape == (2, 1, 19, 19)
    assert len(features) == 5


def test_one_fourier_block_sees_the_whole_slice():
    generator = Generator(1, TINY).eval()
    image = torch.rand(1, 1, 32, 32, requires_grad=True)
    generator(image, torch.zeros(1, 1, 32, 32))[0, 0, 0, 0].backward()
    assert (image.grad != 0).all()


@pytest.mark.parametrize("size", [(100, 100), (33, 47), (64, 448)])
def test_slices_of_any_size_keep_it(size):
    image, hole = torch.rand(1, 1, *size), torch.zeros(1, 1, *size)
    hole[..., 8:20, 8:20] = 1
    with torch.no_grad():
        filled = Generator(1, TINY).eval().inpaint(image, hole)
    assert filled.shape == image.shape
    known = hole == 0
    assert torch.equal(filled[known], image[known])
    assert not torch.equal(filled[~known], image[~known])
    assert 0 <= filled.min() <= filled.max() <= 1


def test_what_is_in_the_hole_is_not_looked_at():
    generator = Generator(1, TINY).eval()
    image, hole = torch.rand(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    hole[..., 8:20, 8:20] = 1
    with torch.no_grad():
        expected = generator(image, hole)
        assert torch.equal(generator(torch.where(hole > 0, 1.0, image), hole), expected)
        assert not torch.equal(generator(torch.where(hole > 0, image, 1.0), hole), expected)


def test_padding_mirrors_the_end():
    image = torch.arange(5.0)[None, None, None].expand(1, 1, 8, 5)
    assert padded(image, 8)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 4, 3, 2]
    assert padded(torch.ones(1, 1, 1, 1), 8).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("size", [(56, 56), (7, 9)])
def test_fourier_units_run_in_full_precision_under_autocast(size):
    unit = FourierUnit(4)
    features = torch.rand(2, 4, *size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = unit(features.to(torch.bfloat16))
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    unit.convolution.weight.data = torch.eye(8)[:, :, None, None]
    unit.eval()  # untrained, its norm divides by sqrt(1 + eps)
    back = torch.fft.irfft2(torch.fft.rfft2(features, norm="ortho"), s=size, norm="ortho")
    torch.testing.assert_close(back, features)


def test_nothing_pulls_the_hole_to_its_true_content():
    predicted, image = torch.rand(2, 1, 4, 4, requires_grad=True), torch.rand(2, 1, 4, 4)
    hole = torch.zeros(2, 1, 4, 4)
    hole[..., 1:3, 1:3] = 1
    loss = reconstruction_loss(predicted, image, hole)
    loss.backward()
    assert (predicted.grad[hole > 0] == 0).all()
    assert (predicted.grad[hole == 0] != 0).all()
    by_hand = 10 * (predicted - image).abs()[hole == 0].sum() / predicted.numel()
    torch.testing.assert_close(loss, by_hand)


def test_only_patches_in_the_hole_are_fake():
    real, fake = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    hole = torch.zeros(1, 1, 8, 8)
    hole[..., :4, :4] = 1  # the first patch
    expected = softplus(-real)
    expected = expected + torch.tensor([[[[1.0, 0], [0, 0]]]]) * softplus(fake)
    expected = expected + torch.tensor([[[[0, 1.0], [1, 1]]]]) * softplus(-fake)
    torch.testing.assert_close(discriminator_loss(real, fake, hole), expected.mean())
    torch.testing.assert_close(generator_adversarial_loss(fake), softplus(-fake).mean())


def test_features_are_matched_stage_by_stage():
    mine, theirs = (
        [torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2, 2)],
        [torch.ones(1, 2, 4, 4), torch.full((1, 3, 2, 2), 2.0)],
    )
    assert feature_matching_loss(mine, theirs).item() == pytest.approx((1 + 4) / 2)


def test_the_penalty_of_a_linear_judge_is_its_squared_weights():
    weights = torch.randn(1, 1, 5, 5)
    image = torch.rand(3, 1, 5, 5, requires_grad=True)
    logits = (weights * image).sum(dim=(1, 2, 3))[:, None, None, None]
    torch.testing.assert_close(gradient_penalty(logits, image), weights.square().sum())


def test_each_step_changes_its_own_network_alone():
    generator, judge = Generator(1, TINY), Discriminator(1, features=2, layers=2)
    image, hole = torch.rand(2, 1, 32, 32), torch.zeros(2, 1, 32, 32)
    hole[..., 8:20, 8:20] = 1
    logits, _ = judge(generator(image, hole).detach())
    discriminator_loss(judge(image)[0], logits, hole).backward()
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert all(parameter.grad is not None for parameter in judge.parameters())
