import math

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import nn
from torch.nn.functional import cross_entropy

from nnunetv2_anomaly.segmenters.loss import (
    AnomalyAwareLoss,
    DiceAndFocalCrossEntropy,
    average_to,
    focal_cross_entropy,
)

IGNORE = 3
# Two voxels, two classes: the true class has probability 3/4 in the first and 1/2 in the second.
LOGITS = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])  # (B, K, X)
TARGET = torch.tensor([[[0, 1]]])  # (B, 1, X)


class NoDice(nn.Module):
    def forward(self, logits, target, loss_mask=None):
        return logits.sum() * 0


@pytest.fixture
def random_batch():
    generator = torch.manual_seed(3)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator)
    target = torch.randint(0, 3, (2, 1, 4, 5, 6), generator=generator)
    error = torch.rand(2, 1, 4, 5, 6, generator=generator)
    return logits, target, error


def planned_dice():
    return MemoryEfficientSoftDiceLoss(
        apply_nonlin=softmax_helper_dim1, batch_dice=False, do_bg=False, smooth=1e-5, ddp=False
    )


def test_focal_cross_entropy_against_pencil_numbers():
    weight = torch.tensor([[[10.0, 2.0]]])
    expected = (10 * math.log(4 / 3) + 2 * math.log(2)) / 2
    assert focal_cross_entropy(LOGITS, TARGET, weight).item() == pytest.approx(expected)


def test_equation_5_against_pencil_numbers():
    # F = 1 + 99 * E = (100, 1); batch Dice over both voxels, background included, smooth 0:
    # class 0: 2 * 0.75 / (1.25 + 1), class 1: 2 * 0.5 / (0.75 + 1)
    dice = MemoryEfficientSoftDiceLoss(apply_nonlin=softmax_helper_dim1, do_bg=True, smooth=0.0, ddp=False)
    loss = AnomalyAwareLoss(
        DiceAndFocalCrossEntropy(dice, alpha=10.0, ignore_label=None), 99.0, lambda: torch.tensor([[[1.0, 0.0]]])
    )
    expected_dice = (1.5 / 2.25 + 1.0 / 1.75) / 2
    expected_cross_entropy = (100 * math.log(4 / 3) + math.log(2)) / 2
    assert loss(LOGITS, TARGET).item() == pytest.approx(-expected_dice + 10 * expected_cross_entropy)


def test_beta_0_gives_plain_cross_entropy(random_batch):
    logits, target, error = random_batch
    loss = AnomalyAwareLoss(DiceAndFocalCrossEntropy(NoDice(), alpha=1.0, ignore_label=None), 0.0, lambda: error)
    torch.testing.assert_close(loss(logits, target), cross_entropy(logits, target[:, 0]))
    torch.testing.assert_close(loss(logits, target), RobustCrossEntropyLoss()(logits, target.float()))


def test_beta_0_and_alpha_1_give_nnunets_own_loss_also_with_ignored_voxels(random_batch):
    logits, target, error = random_batch
    target = torch.where(error > 0.7, IGNORE, target)
    assert (target == IGNORE).any()
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    planned = DC_and_CE_loss(options, {}, ignore_label=IGNORE, dice_class=MemoryEfficientSoftDiceLoss)
    ours = AnomalyAwareLoss(DiceAndFocalCrossEntropy(planned.dc, alpha=1.0, ignore_label=IGNORE), 0.0, lambda: error)
    torch.testing.assert_close(ours(logits, target), planned(logits, target))


def test_doubling_the_weight_of_one_voxel_adds_exactly_its_share(random_batch):
    logits, target, error = random_batch
    weight = 1 + 9 * error
    heavier = weight.clone()
    heavier[1, 0, 2, 3, 4] *= 2
    share = weight[1, 0, 2, 3, 4] * cross_entropy(logits, target[:, 0], reduction="none")[1, 2, 3, 4] / target.numel()
    difference = focal_cross_entropy(logits, target, heavier) - focal_cross_entropy(logits, target, weight)
    torch.testing.assert_close(difference, share, rtol=1e-3, atol=1e-7)


def test_ignored_voxels_have_neither_value_nor_gradient(random_batch):
    logits, target, error = random_batch
    ignored = error > 0.5
    assert ignored.any()
    assert not ignored.all()
    target = torch.where(ignored, IGNORE, target)
    logits.requires_grad_()
    loss = focal_cross_entropy(logits, target, 1 + error, ignore_label=IGNORE)
    kept = ~ignored[:, 0]
    plain = cross_entropy(logits, target[:, 0].clamp(max=2), reduction="none") * (1 + error[:, 0])
    torch.testing.assert_close(loss, plain[kept].mean())
    loss.backward()
    assert (logits.grad[ignored.expand_as(logits)] == 0).all()
    assert (logits.grad[~ignored.expand_as(logits)] != 0).all()


