import math

import numpy as np
import pytest
from places import REAL_MAPS
from scipy import ndimage

from nnunetv2_anomaly.measurements import evaluate_case, surface_metrics
from nnunetv2_anomaly.measurements.surface import DISTANCES, METRICS
from nnunetv2_anomaly.simulation.phantom import draw_phantom, render_label_map

MASKS = sorted(REAL_MAPS.glob("*.nii.gz"))
ANATOMY = range(1, 7)


def plainly(reference, prediction, spacing):
    """The definitions, with scipy, in the box that holds both masks."""
    both = reference | prediction
    box = tuple(slice(indices.min(), indices.max() + 1) for indices in np.nonzero(both))
    reference, prediction = reference[box], prediction[box]
    element = ndimage.generate_binary_structure(reference.ndim, 1)
    boundaries = [mask & ~ndimage.binary_erosion(mask, element, border_value=0) for mask in (reference, prediction)]
    forth = ndimage.distance_transform_edt(~boundaries[1], sampling=spacing)[boundaries[0]]
    back = ndimage.distance_transform_edt(~boundaries[0], sampling=spacing)[boundaries[1]]
    pooled = np.concatenate([forth, back])
    shared = (reference & prediction).sum()
    return {
        "dsc": 2 * shared / (reference.sum() + prediction.sum()),
        "iou": shared / (reference | prediction).sum(),
        "sensitivity": shared / reference.sum(),
        "precision": shared / prediction.sum(),
        "asd_mm": pooled.mean(),
        "hd_mm": pooled.max(),
        "hd95_mm": np.percentile(pooled, 95),
        "hd95_max_directed_mm": max(np.percentile(forth, 95), np.percentile(back, 95)),
        "reference_volume_mm3": reference.sum() * math.prod(spacing),
        "prediction_volume_mm3": prediction.sum() * math.prod(spacing),
    }


def blobs(seed, shape, share=0.1):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 1 - share)


def assert_equals(found, expected, tolerance=1e-9):
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerance), name


@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0, 1.0), (0.3646, 0.3646, 0.7), (3.0, 0.5, 0.8), (0.05, 2.5, 5.0), (0.01, 0.01, 2.0)]
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_plain_definition(seed, spacing):
    reference = blobs(seed, (24, 30, 36))
    prediction = np.roll(reference, (1, -2, 1), (0, 1, 2)) ^ blobs(seed + 50, reference.shape, 0.01)
    assert_equals(surface_metrics(reference, prediction, spacing), plainly(reference, prediction, spacing))


def test_a_far_blob_is_measured_to_the_nearest_voxel():
    reference, prediction = np.zeros((40, 50, 200), bool), np.zeros((40, 50, 200), bool)
    reference[10:30, 10:40, 5:20] = prediction[10:30, 10:40, 5:20] = True
    prediction[3:6, 4:9, 150:180] = True
    spacing = (0.7, 0.3646, 0.3646)
    expected = plainly(reference, prediction, spacing)
    assert expected["hd_mm"] > 50
    assert_equals(surface_metrics(reference, prediction, spacing), expected)


def test_all_labels_at_once_are_each_as_if_alone():
    reference = np.zeros((20, 24, 28), np.uint8)
    prediction = np.zeros_like(reference)
    for label in (1, 3, 7):
        reference[blobs(label, reference.shape)] = label
        prediction[blobs(label, reference.shape, 0.08)] = label
    together = evaluate_case(reference, prediction, (0.7, 0.4, 0.4), [1, 3, 7])
    for label in (1, 3, 7):
        alone = surface_metrics(reference == label, prediction == label, (0.7, 0.4, 0.4))
        assert together[label] == alone
        assert_equals(alone, plainly(reference == label, prediction == label, (0.7, 0.4, 0.4)))


def test_numbers_worked_out_by_hand():
    reference, prediction = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    reference[4, 4, 2:5] = True  # three voxels in a row, all boundary
    prediction[4, 4, 4:8] = True  # four, one shared
    found = surface_metrics(reference, prediction, (1.0, 1.0, 2.0))
    assert tuple(found) == METRICS
    assert found["dsc"] == pytest.approx(2 / 7)
    assert found["iou"] == pytest.approx(1 / 6)
    assert found["sensitivity"] == pytest.approx(1 / 3)
    assert found["precision"] == pytest.approx(1 / 4)
    # forth 4, 2, 0 mm; back 0, 2, 4, 6 mm
    assert found["asd_mm"] == pytest.approx(18 / 7)
    assert found["hd_mm"] == 6
    assert found["hd95_mm"] == pytest.approx(5.4)
    assert found["hd95_max_directed_mm"] == pytest.approx(5.7)
    assert (found["reference_volume_mm3"], found["prediction_volume_mm3"]) == (6, 8)
    assert found["volume_difference_mm3"] == 2


