import math

import numpy as np
import pytest
from places import REAL_MAPS
from scipy import ndimage

from nnunetv2_anomaly.labels import BONE_OF_LESION
from nnunetv2_anomaly.postprocessing.components import (
    Removal,
    clean_distant_components,
    clean_small_lesions,
    count_components,
    remove_distant_components,
    remove_small_lesions,
)
from nnunetv2_anomaly.simulation.phantom import draw_phantom, render_label_map

MASKS = sorted(REAL_MAPS.glob("*.nii.gz"))


def plainly(segmentation, labels, distance, spacing=None):
    """The definition, on the whole volume with scipy."""
    result = segmentation.copy()
    for label in labels:
        components, number = ndimage.label(segmentation == label, np.ones([3] * segmentation.ndim))
        if number < 2:
            continue
        sizes = np.bincount(components.ravel())[1:]
        largest = int(np.argmax(sizes)) + 1  # the first of several; scipy numbers them by their first voxels
        away = ndimage.distance_transform_edt(components != largest, sampling=spacing)
        for component in range(1, number + 1):
            if component != largest and away[components == component].min() > distance:
                result[components == component] = 0
    return result


def plainly_without_small(segmentation, labels, volume, spacing, bones):
    """The definition, component by component, with scipy."""
    result = segmentation.copy()
    for label in labels:
        components, number = ndimage.label(segmentation == label, np.ones([3] * segmentation.ndim))
        for component in range(1, number + 1):
            mask = components == component
            if mask.sum() * math.prod(spacing) < volume:
                around = ndimage.binary_dilation(mask) & (segmentation == bones.get(label, -1))
                result[mask] = bones[label] if around.any() else 0
    return result


def noisy(seed, shape, labels=(1, 2, 3)):
    random = np.random.default_rng(seed)
    segmentation = np.zeros(shape, np.uint8)
    for label in labels:
        noise = ndimage.gaussian_filter(random.normal(size=segmentation.shape), 1.5 + label / 2)
        segmentation[noise > np.quantile(noise, 0.96)] = label
    return segmentation


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
    assert not np.shares_memory(cleaned, segmentation)


def test_distance_is_measured_between_nearest_voxels_on_a_diagonal():
    segmentation = np.zeros((60, 60, 60), np.uint8)
    segmentation[:3, :3, :3] = 1
    segmentation[32, 42, 2] = 1  # 30, 40, 0 away: exactly 50
    assert remove_distant_components(segmentation, [1])[32, 42, 2] == 1
    assert remove_distant_components(segmentation, [1], 49.99)[32, 42, 2] == 0


def test_nearest_voxel_may_lie_within_a_large_fragment():
    segmentation = np.zeros((5, 60, 60), np.uint8)
    segmentation[:, 20:50, :3] = 1
    segmentation[:2, :40, 23:25] = 1  # a long one: 21 away at its nearest, farther at both its ends
    assert (remove_distant_components(segmentation, [1], 21) == segmentation).all()
    removals = clean_distant_components(segmentation, [1], 20.9)[1]
    assert [removal.distance for removal in removals] == [21]


def test_distance_in_mm_stays_at_the_limit_and_goes_beyond_it():
    spacing = (0.7000000476837158, 0.3645833432674408, 2.0)  # as files have them, a little off
    segmentation = np.zeros((40, 40, 40), np.uint8)
    segmentation[:3, :3, :3] = 1
    segmentation[12, 2, 2] = segmentation[2, 2, 9] = 1  # 10 voxels or 7 mm, and 7 voxels or 14 mm
    kept = remove_distant_components(segmentation, [1], max_distance_mm=7, spacing_mm=spacing)
    assert (kept[12, 2, 2], kept[2, 2, 9]) == (1, 0)
    assert not remove_distant_components(segmentation, [1], max_distance_mm=6.99, spacing_mm=spacing)[12, 2, 2]
    # Beside a limit in voxels the spacing decides nothing.
    kept = remove_distant_components(segmentation, [1], 7, spacing_mm=spacing)
    assert (kept[12, 2, 2], kept[2, 2, 9]) == (0, 1)


def test_of_equally_large_components_the_one_with_the_first_voxel_in_the_array_stays():
    segmentation = np.zeros((4, 10, 120), np.uint8)
    segmentation[0:3, 8, 0:2] = 1  # begins before the other, and ends after it
    segmentation[1, 4:7, 100:102] = 1
    segmentation[2, 1, 50:52] = 1  # near both
    cleaned, removals = clean_distant_components(segmentation, [1], 60)
    assert [removal.num_voxels for removal in removals] == [6]
    assert (cleaned[1, 5, 100], cleaned[0, 8, 0], cleaned[2, 1, 50]) == (0, 1, 1)
    cleaned = remove_distant_components(segmentation[::-1], [1], 60)[::-1]
    assert (cleaned[1, 5, 100], cleaned[0, 8, 0]) == (0, 1)
    cleaned = remove_distant_components(segmentation[:, :, ::-1].transpose(2, 1, 0), [1], 60)
    assert (cleaned[19, 5, 1], cleaned[119, 8, 0]) == (1, 0)


