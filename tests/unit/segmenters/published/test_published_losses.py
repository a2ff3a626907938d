import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from nnunetv2_anomaly.segmenters.loss import AnomalyAwareLoss, DiceAndFocalCrossEntropy
from nnunetv2_anomaly.segmenters.published.loss import MultiClassDiceLoss, WeightedDiceLoss

IGNORE = 3
LOG3 = math.log(3.0)
# Two voxels, two classes: u = (3/4, 1/4) in the first voxel and (1/2, 1/2) in the second.
LOGITS = torch.tensor([[[LOG3, 0.0], [0.0, 0.0]]])  # (B, K, X)
TARGET = torch.tensor([[[0, 1]]])  # (B, 1, X)
DICE_0 = 2 * 0.75 / (1.25 + 1)
DICE_1 = 2 * 0.5 / (0.75 + 1)


def plain_dice(logits, target, valid_mask=None):
    """Eq. 3's fraction with a one-hot reference, (B, K)."""
    u = logits.double().softmax(dim=1)
    v = one_hot(target[:, 0].long(), logits.shape[1]).movedim(-1, 1).double()
    if valid_mask is not None:
        u, v = u * valid_mask, v * valid_mask
    axes = tuple(range(2, logits.ndim))
    return 2 * (u * v).sum(axes) / (u.sum(axes) + v.sum(axes))


@pytest.fixture
def random_batch():
    generator = torch.manual_seed(3)
    logits = 2 * torch.randn(2, 3, 4, 5, 6, generator=generator)
    target = torch.randint(0, 3, (2, 1, 4, 5, 6), generator=generator)
    valid_mask = torch.rand(2, 1, 4, 5, 6, generator=generator) < 0.7
    return logits, target, valid_mask


def test_equation_3_with_two_classes_against_pencil_numbers():
    assert MultiClassDiceLoss()(LOGITS, TARGET).item() == pytest.approx(1 - (DICE_0 + DICE_1) / 2)


def test_equation_3_with_three_classes_against_pencil_numbers():
    # u = (3/5, 1/5, 1/5), (1/5, 3/5, 1/5), (1/3, 1/3, 1/3); target 0, 1, 1; class 2 is absent and has the Dice 0
    logits = torch.tensor([[[LOG3, 0.0, 0.0], [0.0, LOG3, 0.0], [0.0, 0.0, 0.0]]])
    target = torch.tensor([[[0, 1, 1]]])
    sums = 3 / 5 + 1 / 5 + 1 / 3
    expected = 1 - (2 * (3 / 5) / (sums + 1) + 2 * (3 / 5 + 1 / 3) / (sums + 2)) / 3
    assert MultiClassDiceLoss()(logits, target).item() == pytest.approx(expected)


def test_every_sample_has_its_own_dice():
    logits = torch.cat((LOGITS, torch.zeros_like(LOGITS)))
    target = torch.tensor([[[0, 1]], [[1, 1]]])
    # second sample: u = 1/2 everywhere, class 0 absent, class 1: 2 * 1 / (1 + 2)
    first, second = 1 - (DICE_0 + DICE_1) / 2, 1 - (0 + 2 / 3) / 2
    assert MultiClassDiceLoss()(logits, target).item() == pytest.approx((first + second) / 2)
    # second sample of Eq. 6: equal scores go to class 0, so that it counts as predicted
    weighted = (10 * (1 - DICE_0) + 1 - DICE_1 + 10 + 1 / 3) / 4
    assert WeightedDiceLoss((10, 1))(logits, target).item() == pytest.approx(weighted)


def test_perfect_prediction_gives_0():
    logits = 50 * one_hot(TARGET[:, 0], 2).movedim(-1, 1).float()
    assert MultiClassDiceLoss()(logits, TARGET).item() == pytest.approx(0, abs=1e-6)
    assert WeightedDiceLoss((1, 10))(logits, TARGET).item() == pytest.approx(0, abs=1e-6)


def test_equation_6_weighs_the_classes_and_divides_by_their_number():
    expected = (2 * (1 - DICE_0) + 10 * (1 - DICE_1)) / 2
    assert WeightedDiceLoss((2, 10))(LOGITS, TARGET).item() == pytest.approx(expected)


