import numpy as np
import pytest

from nnunetv2_anomaly.detectors.thresholds import ScoredCase, fit_threshold, lesion_candidates

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


def fitted(tmp_path, cases, per_bone=1.0, min_mm3=0.0):
    for number, of in enumerate(cases):
        of.save(tmp_path / f"{number}.npz")
    return fit_threshold(sorted(tmp_path.glob("*.npz")), per_bone, min_mm3)


def test_labelled_lesions_decide_the_threshold(tmp_path):
    found = fitted(tmp_path, [case(0), case(1, lesion_score=0.7)])
    assert found["rule"] == "labels"
    assert found["dsc"] == pytest.approx(1.0)
    assert 0.05 < found["value"] < 0.7


@pytest.mark.parametrize("per_bone", [0.5, 3.0])
def test_without_labels_bones_have_few_candidates_from_the_threshold_on(tmp_path, per_bone):
    cases = [case(seed, labelled=False) for seed in range(3)]
    found = fitted(tmp_path, cases, per_bone)
    assert found["rule"] == "candidates"
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