def test_other_labels_stay_and_do_not_connect():
    segmentation = np.zeros((5, 5, 200), np.uint8)
    segmentation[:, :, :20] = 1
    segmentation[2, 2, 20:150] = 3  # a bridge of another label
    segmentation[:, :, 150:153] = 1
    cleaned = remove_distant_components(segmentation, [1])
    assert not (cleaned[:, :, 150:] == 1).any()
    np.testing.assert_array_equal(cleaned[:, :, :150], segmentation[:, :, :150])
    np.testing.assert_array_equal(remove_distant_components(segmentation, [2, 3]), segmentation)


def test_removals_tell_what_went():
    segmentation = np.zeros((10, 20, 200), np.uint16)
    segmentation[0:5, 0:5, 0:5] = 300
    segmentation[2:4, 3, 100:102] = 300
    segmentation[1, 2, 190:193] = 300
    segmentation[5:8, 5:9, 5:9] = 2
    segmentation[7, 19, 199] = 2
    cleaned, removals = clean_distant_components(segmentation, [300, 2], 60, spacing_mm=(2.0, 0.5, 0.5))
    assert removals == [
        Removal(label=300, num_voxels=3, volume_mm3=1.5, distance=186, became=0, centre=(1, 2, 191)),
        Removal(label=300, num_voxels=4, volume_mm3=2.0, distance=96, became=0, centre=(2, 3, 100)),
        Removal(2, 1, 0.5, pytest.approx(math.hypot(11, 191)), 0, (7, 19, 199)),
    ]
    assert cleaned.dtype == segmentation.dtype
    assert (segmentation != cleaned).sum() == 8
    assert clean_distant_components(segmentation, [300], 60)[1][0].volume_mm3 is None
    in_mm = clean_distant_components(segmentation, [2], max_distance_mm=60, spacing_mm=(2.0, 0.5, 0.5))[1]
    assert in_mm[0].distance == pytest.approx(math.hypot(5.5, 95.5))


def test_nothing_to_do():
    empty = np.zeros((4, 5, 6), np.int16)
    np.testing.assert_array_equal(remove_distant_components(empty, [1, 2]), empty)
    assert clean_distant_components(empty, [1, 2])[1] == []
    assert clean_small_lesions(empty, [7], 6, (1, 1, 1), bone_of_lesion=BONE_OF_LESION)[1] == []
    assert count_components(empty, [1, 2]) == {1: 0, 2: 0}
    full = np.ones((4, 5, 6), np.int16)
    np.testing.assert_array_equal(remove_distant_components(full, [1], 0), full)
    np.testing.assert_array_equal(remove_distant_components(full, []), full)
    np.testing.assert_array_equal(remove_small_lesions(full, [1], 0, (1, 1, 1)), full)


def test_another_number_of_spacings_is_told():
    segmentation = np.zeros((4, 5, 6), np.int16)
    with pytest.raises(ValueError, match="3 positive numbers"):
        remove_small_lesions(segmentation, [1], 1, (1, 1))


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_plain_definition(seed):
    segmentation = noisy(seed, (30, 40, 50))
    spacing = (1.5, 0.4, 0.7)
    for distance in (0, 3, 7.5, 15):
        np.testing.assert_array_equal(
            remove_distant_components(segmentation, [1, 2, 3], distance), plainly(segmentation, [1, 2, 3], distance)
        )
        np.testing.assert_array_equal(
            remove_distant_components(segmentation, [1, 2, 3], max_distance_mm=distance, spacing_mm=spacing),
            plainly(segmentation, [1, 2, 3], distance, spacing),
        )


@pytest.mark.parametrize("seed", range(3))
def test_arrays_of_two_axes(seed):
    segmentation = noisy(seed, (70, 90))
    for distance in (3, 10):
        expected = plainly(segmentation, [1, 2, 3], distance)
        np.testing.assert_array_equal(remove_distant_components(segmentation, [1, 2, 3], distance), expected)
    removals = clean_distant_components(segmentation, [1, 2, 3], 3, spacing_mm=(0.5, 2))[1]
    assert removals
    assert all(len(removal.centre) == 2 and removal.volume_mm3 == removal.num_voxels for removal in removals)
    diagonal = np.eye(4, dtype=np.uint8)
    assert count_components(diagonal, [1]) == {1: 1}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.uint64])