def test_voxels_on_the_images_edge_are_boundary():
    reference, prediction = np.ones((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    prediction[2, 2, 2] = True
    # The corners are sqrt(12) from the middle, and the middle is 2 from the nearest side: inner voxels do not count.
    found = surface_metrics(reference, prediction, (1, 1, 1))
    assert found["hd_mm"] == pytest.approx(math.sqrt(12))
    assert_equals(found, plainly(reference, prediction, (1, 1, 1)))


def test_regions_are_the_union_of_their_values_and_may_overlap():
    reference, prediction = np.zeros((16, 20, 24), np.uint8), np.zeros((16, 20, 24), np.uint8)
    for label in (4, 1, 2):
        reference[blobs(label, reference.shape, 0.2)] = label
        prediction[blobs(label, reference.shape, 0.15)] = label
    labels = [(1,), 1, (1, 2, 4), (2, 4), 4, (4, 1), (2, 300)]
    found = evaluate_case(reference, prediction, (0.7, 0.5, 0.5), labels)
    assert list(found) == labels
    for label in labels:
        masks = [np.isin(array, label) for array in (reference, prediction)]
        assert found[label] == surface_metrics(*masks, (0.7, 0.5, 0.5))
        assert_equals(found[label], plainly(*masks, (0.7, 0.5, 0.5)))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 2, 3], 1),
        ([1, (2, 3), 4], 1),
        ([1, 2, 3, (1, 2, 3)], 2),
        ([(1,), (1, 2), (1, 2, 3)], 3),  # as in BraTS
        ([3, (1, 2), 1, 2, (1, 2, 3), 4, (4, 5)], 3),
    ],
)
def test_labels_that_do_not_overlap_share_a_pass(labels, expected, monkeypatch):
    from nnunetv2_anomaly.measurements import surface

    passes = []
    one_pass = surface._one_pass
    monkeypatch.setattr(surface, "_one_pass", lambda *args: passes.append(1) or one_pass(*args))
    evaluate_case(np.ones((3, 3, 3), np.uint8), np.ones((3, 3, 3), np.uint8), (1, 1, 1), labels)
    assert len(passes) == expected


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint64])
def test_more_than_255_labels_and_labels_above_255(dtype):
    reference = np.zeros((12, 20, 40), dtype)
    reference[:] = np.arange(1, 12 * 20 * 40 // 30 + 1).repeat(30).reshape(reference.shape)
    prediction = np.roll(reference, 3, 2)
    prediction[:2, :2] = np.iinfo(dtype).max  # what is no label of ours
    labels = np.unique(reference).tolist()
    found = evaluate_case(reference, prediction, (1.0, 0.5, 0.5), labels)
    assert list(found) == labels
    assert len(labels) == 320
    for label in (1, 100, 255, 256, 257, 320):
        masks = reference == label, prediction == label
        assert found[label] == surface_metrics(*masks, (1.0, 0.5, 0.5))
    for label in (100, 256, 320):
        assert_equals(found[label], plainly(reference == label, prediction == label, (1.0, 0.5, 0.5)))


def test_values_below_zero_are_no_label():
    reference = np.full((4, 5, 6), -1, np.int16)
    reference[1:3, 1:3, 1:3] = 1
    found = evaluate_case(reference, np.where(reference == 1, 1, 0), (1, 1, 1), [1, 2])
    assert (found[1]["dsc"], found[1]["hd_mm"], found[1]["prediction_volume_mm3"]) == (1, 0, 8)


def test_missing_labels():
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    neither = surface_metrics(empty, empty, (1, 1, 1))
    assert all(math.isnan(neither[name]) for name in ("dsc", "iou", "sensitivity", "precision", *DISTANCES))
    assert (neither["reference_volume_mm3"], neither["volume_difference_mm3"]) == (0, 0)
    missed, invented = surface_metrics(full, empty, (1, 1, 1)), surface_metrics(empty, full, (1, 1, 1))
    assert missed["dsc"] == invented["dsc"] == missed["sensitivity"] == invented["precision"] == 0
    assert math.isnan(invented["sensitivity"])
    assert math.isnan(missed["precision"])
    assert (missed["volume_difference_mm3"], invented["volume_difference_mm3"]) == (-64, 64)
    same = surface_metrics(full, full, (1, 1, 1))
    assert (same["dsc"], same["hd_mm"], same["asd_mm"]) == (1, 0, 0)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.3646, 0.3646, 0.7), (100, 1, 1), (1, 100, 100), (1, 1), (100, 1)])