def test_dice_too_does_not_see_ignored_voxels(random_batch):
    logits, target, error = random_batch
    ignored = error > 0.5
    target = torch.where(ignored, IGNORE, target)
    loss = DiceAndFocalCrossEntropy(planned_dice(), alpha=10.0, ignore_label=IGNORE)
    changed = torch.where(ignored, logits + 5 * torch.randn(logits.shape, generator=torch.manual_seed(1)), logits)
    torch.testing.assert_close(loss(changed, target, 1 + error), loss(logits, target, 1 + error))


def test_loss_without_any_counting_voxel_is_0_with_finite_gradients(random_batch):
    logits, target, error = random_batch
    logits.requires_grad_()
    target = torch.full_like(target, IGNORE)
    assert focal_cross_entropy(logits, target, 1 + error, ignore_label=IGNORE).item() == 0
    DiceAndFocalCrossEntropy(planned_dice(), 10.0, IGNORE)(logits, target, 1 + error).backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_half_precision_logits_give_a_finite_float32_loss(dtype):
    logits = torch.tensor([[[6e4, -6e4], [-6e4, 6e4]]], dtype=dtype, requires_grad=True)
    loss = DiceAndFocalCrossEntropy(planned_dice(), 10.0, None)(logits, 1 - TARGET, torch.full((1, 1, 2), 100.0))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_weight_of_a_coarser_scale_is_the_mean_of_the_voxels_it_covers():
    weight = torch.arange(64.0).view(1, 1, 4, 4, 4)
    coarse = average_to(weight, (2, 4, 1))
    expected = weight.numpy().reshape(2, 2, 4, 1, 4).mean(axis=(1, 4))
    np.testing.assert_allclose(coarse.numpy()[0, 0, :, :, 0], expected[..., 0])


def test_weight_of_an_odd_size_is_the_mean_of_the_voxels_that_a_coarser_one_touches():
    weight = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]]).unsqueeze(-1)
    # cells [0, 5/3), [5/3, 10/3), [10/3, 5) touch voxels 0-1, 1-3, 3-4
    assert average_to(weight, (3, 1)).flatten().tolist() == [1.5, 3.0, 4.5]


def test_weight_of_the_same_size_is_left_alone():
    weight = torch.rand(1, 1, 3, 5, generator=torch.manual_seed(0))
    assert average_to(weight, torch.Size((3, 5))) is weight


def test_deep_supervision_weighs_every_scale_with_its_averaged_weight():
    generator = torch.manual_seed(5)
    error = torch.rand(1, 2, 4, 6, generator=generator)
    sizes = [(4, 6), (2, 3), (1, 1)]
    logits = [torch.randn(1, 3, *size, generator=generator) for size in sizes]
    targets = [torch.randint(0, 3, (1, 1, *size), generator=generator) for size in sizes]
    loss_of_scale = DiceAndFocalCrossEntropy(NoDice(), alpha=10.0, ignore_label=None)
    loss = AnomalyAwareLoss(DeepSupervisionWrapper(loss_of_scale, [0.5, 0.3, 0.2]), 99.0, lambda: error)
    full = (1 + 99 * error.mean(dim=1)).numpy()[0]
    weights = [full, full.reshape(2, 2, 3, 2).mean(axis=(1, 3)), full.mean(keepdims=True)]
    expected = sum(
        factor * 10 * (cross_entropy(scores, labels[:, 0], reduction="none") * torch.from_numpy(weight)).mean()
        for factor, scores, labels, weight in zip([0.5, 0.3, 0.2], logits, targets, weights, strict=True)
    )
    torch.testing.assert_close(loss(logits, targets), expected)


def test_loss_does_not_touch_the_lists_it_is_given():
    scores, labels = [LOGITS.clone()], [TARGET.clone()]
    loss = AnomalyAwareLoss(
        DeepSupervisionWrapper(DiceAndFocalCrossEntropy(NoDice(), 1.0, None), [1.0]), 9.0, lambda: torch.ones(1, 1, 2)
    )
    loss(scores, labels)
    assert torch.equal(scores[0], LOGITS)
    assert torch.equal(labels[0], TARGET)


def test_alpha_scales_the_cross_entropy_only(random_batch):
    logits, target, error = random_batch
    dice = planned_dice()
    losses = [DiceAndFocalCrossEntropy(dice, alpha, None)(logits, target, 1 + error) for alpha in (0.0, 10.0)]
    torch.testing.assert_close(losses[0], dice(logits, target))
    torch.testing.assert_close(losses[1] - losses[0], 10 * focal_cross_entropy(logits, target, 1 + error))


def test_error_image_is_asked_for_anew_at_every_call():
    errors = iter([torch.zeros(1, 1, 2), torch.ones(1, 1, 2)])
    loss = AnomalyAwareLoss(DiceAndFocalCrossEntropy(NoDice(), 1.0, None), 99.0, lambda: next(errors))
    first, second = loss(LOGITS, TARGET), loss(LOGITS, TARGET)
    torch.testing.assert_close(second, 100 * first)
