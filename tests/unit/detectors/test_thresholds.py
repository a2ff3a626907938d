import numpy as np
import pytest

from nnunetv2_anomaly.detectors.thresholds import (
    CASE,
    FITTED,
    FIXED,
    OTSU,
    PEAK,
    VALLEY,
    ScoredCase,
    fit_threshold,
    lesion_candidates,
    lesions_in,
    opened_and_closed,
    peak_threshold,
)

SPACING = (2.0, 1.0, 1.0)


def case(seed, lesion_score=0.9, lesion_voxels=3, noise=0.1, labelled=True):
    """Two bones beside each other, low scores, and in the first a cube of high ones."""
    rng = np.random.default_rng(seed)
    bones = np.zeros((10, 20, 30), np.uint8)
    bones[2:8, 2:18, 2:14], bones[2:8, 2:18, 16:28] = 1, 2
    scores = rng.uniform(0, noise, bones.shape)
    there = (slice(3, 3 + lesion_voxels), slice(6, 6 + lesion_voxels), slice(5, 5 + lesion_voxels))
    scores[there] = lesion_score
    lesion = np.zeros(bones.shape, bool)
    lesion[there] = labelled
    scores[0] = 5.0  # outside bones nothing counts
    return ScoredCase(scores, bones, lesion, SPACING)


def fitted(tmp_path, cases, per_bone=1.0, min_mm3=0.0, rule=FITTED, **more):
    for number, of in enumerate(cases):
        of.save(tmp_path / f"{number}.npz")
    return fit_threshold(sorted(tmp_path.glob("*.npz")), rule, per_bone, min_mm3, **more)


def test_labelled_lesions_decide_the_threshold(tmp_path):
    found = fitted(tmp_path, [case(0), case(1, lesion_score=0.7)])
    assert found["rule"] == FITTED
    assert found["fitted_by"] == "labels"
    assert found["dsc"] == pytest.approx(1.0)
    assert 0.05 < found["value"] < 0.7


@pytest.mark.parametrize("per_bone", [0.5, 3.0])
def test_without_labels_bones_have_few_candidates_from_the_threshold_on(tmp_path, per_bone):
    cases = [case(seed, labelled=False) for seed in range(3)]
    found = fitted(tmp_path, cases, per_bone)
    assert found["fitted_by"] == "candidates"
    assert found["candidates_per_bone"] <= per_bone
    assert found["num_cases"] == 3

    def components(threshold):
        import cc3d

        every = (lesion_candidates(of.scores, of.bones, threshold, SPACING, 0.0) for of in cases)
        return sum(int(cc3d.connected_components(of, connectivity=26).max()) for of in every) / 6

    assert components(found["value"]) == pytest.approx(found["candidates_per_bone"])
    assert components(0.085) > per_bone  # of the noise
    for of in cases:  # what stands out is found
        assert (lesion_candidates(of.scores, of.bones, found["value"], SPACING, 0.0)[3:6, 6:9, 5:8] == 1).all()


def test_candidates_are_components_in_bones_of_the_size_that_is_asked_for():
    scores = np.zeros((6, 6, 6))
    bones = np.ones((6, 6, 6), np.uint8)
    bones[:, :, 4:] = 0
    bones[3:] *= 2
    scores[0, 0, 0:2] = scores[1, 1, 1] = 1.0  # three voxels, the last at a corner
    scores[5, 5, 3] = 1.0  # one
    scores[2, 2, 5] = 1.0  # outside
    found = lesion_candidates(scores, bones, 0.5, SPACING, 0.0)
    assert sorted(map(tuple, np.argwhere(found))) == [(0, 0, 0), (0, 0, 1), (1, 1, 1), (5, 5, 3)]
    assert found[5, 5, 3] == 2
    assert (lesion_candidates(scores, bones, 0.5, SPACING, 6.0) > 0).sum() == 3  # 3 voxels of 2 mm3
    assert not lesion_candidates(scores, bones, 0.5, SPACING, 6.1).any()
    assert not lesion_candidates(scores, bones, 1.0, SPACING, 0.0).any()


def test_without_a_bone_there_is_no_threshold(tmp_path):
    empty = ScoredCase(np.ones((3, 3, 3)), np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3, 3), bool), SPACING)
    assert fitted(tmp_path, [empty]) == {}


def test_otsu_divides_each_slice_and_its_opening_is_fitted(tmp_path):
    """Specks of one voxel beside a lesion: the opening that takes them away has the larger DSC."""
    rng = np.random.default_rng(0)
    speckled = case(0, lesion_score=0.9, lesion_voxels=5)
    specks = (rng.random(speckled.scores.shape) < 0.05) & (speckled.bones > 0) & ~speckled.lesion
    speckled.scores[specks] = 0.9
    speckled.scores[4] *= 0.2  # a darker slice has a threshold of its own
    found = fitted(tmp_path, [speckled], rule=OTSU)
    assert found["rule"] == OTSU
    assert found["opening_mm"] >= 1.0
    assert found["dsc"] > 0.8
    made = lesions_in(speckled.scores, speckled.bones, SPACING, found)
    assert (made[4] > 0).any()
    assert (made[4] > 0)[speckled.lesion[4]].mean() > 0.7
    without = lesions_in(speckled.scores, speckled.bones, SPACING, {**found, "opening_mm": 0.0, "closing_mm": 0.0})
    assert (without > 0).sum() > (made > 0).sum() + specks[1:9].sum() / 2


