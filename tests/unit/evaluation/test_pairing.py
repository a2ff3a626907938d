import json
from pathlib import Path

import pytest

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.evaluation.pairing import (
    check_complete,
    default_reference_folder,
    default_splits,
    expected_cases,
    find_model,
    find_pairs,
    is_results_folder,
    named_folders,
    read_splits,
)
from nnunetv2_anomaly.images.dataset_description import DatasetDescription, read_dataset_description

DATASET = "Dataset501_Knee"
ENDING = ".nii.gz"


def predictions(folder: Path, *cases: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        (folder / f"{case}{ENDING}").touch()
    return folder


def results(base: Path, folds: dict[str, list[str] | None], trainer="nnUNetTrainer", plans=None) -> Path:
    """nnU-Net's results folder; fold -> cases of its validation, None for a fold without."""
    folder = base / DATASET / f"{trainer}__nnUNetPlans__3d_fullres"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps({"dataset_name": DATASET} if plans is None else plans))
    (folder / "dataset.json").write_text("{}")
    for fold, cases in folds.items():
        (folder / f"fold_{fold}").mkdir()
        if cases is not None:
            predictions(folder / f"fold_{fold}" / "validation", *cases)
            (folder / f"fold_{fold}" / "validation" / "summary.json").write_text("{}")
    return folder


def model(name: str, folder: Path, folds=None):
    return find_model(name, folder, ENDING, folds)


def described(folder: Path) -> DatasetDescription:
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "bone": 1}, "file_ending": ENDING}))
    return read_dataset_description(folder / "dataset.json")


# Names


def test_folder_is_called_by_its_own_name(tmp_path):
    folder = predictions(tmp_path / "aware", "a")
    assert named_folders([str(folder)]) == {"aware": folder}


def test_folder_is_called_by_the_name_that_is_given(tmp_path):
    first, second = predictions(tmp_path / "first", "a"), predictions(tmp_path / "second", "a")
    found = named_folders([f"UNET={second}", f"UNET-S, new={first}"])
    assert list(found.items()) == [("UNET", second), ("UNET-S, new", first)]


def test_results_folder_is_called_by_its_trainer(tmp_path):
    folder = results(tmp_path, {"0": ["a"]}, trainer="AnomalyAwareTrainer")
    assert named_folders([str(folder)]) == {"AnomalyAwareTrainer": folder}
    assert named_folders([f"UNET-S={folder}"]) == {"UNET-S": folder}


def test_folder_with_an_equals_sign_in_its_name(tmp_path):
    folder = predictions(tmp_path / "alpha=10", "a")
    assert named_folders([str(folder)]) == {"alpha=10": folder}
    assert named_folders([f"ten={folder}"]) == {"ten": folder}


@pytest.mark.parametrize("spelled", [".", "../aware", "../aware/inner/.."])
def test_relative_folder_has_the_name_that_it_has(tmp_path, monkeypatch, spelled):
    predictions(tmp_path / "aware" / "inner", "a")
    monkeypatch.chdir(tmp_path / "aware")
    assert list(named_folders([spelled])) == ["aware"]


def test_two_models_of_one_name_are_refused(tmp_path):
    folders = [predictions(tmp_path / place / "predictions", "a") for place in ("first", "second")]
    with pytest.raises(UserError, match=r"two models are called predictions .* give each its name: -pred NAME=FOLDER"):
        named_folders([str(folder) for folder in folders])
    with pytest.raises(UserError, match="two models are called A"):
        named_folders([f"A={folder}" for folder in folders])


@pytest.mark.parametrize("text", ["missing", "name=missing", "=FOLDER", " =FOLDER", "name=", "file"])
def test_what_is_no_folder_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    predictions(tmp_path / "FOLDER", "a")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="names no folder that exists"):
        named_folders([text])


# What a folder holds


