import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from comparing import compare
from scipy.stats import pearsonr

from benchmarks import naive_vs_aware
from benchmarks.comparison import (
    bones_by_knee,
    by_knee,
    difference_drawings,
    difference_table,
    lesion_table,
    shares_inside_lesions,
)
from benchmarks.experiment import Experiment, whole_folder
from benchmarks.machine import machine
from benchmarks.models import parse_models
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.evaluation.detection import volume_agreement
from nnunetv2_anomaly.evaluation.results import CLEANED, RAW, Evaluation
from nnunetv2_anomaly.workflows.engine import run_steps
from nnunetv2_anomaly.workflows.steps import Step


def made_cases(values):
    """Rows of Evaluation.cases: (model, knee, repeat) -> DSC of the femur; HD is 10 times 1 - DSC, in mm."""
    return pd.DataFrame(
        [
            {
                "case": f"{knee}--{repeat}", "model": model, "processing": processing, "label": "femoral_bone",
                "status": "both", "dsc": dsc, "hd_mm": 10 * (1 - dsc), "asd_mm": 1 - dsc, "components": 1,
            }
            for (model, knee, repeat), dsc in values.items()
            for processing in (RAW, CLEANED)
        ]
    )  # fmt: skip


@pytest.fixture
def evaluation():
    values = {("naive", f"k{k}", r): 0.8 + 0.01 * k + s for k in range(6) for r, s in (("s0", -0.02), ("s1", 0.02))}
    values |= {("aware", knee, r): dsc + 0.01 * (1 + int(knee[1:])) for (_, knee, r), dsc in list(values.items())}
    return Evaluation(
        ("naive", "aware"), {"femoral_bone": (1,)}, (), made_cases(values), pd.DataFrame(), pd.DataFrame()
    )


@pytest.fixture
def lesions():
    return pd.DataFrame([{"knee": f"k{k}", "label": "femoral_bone", "lesion": k < 2} for k in range(6)])


@pytest.fixture
def inside():
    """Share of lesions found as bone: 0.5 by naive; 0.6 and 0.8 by aware, in the knees 0 and 1, which hold one."""
    return pd.DataFrame(
        [
            {"case": f"k{k}--{r}", "model": model, "label": "femoral_bone", "inside": share}
            for k in (0, 1)
            for r in ("s0", "s1")
            for model, share in (("naive", 0.5), ("aware", 0.6 + 0.2 * k))
        ]
    )


def test_a_knee_counts_once_however_often_models_were_trained(evaluation):
    means = by_knee(evaluation.cases)
    own = means[(means["model"] == "naive") & (means["processing"] == RAW)].set_index("case")["dsc"]
    np.testing.assert_allclose(own, [0.8, 0.81, 0.82, 0.83, 0.84, 0.85])


def test_two_hyphens_in_a_knees_name_are_its_own(evaluation):
    cases = evaluation.cases.assign(case=["a--" + case for case in evaluation.cases["case"]])
    assert set(by_knee(cases)["case"]) == {f"a--k{k}" for k in range(6)}


def test_volumes_of_lesions_count_once_a_knee():
    rows = [
        {
            "case": f"k{k}--seed{seed}-fold0", "model": "m", "fold": 0, "group": "", "bone": "femoral_bone",
            "lesion": "femoral_lesion", "rule": "size", "threshold": 0.0, "reference_mm3": 100.0 * k,
            "prediction_mm3": 100.0 * k + 30 * k**2 + seed, "dsc": 0.5, "outcome": "TP",
        }
        for k in range(1, 6)
        for seed in (0, 2)
    ]  # fmt: skip
    bones = bones_by_knee(pd.DataFrame(rows))
    np.testing.assert_allclose(bones["prediction_mm3"], [100 * k + 30 * k**2 + 1 for k in range(1, 6)])
    found = volume_agreement(bones).set_index("bone").loc["femoral_bone"]
    assert found["n"] == 5
    assert found["pearson_p"] == pytest.approx(pearsonr(bones["reference_mm3"], bones["prediction_mm3"]).pvalue)
    assert bones_by_knee(pd.DataFrame()).empty


