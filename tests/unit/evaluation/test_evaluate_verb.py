"""nnUNetv2_anomaly evaluate, through the command line, on files."""

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from places import REAL_MAPS
from scipy import ndimage

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.evaluation import case as evaluation_case
from nnunetv2_anomaly.evaluation import pictures, report, run, statistics
from nnunetv2_anomaly.evaluation import surfaces as evaluation_surfaces
from nnunetv2_anomaly.evaluation.run import load_evaluation
from nnunetv2_anomaly.labels import LABELS
from nnunetv2_anomaly.simulation.phantom import draw_phantom, phantom_image

SPACING = (1.0, 1.0, 2.0)  # SimpleITK's order: x, y, z
CASES = ("9001104_a", "9002430_b", "9002817_c", "9003430_d")
MASKS = REAL_MAPS


def write(path, voxels, spacing=SPACING, origin=(0.0, 0.0, 0.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.asarray(voxels, np.uint8))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


def knee(lesion=True):
    """Femur with a lesion of 3 x 3 x 3 voxels, 54 mm3; tibia; 12 x 20 x 20 voxels."""
    voxels = np.zeros((12, 20, 20), np.uint8)
    voxels[1:11, 2:9, 2:18] = LABELS["femoral_bone"]
    voxels[1:11, 11:18, 2:18] = LABELS["tibial_bone"]
    if lesion:
        voxels[4:7, 4:7, 4:7] = LABELS["femoral_lesion"]
    return voxels


@pytest.fixture
def folders(tmp_path):
    """Four references, two with a lesion, and the predictions of two models: one perfect, one not."""
    dataset = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": 4, "file_ending": ".nii.gz"}
    for index, case in enumerate(CASES):
        reference = knee(lesion=index < 2)
        write(tmp_path / "ref" / f"{case}.nii.gz", reference)
        write(tmp_path / "good" / f"{case}.nii.gz", reference)
        bad = np.roll(reference, 1, axis=2)
        if index == 0:
            bad[bad == 7] = 1  # misses the lesion
        if index == 2:
            bad[5, 13, 13] = 8  # invents one of 2 mm3
        write(tmp_path / "bad" / f"{case}.nii.gz", bad)
    for name in ("good", "bad"):
        (tmp_path / name / "dataset.json").write_text(json.dumps(dataset))
    return tmp_path


@pytest.fixture
def figures():
    """Asked for by the tests that look at figures, or at the tests between models."""


@pytest.fixture(autouse=True)
def only_where_looked_at(request, monkeypatch):
    """Figures and statistics take most of the time of a small evaluation; the other tests go without."""
    if "figures" not in request.fixturenames:
        monkeypatch.setattr(report, "evaluation_figures", lambda evaluation: [])
        monkeypatch.setattr(run, "case_pictures", lambda *arguments: [])
        for name in ("tukey", "paired"):
            of_cases = getattr(statistics, name)
            monkeypatch.setattr(statistics, name, lambda cases, of_cases=of_cases: of_cases(cases[:0]))


def with_labels(folders, *names):
    """Let the models know these labels alone, which is less to draw."""
    for file in folders.glob("*/dataset.json"):
        dataset = json.loads(file.read_text())
        dataset["labels"] = {name: LABELS[name] for name in ("background", *names)}
        file.write_text(json.dumps(dataset))


def evaluate(folder, *more, models=("good", "bad"), out="out"):
    pred = [str(folder / name) for name in models]
    return main(["evaluate", "-ref", str(folder / "ref"), "-pred", *pred, "-o", str(folder / out), "-np", "1", *more])


def table(folder, name, out="out"):
    return pd.read_csv(folder / out / "tables" / f"{name}.csv")


def failure(capsys):
    return capsys.readouterr().err


def test_tables_hold_the_metrics_worked_out_by_hand(folders):
    assert evaluate(folders) == 0
    cases = table(folders, "cases")
    assert len(cases) == 4 * 2 * 2 * 9  # cases, models, processings, labels
    of = cases.set_index(["case", "model", "processing", "label"])
    assert of.loc[(CASES[3], "good", "raw", "femoral_bone"), "dsc"] == 1
    shifted = of.loc[(CASES[3], "bad", "raw", "tibial_bone")]
    assert shifted["dsc"] == pytest.approx(15 / 16)  # 15 of 16 columns in common
    assert shifted["hd_mm"] == 1
    assert shifted["reference_volume_mm3"] == 10 * 7 * 16 * 2
    missed = of.loc[(CASES[0], "bad", "raw", "femoral_lesion")]
    assert missed["status"] == "missed"
    assert missed["dsc"] == 0
    assert missed["hd_mm"] == pytest.approx(math.hypot(19, 19, 11 * 2))  # the image's diagonal
    assert math.isnan(of.loc[(CASES[3], "good", "raw", "femoral_lesion"), "dsc"])
    assert (of.loc[(CASES[2], "bad", "raw", "tibial_lesion"), "status"]) == "invented"
    assert (of.loc[(CASES[2], "bad", "cleaned", "tibial_lesion"), "status"]) == "neither"  # 2 mm3 are below 6


def test_limits_of_the_clean_up_that_can_remove_nothing_are_told(folders, capsys):
    assert evaluate(folders, "--max_distance_mm", "1000", "--min_lesion_volume_mm3", "0") == 0
    told = (
        "no voxels are farther apart than the largest distance, 1000 mm: nothing can be removed there for it (4 cases:"
    )
    assert f"WARNING: {told}" in capsys.readouterr().out
    assert told in (folders / "out" / "report.html").read_text()
    assert evaluate(folders, "--max_distance_mm", "0.1", "--min_lesion_volume_mm3", "0") == 0
    assert "WARNING" not in capsys.readouterr().out


def test_lesion_detection_is_the_one_worked_out_by_hand(folders):
    assert evaluate(folders) == 0
    found = table(folders, "lesion_detection").set_index(["model", "bone"])
    assert found.loc[("good", "all"), ["positives", "negatives"]].tolist() == [2, 10]
    assert found.loc[("good", "all"), ["sensitivity", "specificity", "accuracy", "auc"]].tolist() == [1, 1, 1, 1]
    bad = found.loc[("bad", "all")]
    # One of two lesions missed; one of ten healthy bones with an invented lesion, gone from 2.5 mm3 on.
    assert (bad["sensitivity"], bad["specificity"], bad["accuracy"]) == (0.5, 0.9, pytest.approx(10 / 12))
    assert bad["dacc"] == pytest.approx(11 / 12)
    assert bad["dacc_threshold"] == 2.5
    # 2 of 3 columns in common where it was found, nothing where it was missed
    assert bad["mean_dsc"] == pytest.approx((2 / 3 + 0) / 2)
    # points (0.1, 0.5) and (0, 0.5): 0.1 * 0.5 + 0.9 * (0.5 + 1) / 2
    assert bad["auc"] == pytest.approx(0.05 + 0.675)


def test_report_figures_and_colour_tables_are_there_and_need_no_network(folders, figures):
    with_labels(folders, "femoral_bone", "tibial_bone", "femoral_lesion", "tibial_lesion")
    assert evaluate(folders) == 0
    report = (folders / "out" / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", report)
    assert report.count("<img") >= 8
    for name in ("box_hd_mm", "box_hd_raw_mm", "roc"):
        assert (folders / "out" / "figures" / f"{name}.png").stat().st_size > 1000
        assert "<svg" in (folders / "out" / "figures" / f"{name}.svg").read_text()
    for name in ("segmentation", "lesion_detection"):
        for ending in ("csv", "md", "tex"):
            assert (folders / "out" / "tables" / f"{name}.{ending}").is_file()
    # Of three cases no test between models says anything.
    assert not [path for name in ("tukey", "paired") for path in (folders / "out" / "tables").glob(f"{name}.*")]
    assert "Fewer than 6 cases" in (folders / "out" / "tables" / "segmentation.md").read_text()
    assert "femoral_bone" in (folders / "out" / "labels_3dslicer.ctbl").read_text()
    assert not list((folders / "out").rglob("part_*"))


def test_figures_and_tests_are_made_once_for_files_and_page(folders, monkeypatch):
    made = []
    for module, name in ((report, "evaluation_figures"), (statistics, "tukey"), (statistics, "paired")):
        make = getattr(module, name)
        monkeypatch.setattr(module, name, lambda of, make=make, name=name: made.append(name) or make(of))
    assert evaluate(folders) == 0
    assert sorted(made) == ["evaluation_figures", "paired", "tukey"]


def test_what_was_written_is_read_back_as_it_was(folders):
    assert evaluate(folders) == 0
    loaded = load_evaluation(folders / "out")
    assert loaded.models == ("good", "bad")
    assert loaded.labels["tibial_bone"] == (3,)
    assert len(loaded.bones) == 4 * 2 * 3 * 13
    pd.testing.assert_frame_equal(loaded.cases[["case", "dsc"]], table(folders, "cases")[["case", "dsc"]])


def test_names_like_formulas_are_none_in_the_tables_and_come_back(folders):
    (folders / "good").rename(folders / "=good")
    assert evaluate(folders, models=("=good",)) == 0
    assert set(table(folders, "cases")["model"]) == {"'=good"}
    assert set(load_evaluation(folders / "out").cases["model"]) == {"=good"}


def test_surfaces_say_which_way_a_prediction_errs(folders, monkeypatch):
    """The larger model's bones reach a voxel of 1 mm further at the front, and its cartilage is as much thicker."""
    parameters = draw_phantom(np.random.default_rng(0), side="right", lesion_share=0)
    image = phantom_image(parameters, size=(96, 96, 64), spacing_mm=(1.45, 1.45, 1.75))
    labels = sitk.GetArrayFromImage(image)
    thicker = labels.copy()
    grown = ndimage.binary_dilation(labels == LABELS["tibial_cartilage"])
    thicker[grown & (labels == 0)] = LABELS["tibial_cartilage"]
    for folder, voxels in (("ref", labels), ("good", labels), ("bad", thicker)):
        for file in (folders / folder).glob("*.nii.gz"):
            file.unlink()
        made = sitk.GetImageFromArray(voxels)
        made.CopyInformation(image)
        sitk.WriteImage(made, str(folders / folder / "a.nii.gz"))
    assert evaluate(folders, "--surfaces") == 0
    surfaces = pd.read_csv(folders / "out" / "surfaces" / "surfaces.csv").set_index(["model", "label"])
    assert surfaces.loc[("good", "tibial_cartilage"), "signed_surface_distance_mean_mm"] == pytest.approx(0, abs=1e-6)
    assert surfaces.loc[("bad", "tibial_cartilage"), "signed_surface_distance_mean_mm"] > 0.4
    assert surfaces.loc[("bad", "femoral_bone"), "ahd_voxel_mm"] == 0
    thickness = pd.read_csv(folders / "out" / "surfaces" / "thickness_differences.csv").set_index(["model", "bone"])
    assert thickness.loc[("good", "tibial_bone"), "thickness_difference_mean_mm"] == 0
    assert thickness.loc[("bad", "tibial_bone"), "thickness_difference_mean_mm"] > 0.4
    assert thickness.loc[("good", "femoral_bone"), "coverage"] == 1
    assert (folders / "out" / "surfaces" / "bad" / "a.png").is_file()
    assert "Surfaces" in (folders / "out" / "report.html").read_text()
    monkeypatch.setattr(evaluation_surfaces, "measure_knee", None)  # a second run measures nothing
    assert evaluate(folders, "--surfaces") == 0


def test_second_run_measures_only_what_changed(folders, monkeypatch):
    from nnunetv2_anomaly.evaluation import case as case_module

    assert evaluate(folders) == 0
    before = table(folders, "cases")
    measured = []
    original = case_module._measure
    monkeypatch.setattr(case_module, "_measure", lambda task: measured.append(task.case) or original(task))
    assert evaluate(folders) == 0
    assert measured == []
    pd.testing.assert_frame_equal(table(folders, "cases"), before)
    write(folders / "bad" / f"{CASES[1]}.nii.gz", knee())
    assert evaluate(folders) == 0
    assert measured == [CASES[1]]
    assert evaluate(folders, "--missing", "exclude") == 0
    assert sorted(measured[1:]) == sorted(CASES)
    cases = table(folders, "cases")
    missed = cases[(cases["case"] == CASES[0]) & (cases["model"] == "bad") & (cases["label"] == "femoral_lesion")]
    assert missed["hd_mm"].isna().all()


def test_several_processes_find_the_same(folders):
    assert evaluate(folders) == 0
    assert evaluate(folders, "-np", "2", out="other") == 0
    pd.testing.assert_frame_equal(table(folders, "cases"), table(folders, "cases", "other"))
    pd.testing.assert_frame_equal(table(folders, "bones"), table(folders, "bones", "other"))


def test_groups_by_kellgren_lawrence_grade(folders, capsys):
    (folders / "subjects.csv").write_text("SubjectID,KLGrade\n9001104,3.0\n9002430,2\n9002817,0\n")
    assert evaluate(folders, "--subjects", str(folders / "subjects.csv")) == 0
    assert "subjects.csv for 1 case, in no group" in capsys.readouterr().out
    cases = table(folders, "cases")
    groups = cases.drop_duplicates("case").set_index("case")["group"]
    assert groups[list(CASES[:3])].tolist() == ["KLGrade >= 3", "KLGrade <= 2", "KLGrade <= 2"]
    assert pd.isna(groups[CASES[3]])
    assert (folders / "out" / "tables" / "groups.csv").is_file()


def results_folder(base, trainer, source, folds):
    """nnU-Net's results folder with the validation predictions of folds: fold -> cases."""
    folder = base / "Dataset999_Made" / f"{trainer}__nnUNetPlans__3d_fullres"
    for fold, cases in folds.items():
        for case in cases:
            image = sitk.ReadImage(str(source / f"{case}.nii.gz"))
            (folder / f"fold_{fold}" / "validation").mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(folder / f"fold_{fold}" / "validation" / f"{case}.nii.gz"))
        (folder / f"fold_{fold}" / "validation" / "summary.json").write_text("{}")
    (folder / "plans.json").write_text(
        json.dumps({"dataset_name": "Dataset999_Made", "image_reader_writer": "SimpleITKIO"})
    )
    (folder / "dataset.json").write_text((source / "dataset.json").read_text())
    return folder


def test_cross_validation_is_gathered_from_results_folders(folders, monkeypatch):
    folds = {0: CASES[:2], 1: CASES[2:]}
    models = [results_folder(folders / "res", trainer, folders / source, folds)
              for trainer, source in (("nnUNetTrainer", "good"), ("AnomalyAwareTrainer", "bad"))]  # fmt: skip
    monkeypatch.setenv("nnUNet_preprocessed", str(folders / "preprocessed"))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    gt = folders / "preprocessed" / "Dataset999_Made" / "gt_segmentations"
    gt.parent.mkdir(parents=True)
    (folders / "ref").rename(gt)
    command = ["evaluate", "-pred", *map(str, models), "-o", str(folders / "out"), "-np", "1"]
    assert main(command) == 0
    cases = table(folders, "cases")
    assert set(cases["model"]) == {"nnUNetTrainer", "AnomalyAwareTrainer"}
    assert cases.drop_duplicates("case").set_index("case")["fold"][list(CASES)].tolist() == [0, 0, 1, 1]
    assert len(table(folders, "folds"))
    assert main([*command[:-4], "-o", str(folders / "one"), "--folds", "1", "-np", "1"]) == 0
    assert set(table(folders, "cases", "one")["case"]) == set(CASES[2:])


def softmax(voxels, certainty):
    """(10, Z, Y, X): the label's class has ``certainty``, the rest is background's."""
    probabilities = np.zeros((10, *voxels.shape), np.float32)
    probabilities[0] = 1
    for value in np.unique(voxels[voxels > 0]):
        probabilities[value][voxels == value] = certainty
        probabilities[0][voxels == value] = 1 - certainty
    return probabilities


def test_softmax_outputs_give_further_thresholds(folders):
    for case in CASES:
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(folders / "good" / f"{case}.nii.gz")))
        np.savez_compressed(folders / "good" / f"{case}.npz", probabilities=softmax(voxels, 0.75))
    assert evaluate(folders, models=("good",)) == 0
    bones = table(folders, "bones")
    bones = bones[(bones["bone"] == "femoral_bone") & (bones["case"] == CASES[0]) & (bones["rule"] == "probability")]
    assert bones["threshold"].tolist() == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert bones["outcome"].tolist() == ["TP"] * 3 + ["FN"] * 3
    assert evaluate(folders, "--without_probabilities", models=("good",), out="without") == 0
    assert set(table(folders, "bones", "without")["rule"]) == {"size"}


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda p: np.full_like(p, np.nan), "NaN"),
        (lambda p: p[:, 1:], "its shape is"),
        (lambda p: p[:8], "softmax output of 8 classes and dataset.json has 10"),
        (lambda p: np.concatenate((p, p[:1])), "softmax output of 11 classes and dataset.json has 10"),
        (lambda p: p * 2, r"out of \[0, 1\]"),
    ],
)
def test_bad_softmax_outputs_are_told(folders, capsys, broken, told):
    for case in CASES:
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(folders / "good" / f"{case}.nii.gz")))
        probabilities = softmax(voxels, 0.75)
        np.savez_compressed(
            folders / "good" / f"{case}.npz", probabilities=broken(probabilities) if case == CASES[1] else probabilities
        )
    assert evaluate(folders, models=("good",)) == 3
    message = failure(capsys)
    assert re.search(told, message)
    assert f"{CASES[1]}.npz" in message
    assert "1 of 4 cases" in message