def test_folder_of_predictions(tmp_path):
    folder = predictions(tmp_path / "predictions", "b", "a", "part_of_nnunetv2_anomaly_123_c", ".d")
    for name in ("a.npz", "c.npz", "dataset.json", "predict_from_raw_data_args.json"):
        (folder / name).touch()
    found = model("UNET", folder)
    assert list(found.files.items()) == [("a", folder / "a.nii.gz"), ("b", folder / "b.nii.gz")]
    assert found.probabilities == {"a": folder / "a.npz"}
    assert (found.name, found.is_results_folder, found.folds) == ("UNET", False, {})


def test_plans_beside_predictions_make_no_results_folder(tmp_path):
    folder = predictions(tmp_path / "predictions", "fold_1", "fold_2")
    (folder / "plans.json").write_text("{}")  # nnUNetv2_predict copies it there
    assert not is_results_folder(folder)
    assert sorted(model("UNET", folder).files) == ["fold_1", "fold_2"]


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected segmentations that end in \.nii\.gz"):
        model("UNET", predictions(tmp_path / "predictions"))


def test_folds_are_gathered(tmp_path):
    folder = results(tmp_path, {"0": ["a", "b"], "10": ["d"], "1": ["c"], "2": ["e"]})
    (folder / "fold_1" / "validation" / "c.npz").touch()
    found = model("UNET", folder)
    assert is_results_folder(folder)
    assert found.is_results_folder
    assert list(found.folds.items()) == [("a", "0"), ("b", "0"), ("c", "1"), ("e", "2"), ("d", "10")]
    assert found.files["c"] == folder / "fold_1" / "validation" / "c.nii.gz"
    assert found.probabilities == {"c": folder / "fold_1" / "validation" / "c.npz"}


def test_folds_are_chosen(tmp_path):
    folder = results(tmp_path, {"0": ["a"], "1": ["b"], "2": None})
    assert model("UNET", folder, ["1"]).folds == {"b": "1"}
    assert model("UNET", folder, ["1", "0", "1"]).folds == {"a": "0", "b": "1"}


def test_fold_without_validation_is_told(tmp_path):
    folder = results(tmp_path, {"0": ["a"], "1": None})
    with pytest.raises(UserError, match=r"fold_1.validation does not exist; .*--val.*--folds"):
        model("UNET", folder)
    with pytest.raises(UserError, match=r"fold_7.validation does not exist"):
        model("UNET", folder, ["7"])


def test_fold_with_an_empty_validation_is_told(tmp_path):
    with pytest.raises(UserError, match=r"fold_0.validation holds summary.json; expected segmentations"):
        model("UNET", results(tmp_path, {"0": []}))


def test_case_in_two_folds_is_told(tmp_path):
    folder = results(tmp_path, {"0": ["a", "b"], "3": ["b"]})
    with pytest.raises(UserError, match="b is in the validation of folds 0 and 3"):
        model("UNET", folder)
    assert model("UNET", folder, ["3"]).folds == {"b": "3"}


def test_fold_all_is_taken_where_it_is_asked_for_alone(tmp_path):
    folder = results(tmp_path, {"0": ["a"], "all": ["a", "b"]})
    assert model("UNET", folder).folds == {"a": "0"}
    assert model("UNET", folder, ["all"]).folds == {"a": "all", "b": "all"}


def test_fold_all_alone_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no fold but fold_all; give --folds all"):
        model("UNET", results(tmp_path, {"all": ["a"]}))


# References and splits


@pytest.fixture
def places(tmp_path, monkeypatch):
    """nnU-Net's folders of data sets, with references in both."""
    for variable, folder in (("nnUNet_raw", "labelsTr"), ("nnUNet_preprocessed", "gt_segmentations")):
        predictions(tmp_path / variable / DATASET / folder, "a")
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


def test_references_are_those_of_the_raw_data_set(places):
    found = model("UNET", results(places / "results", {"0": ["a"]}))
    assert default_reference_folder([found]) == places / "nnUNet_raw" / DATASET / "labelsTr"