@pytest.mark.exhaustive
def test_predictions_by_an_earlier_training_are_made_again_and_get_their_folder_when_all_are_written(tmp_path):
    training = Step("train", "touch checkpoint", "train", makes="checkpoint")
    filling = "mkdir part_seed0 && date +%N > part_seed0/case.nii.gz"
    prediction = whole_folder(Step("predict", filling, "predict", needs=("checkpoint",)), Path("seed0"))
    contents = []
    for again in (False, False, True):
        if again:
            # Another time alone is no other training: Snakemake compares what small files hold.
            (tmp_path / "checkpoint").write_text("of another training")
        run_steps(tmp_path, [training, prediction], os.environ)
        assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.nii.gz")] == ["seed0/case.nii.gz"]
        contents.append((tmp_path / "seed0" / "case.nii.gz").read_text())
        (tmp_path / "seed0" / "of_another_case").touch()
    assert contents[0] == contents[1] != contents[2]


def test_differences_are_against_the_first_model_knee_by_knee(evaluation, lesions, inside):
    rows = difference_table(evaluation, lesions, inside).rows
    table = pd.DataFrame([{k: v for cell in row for k, v in cell.values.items()} for row in rows])
    of_all = table[(table["knees"] == "all") & (table["metric"] == "DSC [%]")]
    assert len(of_all) == 1
    assert of_all["difference"].item() == pytest.approx(3.5)  # percent: the mean of 1 to 6
    quartiles = of_all[["difference_q1", "difference_median", "difference_q3"]].to_numpy().ravel()
    np.testing.assert_allclose(quartiles, [2.25, 3.5, 4.75])
    assert of_all["p"].item() == pytest.approx(2 / 2**6)  # all six of one sign, exact two-sided
    of_lesions = table[(table["knees"] == "bones with a lesion") & (table["metric"] == "DSC [%]")]
    assert of_lesions["difference"].item() == pytest.approx(1.5)
    assert of_lesions["n"].item() == 2
    of_others = table[(table["knees"] == "without") & (table["metric"] == "DSC [%]")]
    assert of_others["difference"].item() == pytest.approx(4.5)
    assert of_others["n"].item() == 4
    assert set(table["metric"]) == {"DSC [%]", "ASD [mm]", "HD [mm]", "HD* [mm]", "bone inside lesion [%]"}
    of_voxels = table[table["metric"] == "bone inside lesion [%]"]
    assert of_voxels["knees"].item() == "bones with a lesion"
    assert of_voxels["difference"].item() == pytest.approx(20)  # percent: the mean of 10 and 30
    assert of_voxels["n"].item() == 2


class Nothing:
    """A comparison whose knees hold no lesion."""

    repeats = ()


def test_knees_without_any_lesion_have_no_rows_of_lesions(evaluation, lesions):
    nothing_inside = shares_inside_lesions(Nothing())
    for none, subsets in ((lesions.assign(lesion=False), {"all", "without"}), (lesions[:0], {"all"})):
        table = difference_table(evaluation, none, nothing_inside)
        assert {row[0].values["knees"] for row in table.rows} == subsets


def test_differences_tell_their_spread_over_trainings(evaluation, lesions, inside):
    row = difference_table(evaluation, lesions, inside).rows[0]
    assert row[4].beneath == "median 3.50 (2.25 to 4.75)"  # both trainings differ from the baseline's by the same
    cases = evaluation.cases.copy()
    later = (cases["model"] == "aware") & cases["case"].str.endswith("--s1")
    cases.loc[later, "dsc"] += 0.02
    row = difference_table(dataclasses.replace(evaluation, cases=cases), lesions, inside).rows[0]
    assert (row[4].text, row[4].beneath) == ("4.50", "median 4.50 (3.25 to 5.75)\n3.50 to 5.50")