def test_softmax_outputs_of_some_cases_are_an_error(folders, capsys):
    np.savez_compressed(folders / "good" / f"{CASES[0]}.npz", probabilities=softmax(knee(), 0.75))
    assert evaluate(folders, models=("good",)) == 1
    assert CASES[1] in failure(capsys)


def test_without_a_softmax_output_that_is_needed_another_option_does_not_help(folders, capsys):
    np.savez_compressed(folders / "good" / f"{CASES[0]}.npz", probabilities=softmax(knee(), 0.75))
    assert evaluate(folders, "--lesion_probability", "0.5", models=("good",)) == 1
    message = failure(capsys)
    assert re.search(rf"no softmax output \(\.npz\) of {CASES[1]}.*--lesion_probability needs", message)
    assert "--without_probabilities" not in message


def test_missing_predictions_are_listed(folders, capsys):
    (folders / "bad" / f"{CASES[2]}.nii.gz").unlink()
    assert evaluate(folders) == 1
    assert re.search(rf"bad.*no prediction of 1 of 4.*{CASES[2]}", failure(capsys))
    assert not (folders / "out").exists()


def test_missing_predictions_are_left_out_of_all_models_on_request(folders, capsys):
    (folders / "bad" / f"{CASES[2]}.nii.gz").unlink()
    assert evaluate(folders, "--ignore_missing") == 3
    note = f"1 case without a prediction of every model: {CASES[2]}"
    assert f"nnUNetv2_anomaly: {note}" in capsys.readouterr().err
    assert note in (folders / "out" / "report.html").read_text()
    for model, of in table(folders, "cases").groupby("model"):
        assert sorted(set(of["case"])) == sorted({*CASES} - {CASES[2]}), model


