import argparse
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.dataset_description import DatasetDescription
from nnunetv2_anomaly.labels import LABELS, OAIZIB_CM_LABELS
from nnunetv2_anomaly.postprocessing.arguments import add_clean_up_arguments, clean_up_of
from nnunetv2_anomaly.postprocessing.clean_up import CleanUp

BONE, CARTILAGE, LESION = 1, 2, 7
CUBE_MM = (1.0, 1.0, 1.0)


def knee(shape=(8, 8, 70)) -> np.ndarray:
    """A block of bone in a corner, 6 voxels each way."""
    segmentation = np.zeros(shape, np.uint8)
    segmentation[:6, :6, :6] = BONE
    return segmentation


def probabilities(segmentation: np.ndarray, num_classes=8, own=0.9) -> np.ndarray:
    """(K, ...) with a share for a voxel's own label, and the rest for background, or bone where it is background."""
    result = np.zeros((num_classes, *segmentation.shape), np.float32)
    for value in range(num_classes):
        result[value][segmentation == value] = own
    result[0][segmentation != 0] = 1 - own
    result[BONE][segmentation == 0] = 1 - own
    return result


# What goes


@pytest.mark.parametrize(
    ("gap", "stays", "limit"),
    [
        (34, True, {}),
        (35, True, {}),
        (36, False, {}),
        (50, True, {"max_distance_voxels": 50}),
        (51, False, {"max_distance_voxels": 50}),
    ],
)
def test_fragment_stays_up_to_35_mm_or_so_many_voxels(gap, stays, limit):
    segmentation = knee()
    segmentation[0, 0, 5 + gap] = BONE
    cleaned = CleanUp(anatomy=(BONE,), **limit).apply(segmentation, CUBE_MM)
    assert bool(cleaned.segmentation[0, 0, 5 + gap]) is stays
    assert len(cleaned.removals) == (not stays)


def test_distance_in_mm_holds_instead():
    segmentation = knee()
    segmentation[0, 0, 5 + 10] = BONE
    for spacing, stays in ((0.5, True), (0.6, False)):
        cleaned = CleanUp(anatomy=(BONE,), max_distance_mm=5).apply(segmentation, (1, 1, spacing))
        assert bool(cleaned.segmentation[0, 0, 15]) is stays


def test_label_that_is_no_anatomy_stays():
    segmentation = knee()
    segmentation[0, 0, 69] = BONE
    assert CleanUp(anatomy=(CARTILAGE,)).apply(segmentation, CUBE_MM).segmentation[0, 0, 69] == BONE


def test_small_lesion_becomes_the_bone_that_it_touches():
    segmentation = knee()
    segmentation[2, 2, 2:4] = LESION
    cleaned = CleanUp((BONE,), {LESION: BONE}).apply(segmentation, CUBE_MM)
    np.testing.assert_array_equal(cleaned.segmentation, knee())
    (removal,) = cleaned.removals
    assert (removal.label, removal.num_voxels, removal.volume_mm3, removal.became) == (LESION, 2, 2, BONE)


@pytest.mark.parametrize("bone", [BONE, None])
def test_small_lesion_that_touches_no_bone_of_its_own_becomes_background(bone):
    segmentation = knee()
    segmentation[7, 7, 7:9] = LESION
    segmentation[7, 7, 9] = 3  # another bone
    cleaned = CleanUp((BONE,), {LESION: bone}).apply(segmentation, CUBE_MM)
    assert cleaned.segmentation[7, 7, 7:10].tolist() == [0, 0, 3]


@pytest.mark.parametrize(("voxels", "stays"), [(5, False), (6, True), (7, True)])
def test_lesion_of_the_smallest_volume_stays(voxels, stays):
    segmentation = knee()
    segmentation[0, 0, 20 : 20 + voxels] = LESION
    for spacing, limit in ((CUBE_MM, 6.0), ((0.5, 0.5, 2.0), 3.0)):
        cleaned = CleanUp((BONE,), {LESION: BONE}, min_lesion_volume_mm3=limit).apply(segmentation, spacing)
        assert bool((cleaned.segmentation == LESION).any()) is stays