@pytest.mark.parametrize("in_reference", [False, True])
@pytest.mark.parametrize("in_prediction", [False, True])
def test_class_absent_from_reference_and_prediction_alone_has_no_weight(in_reference, in_prediction):
    # u of class 2 is 3/5 where it is predicted and 1/7 where it is not (class 0 is predicted there)
    score_2 = LOG3 if in_prediction else 0.0
    logits = torch.tensor([[[math.log(5.0), 0.0], [0.0, 0.0], [0.0, score_2]]])
    if not in_prediction:
        logits[0, 0, 1] = math.log(5.0)
    target = torch.tensor([[[0, 2 if in_reference else 0]]])
    # class 1 is absent from both; the two others are worked out from u
    u = [[5 / 7, 1 / 7], [1 / 5, 3 / 5] if in_prediction else [5 / 7, 1 / 7]]  # [voxel][class 0, class 2]
    if in_reference:
        dice_0 = 2 * u[0][0] / (u[0][0] + u[1][0] + 1)
        dice_2 = 2 * u[1][1] / (u[0][1] + u[1][1] + 1)
    else:
        dice_0 = 2 * (u[0][0] + u[1][0]) / (u[0][0] + u[1][0] + 2)
        dice_2 = 0
    weight_2 = 10 if in_reference or in_prediction else 0
    expected = (1 - dice_0 + weight_2 * (1 - dice_2)) / 3
    assert WeightedDiceLoss((1, 1000, 10))(logits, target).item() == pytest.approx(expected)


def test_absence_is_judged_sample_by_sample():
    sure_of_0 = torch.tensor([[[9.0, 9.0], [0.0, 0.0]]])
    both = torch.cat((sure_of_0, LOGITS))
    target = torch.cat((torch.zeros_like(TARGET), TARGET))
    loss = WeightedDiceLoss((1, 10))
    separate = [loss(sure_of_0, target[:1]), loss(LOGITS, TARGET)]
    torch.testing.assert_close(loss(both, target), sum(separate) / 2)
    assert separate[0] < 1e-3


def test_losses_equal_the_one_hot_formulas(random_batch):
    logits, target, _ = random_batch
    dice = plain_dice(logits, target)
    weights = torch.tensor([1.0, 10.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(MultiClassDiceLoss()(logits, target).double(), 1 - dice.mean(), rtol=1e-5, atol=1e-6)
    weighted = (weights * (1 - dice)).mean()
    torch.testing.assert_close(
        WeightedDiceLoss(weights.tolist())(logits, target).double(), weighted, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_those_of_the_one_hot_formula(random_batch, masked):
    logits, target, valid_mask = random_batch
    mask = valid_mask if masked else None
    ours, plain = (logits.clone().requires_grad_() for _ in range(2))
    MultiClassDiceLoss()(ours, target, mask).backward()
    (1 - plain_dice(plain, target, mask).mean()).backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "loss", [MultiClassDiceLoss(), WeightedDiceLoss((1, 10, 0.5))], ids=["equation_3", "equation_6"]
)
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_that_of_the_value(loss, masked):
    generator = torch.manual_seed(2)
    logits = torch.randn(2, 3, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 1, 2, 3), generator=generator)
    mask = torch.tensor([[1, 0, 1], [1, 1, 1]]).expand(2, 1, 2, 3) if masked else None
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target, mask), logits)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32, torch.float16])
def test_target_may_have_any_number_type(random_batch, dtype):
    logits, target, _ = random_batch
    for loss in (MultiClassDiceLoss(), WeightedDiceLoss((1, 1, 10))):
        assert torch.equal(loss(logits, target.to(dtype)), loss(logits, target))


@pytest.mark.parametrize("make", [MultiClassDiceLoss, lambda **given: WeightedDiceLoss((1, 2, 10), **given)])
def test_ignored_voxels_change_nothing_whichever_way_they_are_named(random_batch, make):
    logits, target, valid_mask = random_batch
    changed = torch.where(valid_mask, logits, logits.flip(1) + 20).requires_grad_()
    marked = torch.where(valid_mask, target, IGNORE)
    by_mask = make()(logits, target, loss_mask=valid_mask)
    by_label = make(ignore_label=IGNORE)(changed, marked)
    torch.testing.assert_close(by_label, by_mask)
    torch.testing.assert_close(make()(changed, marked, loss_mask=valid_mask), by_mask)
    by_label.backward()
    assert (changed.grad[(~valid_mask).expand_as(changed)] == 0).all()
    assert (changed.grad[valid_mask.expand_as(changed)] != 0).any()