def test_extra_predictions_are_listed_and_ignored_on_request_alone(folders, capsys):
    write(folders / "bad" / "stranger.nii.gz", knee())
    assert evaluate(folders) == 1
    assert "stranger" in failure(capsys)
    assert evaluate(folders, "--ignore_extra") == 0
    assert "stranger" in capsys.readouterr().out
    assert "stranger" in (folders / "out" / "report.html").read_text()


@pytest.mark.parametrize("change", [{"spacing": (1.0, 1.0, 2.2)}, {"origin": (0.0, 5.0, 0.0)}])
def test_another_geometry_is_told_and_the_other_cases_are_kept(folders, capsys, change):
    write(folders / "bad" / f"{CASES[0]}.nii.gz", knee(), **change)
    assert evaluate(folders) == 3
    assert re.search(rf"1 of 4 cases.*{CASES[0]}.*another grid", failure(capsys), re.DOTALL)
    assert len(list((folders / "out" / "cases").iterdir())) == 3
    assert "Left out: 1 of 4 cases could not be evaluated" in (folders / "out" / "report.html").read_text()
    assert sorted(set(table(folders, "cases")["case"])) == sorted(CASES[1:])
    write(folders / "bad" / f"{CASES[0]}.nii.gz", knee())
    assert evaluate(folders) == 0


