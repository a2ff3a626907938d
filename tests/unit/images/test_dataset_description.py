import json
import math
import os

import pytest

from nnunetv2_anomaly.conversion.sources import image_files
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.dataset_description import (
    find_dataset_description,
    read_dataset_description,
    segmentation_files,
)

LABELS = {"background": 0, "femoral_bone": 1, "femoral_cartilage": 2}


def write_description(folder, labels=LABELS, name="dataset.json", **more):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz", **more}))
    return file


def test_labels_without_background(tmp_path):
    dataset = read_dataset_description(write_description(tmp_path))
    assert dataset.labels == {"femoral_bone": (1,), "femoral_cartilage": (2,)}
    assert (dataset.values, dataset.num_classes) == ({0, 1, 2}, 3)
    assert (dataset.ignore, dataset.reader, dataset.has_regions) == (None, None, False)
    assert dataset.file_ending == ".nii.gz"
    assert dataset.source == tmp_path / "dataset.json"


def test_labels_are_in_the_order_of_their_values(tmp_path):
    file = write_description(tmp_path, {"b": 2, "c": 3, "background": 0, "a": 1})
    assert list(read_dataset_description(file).labels) == ["a", "b", "c"]


def test_background_is_told_by_its_value(tmp_path):
    file = write_description(tmp_path, {"nothing": 0, "bone": 1})
    assert list(read_dataset_description(file).labels) == ["bone"]


def test_ignore_label_is_no_label_but_a_value(tmp_path):
    dataset = read_dataset_description(write_description(tmp_path, {**LABELS, "ignore": 3}))
    assert dataset.ignore == 3
    assert "ignore" not in dataset.labels
    assert (dataset.values, dataset.num_classes) == ({0, 1, 2, 3}, 3)
    assert not dataset.has_regions


def test_regions(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3}
    dataset = read_dataset_description(write_description(tmp_path, labels, regions_class_order=[1, 2, 3]))
    assert dataset.has_regions
    assert dataset.labels == {"whole": (1, 2, 3), "core": (2, 3), "rim": (3,)}
    assert dataset.values == {0, 1, 2, 3}
    assert dataset.value_of("rim") == 3
    with pytest.raises(UserError, match=r"core is no label of .* with one value"):
        dataset.value_of("core")


def test_value_of_a_name(tmp_path):
    dataset = read_dataset_description(write_description(tmp_path))
    assert dataset.value_of("femoral_cartilage") == 2
    with pytest.raises(
        UserError, match=r"meniscus is no label of .*dataset\.json with one value; expected one of femoral_bone"
    ):
        dataset.value_of("meniscus")


@pytest.mark.parametrize(("told", "reader"), [(None, None), ("None", None), ("NibabelIO", "NibabelIO")])
def test_reader_of_dataset_json(tmp_path, told, reader):
    file = write_description(tmp_path, overwrite_image_reader_writer=told)
    assert read_dataset_description(file).reader == reader


def test_reader_of_the_plans_goes_first(tmp_path):
    file = write_description(tmp_path, overwrite_image_reader_writer="NibabelIO")
    assert read_dataset_description(file, "SimpleITKIOWithReorient").reader == "SimpleITKIOWithReorient"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"labels": LABELS},
        {"file_ending": ".nii.gz"},
        {"labels": None, "file_ending": ".nii.gz"},
        {"labels": ["bone"], "file_ending": ".nii.gz"},
        {"labels": {"0": "background", "1": "bone"}, "file_ending": ".nii.gz"},  # as in nnU-Net v1
        {"labels": {"background": 0, "bone": None}, "file_ending": ".nii.gz"},
        {"labels": {"background": 0, "bone": []}, "file_ending": ".nii.gz"},
        {"labels": {"background": 0, "bone": 1, "ignore": []}, "file_ending": ".nii.gz"},
        {"labels": {"background": 0, "bone": -1}, "file_ending": ".nii.gz"},
        {"labels": {"background": 0, "bone": 1.5}, "file_ending": ".nii.gz"},
        {"labels": {"background": 0, "bone": "1"}, "file_ending": ".nii.gz"},
        {"labels": {"background": 0, "bone": True}, "file_ending": ".nii.gz"},
        {"labels": {"background": 0, "bone": [1, math.nan]}, "file_ending": ".nii.gz"},
        {"labels": {"background": 0, "bone": math.inf}, "file_ending": ".nii.gz"},
        {"labels": {"background": 0, "bone": 65536}, "file_ending": ".nii.gz"},
        {"labels": LABELS, "file_ending": ""},
        {"labels": LABELS, "file_ending": None},
        {"labels": LABELS, "file_ending": "nii.gz"},
    ],
)
def test_what_is_no_dataset_json(tmp_path, content):
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"dataset\.json: (labels are|label \w+ is|file_ending is) .*; expected"):
        read_dataset_description(file)


def test_background_alone_is_not_enough(tmp_path):
    with pytest.raises(UserError, match="no label but background"):
        read_dataset_description(write_description(tmp_path, {"background": 0, "ignore": 1}))


