"""A mask without pose finds its place on its image, and no other mask does."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from places import REAL_MAPS

from nnunetv2_anomaly.conversion.mapping import IDENTITY, AxisMapping, candidate_mappings, mapping_evidence
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.simulation.dess import dess_like_image
from nnunetv2_anomaly.simulation.phantom import draw_phantom, render_label_map

KNEE_SHAPE, KNEE_SPACING_MM = (48, 48, 40), (2.9, 2.9, 2.8)


def knee(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels of a phantom, (Z, Y, X), lesions included."""
    rng = np.random.default_rng(seed)
    parameters = draw_phantom(rng, lesion_share=1.0)
    labels = render_label_map(parameters, shape=KNEE_SHAPE, spacing_mm=KNEE_SPACING_MM)
    return dess_like_image(labels, KNEE_SPACING_MM, rng).image, labels


@pytest.fixture(scope="module")
def knees():
    return [knee(seed) for seed in range(3)]


def blobs(shape=(24, 24, 24)) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free image and labels of three bodies of which no axis is like another one or its reverse."""
    grid = np.stack(np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij"), axis=-1)
    labels = np.zeros(shape, np.int16)
    labels[(((grid - (0.35, 0.45, 0.55)) / (0.18, 0.28, 0.36)) ** 2).sum(-1) < 1] = 1
    labels[(((grid - (0.75, 0.30, 0.40)) / (0.14, 0.18, 0.28)) ** 2).sum(-1) < 1] = 3
    labels[(grid[..., 0] > 0.6) & (np.abs(grid[..., 1] - 0.7) < 0.15) & (grid[..., 2] > 0.7)] = 2
    return np.choose(labels, (100, 40, 300, 60)).astype(np.int16), labels


def all_mappings() -> list[AxisMapping]:
    return candidate_mappings((5, 5, 5), (5, 5, 5))


def inverse_apply(mapping: AxisMapping, labels: np.ndarray) -> np.ndarray:
    """A view of an array on the image's axes with the mask's own: (Z, Y, X) in, (A, B, C) out."""
    return np.flip(labels, mapping.flips).transpose(np.argsort(mapping.order))


@pytest.mark.parametrize(
    ("mask_shape", "image_shape", "count"),
    [
        ((4, 5, 6), (6, 4, 5), 8),
        ((5, 5, 4), (4, 5, 5), 16),
        ((5, 5, 5), (5, 5, 5), 48),
        ((4, 5, 6), (4, 5, 7), 0),
        ((4, 5), (4, 5), 0),
    ],
)
def test_candidates_are_those_that_give_the_shape(mask_shape, image_shape, count):
    found = candidate_mappings(mask_shape, image_shape)

    assert len(set(found)) == count
    assert all(mapping.apply(np.zeros(mask_shape)).shape == image_shape for mapping in found)


@pytest.mark.parametrize("mapping", all_mappings(), ids=str)
def test_applying_back_and_forth_changes_nothing(mapping):
    volume = np.arange(24).reshape(2, 3, 4)

    assert np.array_equal(inverse_apply(mapping, mapping.apply(volume)), volume)
    assert np.array_equal(mapping.apply(inverse_apply(mapping, volume)), volume)
    assert np.shares_memory(mapping.apply(volume), volume)


@pytest.mark.parametrize("mapping", all_mappings(), ids=str)
def test_text_is_read_back(mapping):
    assert AxisMapping.parse(str(mapping)) == mapping


def test_text_names_the_masks_axis_and_its_sense():
    assert str(AxisMapping(order=(2, 1, 0), flips=(1,))) == "2+ 1- 0+"
    volume = np.arange(24).reshape(2, 3, 4)
    assert AxisMapping.parse("2+ 1- 0+").apply(volume)[3, 0, 1] == volume[1, 2, 3]


def test_each_of_sixteen_mappings_of_a_knee_is_found(knees):
    image, labels = knees[0]
    for mapping in candidate_mappings((40, 48, 48), image.shape):
        evidence = mapping_evidence(image, np.ascontiguousarray(inverse_apply(mapping, labels)))

        assert evidence.best == mapping
        assert evidence.clear


@pytest.mark.parametrize("mapping", all_mappings(), ids=str)
def test_each_of_48_mappings_of_a_cube_is_found(mapping):
    image, labels = blobs()

    evidence = mapping_evidence(image, inverse_apply(mapping, labels))

    assert evidence.best == mapping
    assert evidence.clear


@pytest.mark.parametrize("shape", [(24, 32, 28), (20, 26, 24)])
def test_tiny_volumes_suffice(shape):
    evidence = mapping_evidence(*blobs(shape))

    assert evidence.best == IDENTITY
    assert evidence.clear


def test_the_same_input_gives_the_same_numbers(knees):
    assert mapping_evidence(*knees[0]) == mapping_evidence(*knees[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda image: (image * 4000).astype(np.uint16),
        lambda image: (image * 1000 - 500).astype(np.int16),
        lambda image: image.astype(np.float64) * 1e-6,
        lambda image: 1 - image,
        lambda image: np.where(np.arange(40) < 3, np.nan, image),
    ],
    ids=["uint16", "int16", "tiny floats", "inverted contrast", "not a number at the border"],
)
def test_scale_type_and_sign_of_the_contrast_do_not_matter(knees, change):
    image, labels = knees[1]

    evidence = mapping_evidence(change(image), labels)

    assert evidence.best == IDENTITY
    assert evidence.clear


@pytest.mark.parametrize("kept", [(1, 3, 5), (1, 2, 3, 4), (2, 4, 6), (1,), (3,)], ids=str)
def test_some_labels_suffice(knees, kept):
    image, labels = knees[0]

    evidence = mapping_evidence(image, np.where(np.isin(labels, kept), labels, 0))

    assert evidence.best == IDENTITY
    assert evidence.clear


def test_lesions_count_as_bone(knees):
    image, labels = knees[2]
    assert labels.max() >= 7
    without = labels.copy()
    for lesion, bone in ((7, 1), (8, 3), (9, 5)):
        without[labels == lesion] = bone

    assert mapping_evidence(image, labels) == mapping_evidence(image, without)


def test_another_knees_mask_is_refused(knees):
    for (image, _), (_, labels) in itertools.permutations(knees, 2):
        evidence = mapping_evidence(image, labels)

        assert not evidence.clear
        assert evidence.reason()
        assert not evidence.contradicts(AxisMapping((0, 1, 2), (2,)))


@pytest.mark.parametrize("by", [(1, 0, 0), (0, -1, 0), (0, 0, 1), (2, -1, 0)], ids=str)
def test_a_displaced_mask_is_refused_and_the_way_back_is_told(knees, by):
    image, labels = knees[0]

    evidence = mapping_evidence(image, np.roll(labels, by, axis=(0, 1, 2)))

    back = tuple(-b for b in by)
    assert not evidence.clear
    assert evidence.margin < 0
    assert f"moved by {back} voxels (z, y, x) under the mapping {IDENTITY}" in evidence.reason()


def test_of_a_symmetric_object_no_mapping_wins():
    image, labels = np.zeros((30, 24, 20)), np.zeros((30, 24, 20), np.uint8)
    labels[5:20, 6:18, 4:12] = 1  # its own mirror image along y alone, where 6 voxels are left on both sides
    image[labels == 1] = 1

    evidence = mapping_evidence(image, labels)

    assert not evidence.clear
    assert evidence.margin == 0
    assert {str(evidence.best), str(evidence.runner_up)} == {"0+ 1+ 2+", "0+ 1- 2+"}
    assert "another one (0+ 1- 2+) nearly as much" in evidence.reason()


def test_an_image_of_noise_is_refused(knees):
    noise = np.random.default_rng(0).normal(size=KNEE_SHAPE)

    evidence = mapping_evidence(noise, knees[0][1])

    assert not evidence.clear
    assert evidence.margin < 0
    assert evidence.score < 0.05


def test_labels_that_tell_nothing_are_told_so():
    noise = np.random.default_rng(0).normal(size=(64, 96, 96))
    labels = np.zeros(noise.shape, np.uint8)
    labels[10:40, 20:70, 30:60] = 1

    assert "hardly say anything" in mapping_evidence(noise, labels).reason()


def test_a_header_that_the_voxels_contradict_is_told(knees):
    image, labels = knees[0]
    upside_down = AxisMapping((0, 1, 2), (0,))

    evidence = mapping_evidence(image, inverse_apply(upside_down, labels))

    assert evidence.contradicts(IDENTITY)
    assert not evidence.contradicts(upside_down)


def test_shapes_that_do_not_fit_are_both_told():
    with pytest.raises(UserError, match=r"\(4, 5, 6\) does not become the image's \(4, 5, 7\)"):
        mapping_evidence(np.zeros((4, 5, 7)), np.ones((4, 5, 6), int))


@pytest.mark.parametrize(("value", "told"), [(0, "the mask is empty"), (3, "the mask is all of label 3")])
def test_a_mask_without_borders_is_refused(knees, value, told):
    with pytest.raises(UserError, match=told):
        mapping_evidence(knees[0][0], np.full(KNEE_SHAPE, value))


def test_a_constant_image_is_refused(knees):
    with pytest.raises(UserError, match="same intensity everywhere"):
        mapping_evidence(np.full(KNEE_SHAPE, 7), knees[0][1])


def test_the_margin_is_the_distance_to_the_best_rival():
    image, labels = blobs()
    evidence = mapping_evidence(image, labels)

    assert evidence.rival_score >= evidence.runner_up_score
    assert evidence.margin == pytest.approx(1 - evidence.rival_score / evidence.score)
    assert 0.8 < evidence.score <= 1


@pytest.mark.skipif(not REAL_MAPS.is_dir(), reason="the published segmentations are not at hand")
def test_a_real_mask_finds_its_image_and_another_knees_mask_does_not():
    masks = []
    for path in sorted(REAL_MAPS.glob("*.nii.gz"))[:2]:
        volume = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS"))
        labels = volume[::4, ::4, ::2].astype(np.uint8)
        masks.append(np.where(labels <= 4, labels, 0))  # OAI ZIB has no patella
    image = dess_like_image(masks[0], (1.46, 1.46, 1.4), np.random.default_rng(0)).image
    mapping = AxisMapping((2, 1, 0), (0,))

    evidence = mapping_evidence(image, inverse_apply(mapping, masks[0]))

    assert evidence.best == mapping
    assert evidence.clear
    assert not mapping_evidence(image, masks[1]).clear