def test_prediction_with_axes_in_another_order_is_the_same_prediction(folders):
    for case in CASES:
        image = sitk.ReadImage(str(folders / "good" / f"{case}.nii.gz"))
        sitk.WriteImage(sitk.DICOMOrient(image, "PIR"), str(folders / "good" / f"{case}.nii.gz"))
    assert evaluate(folders, models=("good",)) == 0
    assert (table(folders, "cases")["dsc"].dropna() == 1).all()


def test_unknown_labels_and_broken_files_are_told(folders, capsys):
    strange = knee()
    strange[0, 0, 0] = 12
    write(folders / "bad" / f"{CASES[0]}.nii.gz", strange)
    (folders / "bad" / f"{CASES[1]}.nii.gz").write_bytes(b"no image")
    assert evaluate(folders) == 3
    message = failure(capsys)
    assert "12 (1 voxels)" in message
    assert f"{CASES[1]}.nii.gz" in message
    assert "Traceback" not in message


def test_empty_folder_duplicate_names_and_foreign_output_are_told(folders, capsys):
    (folders / "empty").mkdir()
    assert evaluate(folders, "-djfile", str(folders / "good" / "dataset.json"), models=("empty",)) == 1
    assert "is empty; expected segmentations" in failure(capsys)
    assert evaluate(folders, models=("good", "good")) == 1
    assert "two models are called good" in failure(capsys)
    (folders / "mine").mkdir()
    (folders / "mine" / "thesis.txt").write_text("years of work")
    assert evaluate(folders, out="mine") == 1
    assert "not empty" in failure(capsys)
    assert [path.name for path in (folders / "mine").iterdir()] == ["thesis.txt"]


