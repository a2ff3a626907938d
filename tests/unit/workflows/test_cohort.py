import json
import shlex
import subprocess

import pytest
import yaml

from nnunetv2_anomaly.command_line.main import build_parser, main
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.parts import Part
from nnunetv2_anomaly.workflows.configuration import (
    environment_of,
    parsed,
    read_configuration,
    resources_of,
)
from nnunetv2_anomaly.workflows.table import steps_of

BASE = {"dataset": "Dataset501_OAIZIB", "base": ".", "trainers": ["nnUNetTrainer", "AnomalyAwareTrainer"]}


def commands(**more):
    return [one.command for one in steps_of({**BASE, **more})]


def test_without_images_the_folds_are_trained_and_their_validation_is_evaluated():
    steps = steps_of({**BASE, "folds": [0, 1]})
    trained = [one.command.split()[3:6:2] for one in steps if one.kind == "train"]
    assert trained == [
        [fold, trainer]
        for trainer in ("AnomalyPreStageTrainer", "nnUNetTrainer", "AnomalyAwareTrainer")
        for fold in ("0", "1")
    ]
    folder = "nnUNet_results/Dataset501_OAIZIB/AnomalyAwareTrainer__nnUNetPlans__3d_fullres"
    assert f"AnomalyAwareTrainer={folder}" in steps[-2].command
    made = {"nnUNet_raw/Dataset501_OAIZIB/dataset.json"}
    for one in steps:
        assert set(one.needs) | set(one.follows) <= made
        made.add(one.output)
    assert len(made) - 1 == len(steps) == len({one.name for one in steps})


def test_a_detector_is_trained_only_where_a_trainer_needs_it():
    assert not any("PreStage" in command for command in commands(trainers=["nnUNetTrainer"]))
    assert any("LaMaBMLTrainer" in command for command in commands(detector="lama_bml"))


def test_new_images_go_through_all_verbs_in_parts_and_every_command_is_one_that_can_be_typed():
    steps = steps_of(
        {
            **BASE, "images": "I", "references": "L", "anomalies": "A", "parts": 3, "anomaly_maps": True, "folds": [0],
            "postprocess": "--max_distance_mm 20", "convert": "nnUNetv2_anomaly convert oai_zib --zib Z --oai O",
            "plan_changes": "c.json", "plans": "nnUNetOwnPlans",
        }
    )  # fmt: skip
    own = [shlex.split(one.command)[1:] for one in steps if one.command.startswith("nnUNetv2_anomaly ")]
    for words in own:
        build_parser().parse_args(words)
    verbs = {words[0] for words in own}
    assert verbs == {
        "convert", "change_plans", "check_images", "postprocess", "measure", "anomaly_maps", "evaluate", "workflow",
    }  # fmt: skip
    parts = [one.command.split()[2] for one in steps if one.command.startswith("nnUNetv2_predict")]
    assert parts == [f"checked_images/part_{part}" for part in range(3)] * 2
    assert sum(command.endswith("--max_distance_mm 20 -np 2") for command in [one.command for one in steps]) == 3


def test_validation_cases_are_those_of_the_folds_cleaned_as_new_images_would_be():
    written = commands(folds=[0, 1], postprocess="--max_distance_mm 20 --overwrite")
    (evaluated,) = (command for command in written if "-pred" in command)
    assert evaluated.endswith("--folds 0 1 --max_distance_mm 20 -np 2")
    build_parser().parse_args(shlex.split(evaluated)[1:])


def test_preprocessing_is_done_again_when_the_plans_have_changed():
    steps = {one.name: one for one in steps_of({**BASE, "plan_changes": "c.json", "plans": "nnUNetOwnPlans"})}
    assert steps["change_plans"].output in steps["preprocess_501"].needs
    assert steps["preprocess_501"].output in steps["train_nnUNetTrainer_501_fold0"].follows


def test_plans_that_are_there_need_no_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "nnUNet_preprocessed" / "Dataset501_OAIZIB" / "nnUNetResEncUNetLPlans.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    steps = steps_of({**BASE, "plans": file.stem})
    assert "plan" not in {one.kind for one in steps}
    assert steps[0].needs == (str(file.relative_to(tmp_path)),)