def test_maps_of_background_alone_leave_everything_undefined(spacing):
    background = np.zeros((4, 5, 6)[: len(spacing)], np.uint8)
    found = evaluate_case(background, background, spacing, [1, (2, 3)])
    for metrics in found.values():
        assert all(math.isnan(metrics[name]) for name in METRICS if "volume" not in name)
        assert metrics["prediction_volume_mm3"] == 0


def test_missing_distance_stands_where_one_map_lacks_the_label():
    reference, prediction = np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8)
    reference[0], prediction[0] = 1, 1
    reference[1], prediction[2] = 2, 3  # missed, invented
    found = evaluate_case(reference, prediction, (1, 1, 1), [1, 2, 3, 4], missing_distance_mm=200.0)
    plain = evaluate_case(reference, prediction, (1, 1, 1), [1, 2, 3, 4])
    for name in DISTANCES:
        assert found[1][name] == 0
        assert found[2][name] == found[3][name] == 200
        assert math.isnan(found[4][name])
        assert math.isnan(plain[2][name])
        assert math.isnan(plain[3][name])
    assert found[2]["dsc"] == plain[2]["dsc"] == 0
    assert surface_metrics(reference == 2, prediction == 2, (1, 1, 1), missing_distance_mm=7)["hd95_mm"] == 7


@pytest.mark.parametrize("spacing", [(0.5, 0.8), (5.0, 0.1)])
def test_images_of_two_axes(spacing):
    reference = blobs(0, (40, 50))
    prediction = np.roll(reference, 2, 1) ^ blobs(7, (40, 50), 0.01)
    assert_equals(surface_metrics(reference, prediction, spacing), plainly(reference, prediction, spacing))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_slice_is_measured_as_the_slice(axis):
    """nnU-Net stores 2D data so; across a single slice there is no surface."""
    reference, prediction = blobs(1, (40, 50)), blobs(2, (40, 50))
    spacing = (0.8, 0.5)
    expected = plainly(reference, prediction, spacing)
    thickness = 2.1
    for name in ("reference", "prediction"):
        expected[f"{name}_volume_mm3"] *= thickness
    slices = [np.expand_dims(mask, axis) for mask in (reference, prediction)]
    found = surface_metrics(*slices, np.insert(spacing, axis, thickness))
    assert_equals(found, expected)


def test_a_volume_of_one_voxel_has_a_boundary():
    found = surface_metrics(*np.ones((2, 1, 1, 1), bool), (1, 1, 1))
    assert (found["dsc"], found["hd_mm"]) == (1, 0)


def test_any_order_of_memory_gives_the_same():
    reference = blobs(0, (20, 24, 28))
    prediction = np.roll(reference, (1, 2, -1), (0, 1, 2))
    expected = surface_metrics(reference, prediction, (0.7, 0.5, 0.4))
    fortran = [np.asfortranarray(mask) for mask in (reference, prediction)]
    assert_equals(surface_metrics(*fortran, (0.7, 0.5, 0.4)), expected)
    assert_equals(surface_metrics(reference, fortran[1], (0.7, 0.5, 0.4)), expected)
    strided = [np.repeat(mask, 2, axis=2)[:, :, ::2] for mask in (reference, prediction)]
    assert_equals(surface_metrics(*strided, (0.7, 0.5, 0.4)), expected)
    turned = [mask[::-1].transpose(1, 2, 0) for mask in (reference, prediction)]
    assert_equals(surface_metrics(*turned, (0.5, 0.4, 0.7)), expected)


def test_inputs_stay_as_they_are_and_wrong_ones_are_told():
    reference = np.zeros((4, 4, 4), np.uint16)
    reference[1:3] = 300
    before = reference.copy()
    assert evaluate_case(reference, reference, (1, 1, 1), [300])[300]["dsc"] == 1
    np.testing.assert_array_equal(reference, before)
    with pytest.raises(ValueError, match="shapes"):
        evaluate_case(reference, reference[1:], (1, 1, 1), [1])
    with pytest.raises(ValueError, match="3 positive numbers"):
        evaluate_case(reference, reference, (1, 1), [1])


def phantom_knees():
    maps = [
        render_label_map(draw_phantom(np.random.default_rng(seed)), shape=(80, 80, 44), spacing_mm=(1.75, 1.75, 2.55))
        for seed in (0, 1)
    ]
    return maps, (1.75, 1.75, 2.55)


