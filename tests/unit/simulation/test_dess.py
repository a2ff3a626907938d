"""The DESS-like image: levels, lesions that brightness finds only in part, extra lesions."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from places import REAL_MAPS
from scipy import ndimage

from nnunetv2_anomaly.labels import BONE_OF_LESION, BONES, LESIONS
from nnunetv2_anomaly.simulation.dess import dess_like_image
from nnunetv2_anomaly.simulation.phantom import draw_phantom, render_label_map
from nnunetv2_anomaly.simulation.resampling import resample_labels
from nnunetv2_anomaly.simulation.simulate import intensity_auc

SHAPE, SPACING_MM = (48, 48, 36), (7 / 3, 7 / 3, 8 / 3)  # (z, y, x)


def phantom(seed, **keywords):
    return render_label_map(draw_phantom(np.random.default_rng(seed), **keywords), shape=SHAPE, spacing_mm=SPACING_MM)


@pytest.fixture(scope="module")
def knees():
    made = []
    for seed in range(10):
        labels = phantom(seed, lesion_share=0.7)
        made.append((labels, dess_like_image(labels, SPACING_MM, np.random.default_rng(seed))))
    return made


def test_brightness_finds_lesions_in_part_only(knees):
    areas = [intensity_auc(made.image, labels, made.anomalies) for labels, made in knees if made.anomalies.any()]
    assert len(areas) >= 8
    assert 0.75 < np.median(areas) < 0.92
    assert np.mean([0.7 < area < 0.95 for area in areas]) >= 0.8


def test_tissues_have_the_levels_of_the_published_template(knees):
    healthy = np.concatenate([made.image[np.isin(labels, BONES)] for labels, made in knees])
    assert healthy.mean() == pytest.approx(0.19, abs=0.03)
    assert healthy.std() == pytest.approx(0.05, abs=0.02)
    femoral, tibial = (np.concatenate([made.image[labels == label] for labels, made in knees]) for label in (2, 4))
    assert 0.5 < femoral.mean() < 0.7
    assert 0.5 < tibial.mean() < 0.7


def test_images_are_finite_in_the_unit_range_and_dark_outside_the_leg(knees):
    for labels, made in knees[:5]:
        assert made.image.dtype == np.float32
        assert made.image.shape == labels.shape
        assert np.isfinite(made.image).all()
        assert made.image.min() >= 0.0
        assert made.image.max() <= 1.0
        # Below the patella and in front of the tibia there is air, whose magnitude is Rayleigh noise and not zero.
        corner = made.image[:5, -5:]
        assert 0.01 < corner.mean() < 0.05
        assert corner.std() > 0.005


def test_labelled_lesions_are_the_truth_when_none_are_added(knees):
    for labels, made in knees:
        assert made.anomalies.dtype == np.uint8
        assert np.array_equal(made.anomalies, np.where(np.isin(labels, LESIONS), labels, 0))


def test_the_same_generator_state_gives_the_same_image_and_labels_stay_untouched():
    labels = phantom(1)
    before = labels.copy()
    first, second, other = (
        dess_like_image(labels, SPACING_MM, np.random.default_rng(seed), extra_lesions=2) for seed in (5, 5, 6)
    )
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.anomalies, second.anomalies)
    assert not np.array_equal(first.image, other.image)
    assert np.array_equal(labels, before)


def test_extra_lesions_are_in_truth_and_image_within_their_bones_and_not_in_the_labels():
    labels = phantom(0, lesion_share=0.0)
    voxels, areas = [], []
    for seed in range(8):
        made = dess_like_image(labels, SPACING_MM, np.random.default_rng(seed), extra_lesions=3)
        for lesion, bone in BONE_OF_LESION.items():
            assert (labels[made.anomalies == lesion] == bone).all()
        voxels.append((made.anomalies > 0).sum())
        areas.append(intensity_auc(made.image, labels, made.anomalies))
    assert np.mean(np.array(voxels) > 0) > 0.7  # Poisson of mean 3: none in 5 % of knees
    assert 0.7 < np.nanmedian(areas) < 0.95


@pytest.mark.parametrize(
    ("stress", "least", "most"), [("large", 0.03, 0.2), ("bright", 0.2, 0.6), ("dark", -0.16, -0.02)]
)
def test_stress_lesions_are_large_in_every_bone_and_of_their_kind(stress, least, most):
    labels = phantom(0, lesion_share=0.0)
    voxel_mm3, crossed = np.prod(SPACING_MM), []
    for seed in range(4):
        made = dess_like_image(labels, SPACING_MM, np.random.default_rng(seed), stress=stress)
        plain = dess_like_image(labels, SPACING_MM, np.random.default_rng(seed))
        for lesion, bone in BONE_OF_LESION.items():
            volume = (made.anomalies == lesion).sum() * voxel_mm3
            smallest, largest = (6, 9) if bone == 5 else (12, 20)
            # Another bone's lesion may lie over a part of it; the surface wobbles by up to a third.
            assert 0.3 * smallest**3 <= volume * 3 / (4 * np.pi) <= (1.35 * largest) ** 3
            within = (made.anomalies == lesion) & (labels == bone)
            assert least < float((made.image - plain.image)[within].mean()) < most
            crossed.append(((made.anomalies == lesion) & (labels != bone)).any())
        far = ndimage.distance_transform_edt(made.anomalies == 0, SPACING_MM) > 10
        np.testing.assert_allclose(made.image[far], plain.image[far], atol=1e-6)  # the same knee but for its lesions
        assert far.any()
    assert np.mean(crossed) > 0.5


def test_without_stress_the_image_is_what_it_was():
    labels = phantom(1, lesion_share=0.5)
    one, other = (
        dess_like_image(labels, SPACING_MM, np.random.default_rng(3), **options) for options in ({}, {"stress": None})
    )
    np.testing.assert_array_equal(one.image, other.image)
    assert set(np.unique(one.anomalies)) <= {0, *np.unique(labels[labels > 6])}


def test_any_label_may_be_missing():
    full = phantom(2, lesion_share=1.0)
    for kept in ((), (1,), (1, 2, 3, 4), (2, 4), (5, 9)):
        labels = np.where(np.isin(full, kept), full, 0)
        made = dess_like_image(labels, SPACING_MM, np.random.default_rng(0), extra_lesions=1)
        assert np.isfinite(made.image).all()
        assert set(np.unique(made.anomalies)) <= {0, 7, 8, 9}


@pytest.mark.parametrize(("shape", "spacing_mm"), [((8, 96, 96), (9.0, 1.2, 1.2)), ((1, 32, 32), (3.0, 3.5, 4.0))])
def test_odd_grids_work(shape, spacing_mm):
    labels = render_label_map(draw_phantom(np.random.default_rng(0)), shape=shape, spacing_mm=spacing_mm)
    assert np.isfinite(dess_like_image(labels, spacing_mm, np.random.default_rng(0), extra_lesions=1).image).all()


def test_a_real_label_map_gives_a_knee_of_the_same_kind():
    found = sorted(REAL_MAPS.glob("9013161_*.nii.gz"))
    if not found:
        pytest.skip("no published OAI ZIB-UQ label map beside the checkout; the phantoms above stand in for it")
    label_image = resample_labels(sitk.ReadImage(str(found[0])), spacing_mm=(1.6, 1.2, 1.2))
    labels = sitk.GetArrayFromImage(label_image)
    assert set(np.unique(labels)) == set(range(10))
    made = dess_like_image(labels, label_image.GetSpacing()[::-1], np.random.default_rng(0))
    assert 0.75 < intensity_auc(made.image, labels, made.anomalies) < 0.95
    assert made.image[np.isin(labels, BONES)].mean() == pytest.approx(0.19, abs=0.03)
    assert 0.5 < made.image[labels == 2].mean() < 0.7