def test_cleaned_predictions_are_told(folders, capsys):
    assert main(["postprocess", "-i", str(folders / "bad"), "-o", str(folders / "cleaned"), "-np", "1"]) == 0
    assert evaluate(folders, models=("good", "cleaned")) == 0
    told = f"cleaned: {folders / 'cleaned'} was cleaned by postprocess"
    assert told in capsys.readouterr().out
    page = (folders / "out" / "report.html").read_text()
    assert told in page
    assert f"good: {folders}" not in page


@pytest.mark.parametrize("limit", ["nan", "inf", "two"])
def test_a_limit_that_is_no_number_is_refused(limit, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "-pred", "p", "-o", "o", "--group_limit", limit])
    assert "argument --group_limit: " in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--group_by", "sex"), ("--group_limit", "3")])
def test_groups_need_a_table(folders, capsys, options):
    assert evaluate(folders, *options) == 1
    assert "--subjects" in failure(capsys)


@pytest.mark.parametrize(("module", "writer"), [(evaluation_case, "save_record"), (run, "write_tables_and_figures")])
def test_full_disk_is_told_and_ends_the_run(folders, capsys, monkeypatch, module, writer):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(module, writer, fail)
        assert evaluate(folders) == 1
    assert re.search(r"out cannot be written to \(No space left on device\)", failure(capsys))
    assert evaluate(folders) == 0