def test_a_detector_that_needs_bones_is_given_a_segmentation():
    settings = {**BASE, "images": "I", "anomaly_maps": True, "detector": "lama_bml", "trainers": ["nnUNetTrainer"]}
    (maps,) = (one for one in steps_of(settings) if one.name == "anomaly_maps")
    assert maps.command.endswith("--bones predictions/nnUNetTrainer")
    assert "done/predict_nnUNetTrainer" in maps.needs
    assert any(file.startswith("nnUNet_results/") and "LaMaBMLTrainer" in file for file in maps.needs)


def test_parts_share_the_cases_as_nnunet_divides_them():
    assert [Part(3, part).of("abcdefg") for part in range(3)] == [list("adg"), list("be"), list("cf")]
    assert Part(3, 1).named("a.json") == "a.part_1_of_3.json"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"dataset": "OAIZIB"}, "expected a name such as Dataset501_OAIZIB"),
        ({"fold": [0]}, "there is no setting fold; expected folds"),
        ({"parts": "3"}, "parts is '3'; expected a whole number"),
        ({"parts": 0}, "expected 1 or more"),
        ({"anomaly_maps": 1}, "expected true or false"),
        ({"device": "gpu"}, "expected cuda, cpu or mps"),
        ({"resources": {"trian": {}}}, "resources has trian"),
        ({"workflow": "x"}, "expected cohort or published_chain"),
        ({"detector": "x"}, "expected one of inpainting"),
        ({"plans": "x"}, "nothing makes the plans x"),
        ({"trainers": []}, "names none"),
        ({"trainers": {"a": "nnUNetTrainer", "b": "nnUNetTrainer"}}, "names nnUNetTrainer twice"),
        ({"trainers": ["AnomalyAwreTrainer"]}, "no trainer AnomalyAwreTrainer; expected AnomalyAwareTrainer"),
        ({"trainers": ["PastedAnomalyTrainer"]}, "names a detector's trainer, PastedAnomalyTrainer"),
        ({"trainers": ["UNETSTransferTrainer"]}, "begins with weights of another data set"),
        ({"trainers": ["IMaskRCNNTrainer"]}, "takes slices, and configuration is 3d_fullres"),
        ({"anomaly_maps": True}, "there are no images to make them of"),
        ({"images": "I", "anomalies": "A", "references": "L"}, "of one fold, and folds are 0, 1, 2, 3, 4"),
    ],
)
def test_mistakes_in_the_settings_are_reported(more, expected):
    with pytest.raises(UserError, match=expected):
        steps_of({**BASE, **more})


def test_init_writes_what_it_was_given_and_keeps_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "W"
    words = ["workflow", "init", "-o", str(folder), "-d", "Dataset501_OAIZIB", "--base", "knees", "-f", "0", "1"]
    words += ["-tr", "CANSTrainer", "-i", "new images", "--parts", "4", "--convert", 'x "a b"', "-device", "cpu"]
    assert main(words) == 0
    config = read_configuration(folder)
    settings = parsed(config)
    assert settings.folds == ("0", "1")
    assert settings.convert == 'x "a b"'
    assert resources_of(config, "train")["runtime"] == 4320
    assert resources_of(config, "report")["mem_mb"] == 8000
    environment = environment_of(config, str(folder))
    assert environment["nnUNet_raw"] == str(tmp_path / "knees" / "nnUNet_raw")  # of where the command was typed
    assert settings.images == str(tmp_path / "new images")
    for profile in ("local", "slurm"):
        assert yaml.safe_load((folder / "profiles" / profile / "config.yaml").read_text())["executor"] == profile
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words[:-2], "-device", "cuda"]) == 1
    assert "says device: cpu, not cuda; edit it" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert main(["workflow", "init", "-o", "none"]) == 1
    assert "there is no data set; give its name with -d" in capsys.readouterr().err
    assert main(["workflow", "init", "-o", "wrong", "-d", "OAIZIB", "--base", "knees"]) == 1
    assert "expected a name such as Dataset501_OAIZIB" in capsys.readouterr().err
    assert not (tmp_path / "wrong" / "config.yaml").exists()
    words = ["workflow", "init", "-o", "X", "-d", "Dataset501_OAIZIB", "--base", "knees", "-i", "nowhere", "-f", "0"]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["workflow", "run", "X"]) == 1
    assert f"images is {tmp_path / 'nowhere'}, which is no folder" in capsys.readouterr().err
    (tmp_path / "nowhere").mkdir()
    assert main(["workflow", "run", "X", "--dry_run"]) == 1
    assert "Dataset501_OAIZIB/dataset.json; convert Dataset501_OAIZIB first, or name" in capsys.readouterr().err
    assert main(["workflow", "run", str(tmp_path)]) == 1
    assert "has no config.yaml; make one with" in capsys.readouterr().err


