import os
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from scipy.ndimage import binary_dilation, generate_binary_structure

from nnunetv2_anomaly.detectors.inpainting.preparation import (
    CaseStatistics,
    cache_folder,
    erased_region,
    intensity_statistics,
    prepare_cases,
)
from nnunetv2_anomaly.errors import UserError

SHAPE = (9, 12, 14)
PATCH_SIZE = (8, 8, 8)


def random_segmentation(shape=SHAPE, seed=0):
    random = np.random.default_rng(seed)
    segmentation = np.zeros(shape, np.int16)
    for label in (1, 2, 3):
        segmentation[tuple(random.integers(0, size) for size in shape)] = label
    return segmentation


# -------------------------------------------------------------------------------------------------- erased region


@pytest.mark.parametrize("spacing", [(0.7, 0.4, 0.4), (3.0, 3.0, 3.0), (999.0, 0.5, 0.5)])
def test_a_margin_in_mm_reaches_as_far_along_every_axis(spacing):
    segmentation = np.zeros((41, 41, 41), np.uint8)
    segmentation[20, 20, 20] = 1
    region = erased_region(segmentation, [1], margin_mm=4.0, spacing_mm=spacing)
    reached = [int(line.sum()) for line in (region[:, 20, 20], region[20, :, 20], region[20, 20])]
    assert reached == [1 + 2 * int(4.0 / step + 1e-9) for step in spacing]
    assert not region[0, 0, 0]


@pytest.mark.parametrize("margin", [0, 1, 2, 5, 30])
@pytest.mark.parametrize("shape", [SHAPE, (1, 20, 15), (20, 15)], ids=str)
def test_erased_region_is_the_dilation_with_the_face_connected_element(shape, margin):
    segmentation = random_segmentation(shape)
    expected = segmentation > 0
    if margin:
        structure = generate_binary_structure(segmentation.ndim, 1)
        expected = binary_dilation(expected, structure, iterations=margin)
    region = erased_region(segmentation, [1, 2, 3], margin)
    assert region.dtype == bool
    assert np.array_equal(region, expected)


def test_foreground_outside_a_crop_still_erases_inside_it():
    segmentation = np.zeros(SHAPE, np.int16)
    segmentation[4, 6, 1] = 1
    region = erased_region(segmentation, [1], 3)
    crop = (slice(None), slice(None), slice(3, 8))
    assert not segmentation[crop].any()
    assert region[crop].sum() == 5 + 1  # distances 2 and 3: a plus of five voxels, then one
    assert not erased_region(segmentation[crop], [1], 3).any()


def test_labels_that_are_not_named_are_no_foreground():
    segmentation = np.zeros((3, 3, 3), np.int16)
    segmentation[0, 0, 0], segmentation[1, 1, 1], segmentation[2, 2, 2] = -1, 4, 2
    region = erased_region(segmentation, [1, 2, 3], 0)
    assert np.argwhere(region).tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("segmentation", [np.zeros(SHAPE), np.full(SHAPE, -1), np.full(SHAPE, 4)])
def test_nothing_is_erased_without_foreground(segmentation):
    assert not erased_region(segmentation, [1, 2, 3], 50).any()


def test_everything_is_erased_where_all_is_foreground():
    assert erased_region(np.ones(SHAPE), [1], 0).all()


# ----------------------------------------------------------------------------------------------------- statistics


def case_statistics(low, high, mean, num_voxels=10, clipped_fraction=0.0):
    return CaseStatistics(1, num_voxels, low, high, mean, clipped_fraction)


def test_intensity_statistics_against_hand_numbers():
    statistics = intensity_statistics(
        [
            case_statistics([-2.0, 0.0], [3.0, 1.0], [1.0, 0.5], num_voxels=10, clipped_fraction=0.2),
            case_statistics([-1.0, -1.0], [4.0, 0.5], [2.0, 0.0], num_voxels=30),
        ]
    )
    assert (statistics.low, statistics.high) == ([-2.0, -1.0], [4.0, 1.0])
    assert statistics.mean == pytest.approx([1.75, 0.125])
    assert statistics.clipped_fraction == pytest.approx(0.05)
    assert statistics.rescaled_mean == pytest.approx([3.75 / 6, 1.125 / 2])


def test_channel_that_is_constant_over_all_cases_is_told_by_its_number_and_value():
    cases = [case_statistics([-1.0, 2.0], [1.0, 2.0], [0.0, 2.0])] * 2
    with pytest.raises(UserError, match=r"image channel 1 has the one value 2 in all 2 training cases"):
        intensity_statistics(cases)