def test_volume_of_nothing_keeps_every_lesion():
    segmentation = knee()
    segmentation[7, 7, 7] = LESION
    cleaned = CleanUp((BONE,), {LESION: BONE}, min_lesion_volume_mm3=0).apply(segmentation, CUBE_MM)
    np.testing.assert_array_equal(cleaned.segmentation, segmentation)


def test_bone_that_a_lesion_became_goes_with_a_stray_part():
    segmentation = knee()
    segmentation[0, 0, 65] = BONE
    segmentation[0, 0, 66:69] = LESION
    cleaned = CleanUp((BONE,), {LESION: BONE}).apply(segmentation, CUBE_MM)
    np.testing.assert_array_equal(cleaned.segmentation, knee())
    assert [(r.label, r.num_voxels, r.became) for r in cleaned.removals] == [(LESION, 3, BONE), (BONE, 4, 0)]
    assert cleaned.removals[1].distance == 60


def test_large_lesion_stays_far_from_its_bone():
    segmentation = knee()
    segmentation[0, 0, 60:66] = LESION
    cleaned = CleanUp((BONE,), {LESION: BONE}).apply(segmentation, CUBE_MM)
    np.testing.assert_array_equal(cleaned.segmentation, segmentation)


def test_flat_segmentation():
    segmentation = np.zeros((10, 80), np.uint8)
    segmentation[:5, :5] = BONE
    segmentation[2, 70] = BONE
    segmentation[8, 8] = LESION
    cleaned = CleanUp((BONE,), {LESION: BONE}).apply(segmentation, (1.0, 1.0))
    assert cleaned.segmentation.sum() == 25
    assert [(r.label, r.distance) for r in cleaned.removals] == [(LESION, None), (BONE, 66)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_what_was_given_stays_as_it_was(dtype):
    segmentation = knee().astype(dtype)
    segmentation[0, 0, 69], segmentation[7, 7, 7] = BONE, LESION
    before = segmentation.copy()
    cleaned = CleanUp((BONE,), {LESION: BONE}, lesion_probability=0.5).apply(
        segmentation, CUBE_MM, probabilities(segmentation, own=0.4)
    )
    np.testing.assert_array_equal(segmentation, before)
    assert cleaned.segmentation.dtype == dtype
    assert (cleaned.segmentation != before).sum() == 2


@pytest.mark.parametrize("segmentation", [np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4), np.uint8)])
def test_empty_segmentation_stays_empty(segmentation):
    clean_up = CleanUp((1, 2, 3), {7: 1, 8: 3}, lesion_probability=0.5)
    channels = np.zeros((9, *segmentation.shape), np.float32)
    cleaned = clean_up.apply(segmentation, (1.0,) * segmentation.ndim, channels)
    assert not cleaned.segmentation.any()
    assert cleaned.removals == []
    assert cleaned.uncertain_voxels == {7: 0, 8: 0}


def test_labels_that_are_absent_do_not_matter():
    cleaned = CleanUp((1, 2, 300), {7: 1, 400: None}).apply(knee(), CUBE_MM)
    np.testing.assert_array_equal(cleaned.segmentation, knee())


# Softmax outputs


def test_uncertain_lesion_voxels_become_the_most_probable_other_class():
    segmentation = knee()
    segmentation[0, 0, :6] = LESION
    softmax = probabilities(segmentation)
    softmax = np.concatenate([softmax, np.zeros((1, *segmentation.shape), np.float32)])
    # Certain; just on the limit; then bone, cartilage and background win, and bone again beside another lesion.
    softmax[LESION, 0, 0, :6] = [0.9, 0.5, 0.4, 0.4, 0.4, 0.3]
    softmax[0, 0, 0, :6] = [0.1, 0.5, 0.2, 0.1, 0.5, 0.05]
    softmax[BONE, 0, 0, :6] = [0.0, 0.0, 0.4, 0.2, 0.1, 0.25]
    softmax[CARTILAGE, 0, 0, :6] = [0.0, 0.0, 0.0, 0.3, 0.0, 0.0]
    softmax[8, 0, 0, :6] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.4]
    clean_up = CleanUp((), {LESION: BONE, 8: 3}, min_lesion_volume_mm3=0, lesion_probability=0.5)
    cleaned = clean_up.apply(segmentation, CUBE_MM, softmax)
    assert cleaned.segmentation[0, 0, :6].tolist() == [LESION, LESION, BONE, CARTILAGE, 0, BONE]
    np.testing.assert_array_equal(cleaned.segmentation[1:], segmentation[1:])
    assert cleaned.uncertain_voxels == {LESION: 4, 8: 0}
    assert cleaned.removals == []