def test_any_integers_in_any_order_of_memory(dtype):
    segmentation = noisy(1, (20, 30, 40)).astype(dtype)
    expected = remove_distant_components(segmentation, [1, 2, 3], 5)
    assert expected.dtype == dtype
    assert (expected != segmentation).any()
    np.testing.assert_array_equal(remove_distant_components(np.asfortranarray(segmentation), [1, 2, 3], 5), expected)
    views = segmentation[::-1].transpose(1, 2, 0), expected[::-1].transpose(1, 2, 0)
    np.testing.assert_array_equal(remove_distant_components(views[0], [1, 2, 3], 5), views[1])
    np.testing.assert_array_equal(
        remove_distant_components(segmentation, [3, 1], 5), np.where(segmentation == 2, segmentation, expected)
    )


def test_voxels_that_touch_at_a_corner_are_connected():
    segmentation = np.zeros((4, 4, 4), np.uint8)
    segmentation[0, 0, 0] = segmentation[1, 1, 1] = 1
    segmentation[3, 3, 3] = 1
    segmentation[2, 2, 2] = 5  # another label: no bridge
    assert count_components(segmentation, [5, 1, 9]) == {5: 1, 1: 2, 9: 0}


@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_scipys(seed):
    segmentation = noisy(seed, (30, 40, 50))
    for label, count in count_components(segmentation, [1, 2, 3]).items():
        assert count == ndimage.label(segmentation == label, np.ones((3, 3, 3)))[1]


def test_more_than_255_labels_are_counted():
    segmentation = np.zeros((2, 30, 40), np.uint16)
    segmentation[0, :, ::2] = np.arange(1, 601).reshape(30, 20)
    segmentation[1, 0, 39] = 600
    counts = count_components(segmentation, range(1, 602))
    assert counts == {**dict.fromkeys(range(1, 600), 1), 600: 2, 601: 0}


@pytest.mark.parametrize(
    ("spacing", "num_voxels", "volume"),
    [
        ((1.0, 0.5, 0.5), 2, 0.5),
        ((0.1, 0.1, 0.1), 3, 0.003),
        # 0.0930... mm3 a voxel, rounded as files have it
        ((0.3645833432674408, 0.3645833432674408, 0.7000000476837158), 6, 6 * 0.7 * (35 / 96) ** 2),
        ((0.3645833432674408, 0.3645833432674408, 0.699999988079071), 64, 64 * 0.7 * (35 / 96) ** 2),
    ],
)
def test_a_lesion_of_exactly_the_volume_stays(spacing, num_voxels, volume):
    segmentation = np.zeros((3, 3, 70), np.uint8)
    segmentation[1, 1, 1 : 1 + num_voxels] = 7
    product = num_voxels * math.prod(spacing)
    for exactly in (volume, product, np.nextafter(product, 1000)):
        assert (remove_small_lesions(segmentation, [7], exactly, spacing) == segmentation).all()
    assert not remove_small_lesions(segmentation, [7], volume * 1.001, spacing).any()
    segmentation[1, 1, 1] = 0
    assert not remove_small_lesions(segmentation, [7], volume, spacing).any()


def test_small_lesions_become_the_bone_that_they_touch():
    segmentation = np.zeros((9, 9, 30), np.uint8)
    segmentation[:, :, :10] = 1
    segmentation[4, 4, 4] = 7  # within its bone
    segmentation[2, 2, 10] = 7  # on its side
    segmentation[6, 6, 9:12] = 7  # three voxels
    segmentation[8, 8, 20] = 7  # on its own
    segmentation[:, :, 25:] = 3
    segmentation[4, 4, 24] = 7  # on another bone
    segmentation[1, 5, 10] = segmentation[2, 6, 11] = 8  # a tibial one, on the femur
    before = segmentation.copy()
    spacing = (1.0, 1.0, 0.5)
    cleaned, removals = clean_small_lesions(segmentation, [7, 8], 1.5, spacing, bone_of_lesion=BONE_OF_LESION)
    assert removals == [
        Removal(label=7, num_voxels=1, volume_mm3=0.5, distance=None, became=1, centre=(2, 2, 10)),
        Removal(label=7, num_voxels=1, volume_mm3=0.5, distance=None, became=1, centre=(4, 4, 4)),
        Removal(label=7, num_voxels=1, volume_mm3=0.5, distance=None, became=0, centre=(4, 4, 24)),
        Removal(label=7, num_voxels=1, volume_mm3=0.5, distance=None, became=0, centre=(8, 8, 20)),
        Removal(label=8, num_voxels=2, volume_mm3=1.0, distance=None, became=0, centre=(2, 6, 10)),
    ]
    assert (cleaned[4, 4, 4], cleaned[2, 2, 10], cleaned[6, 6, 10]) == (1, 1, 7)
    np.testing.assert_array_equal(
        cleaned, remove_small_lesions(segmentation, [7, 8], 1.5, spacing, bone_of_lesion=BONE_OF_LESION)
    )
    np.testing.assert_array_equal(segmentation, before)
    without_bones = remove_small_lesions(segmentation, [7, 8], 1.5, spacing)
    assert (without_bones[4, 4, 4], without_bones[2, 2, 10], without_bones[6, 6, 10]) == (0, 0, 7)
    # Labels that are not asked for stay, whatever their bones are.
    kept = remove_small_lesions(segmentation, [8], 1.5, spacing, bone_of_lesion=BONE_OF_LESION)
    np.testing.assert_array_equal(kept == 7, segmentation == 7)