def test_the_figures_points_are_the_knees_differences(evaluation, lesions):
    drawings = difference_drawings(evaluation, lesions)
    assert [drawing.name for drawing in drawings] == ["differences_dsc_percent", "differences_hd_raw_mm"]
    # HD is 10 mm less for each 100 % of DSC more.
    for drawing, unit in zip(drawings, (1.0, -0.1), strict=True):
        (axis,) = drawing.figure.axes
        without, holding = (points.get_offsets()[:, 0] for points in axis.collections)
        np.testing.assert_allclose(holding, unit * np.array([1, 2]))
        np.testing.assert_allclose(without, unit * np.array([3, 4, 5, 6]))
        mean, _ = axis.lines
        np.testing.assert_allclose(mean.get_xdata(), [3.5 * unit] * 2)
        assert mean.get_color() == "0.1"
        assert [tick.get_text() for tick in axis.get_yticklabels()] == ["aware"]
    assert not difference_drawings(dataclasses.replace(evaluation, models=("naive",)), lesions)


def test_a_far_difference_does_not_hide_the_others(evaluation, lesions):
    cases = evaluation.cases.copy()
    cases.loc[(cases["model"] == "aware") & cases["case"].str.startswith("k5"), "hd_mm"] = 90.0
    scales = [
        d.figure.axes[0].get_xscale()
        for d in difference_drawings(dataclasses.replace(evaluation, cases=cases), lesions)
    ]
    assert scales == ["linear", "symlog"]