def test_mask_leaves_the_one_hot_formula_of_the_remaining_voxels(random_batch):
    logits, target, valid_mask = random_batch
    expected = 1 - plain_dice(logits, target, valid_mask).mean()
    loss = MultiClassDiceLoss()(logits, target, loss_mask=valid_mask)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_class_seen_in_ignored_voxels_only_is_absent():
    logits = torch.tensor([[[9.0, 0.0], [0.0, 9.0]]])
    target = torch.tensor([[[0, IGNORE]]])
    with_class_1 = WeightedDiceLoss((1, 1000), ignore_label=IGNORE)(logits, target)
    assert with_class_1 < 1e-3


@pytest.mark.parametrize(("make", "expected"), [(MultiClassDiceLoss, 1), (lambda: WeightedDiceLoss((1, 1, 1)), 0)])
def test_no_voxel_that_counts_gives_a_constant_with_gradient_0(random_batch, make, expected):
    logits, target, valid_mask = random_batch
    logits.requires_grad_()
    loss = make()(logits, target, loss_mask=torch.zeros_like(valid_mask))
    assert loss.item() == expected
    loss.backward()
    assert (logits.grad == 0).all()


def test_class_without_reference_or_probability_gives_no_nan():
    logits = torch.tensor([[[0.0, 0.0], [-1e4, -1e4]]], requires_grad=True)  # exp(-1e4) is 0 in float32
    target = torch.zeros(1, 1, 2)
    loss = MultiClassDiceLoss()(logits, target)
    assert loss.item() == pytest.approx(0.5)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dice", [MultiClassDiceLoss(), WeightedDiceLoss((1, 10))], ids=["equation_5", "equation_7"])
def test_extreme_half_precision_logits_give_a_finite_published_loss(dtype, dice):
    logits = torch.tensor([[[6e4, -6e4], [-6e4, 6e4]]], dtype=dtype, requires_grad=True)
    loss = DiceAndFocalCrossEntropy(dice, 10.0, None)(logits, 1 - TARGET, torch.full((1, 1, 2), 100.0))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    loss.backward()
    assert logits.grad.dtype == dtype
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(random_batch, dtype):
    logits, target, _ = random_batch
    half = logits.to(dtype)
    for loss in (MultiClassDiceLoss(), WeightedDiceLoss((1, 1, 10))):
        torch.testing.assert_close(loss(half, target), loss(half.float(), target))


def test_equations_5_and_7_with_ignored_voxels(random_batch):
    logits, target, valid_mask = random_batch
    error = torch.rand(target.shape, generator=torch.manual_seed(1))
    marked = torch.where(valid_mask, target, IGNORE)
    voxelwise = cross_entropy(logits, target[:, 0], reduction="none") * (1 + 99 * error[:, 0])
    focal = voxelwise[valid_mask[:, 0]].mean()
    dice = plain_dice(logits, target, valid_mask).float()
    weights = torch.tensor([1.0, 1.0, 10.0])
    for module, expected in (
        (MultiClassDiceLoss(), 1 - dice.mean()),
        (WeightedDiceLoss((1, 1, 10)), (weights * (1 - dice)).mean()),
    ):
        total = AnomalyAwareLoss(DiceAndFocalCrossEntropy(module, 10.0, IGNORE), 99.0, lambda: error)
        torch.testing.assert_close(total(logits, marked), expected + 10 * focal)


def test_sums_do_not_stop_growing_at_two_to_the_24():
    # In float32 16,777,216 + 1 = 16,777,216; class 0 has 18,874,368 voxels of probability 1, class 1 has none.
    logits = torch.zeros(1, 2, 18, 1024, 1024)
    logits[:, 0] = 40.0
    target = torch.zeros(1, 1, 18, 1024, 1024, dtype=torch.uint8)
    assert MultiClassDiceLoss()(logits, target).item() == pytest.approx(0.5, abs=1e-4)