def test_of_equally_probable_classes_the_first_is_taken():
    segmentation = np.full((1, 1, 2), LESION, np.uint8)
    softmax = np.zeros((8, 1, 1, 2), np.float32)
    softmax[LESION], softmax[BONE], softmax[CARTILAGE] = 0.4, 0.3, 0.3
    clean_up = CleanUp((), {LESION: BONE}, min_lesion_volume_mm3=0, lesion_probability=0.5)
    assert clean_up.apply(segmentation, CUBE_MM, softmax).segmentation.tolist() == [[[BONE, BONE]]]


def test_what_is_left_of_a_lesion_is_measured():
    segmentation = knee()
    segmentation[0, 0, 20:27] = LESION
    softmax = probabilities(segmentation)
    softmax[LESION, 0, 0, 20:22] = 0.2
    cleaned = CleanUp((BONE,), {LESION: BONE}, lesion_probability=0.5).apply(segmentation, CUBE_MM, softmax)
    np.testing.assert_array_equal(cleaned.segmentation, knee())
    assert cleaned.uncertain_voxels == {LESION: 2}
    assert [removal.num_voxels for removal in cleaned.removals] == [5]


def test_only_lesions_need_to_be_certain():
    segmentation = knee()
    cleaned = CleanUp((BONE,), {LESION: BONE}, lesion_probability=0.99).apply(
        segmentation, CUBE_MM, probabilities(segmentation)
    )
    np.testing.assert_array_equal(cleaned.segmentation, segmentation)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_channels_are_taken_one_after_another(dtype):
    segmentation = knee()
    segmentation[2, 2, 2] = LESION
    softmax = probabilities(segmentation, own=0.25).astype(dtype)
    clean_up = CleanUp((BONE,), {LESION: BONE}, min_lesion_volume_mm3=0, lesion_probability=0.3)
    cleaned = clean_up.apply(segmentation, CUBE_MM, (np.asfortranarray(channel) for channel in softmax))
    assert cleaned.segmentation[2, 2, 2] == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("limit", [0.7, 0.9])
def test_softmax_of_exactly_the_limit_stays_however_it_was_rounded(dtype, limit):
    segmentation = np.full((1, 1, 1), LESION, np.uint8)
    softmax = np.zeros((8, 1, 1, 1), dtype)
    softmax[LESION] = limit
    cleaned = CleanUp((), {LESION: BONE}, min_lesion_volume_mm3=0, lesion_probability=limit)
    assert cleaned.apply(segmentation, CUBE_MM, softmax).uncertain_voxels == {LESION: 0}


def test_softmax_is_not_needed_without_lesions():
    cleaned = CleanUp((BONE,), {}, lesion_probability=0.5).apply(knee(), CUBE_MM)
    np.testing.assert_array_equal(cleaned.segmentation, knee())


# Options


def data_set(labels, **more) -> DatasetDescription:
    values = {name: (value,) if isinstance(value, int) else tuple(value) for name, value in labels.items()}
    values.pop("background", None)
    settings = {"ignore": None, "file_ending": ".nii.gz", "reader": None, "has_regions": False}
    return DatasetDescription(Path("dataset.json"), values, **{**settings, **more})


def chosen(*words: str, labels=LABELS, **more) -> CleanUp:
    parser = argparse.ArgumentParser()
    add_clean_up_arguments(parser)
    return clean_up_of(parser.parse_args(words), data_set(labels, **more))


def test_defaults_are_millimetres():
    assert chosen() == CleanUp(
        anatomy=(1, 2, 3, 4, 5, 6),
        bone_of_lesion={7: 1, 8: 3, 9: 5},
        max_distance_mm=35.0,
        max_distance_voxels=None,
        min_lesion_volume_mm3=6.0,
        lesion_probability=None,
    )


def test_lesions_are_found_by_name():
    labels = {"femoral_cartilage": 1, "femoral_bone": 3, "femoral_lesion": 2, "patellar_lesion": 4}
    clean_up = chosen(labels=labels)
    assert clean_up.bone_of_lesion == {2: 3, 4: None}
    assert clean_up.anatomy == (1, 3)