def test_a_bone_at_an_edge_or_a_corner_is_no_face_neighbour():
    segmentation = np.zeros((4, 4, 4), np.uint8)
    segmentation[1, 1, 1] = 7
    segmentation[2, 2, 1] = segmentation[2, 2, 2] = segmentation[0, 1, 2] = 1
    assert remove_small_lesions(segmentation, [7], 6, (1, 1, 1), bone_of_lesion={7: 1})[1, 1, 1] == 0
    segmentation[1, 1, 2] = 1
    assert remove_small_lesions(segmentation, [7], 6, (1, 1, 1), bone_of_lesion={7: 1})[1, 1, 1] == 1


def test_the_opposite_side_of_the_image_is_no_neighbour():
    segmentation = np.zeros((3, 4, 5), np.uint8)
    segmentation[0, 0, 0] = 7
    segmentation[2] = segmentation[:, 3] = segmentation[:, :, 4] = 1
    assert remove_small_lesions(segmentation, [7], 6, (1, 1, 1), bone_of_lesion={7: 1})[0, 0, 0] == 0


@pytest.mark.parametrize("seed", range(4))
def test_small_lesions_equal_the_plain_definition(seed):
    segmentation = noisy(seed, (30, 40, 50), (1, 2, 3))
    segmentation[(noisy(seed + 10, (30, 40, 50), (1, 2)) > 0) & (np.indices((30, 40, 50)).sum(0) % 5 > 1)] = 7
    spacing = (0.7, 0.5, 0.5)
    for volume in (0.5, 2.0, 6.0):
        np.testing.assert_array_equal(
            remove_small_lesions(segmentation, [7, 2], volume, spacing, bone_of_lesion={7: 1, 2: 3}),
            plainly_without_small(segmentation, [7, 2], volume, spacing, {7: 1, 2: 3}),
        )


def test_a_phantom_knee_with_strays_is_cleaned_as_plain_scipy_does():
    labels = render_label_map(
        draw_phantom(np.random.default_rng(0), lesion_share=1.0), shape=(80, 80, 44), spacing_mm=(1.75, 1.75, 2.55)
    )
    assert_cleaned_plainly(labels)


@pytest.mark.skipif(not MASKS, reason="the masks of OAI ZIB-UQ are not at hand; the phantom's case tests the same")
def test_a_real_knee_with_strays_is_cleaned_as_plain_scipy_does():
    import SimpleITK as sitk

    assert_cleaned_plainly(sitk.GetArrayFromImage(sitk.ReadImage(str(MASKS[0])))[::3, ::3, ::2])


def assert_cleaned_plainly(labels):
    random, strayed = np.random.default_rng(0), labels.copy()
    for _ in range(30):
        corner = [random.integers(0, size - 4) for size in labels.shape]
        edge = random.integers(1, 5)
        strayed[tuple(slice(c, c + edge) for c in corner)] = random.integers(1, 10)
    spacing = (1.09375, 1.09375, 1.4)
    cleaned, removals = clean_distant_components(strayed, range(1, 7), 15)
    np.testing.assert_array_equal(cleaned, plainly(strayed, range(1, 7), 15))
    assert removals
    assert sum(removal.num_voxels for removal in removals) == (cleaned != strayed).sum()
    cleaned, removals = clean_small_lesions(strayed, [7, 8, 9], 60, spacing, bone_of_lesion=BONE_OF_LESION)
    np.testing.assert_array_equal(cleaned, plainly_without_small(strayed, [7, 8, 9], 60, spacing, BONE_OF_LESION))
    assert removals
    assert sum(removal.num_voxels for removal in removals) == (cleaned != strayed).sum()