def test_job_arrays_do_the_commands_that_are_left(tmp_path):
    folder, bin_folder = tmp_path / "W", tmp_path / "bin"
    assert main(["workflow", "init", "-o", str(folder), "--demo", "-device", "cpu"]) == 0
    (folder / "array" / "99_report.txt").write_text("# \nof earlier settings\n")
    assert main(["workflow", "init", "-o", str(folder), "--demo", "-device", "cpu"]) == 0
    bin_folder.mkdir()
    (bin_folder / "sbatch").write_text('#!/bin/bash\necho "$@" >> calls.txt\necho 7\n')
    (bin_folder / "sbatch").chmod(0o755)
    environment = {"PATH": f"{bin_folder}:/usr/bin:/bin"}
    subprocess.run(["bash", "array.sh"], cwd=folder, env=environment, check=True, capture_output=True)
    calls = (folder / "calls.txt").read_text().splitlines()
    assert not (folder / "array" / "99_report.txt").exists()
    lists = sorted(file.name for file in (folder / "array").iterdir())
    assert [call.split()[-1] for call in calls] == [f"array/{name}" for name in lists]
    assert "afterany" not in calls[0]
    assert all("--dependency=afterany:7" in call for call in calls[1:])
    number = lists.index("04_preprocess.txt")
    assert "--array=2-2 " in calls[number]
    (folder / "array" / "test.txt").write_text("# \n[ -e done/x ] || { echo $nnUNet_raw > ran; touch done/x; }\n")
    for _ in range(2):
        words = ["bash", "array.sh", "array/test.txt"]
        subprocess.run(words, cwd="/", env={}, check=False)
        subprocess.run(words, cwd=folder, env={"SLURM_ARRAY_TASK_ID": "2", "PATH": "/usr/bin:/bin"}, check=True)
        assert (folder / "ran").read_text() == f"{folder}/nnUNet_raw\n"
        (folder / "ran").write_text(f"{folder}/nnUNet_raw\n")


@pytest.mark.parametrize(("status", "goes_on"), [(0, True), (3, True), (1, False)])
def test_a_job_of_an_array_goes_on_without_cases_that_fail_and_ends_where_its_files_are_missing(
    tmp_path, status, goes_on
):
    folder = tmp_path / "W"
    settings = ["workflow", "init", "-o", str(folder), "-d", "Dataset501_OAIZIB", "--base", str(tmp_path)]
    assert main([*settings, "--convert", f"echo said; (exit {status})", "-tr", "nnUNetTrainer"]) == 0
    for of, ends_well in (("00_convert.txt", goes_on), ("03_train.txt", False)):
        words = ["bash", "array.sh", f"array/{of}"]
        environment = {"SLURM_ARRAY_TASK_ID": "2", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert (done.returncode == 0) == ends_well
    assert "preprocess_501" in done.stderr
    assert (folder / "logs" / "convert.log").read_text() == "said\n"
    assert (folder / "failed" / "convert").exists() == (status == 3)


def test_dry_run_prints_the_commands_that_are_left(tmp_path, capsys):
    folder = tmp_path / "W"
    assert main(["workflow", "init", "-o", str(folder), "--demo", "-device", "cpu"]) == 0
    described = folder / "nnUNet_raw" / "Dataset500_SimulatedKnees" / "dataset.json"
    described.parent.mkdir(parents=True)
    described.write_text("{}")
    capsys.readouterr()
    assert main(["workflow", "run", str(folder), "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [one.command for one in steps_of(read_configuration(folder))][1:]
    assert lines[-len(expected) :] == expected
    assert lines[0] == f"cd {folder}"
    assert json.loads((folder / "plan_changes.json").read_text())["configurations"]["3d_demo"]["batch_size"] == 2