# ---------------------------------------------------------------------------------------------------------- cache


def save_case(dataset_class, folder, case, image, segmentation):
    options = {}
    if dataset_class is nnUNetDatasetBlosc2:
        size = (1, *PATCH_SIZE)
        options = {"chunks": size, "blocks": size, "chunks_seg": size, "blocks_seg": size}
    dataset_class.save_case(image, segmentation[None], {}, str(folder / case), **options)


@pytest.fixture(params=[nnUNetDatasetBlosc2, nnUNetDatasetNumpy], ids=["blosc2", "numpy"])
def dataset(request, tmp_path):
    folder = tmp_path / "preprocessed"
    folder.mkdir()
    for number, case in enumerate(("left", "right")):
        image = np.random.default_rng(number).normal(0, 3, (2, *SHAPE)).astype(np.float32)
        save_case(request.param, folder, case, image, random_segmentation(seed=number))
    return request.param(str(folder))


def prepare(dataset, cache, **options):
    settings = {"foreground_labels": [1, 2, 3], "margin_voxels": 2, "clip": 5.0, "patch_size": PATCH_SIZE}
    return prepare_cases(dataset, cache, **{**settings, **options}, show_progress=False)


def region_files(cache):
    return {path.name: path for path in cache.iterdir() if path.suffix != ".json"}


def with_regions(dataset, cache):
    return type(dataset)(dataset.source_folder, list(dataset.identifiers), str(cache))


def image_file_of(dataset, case):
    ending = "b2nd" if isinstance(dataset, nnUNetDatasetBlosc2) else "npz"
    return Path(dataset.source_folder) / f"{case}.{ending}"


def resaved(dataset, case, change_image=None, change_segmentation=None):
    image, segmentation, _, _ = dataset.load_case(case)
    image, segmentation = np.array(image[:]), np.array(segmentation[:])[0]
    if change_image:
        change_image(image)
    if change_segmentation:
        change_segmentation(segmentation)
    folder = Path(dataset.source_folder)
    for path in folder.glob(f"{case}*"):
        path.unlink()
    save_case(type(dataset), folder, case, image, segmentation)


def test_regions_are_read_back_as_nnunet_reads_a_previous_stages_segmentation(dataset, tmp_path):
    prepare(dataset, tmp_path / "cache")
    loader = with_regions(dataset, tmp_path / "cache")
    for case in ("left", "right"):
        _, segmentation, region, _ = loader.load_case(case)
        region = np.asarray(region[:])
        assert region.shape == SHAPE
        assert np.array_equal(region, erased_region(np.asarray(segmentation[:])[0], [1, 2, 3], 2))


def test_statistics_are_of_the_clipped_image_per_channel(dataset, tmp_path):
    statistics = prepare(dataset, tmp_path / "cache", clip=2.0)["left"]
    image = np.random.default_rng(0).normal(0, 3, (2, *SHAPE)).astype(np.float32)
    clipped = np.clip(image, -2, 2).reshape(2, -1)
    assert (statistics.low, statistics.high) == ([-2.0, -2.0], [2.0, 2.0])
    assert statistics.mean == pytest.approx(clipped.mean(axis=1).tolist(), abs=1e-6)
    assert statistics.clipped_fraction == pytest.approx((np.abs(image) > 2).mean())
    assert statistics.num_voxels == np.prod(SHAPE)
    assert statistics.foreground_voxels == (random_segmentation(seed=0) > 0).sum()