def real_knees():
    if len(MASKS) < 2:
        pytest.skip("the masks of OAI ZIB-UQ are not at hand; the phantom's case tests the same")
    import SimpleITK as sitk

    images = [sitk.ReadImage(str(file)) for file in MASKS[:2]]
    spacing = [step * s for step, s in zip((3, 3, 2), images[0].GetSpacing()[::-1], strict=True)]
    return [sitk.GetArrayFromImage(image)[::3, ::3, ::2] for image in images], spacing


@pytest.fixture(scope="module", params=[phantom_knees, real_knees], ids=["phantom", "real"])
def knees(request):
    return request.param()


def with_strays(labels):
    random, result = np.random.default_rng(0), labels.copy()
    for _ in range(30):
        corner = [random.integers(0, size - 4) for size in labels.shape]
        edge = random.integers(1, 5)
        result[tuple(slice(c, c + edge) for c in corner)] = random.integers(1, 7)
    return result


def changed(maps, how):
    reference, other = maps
    return {
        "other": other,
        "shifted": np.roll(reference, (2, -1, 1), (0, 1, 2)),
        "eroded": np.where(ndimage.binary_erosion(reference > 0), reference, 0),
        "strays": with_strays(np.roll(reference, 1, 0)),
    }[how]


@pytest.mark.parametrize("how", ["other", "shifted", "eroded", "strays"])
def test_knees_are_measured_as_plain_scipy_does(knees, how):
    (reference, _), spacing = knees
    prediction = changed(knees[0], how)
    found = evaluate_case(reference, prediction, spacing, ANATOMY)
    for label in ANATOMY:
        masks = reference == label, prediction == label
        if masks[0].any() and masks[1].any():
            expected = plainly(*masks, spacing)
            assert found[label]["dsc"] == pytest.approx(expected["dsc"], abs=1e-6)
            assert_equals(found[label], {name: expected[name] for name in DISTANCES}, 1e-4)


@pytest.mark.skipif(len(MASKS) < 2, reason="the masks of OAI ZIB-UQ are not at hand")
def test_patellar_cartilage_of_two_knees_at_full_resolution():
    import SimpleITK as sitk

    images = [sitk.ReadImage(str(file)) for file in MASKS[:2]]
    reference, prediction = (sitk.GetArrayFromImage(image) for image in images)
    spacing = images[0].GetSpacing()[::-1]
    found = evaluate_case(reference, prediction, spacing, (6,))
    assert_equals(found[6], plainly(reference == 6, prediction == 6, spacing), 1e-6)


@pytest.mark.parametrize("how", ["other", "strays"])
def test_monai_agrees(knees, how):
    metrics = pytest.importorskip("monai.metrics", reason="MONAI is not installed; plain scipy is what must agree")
    import torch

    (reference, _), spacing = knees
    prediction = changed(knees[0], how)
    found = evaluate_case(reference, prediction, spacing, ANATOMY)
    for label in (2, 4, 6):
        masks = [torch.from_numpy(array == label)[None, None] for array in (reference, prediction)]
        assert all(mask.any() for mask in masks)
        options = {"include_background": True, "spacing": list(spacing)}
        expected = {
            "dsc": metrics.compute_dice(masks[1], masks[0]),
            "asd_mm": metrics.compute_average_surface_distance(masks[1], masks[0], symmetric=True, **options),
            "hd_mm": metrics.compute_hausdorff_distance(masks[1], masks[0], **options),
            "hd95_max_directed_mm": metrics.compute_hausdorff_distance(masks[1], masks[0], percentile=95, **options),
        }
        assert_equals(found[label], {name: float(value) for name, value in expected.items()}, 1e-4)


@pytest.mark.parametrize("how", ["other", "strays"])
def test_medpy_agrees(knees, how):
    binary = pytest.importorskip("medpy.metric.binary", reason="MedPy is not installed; plain scipy must agree")
    (reference, _), spacing = knees
    prediction = changed(knees[0], how)
    found = evaluate_case(reference, prediction, spacing, ANATOMY)
    for label in (2, 4, 6):
        masks = prediction == label, reference == label
        expected = {
            "dsc": binary.dc(*masks),
            "asd_mm": binary.assd(*masks, voxelspacing=spacing),
            "hd_mm": binary.hd(*masks, voxelspacing=spacing),
            "hd95_mm": binary.hd95(*masks, voxelspacing=spacing),
        }
        assert_equals(found[label], expected, 1e-6)
