import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from nnunetv2_anomaly.detectors.level import (
    bone_numbers,
    contrast_within,
    level_within,
    local_level,
    sigma_in_voxels,
)

SPACING = (4.0, 3.0, 3.0)


def knee(sign=1.0, seed=0, shape=(24, 48, 48)):
    """A bone in a bias field with a small lesion whose intensity lies within the range of the healthy marrow."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    bone = (z / 0.9) ** 2 + (y / 0.8) ** 2 + (x / 0.8) ** 2 < 1
    lesion = ((z * 3) ** 2 + ((y - 0.3) * 5) ** 2 + ((x + 0.4 * sign) * 5) ** 2 < 1) & bone
    image = 1.3 * x + rng.normal(0, 0.1, shape) + sign * 0.6 * lesion
    labels = bone.astype(np.int64)
    return torch.tensor(image[None], dtype=torch.float32), torch.from_numpy(labels), lesion


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("sigma_mm", [8.0, 40.0])
def test_level_is_the_normalised_convolution_of_the_formula(dimensions, sigma_mm):
    image, labels, _ = knee()
    if dimensions == 2:
        image, labels = image[:, 12], labels[12]
    spacing = SPACING[-dimensions:]
    sigma = sigma_in_voxels(sigma_mm, spacing)
    found, _ = local_level(image, labels == 1, sigma)

    bone = labels.numpy() == 1
    inside = ndimage.binary_erosion(bone, np.ones((3,) * dimensions), border_value=1).astype(float)
    x, weight = image[0].numpy().astype(float), inside

    def smooth(values):
        return ndimage.gaussian_filter(values, sigma, mode="constant", truncate=3.0)

    def local_mean(values):
        return (smooth(weight * values) + 1e-3 * (weight * values).sum() / weight.sum()) / (smooth(weight) + 1e-3)

    for _ in range(3):
        level = local_mean(x)
        spread = np.sqrt(local_mean((x - level) ** 2))
        weight = inside * np.exp(-((np.maximum(0, (x - level) / spread) / 1.5) ** 2) / 2)
    # Wide Gaussians are taken of a coarser grid: what they find is smooth.
    tolerance = 1e-4 if sigma_mm == 8.0 else 0.05 * np.ptp(level[bone])
    assert np.abs(found[0].numpy() - level)[bone].max() < tolerance


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_contrast_finds_what_intensity_alone_cannot_tell(sign):
    image, labels, lesion = knee(sign)
    bone = labels.numpy() == 1
    of_intensity = roc_auc_score(lesion[bone], sign * image[0].numpy()[bone])
    contrast = contrast_within(image, labels, [[1]], SPACING)
    of_contrast = roc_auc_score(lesion[bone], sign * contrast[0].numpy()[bone])
    assert of_intensity < 0.6
    assert of_contrast > 0.9
    assert (contrast[0].numpy()[~bone] == 0).all()


def test_each_bone_has_a_level_of_its_own():
    image = torch.zeros(1, 1, 8, 16, 16)
    numbers = torch.zeros(1, 8, 16, 16, dtype=torch.int64)
    numbers[..., :8], numbers[..., 8:] = 1, 2
    image[0, 0][numbers[0] == 1], image[0, 0][numbers[0] == 2] = 5.0, -3.0
    found = level_within(image, numbers, (6.0, 6.0, 6.0), "bright")
    torch.testing.assert_close(found, image)


def test_polarity_says_what_does_not_count_to_the_level():
    image, labels, lesion = knee()
    image[0][torch.from_numpy(lesion)] += 5.0
    of_bright, of_dark = (
        local_level(image, labels == 1, (7.0, 9.0, 9.0), polarity)[0][0].numpy()[lesion].mean()
        for polarity in ("bright", "dark")
    )
    assert of_bright < of_dark - 0.2


def test_bone_that_erosion_takes_away_has_its_own_level_all_the_same():
    image, bone = torch.full((1, 6, 6, 6), 2.0), torch.zeros(6, 6, 6, dtype=torch.bool)
    bone[3, 3, 2:4] = True
    level, _ = local_level(image, bone, (2.0, 2.0, 2.0))
    torch.testing.assert_close(level[0][bone], torch.full((2,), 2.0))


def test_voxels_belong_to_the_bone_of_their_label_lesions_included():
    labels = torch.tensor([[0, 1, 7], [3, 8, 2]])
    assert bone_numbers(labels, [[1, 7], [3, 8]]).tolist() == [[0, 1, 1], [2, 2, 0]]