def test_bones_with_and_without_a_lesion_have_rows_of_their_own(evaluation, lesions, inside):
    table = lesion_table(evaluation, lesions, inside)
    rows = [{k: v for c in row for k, v in c.values.items()} for row in table.rows]
    assert [row["bone_inside_lesion_percent"] for row in rows][:2] == [pytest.approx(50), pytest.approx(70)]
    assert all(np.isnan(row["bone_inside_lesion_percent"]) for row in rows[2:])
    found = {(row["lesion"], row["model"]): (row["dsc_percent"], row["predictions"]) for row in rows}
    assert found["yes", "naive"] == (pytest.approx(80.5), 4)
    assert found["no", "naive"] == (pytest.approx(83.5), 8)
    assert found["yes", "aware"] == (pytest.approx(82.0), 4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--budget", "7", "--iterations_per_epoch", "5"],
            "--iterations_per_epoch 5; expected whole epochs",
        ),
        (["--detector_budget", "500", "7"], "--detector_budget is 7 "),
        (["--num_test", "0", "--num_val", "2", "--folds", "0"], "--num_test 0 and --num_val were both given"),
        (["--num_test", "0"], "fold all has no validation cases"),
        (["--seeds", "0", "0"], "--seeds names one twice"),
        (["--folds", "7"], "expected 0 to 4, or all"),
        (["--iterations_per_epoch", "0"], "--iterations_per_epoch is 0; expected 1 or more"),
        (["--patch", "0", "8", "8"], "expected 8 or more"),
        (["--ablations", "--models", "nnUNetTrainer"], "expected one of them"),
        (["--num_val", "1"], "expected --folds 0"),
        (["--whole_image", "--patch", "16", "16", "16"], "--whole_image and --patch were both given"),
        (
            ["--num_phantoms", "4", "--num_test", "2", "--num_val", "2", "--folds", "0"],
            "--num_test 2 and --num_val 2 leave none of 4 knees",
        ),
        (["--data", "nowhere"], "is no folder"),
        (["--models", "Strange"], "names the trainer Strange"),
    ],
)
def test_wrong_options_are_reported_before_anything_is_made(tmp_path, capsys, words, sentence):
    assert naive_vs_aware.main(["--folder", str(tmp_path / "new"), "--device", "cpu", *words]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_model_keeps_its_meaning_in_a_folder(tmp_path):
    def take(*words):
        options = naive_vs_aware.parse(["--folder", str(tmp_path), "--device", "cpu", "--models", *words])
        arguments = naive_vs_aware.checked(options)
        naive_vs_aware.take_folder(tmp_path, arguments, parse_models(arguments.models))

    take("nnUNetTrainer", "own=AnomalyAwareTrainer:alpha=1")
    take("nnUNetTrainer")
    take("own=AnomalyAwareTrainer:alpha=1", "AnomalyAwareTrainer")
    with pytest.raises(UserError, match="the model own was defined otherwise"):
        take("own=AnomalyAwareTrainer:alpha=5")
    with pytest.raises(UserError, match="the model own was defined otherwise"):
        take("own=nnUNetTrainer")


def test_changed_label_maps_are_refused(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    folder.mkdir()
    for number in range(8):
        (data / f"knee{number}.nii.gz").write_bytes(b"made up")

    def take(*words):
        options = naive_vs_aware.parse(["--folder", str(folder), "--device", "cpu", "--data", str(data), *words])
        arguments = naive_vs_aware.checked(options)
        naive_vs_aware.take_folder(folder, arguments, parse_models(arguments.models))

    take()
    take("--models", "nnUNetTrainer", "AnomalyAwareTrainer")
    (data / "knee3.nii.gz").write_bytes(b"made UP")
    with pytest.raises(UserError, match=r"begun with \(added, changed or gone: knee3\)"):
        take()
    (data / "knee3.nii.gz").write_bytes(b"made up")
    (data / "knee8.nii.gz").write_bytes(b"made up")
    (data / "knee0.nii.gz").unlink()
    with pytest.raises(UserError, match=r"\(added, changed or gone: knee0, knee8\)"):
        take()


def test_without_models_the_baseline_does_not_mirror_either():
    arguments = naive_vs_aware.checked(naive_vs_aware.parse(["--folder", "new", "--device", "cpu"]))
    models = parse_models(arguments.models)
    assert [(model.name, model.mirrors) for model in models] == [
        ("no_mirroring", False), ("nnUNetTrainer", True), ("AnomalyAwareTrainer", False),
    ]  # fmt: skip
    assert len(models[2].settings["mirror_axes"]) == len(models[0].settings["mirror_axes"]) == 0


def test_sigterm_is_ctrl_c_while_steps_run_and_no_longer():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), naive_vs_aware.signals_as_ctrl_c():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_foreign_state_file_is_refused(tmp_path, capsys):
    (tmp_path / naive_vs_aware.STATE).write_text("{}")
    assert naive_vs_aware.main(["--folder", str(tmp_path), "--device", "cpu"]) == 1
    assert "was not written by the comparison" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_reported(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert naive_vs_aware.main(["--folder", str(tmp_path / "file" / "new"), "--device", "cpu"]) == 1
    assert "cannot be written to" in capsys.readouterr().err


def test_what_was_not_measured_is_nan(tmp_path):
    assert np.isnan(Experiment(tmp_path, None, []).record("train-x", "s"))


def test_no_held_out_knee_is_reported_before_anything_is_trained(tmp_path):
    arguments = naive_vs_aware.checked(naive_vs_aware.parse(["--folder", str(tmp_path), "--device", "cpu"]))
    experiment = Experiment(tmp_path, arguments, [])
    (experiment.raw / "labelsTs").mkdir(parents=True)
    (experiment.raw / "dataset.json").touch()
    with pytest.raises(UserError, match="every subject has more knees than that"):
        experiment.prepare(1)


def test_folds_keep_a_subjects_visits_together(tmp_path):
    experiment = Experiment(tmp_path, None, [])
    cases = [f"90000{subject}_{visit}" for subject in range(10, 17) for visit in ("00m", "12m")]
    (experiment.raw / "labelsTr").mkdir(parents=True)
    experiment.preprocessed.mkdir(parents=True)
    for case in cases:
        (experiment.raw / "labelsTr" / f"{case}.nii.gz").touch()
    experiment.write_folds()
    folds = json.loads((experiment.preprocessed / "splits_final.json").read_text())
    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold["val"]) == cases
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == cases
        assert not {case[:7] for case in fold["train"]} & {case[:7] for case in fold["val"]}


def test_a_gpus_name_is_asked_without_taking_its_memory():
    initialized = torch.cuda.is_initialized()
    name = machine("cuda")
    assert torch.cuda.is_initialized() == initialized
    assert ("without a name" in name) != torch.cuda.is_available()


def test_invented_labels_do_not_stand_for_a_knee(evaluation):
    cases = evaluation.cases.copy()
    cases.loc[cases["case"] == "k0--s0", "status"] = "invented"
    cases.loc[cases["case"] == "k0--s1", "status"] = "neither"
    assert "k0" not in set(by_knee(cases)["case"])


#: a grid that is fine enough for simulate to see what labels stand for
STRESSED = ("--size", "24", "32", "24")


@pytest.mark.exhaustive
def test_comparison_of_phantoms_from_images_to_tables(tmp_path):
    folder = tmp_path / "work"
    words = [
        "--num_phantoms", "4", "--num_test", "2", "--num_val", "1", "--folds", "0", "--patch", "16", "16", "16",
        "--batch", "2", "--models", "pasted=nnUNetTrainer:paste_anomalies={}",
        "bound=AnomalyAwareTrainer:mask_known=true", "--stress", *STRESSED,
    ]  # fmt: skip
    done = compare(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "results.md").read_text().strip() in done.stdout
    cases = pd.read_csv(folder / "evaluation" / "tables" / "cases.csv")
    assert set(cases["model"]) == {"bound", "pasted"}
    stress = pd.read_csv(folder / "stress" / "rows.csv")
    knees = set(cases["case"].str.partition("--")[0])
    sets = {"clean", "as they are", "large", "bright", "dark"}
    for model, known in {"pasted": sets, "bound": {"as they are"}}.items():
        own = stress[stress["model"] == model]
        assert (set(own["set"]), set(own["knee"])) == (
            known,
            knees,
        )  # the mask of a model that knows it is of no lesion
    bones = stress["label"].isin(("femoral_bone", "tibial_bone", "patellar_bone"))
    assert stress[bones & stress["set"].isin(("large", "bright", "dark"))]["covered"].notna().all()
    assert stress[stress["set"] == "clean"]["covered"].isna().all()
    pd.testing.assert_index_equal(
        pd.read_csv(folder / "tables" / "stress.csv").set_index(["set", "model"]).index.droplevel(1).unique(),
        pd.Index(["clean", "as they are", "large", "bright", "dark"], name="set"),
    )
    assert cases["case"].nunique() == 2
    record = pd.read_csv(folder / "records" / "train_bound_seed0_fold0.tsv", sep="\t").iloc[0]
    assert record["max_rss"] > 100
    (machine,) = json.loads((folder / "runs.json").read_text())["machine"]
    assert f", cpu, {os.cpu_count()} cores" in machine
    assert machine in (folder / "results.md").read_text()
    cost = pd.read_csv(folder / "tables" / "cost.csv").set_index("model")
    assert list(cost.index) == ["pasted", "bound", "pre-stage, 1 + 1 iterations, margin 18.23 mm"]
    # the epochs, two of one iteration: without the start and the prediction that the command's seconds have, too
    assert cost.loc["bound", "training_seconds"] < record["s"]
    assert cost.loc["bound", "training_seconds"] == pytest.approx(2 * cost.loc["bound", "seconds_per_iteration"])
    assert "pasted mirrored in training and at prediction" in (folder / "results.md").read_text()
    assert (cost[["seconds_per_iteration", "training_seconds", "training_peak_mib"]] > 0).all(axis=None)
    assert "Detectors on held-out knees" in (folder / "evaluation" / "report.html").read_text()
    assert {file.name for file in (folder / "figures").iterdir()} == {
        "differences_dsc_percent.png", "differences_hd_raw_mm.png", "stress.png", "stress_bright.png",
    }  # fmt: skip

    other = compare(folder, *words, "--budget", "3")
    assert other.returncode == 1
    assert "--budget 2 there, 3 now" in other.stderr
    assert "Traceback" not in other.stderr