@pytest.mark.parametrize("how", ["not set", "not there"])
def test_references_are_those_of_the_preprocessed_data_set_otherwise(places, monkeypatch, how):
    if how == "not set":
        monkeypatch.delenv("nnUNet_raw")
    else:
        monkeypatch.setenv("nnUNet_raw", str(places / "elsewhere"))
    found = model("UNET", results(places / "results", {"0": ["a"]}))
    assert default_reference_folder([found]) == places / "nnUNet_preprocessed" / DATASET / "gt_segmentations"


def test_plans_without_a_name_leave_that_of_the_folder(places):
    found = model("UNET", results(places / "results", {"0": ["a"]}, plans={}))
    assert default_reference_folder([found]).parent.name == DATASET


def test_first_results_folder_tells_the_references(places):
    models = [
        model("A", predictions(places / "predictions", "a")),
        model("B", results(places / "results", {"0": ["a"]})),
    ]
    assert default_reference_folder(models).name == "labelsTr"


def test_references_that_are_not_found(places, monkeypatch):
    found = model("UNET", results(places / "results", {"0": ["a"]}, plans={"dataset_name": "Dataset502_Other"}))
    with pytest.raises(UserError, match=r"Dataset502_Other.labelsTr and .*Dataset502_Other.gt_segmentations.*-ref"):
        default_reference_folder([found])
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(variable)
    with pytest.raises(UserError, match="nnUNet_raw and nnUNet_preprocessed are not set"):
        default_reference_folder([found])


def test_folders_of_predictions_do_not_tell_their_references(places):
    with pytest.raises(UserError, match="no reference folder was given; give it with -ref"):
        default_reference_folder([model("A", predictions(places / "predictions", "a"))])