def test_slices_lie_along_the_axis_that_is_named():
    of = case(3, lesion_voxels=5)
    fit = {"rule": OTSU, "min_mm3": 0.0, "min_difference": 0.0, "opening_mm": 1.0, "closing_mm": 1.0}
    expected = lesions_in(of.scores, of.bones, SPACING, fit)
    turned = [np.moveaxis(volume, 0, 2) for volume in (of.scores, of.bones)]
    found = lesions_in(*turned, (1.0, 1.0, 2.0), fit, slice_axis=2)
    assert np.array_equal(np.moveaxis(found, 2, 0), expected)
    assert expected.any()


def test_one_half_is_taken_where_that_is_the_rule(tmp_path):
    found = fitted(tmp_path, [case(0)], rule=FIXED)
    assert found["value"] == 0.5
    assert found["dsc"] == pytest.approx(1.0)


def test_discs_are_in_millimetres():
    mask, bone = np.zeros((9, 21), bool), np.ones((9, 21), bool)
    mask[4, 4:17] = True  # 13 voxels of 0.5 mm in a row of 2 mm: 6.5 x 2 mm
    assert np.array_equal(opened_and_closed(mask, bone, 1.5, 0.0, (2.0, 0.5)), mask)  # the disc is one row high
    assert not opened_and_closed(mask, bone, 2.0, 0.0, (2.0, 0.5)).any()
    gap = mask.copy()
    gap[4, 9:11] = False
    assert opened_and_closed(gap, bone, 0.0, 1.0, (2.0, 0.5))[4, 9:11].all()


def peaks(*centres, seed=0, spread=0.015, share=0.1):
    """Scores around some centres; the last is the rarest."""
    rng = np.random.default_rng(seed)
    numbers = [20000] * (len(centres) - 1) + [round(share * 20000)]
    return np.concatenate([rng.normal(of, spread, n) for of, n in zip(centres, numbers, strict=True)])


@pytest.mark.parametrize("seed", range(3))
def test_the_rightmost_of_three_peaks_is_found_and_the_valley_before_it(seed):
    scores = peaks(0.2, 0.5, 0.8, seed=seed)
    width = (scores.max() - scores.min()) / 256
    assert peak_threshold(scores, PEAK) == pytest.approx(0.8, abs=2 * width)
    assert 0.55 < peak_threshold(scores, VALLEY) < 0.78
    dark = peak_threshold(1 - peaks(0.8, 0.5, 0.2, seed=seed), PEAK)
    assert dark == pytest.approx(0.8, abs=2 * width)


def test_nothing_is_separated_where_there_are_not_two_peaks():
    assert peak_threshold(np.full(100, 0.5), PEAK) is None
    assert peak_threshold(peaks(0.5), PEAK) is None
    assert peak_threshold(np.linspace(0, 1, 25600), PEAK) is None
    assert peak_threshold(np.zeros(0), PEAK) is None


def with_peaks(high):
    """A bone whose scores lie around 0.2, and a square of 7 x 7 around ``high``, and specks of 3 x 3."""
    rng = np.random.default_rng(1)
    bones = np.ones((4, 40, 40), np.uint8)
    scores = rng.normal(0.2, 0.02, bones.shape)
    scores[:, 10:17, 10:17] = rng.normal(high, 0.01, (4, 7, 7))
    for place in range(2, 36, 6):
        scores[:, 30:33, place : place + 3] = rng.normal(high, 0.01, (4, 3, 3))
    lesion = np.zeros(bones.shape, bool)
    lesion[:, 10:17, 10:17] = True
    return ScoredCase(scores, bones, lesion, (2.0, 1.0, 1.0))


def test_one_case_has_the_mask_that_it_has_among_others(tmp_path):
    cases = [with_peaks(0.8), with_peaks(0.8)]
    found = fitted(tmp_path, cases, rule=VALLEY)
    assert found["rule"] == VALLEY
    assert found["opening_mm"] == 2.0  # the speck is gone
    assert 0.25 < found["value"] < 0.78
    alone, among = (lesions_in(cases[0].scores, cases[0].bones, SPACING, fit) for fit in (found, dict(found)))
    assert np.array_equal(alone, among)
    assert not alone[:, 28:].any()
    assert alone[:, 12:15, 12:15].all()


def test_small_blobs_go_large_ones_stay_and_gaps_are_closed():
    mask, bone = np.zeros((20, 30), bool), np.ones((20, 30), bool)
    mask[2:5, 2:5] = mask[10:17, 2:9] = mask[10:17, 10:17] = True  # the last two are a voxel apart
    opened = opened_and_closed(mask, bone, 2.0, 0.0, (1.0, 1.0))
    assert not opened[:8].any()
    assert opened[11:16, 3:8].all()
    closed = opened_and_closed(mask, bone, 2.0, 2.0, (1.0, 1.0))
    assert closed[13, 9]
    assert not opened[13, 9]


def test_a_peak_may_be_each_cases_own(tmp_path):
    cases = [with_peaks(0.8), with_peaks(0.5)]
    found = fitted(tmp_path, cases, rule=VALLEY, scope=CASE)
    assert "value" not in found
    for of in cases:
        made = lesions_in(of.scores, of.bones, SPACING, found) > 0
        assert made[:, 11:16, 11:16].all()
        assert not made[:, :9].any()
    flat = lesions_in(np.full_like(cases[0].scores, 0.3), cases[0].bones, SPACING, found)
    assert not flat.any()


def test_without_separate_peaks_there_are_no_lesions(tmp_path):
    of = with_peaks(0.2)
    found = fitted(tmp_path, [of], rule=PEAK)
    assert found["value"] is None
    assert not lesions_in(of.scores, of.bones, SPACING, found).any()