@pytest.mark.exhaustive
def test_nothing_is_left_of_an_earlier_evaluation_with_other_settings(folders, figures):
    table_of_subjects = folders / "subjects.csv"
    table_of_subjects.write_text("SubjectID,KLGrade\n" + "".join(f"{case[:7]},2\n" for case in CASES))
    assert evaluate(folders, "--subjects", str(table_of_subjects)) == 0
    assert evaluate(folders, "--lesions", "none", models=("good",)) == 0
    assert evaluate(folders, "--lesions", "none", models=("good",), out="fresh") == 0
    for part in ("tables", "figures"):
        names = [{path.name for path in (folders / out / part).iterdir()} for out in ("out", "fresh")]
        assert names[0] == names[1]


def test_ignored_voxels_count_as_background_in_both_maps(folders):
    labels = {"background": 0, "femoral_bone": 1, "ignore": 2}
    reference = np.zeros((6, 8, 8), np.uint8)
    reference[1:5, 2:6, 2:6] = 1
    prediction = reference.copy()
    prediction[1:5, 2:6, 6:8] = 1  # too much, where the reference leaves it open
    reference[:, :, 6:] = 2
    write(folders / "r" / "a.nii.gz", reference)
    write(folders / "p" / "a.nii.gz", prediction)
    (folders / "p" / "dataset.json").write_text(
        json.dumps({"labels": labels, "file_ending": ".nii.gz", "channel_names": {"0": "MR"}, "numTraining": 1})
    )
    assert main(["evaluate", "-ref", str(folders / "r"), "-pred", str(folders / "p"), "-o", str(folders / "o")]) == 0
    assert (table(folders, "cases", "o")["dsc"] == 1).all()