SPLITS = [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a"], "val": ["b", "c"]}]


def write_splits(file: Path, splits) -> Path:
    file.write_text(json.dumps(splits))
    return file


def test_splits_tell_the_fold_of_each_case(tmp_path):
    assert read_splits(write_splits(tmp_path / "splits_final.json", SPLITS)) == {"a": "0", "b": "1", "c": "1"}


def test_case_that_is_validated_twice_is_told(tmp_path):
    with pytest.raises(UserError, match="a is validated by folds 0 and 2"):
        read_splits(write_splits(tmp_path / "splits_final.json", [*SPLITS, {"train": [], "val": ["a"]}]))


@pytest.mark.parametrize("splits", [{"val": ["a"]}, [["a"]], [{"train": []}], 5, None])
def test_what_are_no_splits(tmp_path, splits):
    with pytest.raises(UserError, match=r"splits_final\.json cannot be read as nnU-Net's"):
        read_splits(write_splits(tmp_path / "splits_final.json", splits))


def test_missing_or_broken_splits(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_splits(tmp_path / "splits_final.json")
    (tmp_path / "splits_final.json").write_text("[{")
    with pytest.raises(UserError, match="cannot be read"):
        read_splits(tmp_path / "splits_final.json")


def test_splits_of_a_data_set_are_found(places, monkeypatch):
    models = [
        model("A", predictions(places / "predictions", "a")),
        model("B", results(places / "results", {"0": ["a"]})),
    ]
    assert default_splits(models) is None
    file = write_splits(places / "nnUNet_preprocessed" / DATASET / "splits_final.json", SPLITS)
    assert default_splits(models) == file
    assert default_splits(models[:1]) is None
    monkeypatch.delenv("nnUNet_preprocessed")
    assert default_splits(models) is None


# Which cases


def test_every_reference_is_expected():
    assert expected_cases(["c", "a", "b"], [], {}, None) == ["a", "b", "c"]


def test_folds_of_the_splits_are_expected():
    splits = {"a": "0", "b": "1", "c": "1", "x": "1"}
    assert expected_cases(["a", "b", "c"], [], splits, ["1"]) == ["b", "c"]
    assert expected_cases(["a", "b", "c"], [], splits, ["0", "1"]) == ["a", "b", "c"]


def test_without_splits_the_validated_cases_are_expected(tmp_path):
    models = [model("UNET", results(tmp_path, {"0": ["a"], "1": ["b"]}), ["1"])]
    assert expected_cases(["a", "b", "c"], models, {}, ["1"]) == ["b"]


def test_fold_all_expects_what_it_validated(tmp_path):
    models = [model("UNET", results(tmp_path, {"all": ["a", "b"]}), ["all"])]
    assert expected_cases(["a", "b", "c"], models, {"a": "0", "b": "0", "c": "1"}, ["all"]) == ["a", "b"]


def test_folds_without_a_reference_are_told():
    with pytest.raises(UserError, match="none of the references is of the folds 2, 3"):
        expected_cases(["a"], [], {"a": "0", "b": "2"}, ["2", "3"])


def test_complete_predictions(tmp_path):
    models = [model(name, predictions(tmp_path / name, "a", "b")) for name in ("A", "B")]
    assert check_complete(["a", "b"], models, tmp_path / "labelsTs", ignore_extra=False) == []


def test_missing_predictions_are_listed(tmp_path):
    models = [model("A", predictions(tmp_path / "A", "a", "b")), model("B", predictions(tmp_path / "B", "b"))]
    with pytest.raises(
        UserError,
        match=r"B \(.*\) has no prediction of 2 of 3 .*labelsTs: a, c; predict them, or",
    ):
        check_complete(["a", "b", "c"], models[1:], tmp_path / "labelsTs", ignore_extra=True)
    with pytest.raises(UserError, match=r"A \(.*\) has no prediction of 1 of 3"):
        check_complete(["a", "b", "c"], models, tmp_path / "labelsTs", ignore_extra=True)


@pytest.mark.parametrize("channels", [("_0000",), ("_0000", "_0001")])
def test_images_given_as_references_are_recognised(tmp_path, channels):
    dataset = described(tmp_path)
    images = predictions(tmp_path / "imagesTs", *(f"{case}{channel}" for case in "ab" for channel in channels))
    folders = {"A": predictions(tmp_path / "A", "a", "b")}
    with pytest.raises(UserError, match=r"imagesTs are images, .* a_0000; expected references; .* such as labelsTs"):
        find_pairs(folders, dataset, reference_folder=images)
    named_alike = {"A": predictions(tmp_path / "B", *(f"{case}_0000" for case in "ab"))}
    if channels == ("_0000",):
        assert len(find_pairs(named_alike, dataset, reference_folder=images).references) == 2


def test_folds_that_are_not_trained_are_a_reason_to_choose_some(tmp_path):
    models = [model("UNET", results(tmp_path, {"0": ["a"]}))]
    with pytest.raises(UserError, match=r"no prediction of 2 of 3 .*: b, c; .*--folds 0"):
        check_complete(["a", "b", "c"], models, tmp_path / "labelsTr", ignore_extra=False)


def test_results_without_any_expected_case_are_of_another_kind(tmp_path):
    models = [model("PRESTAGE", results(tmp_path, {"0": ["a_error"]}))]
    with pytest.raises(UserError, match=r"of 2 of 2 .*: a, b; give the results of a trainer that segments"):
        check_complete(["a", "b"], models, tmp_path / "labelsTr", ignore_extra=True)


def test_extra_predictions_are_refused_or_left_out(tmp_path):
    models = [model("A", predictions(tmp_path / "A", "a", "x", "y"))]
    with pytest.raises(UserError, match=r"2 predictions without a reference in .*: x, y; .*--ignore_extra"):
        check_complete(["a"], models, tmp_path / "labelsTs", ignore_extra=False)
    assert check_complete(["a"], models, tmp_path / "labelsTs", ignore_extra=True) == [
        "A: left out: 2 predictions without a reference: x, y"
    ]


def test_predictions_of_other_folds_are_not_extra(tmp_path):
    models = [model("A", predictions(tmp_path / "A", "a", "b"))]
    assert check_complete(["a"], models, tmp_path / "labelsTr", ignore_extra=False, others=["a", "b"]) == []