@pytest.mark.parametrize("content", [None, "", '{"labels": ', "[1, 2]"])
def test_missing_or_broken_json(tmp_path, content):
    file = tmp_path / "dataset.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json"):
        read_dataset_description(file)


@pytest.fixture
def places(tmp_path):
    """Two folders of predictions and references, each with a dataset.json of its own; and one more."""
    for name in ("first", "second", "Dataset001_Knee", "given"):
        write_description(tmp_path / name)
    for name in ("first", "second", "Dataset001_Knee/labelsTr"):
        (tmp_path / name).mkdir(exist_ok=True)
    return tmp_path


def test_dataset_json_is_looked_for_beside_predictions_and_then_references(places):
    predictions, references = [places / "first", places / "second"], places / "Dataset001_Knee" / "labelsTr"
    found = find_dataset_description(places / "given" / "dataset.json", predictions, references)
    assert found.source.parent.name == "given"
    for name in ("first", "second", "Dataset001_Knee"):
        assert find_dataset_description(None, predictions, references).source.parent.name == name
        (places / name / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"first is empty; expected predictions, and their dataset\.json beside them"):
        find_dataset_description(None, predictions, references)
    for folder in predictions:
        (folder / "a.nii.gz").touch()
    with pytest.raises(UserError, match=r"no dataset\.json \(.*first.*second.*Dataset001_Knee.*\); give .* -djfile"):
        find_dataset_description(None, predictions, references)


def test_dataset_json_that_was_given_and_is_not_there(places):
    with pytest.raises(UserError, match=r"nowhere.json cannot be read \(.*No such file"):
        find_dataset_description(places / "nowhere.json", [places / "first"])


def test_reader_is_that_of_the_plans_beside_the_predictions(places):
    (places / "second" / "plans.json").write_text('{"image_reader_writer": "SimpleITKIOWithReorient"}')
    predictions = [places / "first", places / "second"]
    assert find_dataset_description(None, predictions).reader == "SimpleITKIOWithReorient"
    assert find_dataset_description(None, predictions[:1]).reader is None


def test_segmentations_of_a_folder(tmp_path):
    names = ["b.nii.gz", "a.1.nii.gz", "B.nii.gz"]
    others = [
        "c.nii",
        "d.nrrd",
        "dataset.json",
        "b.npz",
        "._b.nii.gz",
        ".hidden.nii.gz",
        "part_of_nnunetv2_anomaly_123_b.nii.gz",
    ]
    for name in names + others:
        (tmp_path / name).touch()
    assert list(segmentation_files(tmp_path, ".nii.gz").items()) == [
        ("B", tmp_path / "B.nii.gz"),
        ("a.1", tmp_path / "a.1.nii.gz"),
        ("b", tmp_path / "b.nii.gz"),
    ]


@pytest.mark.parametrize("kind", ["dead link", "loop", "folder", "pipe"])
def test_what_is_no_file_is_named(tmp_path, kind):
    """Data under git-annex or DataLad that were not fetched are links to nothing."""
    (tmp_path / "a.nii.gz").touch()
    other = tmp_path / "b.nii.gz"
    make = {
        "dead link": lambda: other.symlink_to("../annex/b"),
        "loop": lambda: other.symlink_to(other),
        "folder": other.mkdir,
        "pipe": lambda: os.mkfifo(other),
    }
    make[kind]()
    for read in (lambda: segmentation_files(tmp_path, ".nii.gz"), lambda: image_files(tmp_path)):
        with pytest.raises(UserError, match=r"b\.nii\.gz: no file, but .* datalad get"):
            read()


def test_a_link_to_the_folder_itself_adds_no_image(tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for name in ("a.nii.gz", "more/b.nii.gz"):
        (folder / name).touch()
    for loop in (folder / "loop", folder / "more" / "up"):
        loop.symlink_to(folder)
    (folder / "circle").symlink_to(folder / "circle")
    assert image_files(folder) == [folder / "a.nii.gz", folder / "more" / "b.nii.gz"]


def test_a_folder_that_an_archive_was_unpacked_into_is_looked_into(tmp_path):
    (tmp_path / "c1.nii").mkdir()
    (tmp_path / "c1.nii" / "c1.nii").touch()
    assert image_files(tmp_path) == [tmp_path / "c1.nii" / "c1.nii"]


def test_case_that_is_called_a_part_is_a_case(tmp_path):
    for name in ("part_a.nii.gz", "part_1_knee.nii.gz", "part_7.nii.gz"):
        (tmp_path / name).touch()
    assert list(segmentation_files(tmp_path, ".nii.gz")) == ["part_1_knee", "part_7", "part_a"]


def test_folder_without_segmentations(tmp_path):
    (tmp_path / "part_of_nnunetv2_anomaly_123_b.nii.gz").touch()
    with pytest.raises(UserError, match=r"expected segmentations that end in \.nii\.gz"):
        segmentation_files(tmp_path, ".nii.gz")
    with pytest.raises(UserError, match=r"missing does not exist; expected segmentations that end in .nii.gz"):
        segmentation_files(tmp_path / "missing", ".nii.gz")
