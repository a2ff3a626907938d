"""Simulated folder -> nnU-Net raw data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_anomaly.conversion.options import main_of
from nnunetv2_anomaly.dataset_conversion import Dataset500_SimulatedKnees
from nnunetv2_anomaly.dataset_conversion.Dataset500_SimulatedKnees import (
    checked_dataset_dir,
    choose_test_cases,
    convert,
)
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.labels import ANATOMY, BONE_OF_LESION, LABELS
from nnunetv2_anomaly.simulation.simulate import simulate_folder


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "knees"
    simulate_folder(folder, num_phantoms=5, size=(24, 32, 32), spacing_mm=(4, 3.5, 3.5), num_processes=1)
    return folder


@pytest.fixture
def nnunet_folders(tmp_path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


def array(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_lesions_count_as_bone_in_the_labels_and_stay_in_the_truth(simulated, tmp_path):
    dataset = tmp_path / "Dataset500_SimulatedKnees"
    cases = convert(simulated, dataset, num_test=2)
    assert len(cases["training"]) == 3
    assert len(cases["test"]) == 2
    lesion_voxels = 0
    for suffix, names in (("Tr", cases["training"]), ("Ts", cases["test"])):
        for case in names:
            written, source = array(dataset / f"labels{suffix}" / f"{case}.nii.gz"), simulated / "labels"
            source = array(source / f"{case}.nii.gz")
            assert written.max() <= 6
            for lesion, bone in BONE_OF_LESION.items():
                assert (written[source == lesion] == bone).all()
                lesion_voxels += (source == lesion).sum()
            assert np.array_equal(written[source < 7], source[source < 7])
            for kind, ending in (("images", "_0000"), ("anomalies", "")):
                name = f"{case}{ending}.nii.gz"
                assert (dataset / f"{kind}{suffix}" / name).read_bytes() == (simulated / kind / name).read_bytes()
            image, labels = (
                sitk.ReadImage(str(dataset / f"{kind}{suffix}" / f"{case}{ending}.nii.gz"))
                for kind, ending in (("images", "_0000"), ("labels", ""))
            )
            assert image.GetOrigin() == pytest.approx(labels.GetOrigin())
            assert image.GetDirection() == pytest.approx(labels.GetDirection())
    assert lesion_voxels > 0
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["labels"] == ANATOMY
    assert description["numTraining"] == 3
    assert description["file_ending"] == ".nii.gz"
    assert description["channel_names"] == {"0": "MR"}
    assert [p.name for p in tmp_path.iterdir()] == [dataset.name]


def test_lesion_labels_are_kept_on_request(simulated, tmp_path):
    dataset = tmp_path / "Dataset500_SimulatedKnees"
    cases = convert(simulated, dataset, num_test=0, keep_lesion_labels=True)
    assert json.loads((dataset / "dataset.json").read_text())["labels"] == LABELS
    for case in cases["training"]:
        written, source = (array(folder / f"{case}.nii.gz") for folder in (dataset / "labelsTr", simulated / "labels"))
        assert np.array_equal(written, source)


def test_at_least_half_of_the_test_cases_hold_lesions_where_there_are_enough():
    volumes = {f"knee_{index:02d}": 100.0 * (index < 4) for index in range(20)}
    for seed in range(10):
        chosen = choose_test_cases(volumes, 6, seed)
        assert len(chosen) == 6
        assert sum(volumes[case] > 0 for case in chosen) >= 3
    assert choose_test_cases(volumes, 6, 1) == choose_test_cases(volumes, 6, 1)
    assert len({tuple(choose_test_cases(volumes, 6, seed)) for seed in range(10)}) > 1
    assert len(choose_test_cases(dict.fromkeys(volumes, 0.0), 6, 0)) == 6


def test_visits_of_one_subject_stay_together():
    volumes = {f"{9000000 + index}_{month}_WB01": 1.0 for index in range(6) for month in ("00m", "36m")}
    for seed in range(10):
        chosen = choose_test_cases(volumes, 5, seed)
        assert len(chosen) == 4  # a fifth one would part a subject's visits
        assert len({case[:7] for case in chosen}) == 2


def test_taken_numbers_and_filled_folders_are_refused(nnunet_folders, simulated):
    (nnunet_folders / "nnUNet_results" / "Dataset500_Hippocampus").mkdir()
    with pytest.raises(UserError, match=r"Number 500 is taken by Dataset500_Hippocampus in .*nnUNet_results"):
        checked_dataset_dir(500, "SimulatedKnees")
    target = checked_dataset_dir(501, "SimulatedKnees")
    assert target == nnunet_folders / "nnUNet_raw" / "Dataset501_SimulatedKnees"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        checked_dataset_dir(501, "SimulatedKnees")
    with pytest.raises(UserError, match="exists and is not empty"):
        convert(simulated, target, num_test=1)
    assert (target / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("number", "name"), [(0, "Knees"), (1000, "Knees"), (7, "my knees"), (7, "a__b"), (7, "")])
def test_numbers_and_names_that_nnunet_cannot_use_are_refused(nnunet_folders, number, name):
    with pytest.raises(UserError, match="expected"):
        checked_dataset_dir(number, name)


def test_missing_variable_sources_and_too_many_test_cases_are_told(monkeypatch, simulated, tmp_path):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(UserError, match="nnUNet_raw is not set"):
        checked_dataset_dir(500, "SimulatedKnees")
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        convert(tmp_path, tmp_path / "Dataset500_X", num_test=1)
    with pytest.raises(UserError, match="5 test cases were asked for"):
        convert(simulated, tmp_path / "Dataset500_X", num_test=5)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_deleted_and_what_resembles_it_stays(simulated, tmp_path):
    dataset = tmp_path / "Dataset500_SimulatedKnees"
    left = tmp_path / f"part_of_nnunetv2_anomaly_123_{dataset.name}"
    others = [tmp_path / f"part_of_nnunetv2_anomaly_{name}" for name in (f"x_{dataset.name}", "123_Dataset501_Other")]
    for folder in (left, *others):
        (folder / "imagesTs").mkdir(parents=True)
        (folder / "imagesTs" / "knee_0000.nii.gz").touch()
    convert(simulated, dataset)
    assert set(tmp_path.iterdir()) == {dataset, *others}
    assert all((folder / "imagesTs" / "knee_0000.nii.gz").is_file() for folder in others)


def test_a_data_set_that_is_there_whole_is_kept_and_another_one_is_not_replaced(simulated, tmp_path, nnunet_folders):
    dataset = tmp_path / "nnUNet_raw" / "Dataset500_SimulatedKnees"
    cases = convert(simulated, dataset, num_test=2)
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    assert checked_dataset_dir(500, "SimulatedKnees") == dataset
    assert convert(simulated, dataset, num_test=2) == cases
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
    for other in ({"num_test": 1}, {"num_test": 2, "seed": 1}, {"num_test": 2, "keep_lesion_labels": True}):
        with pytest.raises(UserError, match="exists and is not empty"):
            convert(simulated, dataset, **other)


@pytest.mark.parametrize("lost", ["labelsTr", "imagesTs", "anomaliesTs"])
def test_a_lost_file_of_a_data_set_is_named(simulated, tmp_path, lost):
    convert(simulated, tmp_path / "Dataset500_X", num_test=2)
    file = next((tmp_path / "Dataset500_X" / lost).iterdir())
    file.unlink()
    with pytest.raises(UserError, match=rf"Dataset500_X lacks {lost}/{file.name}; delete it and run again"):
        convert(simulated, tmp_path / "Dataset500_X", num_test=2)


def test_a_failure_leaves_nothing_behind(simulated, tmp_path, monkeypatch):
    def fail(*_args, **_keywords):
        raise OSError("disk full")

    monkeypatch.setattr("nnunetv2_anomaly.dataset_conversion.Dataset500_SimulatedKnees.write_dataset_json", fail)
    with pytest.raises(UserError, match=r"Dataset500_X cannot be written to \(disk full\); make room"):
        convert(simulated, tmp_path / "Dataset500_X", num_test=1)
    assert list(tmp_path.iterdir()) == []


def test_main_converts(nnunet_folders, simulated):
    assert main_of(Dataset500_SimulatedKnees, ["-i", str(simulated), "-d", "502", "--num_test", "1"]) == 0
    written = nnunet_folders / "nnUNet_raw" / "Dataset502_SimulatedKnees"
    assert len(list((written / "imagesTs").iterdir())) == 1
    assert len(list((written / "imagesTr").iterdir())) == 4