def test_regions_are_evaluated_as_the_data_set_names_them(folders):
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    reference = np.zeros((6, 8, 8), np.uint8)
    reference[1:5, 2:6, 2:6] = 1
    reference[2:4, 3:5, 3:5] = 2
    prediction = np.where(reference == 2, 1, reference)
    write(folders / "r" / "a.nii.gz", reference)
    write(folders / "p" / "a.nii.gz", prediction)
    (folders / "p" / "dataset.json").write_text(
        json.dumps(
            {"labels": labels, "regions_class_order": [1, 2], "file_ending": ".nii.gz", "channel_names": {"0": "MR"},
             "numTraining": 1}
        )
    )  # fmt: skip
    assert main(["evaluate", "-ref", str(folders / "r"), "-pred", str(folders / "p"), "-o", str(folders / "o")]) == 0
    raw = table(folders, "cases", "o").query("processing == 'raw'").set_index("label")
    assert raw.loc["whole", "dsc"] == 1
    assert raw.loc["core", "status"] == "missed"


def test_2d_images_of_a_png_data_set(folders, capsys, figures, monkeypatch):
    from skimage import io

    reference = np.zeros((20, 30), np.uint8)
    reference[5:15, 5:20] = 1
    for name, voxels in (("r", reference), ("p", np.roll(reference, 2, axis=1))):
        (folders / name).mkdir()
        io.imsave(folders / name / "a.png", voxels, check_contrast=False)
    (folders / "p" / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "cell": 1}, "file_ending": ".png", "channel_names": {"0": "R"},
                    "numTraining": 1})
    )  # fmt: skip
    assert main(["evaluate", "-ref", str(folders / "r"), "-pred", str(folders / "p"), "-o", str(folders / "o")]) == 0
    found = table(folders, "cases", "o").iloc[0]
    assert (found["dsc"], found["hd_mm"]) == (pytest.approx(13 / 15), 2)
    with_images = ["evaluate", "-ref", str(folders / "r"), "-pred", str(folders / "p"), "-o", str(folders / "o"),
                   "--images", str(folders / "images")]  # fmt: skip
    (folders / "images").mkdir()
    image = folders / "images" / "a_0000.png"
    io.imsave(image, 10 * reference, check_contrast=False)
    assert main(with_images) == 0
    shown = shown_by(monkeypatch)
    (folders / "errors").mkdir()
    for channel, value in enumerate((0.1, 0.2, 0.6)):  # as error_images writes those of a colour image
        error = sitk.GetImageFromArray(np.full((1, 20, 30), value, np.float32))
        sitk.WriteImage(error, str(folders / "errors" / f"a_error_{channel:04d}.nii.gz"))
    assert main([*with_images, "--error_images", str(folders / "errors")]) == 0
    ((image_shown, error_shown),) = shown.values()
    np.testing.assert_array_equal(image_shown, 10 * reference)
    np.testing.assert_allclose(error_shown, np.full((20, 30), 0.3), atol=1e-6)
    image.write_bytes(image.read_bytes()[:60])
    assert main(with_images) == 1
    assert "a_0000.png cannot be read as an image" in failure(capsys)


def shown_by(monkeypatch):
    """Case -> image and error image, as they come to the pictures."""
    shown, draw = {}, pictures.case_figure

    def record(case, image, reference, predictions, error_image, *arguments):
        shown[case] = (image, error_image)
        return draw(case, image, reference, predictions, error_image, *arguments)

    monkeypatch.setattr(pictures, "case_figure", record)
    return shown


