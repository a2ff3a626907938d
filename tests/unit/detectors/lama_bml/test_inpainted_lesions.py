"""Lesions of a slice whose healthy form is known, and holes of the sizes that LaMa's authors draw."""

import numpy as np
import pytest

from nnunetv2_anomaly.detectors.lama_bml.detection import lesion_score
from nnunetv2_anomaly.detectors.lama_bml.holes import box_hole, drawn_hole, line_hole
from nnunetv2_anomaly.detectors.thresholds import above_otsu, opened_and_closed


def slice_with_lesion(sign):
    """A slice whose intensity rises from side to side, with noise; a lesion in its bone; and the slice without it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    bone = (y - 32) ** 2 + (x - 32) ** 2 < 24**2
    lesion = (y - 28) ** 2 + (x - 36) ** 2 < 6**2
    healthy = 0.2 + 0.6 * x / 64 + rng.normal(0, 0.01, bone.shape)
    return healthy + 0.2 * sign * lesion, healthy, bone, lesion


def lesion_mask(score, bone, opening, closing, min_difference=0.0):
    return opened_and_closed(above_otsu(score, bone, min_difference), bone, opening, closing, (1.0, 1.0))


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


@pytest.mark.parametrize(("sign", "polarity", "other"), [(1, "bright", "dark"), (-1, "dark", "bright")])
def test_lesions_of_the_chosen_sign_are_found_and_others_not(sign, polarity, other):
    image, healthy, bone, lesion = slice_with_lesion(sign)
    found = lesion_mask(lesion_score(image, healthy, bone, polarity), bone, 1, 2)
    assert dice(found, lesion) > 0.85
    assert not (lesion_mask(lesion_score(image, healthy, bone, other), bone, 1, 2) & lesion).any()
    assert dice(lesion_mask(lesion_score(image, healthy, bone, "both"), bone, 1, 2), lesion) > 0.85


def test_nothing_is_found_outside_the_bone_or_where_nothing_differs():
    image, healthy, bone, _ = slice_with_lesion(1)
    away = np.where(bone, image, 0.9)
    assert not (lesion_mask(lesion_score(away, healthy, bone, "bright"), bone, 0, 0) & ~bone).any()
    assert not lesion_mask(lesion_score(healthy, healthy, bone, "bright"), bone, 1, 1).any()
    assert not lesion_mask(np.zeros((4, 4)), np.zeros((4, 4), bool), 1, 1).any()


def test_otsu_divides_a_slice_without_a_lesion_unless_a_least_difference_is_asked():
    _, healthy, bone, _ = slice_with_lesion(1)
    noisy = healthy + np.random.default_rng(1).normal(0, 0.005, bone.shape)
    score = lesion_score(noisy, healthy, bone, "bright")
    assert lesion_mask(score, bone, 0, 0).any()
    assert not lesion_mask(score, bone, 0, 0, min_difference=0.9).any()


def test_a_lesion_at_the_slices_edge_stays_when_it_is_closed():
    score, bone = np.zeros((9, 9)), np.ones((9, 9), bool)
    score[:, :3] = 1
    assert lesion_mask(score, bone, 0, 2)[:, :3].all()


@pytest.mark.parametrize("draw", [line_hole, box_hole, drawn_hole])
@pytest.mark.parametrize("shape", [(128, 128), (40, 96)])
def test_holes_are_seeded_and_leave_something(draw, shape):
    holes = [draw(shape, np.random.default_rng(seed)) for seed in range(20)]
    assert np.array_equal(holes[3], draw(shape, np.random.default_rng(3)))
    assert all(hole.shape == shape and hole.any() for hole in holes)
    assert 0.05 < np.mean(holes) < 0.9
    assert len({hole.tobytes() for hole in holes}) == 20


def test_boxes_keep_their_margin():
    for seed in range(20):
        hole = box_hole((256, 256), np.random.default_rng(seed))
        inner = np.zeros_like(hole)
        inner[10:-10, 10:-10] = True
        assert not (hole & ~inner).any()