def test_preprocessed_folder_is_left_as_it_was(dataset, tmp_path):
    folder = tmp_path / "preprocessed"
    before = sorted(path.name for path in folder.iterdir())
    prepare(dataset, tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_second_call_reads_the_cache(dataset, tmp_path):
    cache = tmp_path / "cache"
    first = prepare(dataset, cache)
    times = {name: path.stat().st_mtime_ns for name, path in region_files(cache).items()}
    assert len(times) == 2
    assert prepare(dataset, cache) == first
    assert {name: path.stat().st_mtime_ns for name, path in region_files(cache).items()} == times


def test_changed_segmentation_is_prepared_anew_and_the_other_case_is_not(dataset, tmp_path):
    cache = tmp_path / "cache"
    prepare(dataset, cache)
    times = {name: path.stat().st_mtime_ns for name, path in region_files(cache).items()}

    def add_foreground(segmentation):
        segmentation[0, :3, :3] = 1

    image_file = image_file_of(dataset, "left")
    image_time = image_file.stat().st_mtime_ns
    resaved(dataset, "left", change_segmentation=add_foreground)
    os.utime(image_file, ns=(image_time, image_time))  # the segmentation's content alone tells
    statistics = prepare(dataset, cache)
    _, segmentation, region, _ = with_regions(dataset, cache).load_case("left")
    labels = np.asarray(segmentation[:])[0]
    assert statistics["left"].foreground_voxels == (labels > 0).sum()
    assert np.array_equal(np.asarray(region[:]), erased_region(labels, [1, 2, 3], 2))
    rewritten = {
        name.split(".")[0] for name, path in region_files(cache).items() if path.stat().st_mtime_ns != times[name]
    }
    assert rewritten == {"left"}


def test_image_file_that_was_written_again_is_measured_anew(dataset, tmp_path):
    cache = tmp_path / "cache"
    prepare(dataset, cache)
    times = {name: path.stat().st_mtime_ns for name, path in region_files(cache).items()}
    os.utime(image_file_of(dataset, "left"), ns=(1, 1))
    prepare(dataset, cache)
    assert [name for name, path in region_files(cache).items() if path.stat().st_mtime_ns != times[name]] == [
        next(name for name in times if name.startswith("left"))
    ]


def test_changed_image_is_measured_anew(dataset, tmp_path):
    cache = tmp_path / "cache"
    before = prepare(dataset, cache)

    def shift(image):
        image += 1

    resaved(dataset, "left", change_image=shift)
    after = prepare(dataset, cache)
    assert after["left"].mean != before["left"].mean
    assert after["right"] == before["right"]


def test_other_clip_or_foreground_labels_are_prepared_anew(dataset, tmp_path):
    cache = tmp_path / "cache"
    before = prepare(dataset, cache)["left"]
    assert prepare(dataset, cache, clip=1.0)["left"].high == [1.0, 1.0]
    assert prepare(dataset, cache, foreground_labels=[1])["left"].foreground_voxels < before.foreground_voxels


def test_other_margin_in_the_same_folder_is_prepared_anew(dataset, tmp_path):
    cache = tmp_path / "cache"
    for margin in (2, 0):
        prepare(dataset, cache, margin_voxels=margin)
        _, segmentation, region, _ = with_regions(dataset, cache).load_case("left")
        assert np.array_equal(np.asarray(region[:]), erased_region(np.asarray(segmentation[:])[0], [1, 2, 3], margin))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_cache_entry_is_prepared_anew(dataset, tmp_path, content):
    cache = tmp_path / "cache"
    first = prepare(dataset, cache)
    (cache / "left.json").write_text(content)
    assert prepare(dataset, cache) == first


def test_missing_region_file_is_made_again(dataset, tmp_path):
    cache = tmp_path / "cache"
    first = prepare(dataset, cache)
    for path in region_files(cache).values():
        path.unlink()
    assert prepare(dataset, cache) == first
    assert len(region_files(cache)) == 2


def test_cache_leaves_no_temporary_file_behind(dataset, tmp_path):
    prepare(dataset, tmp_path / "cache")
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    ending = "b2nd" if isinstance(dataset, nnUNetDatasetBlosc2) else "npz"
    assert names == {f"left.{ending}", "left.json", f"right.{ending}", "right.json"}


def test_folder_of_the_cache_tells_data_and_margin_apart(tmp_path):
    folders = {
        cache_folder(tmp_path, data, margin) for data in ("plans_3d", "plans_2d") for margin in ("18_mm", "50_voxels")
    }
    assert len(folders) == 4
    assert all(tmp_path in folder.parents and folder.parent.parent.name != "plans_3d" for folder in folders)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_image_that_is_not_finite_is_told_by_its_case(dataset, tmp_path, value):
    def spoil(image):
        image[0, 0, 0, 0] = value

    resaved(dataset, "right", change_image=spoil)
    with pytest.raises(UserError, match="case 'right' holds NaN or infinite voxels"):
        prepare(dataset, tmp_path / "cache")


def test_segmentation_of_another_size_is_told_by_its_case_and_both_sizes(dataset, tmp_path):
    image = np.array(dataset.load_case("left")[0][:])
    for path in (tmp_path / "preprocessed").glob("left*"):
        path.unlink()
    save_case(type(dataset), tmp_path / "preprocessed", "left", image, random_segmentation((9, 12, 13)))
    with pytest.raises(UserError, match=r"case 'left' has an image of \(9, 12, 14\) .* segmentation of \(9, 12, 13\)"):
        prepare(dataset, tmp_path / "cache")