@pytest.mark.exhaustive
def test_images_and_error_images_are_shown_and_missing_ones_told(folders, capsys, figures, monkeypatch):
    for case in CASES:
        write(folders / "images" / f"{case}_0000.nii.gz", 10 * knee())
    assert evaluate(folders, "--images", str(folders / "images"), models=("bad",)) == 0
    (folders / "errors").mkdir()
    assert evaluate(folders, "--error_images", str(folders / "errors"), models=("bad",)) == 1
    assert "_error.nii.gz" in failure(capsys)
    for case in CASES:
        for channel in range(2):
            write(folders / "errors" / f"{case}_error_{channel:04d}.nii.gz", 2 * channel * knee())
    shown = shown_by(monkeypatch)
    assert evaluate(folders, "--error_images", str(folders / "errors"), models=("bad",)) == 0
    for image, error_image in shown.values():
        assert image is None
        np.testing.assert_array_equal(error_image, knee()[:, ::-1, ::-1])  # from LPS to RAS


@pytest.mark.parametrize(("option", "kind"), [("--images", "_0000"), ("--error_images", "_error")])
def test_missing_images_of_any_case_are_told_before_anything_is_measured(folders, capsys, option, kind):
    for case in CASES[:-1]:
        write(folders / "there" / f"{case}{kind}.nii.gz", knee())
    assert evaluate(folders, option, str(folders / "there")) == 1
    told = f"{option} {folders / 'there'} lacks CASE{kind}.nii.gz for 1 of 4 cases: {CASES[-1]}; complete it"
    assert told in failure(capsys)
    assert not (folders / "out").exists()
    assert evaluate(folders, option, str(folders / "missing")) == 1
    assert f"{option} {folders / 'missing'} is not a folder" in failure(capsys)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_killed_run_goes_on_where_it_was(folders):
    for index in range(40):
        write(folders / "ref" / f"more{index}.nii.gz", knee())
        write(folders / "good" / f"more{index}.nii.gz", knee())
    script = "import sys; from nnunetv2_anomaly.command_line.main import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "evaluate", "-ref", str(folders / "ref"), "-pred", str(folders / "good"),
               "-o", str(folders / "out"), "-np", "1"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    kept = folders / "out" / "cases"
    deadline = time.monotonic() + 120
    while process.poll() is None and not (kept.is_dir() and len(list(kept.glob("*.json"))) >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folders / "out" / "report.html").exists()
    assert evaluate(folders, models=("good",)) == 0
    assert (table(folders, "cases")["dsc"].dropna() == 1).all()
    assert table(folders, "cases")["case"].nunique() == 44


@pytest.mark.exhaustive
@pytest.mark.skipif(not MASKS.is_dir(), reason="the masks of OAI ZIB-UQ are not at hand")
def test_real_masks_against_themselves_have_every_lesion_bone(folders, figures):
    for file in sorted(MASKS.glob("*.nii.gz"))[:4]:
        image = sitk.ReadImage(str(file))
        for name in ("r", "p"):
            (folders / name).mkdir(exist_ok=True)
            sitk.WriteImage(image, str(folders / name / f"{file.name[:7]}.nii.gz"), useCompression=True)
    (folders / "p" / "dataset.json").write_text((folders / "good" / "dataset.json").read_text())
    assert main(["evaluate", "-ref", str(folders / "r"), "-pred", str(folders / "p"), "-o", str(folders / "o")]) == 0
    found = table(folders, "lesion_detection", "o").set_index("bone").loc["all"]
    with_lesions = sum(
        bool((sitk.GetArrayFromImage(sitk.ReadImage(str(file))) == lesion).any())
        for file in (folders / "r").iterdir()
        for lesion in (7, 8, 9)
    )
    assert (found["positives"], found["negatives"]) == (with_lesions, 12 - with_lesions)
    assert (found["sensitivity"], found["specificity"], found["mean_dsc"]) == (1, 1, 1)
    raw = table(folders, "cases", "o").query("processing == 'raw'")
    assert (raw["hd_mm"].dropna() == 0).all()
