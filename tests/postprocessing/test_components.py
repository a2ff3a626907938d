import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_anomaly.postprocessing import remove_distant_components


def plainly(segmentation, labels, distance):
    """The definition, on the whole volume with scipy."""
    result = segmentation.copy()
    for label in labels:
        components, number = ndimage.label(segmentation == label, np.ones((3, 3, 3)))
        if number < 2:
            continue
        sizes = np.bincount(components.ravel())[1:]
        largest = int(np.argmax(sizes)) + 1
        away = ndimage.distance_transform_edt(components != largest)
        for component in range(1, number + 1):
            if component != largest and away[components == component].min() > distance:
                result[components == component] = 0
    return result


@pytest.mark.parametrize(("gap", "stays"), [(49, True), (50, True), (51, False)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_fragment_stays_up_to_fifty_voxels(gap, stays, axis):
    segmentation = np.zeros((70, 70, 70), np.uint8)
    segmentation[:5, :5, :5] = 2
    place = [2, 2, 2]
    place[axis] = 4 + gap
    segmentation[tuple(place)] = 2
    before = segmentation.copy()
    cleaned = remove_distant_components(segmentation, [2])
    assert bool(cleaned[tuple(place)]) is stays
    assert cleaned.sum() == segmentation.sum() - (0 if stays else 2)
    np.testing.assert_array_equal(segmentation, before)


def test_distance_is_measured_between_nearest_voxels_on_a_diagonal():
    segmentation = np.zeros((60, 60, 60), np.uint8)
    segmentation[:3, :3, :3] = 1
    segmentation[32, 42, 2] = 1  # 30, 40, 0 away: exactly 50
    assert remove_distant_components(segmentation, [1])[32, 42, 2] == 1
    assert remove_distant_components(segmentation, [1], 49.99)[32, 42, 2] == 0


def test_other_labels_stay_and_do_not_connect():
    segmentation = np.zeros((5, 5, 200), np.uint8)
    segmentation[:, :, :20] = 1
    segmentation[2, 2, 20:150] = 3  # a bridge of another label
    segmentation[:, :, 150:153] = 1
    cleaned = remove_distant_components(segmentation, [1])
    assert not (cleaned[:, :, 150:] == 1).any()
    np.testing.assert_array_equal(cleaned[:, :, :150], segmentation[:, :, :150])
    np.testing.assert_array_equal(remove_distant_components(segmentation, [2, 3]), segmentation)


def test_nothing_to_do():
    empty = np.zeros((4, 5, 6), np.int16)
    np.testing.assert_array_equal(remove_distant_components(empty, [1, 2]), empty)
    with pytest.raises(ValueError, match="three axes"):
        remove_distant_components(np.zeros((3, 3)), [1])


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_plain_definition(seed):
    random = np.random.default_rng(seed)
    segmentation = np.zeros((30, 40, 50), np.uint8)
    for label in (1, 2, 3):
        noise = ndimage.gaussian_filter(random.normal(size=segmentation.shape), 1.5 + label / 2)
        segmentation[noise > np.quantile(noise, 0.96)] = label
    for distance in (3, 7.5, 15):
        np.testing.assert_array_equal(
            remove_distant_components(segmentation, [1, 2, 3], distance), plainly(segmentation, [1, 2, 3], distance)
        )
