import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_anomaly.evaluation import evaluate_case, surface_metrics

MASKS = sorted((Path(__file__).parents[3] / "shared" / "data" / "oai_zib_uq").glob("*.nii.gz"))


def plainly(reference, prediction, spacing):
    """The definitions, with scipy on the whole volume."""
    element = ndimage.generate_binary_structure(reference.ndim, 1)
    boundaries = [mask & ~ndimage.binary_erosion(mask, element, border_value=0) for mask in (reference, prediction)]
    forth = ndimage.distance_transform_edt(~boundaries[1], sampling=spacing)[boundaries[0]]
    back = ndimage.distance_transform_edt(~boundaries[0], sampling=spacing)[boundaries[1]]
    pooled = np.concatenate([forth, back])
    return {
        "dsc": 2 * (reference & prediction).sum() / (reference.sum() + prediction.sum()),
        "asd_mm": pooled.mean(),
        "hd_mm": pooled.max(),
        "hd95_mm": np.percentile(pooled, 95),
        "hd95_max_directed_mm": max(np.percentile(forth, 95), np.percentile(back, 95)),
    }


def blobs(seed, shape, share=0.1):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 1 - share)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.3646, 0.3646, 0.7), (3.0, 0.5, 0.8), (0.05, 2.5, 5.0)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_plain_definition(seed, spacing):
    reference = blobs(seed, (24, 30, 36))
    prediction = np.roll(reference, (1, -2, 1), (0, 1, 2)) ^ blobs(seed + 50, reference.shape, 0.01)
    expected, found = plainly(reference, prediction, spacing), surface_metrics(reference, prediction, spacing)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


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
        expected = plainly(reference == label, prediction == label, (0.7, 0.4, 0.4))
        for name, value in expected.items():
            assert alone[name] == pytest.approx(value, abs=1e-9), name


def test_numbers_worked_out_by_hand():
    reference, prediction = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    reference[4, 4, 2:5] = True  # three voxels in a row, all boundary
    prediction[4, 4, 4:8] = True  # four, one shared
    found = surface_metrics(reference, prediction, (1.0, 1.0, 2.0))
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


def test_missing_labels():
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    neither = surface_metrics(empty, empty, (1, 1, 1))
    assert all(math.isnan(neither[name]) for name in ("dsc", "iou", "sensitivity", "precision", "asd_mm", "hd_mm"))
    missed, invented = surface_metrics(full, empty, (1, 1, 1)), surface_metrics(empty, full, (1, 1, 1))
    assert missed["dsc"] == invented["dsc"] == missed["sensitivity"] == invented["precision"] == 0
    assert math.isnan(missed["hd_mm"])
    assert math.isnan(invented["sensitivity"])
    same = surface_metrics(full, full, (1, 1, 1))
    assert (same["dsc"], same["hd_mm"], same["asd_mm"]) == (1, 0, 0)


def test_images_of_two_axes():
    reference = blobs(0, (40, 50))
    prediction = np.roll(reference, 2, 1)
    expected = plainly(reference, prediction, (0.5, 0.8))
    for name, value in expected.items():
        assert surface_metrics(reference, prediction, (0.5, 0.8))[name] == pytest.approx(value), name


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
    with pytest.raises(ValueError, match="expected integers"):
        evaluate_case(reference.astype(float), reference, (1, 1, 1), [1])
    with pytest.raises(ValueError, match="expected bool"):
        surface_metrics(reference, reference, (1, 1, 1))


@pytest.mark.skipif(len(MASKS) < 2, reason="the masks of OAI ZIB-UQ are not at hand")
def test_real_masks_of_two_knees():
    import SimpleITK as sitk

    images = [sitk.ReadImage(str(file)) for file in MASKS[:2]]
    reference, prediction = (sitk.GetArrayFromImage(image)[::3, ::3, ::2] for image in images)
    spacing = (3 * 0.3646, 3 * 0.3646, 1.4)
    found = evaluate_case(reference, prediction, spacing, range(1, 10))
    for label in (1, 2, 4):
        expected = plainly(reference == label, prediction == label, spacing)
        for name, value in expected.items():
            assert found[label][name] == pytest.approx(value, abs=1e-6), name