def test_data_set_without_lesions():
    clean_up = chosen(labels=OAIZIB_CM_LABELS)
    assert (clean_up.anatomy, clean_up.bone_of_lesion) == ((1, 2, 3, 4, 5), {})


def test_ignore_label_is_no_anatomy():
    assert chosen(labels={"bone": 1, "cartilage": 2}, ignore=3).anatomy == (1, 2)


def test_values_of_regions_are_anatomy():
    labels = {"whole": [1, 2, 3], "core": [2, 3], "rim": 3}
    assert chosen(labels=labels, has_regions=True).anatomy == (1, 2, 3)


def test_a_bone_may_be_a_region_that_holds_its_lesion():
    labels = {"femoral_bone": [1, 7], "femoral_cartilage": 2, "femoral_lesion": 7}
    clean_up = chosen(labels=labels, has_regions=True)
    assert (clean_up.bone_of_lesion, clean_up.anatomy) == ({7: 1}, (1, 2))


def test_lesions_of_other_names_are_no_stray_anatomy():
    clean_up = chosen(labels={"patella": 1, "patella_BML": 2, "patella_cartilage": 3})
    assert (clean_up.bone_of_lesion, clean_up.anatomy) == ({2: 1}, (1, 3))


def test_names_of_anatomy_and_lesions():
    labels = {"liver": 1, "tumour": 2, "cyst": 3, "vein": 4}
    clean_up = chosen("--anatomy", "liver", "--lesions", "tumour=liver", "cyst", labels=labels)
    assert (clean_up.anatomy, clean_up.bone_of_lesion) == ((1,), {2: 1, 3: None})


def test_none_leaves_a_part_out():
    assert chosen("--anatomy", "none").anatomy == ()
    without_lesions = chosen("--lesions", "none")
    assert (without_lesions.bone_of_lesion, without_lesions.anatomy) == ({}, tuple(range(1, 10)))


def test_numbers():
    clean_up = chosen(
        "--max_distance_voxels", "20", "--min_lesion_volume_mm3", "0", "--lesion_probability", "0.7"
    )  # fmt: skip
    assert clean_up.max_distance_voxels == 20
    assert chosen("--max_distance_mm", "12.5").max_distance_mm == 12.5
    with pytest.raises(SystemExit):
        chosen("--max_distance_mm", "12.5", "--max_distance_voxels", "20")
    assert (clean_up.min_lesion_volume_mm3, clean_up.lesion_probability) == (0, 0.7)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--anatomy", "femur"], "femur is no label of"),
        (["--anatomy", "none", "femoral_bone"], "none is no label of"),
        (["--anatomy", "background"], "background is no label of"),
        (["--lesions", "femoral_lesion=femur"], "femur is no label of"),
        (["--lesions", "femoral_lesion="], " is no label of"),
        (["--lesions", "femoral_lesion=femoral_lesion"], "femoral_lesion is named twice"),
        (["--lesions", "femoral_lesion", "femoral_lesion=femoral_bone"], "femoral_lesion is named twice"),
        (["--anatomy", "femoral_lesion"], "is named by --anatomy and as a lesion"),
        (["--max_distance_voxels", "-1"], r"--max_distance_voxels is -1\.0; expected a number from 0"),
        (["--max_distance_mm", "nan"], "--max_distance_mm is nan"),
        (["--min_lesion_volume_mm3", "-0.5"], r"--min_lesion_volume_mm3 is -0\.5"),
        (["--lesion_probability", "1.5"], r"--lesion_probability is 1\.5; expected a number from 0 to 1"),
        (["--lesion_probability", "0.5", "--lesions", "none"], r"has no lesion labels \(--lesions names them\)"),
    ],
)
def test_options_that_cannot_be(words, expected):
    with pytest.raises(UserError, match=expected):
        chosen(*words)


def test_regions_have_no_softmax_of_a_label():
    with pytest.raises(UserError, match="trains on regions"):
        chosen("--lesions", "rim", "--lesion_probability", "0.5", labels={"all": [1, 2], "rim": 2}, has_regions=True)
    with pytest.raises(UserError, match=r"all is no label of .* with one value"):
        chosen("--anatomy", "all", labels={"all": [1, 2], "rim": 2}, has_regions=True)
