import json
import shlex

import pytest
import torch

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.workflows import runner
from nnunetv2_anomaly.workflows.published_chain import PublishedChain

NAMES = {501: "Dataset501_OAIZIB", 502: "Dataset502_OAIZIBUQ", 503: "Dataset503_OAIAKOA"}
SIX = ["UNET", "UNETPlus", "UNETS", "CAN", "CANPlus", "CANS"]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's folders with three raw data sets of two cases."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in NAMES.values():
        (tmp_path / "nnUNet_raw" / name).mkdir()
        (tmp_path / "nnUNet_raw" / name / "dataset.json").write_text(json.dumps({"numTraining": 2}))
    return tmp_path


def make(networks=("UNET", "UNETS"), plans="nnUNetWholeImagePlans", **options):
    return PublishedChain(501, 502, 503, list(networks), plans, options.get("configuration", "3d_fullres"), "cuda")


def write_plans(folders, dataset, plans, identifier=None, **configurations):
    folder = folders / "nnUNet_preprocessed" / NAMES[dataset]
    folder.mkdir(exist_ok=True)
    content = {"3d_fullres": {"data_identifier": identifier or f"{plans}_3d_fullres"}, **configurations}
    (folder / f"{plans}.json").write_text(json.dumps({"configurations": content}))
    return folder


def do(step, folders):
    """Leave what the command would leave."""
    words = list(step.command)
    if words[0] == "nnUNetv2_plan_and_preprocess":
        write_plans(folders, int(words[2]), "nnUNetPlans")
    elif words[0] == "nnUNetv2_anomaly":
        write_plans(folders, 501, "nnUNetWholeImagePlans")
    elif words[0] == "nnUNetv2_move_plans_between_datasets":
        write_plans(folders, int(words[4][7:10]), words[-1])
    elif words[0] == "nnUNetv2_preprocess":
        folder = folders / "nnUNet_preprocessed" / NAMES[int(words[2])]
        for place, ending in ((folder / f"{words[4]}_3d_fullres", ".pkl"), (folder / "gt_segmentations", ".nii.gz")):
            place.mkdir(exist_ok=True)
            for case in range(2):
                (place / f"{case}{ending}").touch()
    else:
        for path in step.makes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def test_all_six_networks_in_the_published_order(folders):
    steps = make(SIX).steps()
    trained = [step.command[1:6] for step in steps if step.command[0] == "nnUNetv2_train"]
    assert len(trained) == 6 + 6 * (6 + 1 + 5)
    for network in SIX:
        own = [words for words in trained if words[4] in (f"{network}Trainer", f"{network}TransferTrainer")]
        assert [(words[0], words[2]) for words in own] == [
            *[("501", fold) for fold in ("0", "1", "2", "3", "4", "all")],
            ("502", "all"),
            *[("503", fold) for fold in ("0", "1", "2", "3", "4")],
        ]
    for place, step in enumerate(steps):
        assert all(steps.index(before) < place for before in step.after)
    weights = {step.command[5]: step.command[-1] for step in steps if "-pretrained_weights" in step.command}
    assert weights["UNETSTransferTrainer"].endswith(
        "UNETSTransferTrainer__nnUNetWholeImagePlansOf501__3d_fullres/fold_all/checkpoint_final.pth"
    )


def test_jobs_that_are_offered_together_do_not_depend_on_each_other_and_reach_the_end(folders):
    done, rounds = set(), 0
    while ready := make().ready_steps():
        rounds += 1
        assert rounds < 20
        for step in ready:
            assert not any(before in ready for before in step.after)
            assert step.command not in done
        for step in ready:
            do(step, folders)
            done.add(step.command)
    assert all(step.is_done() for step in make().steps())
    assert len(done) == len(make().steps())


def test_preprocessing_that_was_interrupted_is_not_done_and_nothing_starts_on_it(folders):
    folder = write_plans(folders, 501, "nnUNetPlans")
    write_plans(folders, 501, "nnUNetWholeImagePlans")
    data = folder / "nnUNetWholeImagePlans_3d_fullres"
    data.mkdir()
    for state in ("one case", "all cases, no references"):
        (data / f"{state}.pkl").touch()
        offered = [step.command for step in make().ready_steps()]
        assert (
            "nnUNetv2_preprocess",
            "-d",
            "501",
            "-plans_name",
            "nnUNetWholeImagePlans",
            "-c",
            "3d_fullres",
        ) in offered
        assert not any(command[0] == "nnUNetv2_train" for command in offered)
    (folder / "gt_segmentations").mkdir()
    for case in range(2):
        (folder / "gt_segmentations" / f"{case}.nii.gz").touch()
    assert any(step.command[0] == "nnUNetv2_train" for step in make().ready_steps())


def test_interrupted_training_is_continued_without_weights(folders):
    step = next(step for step in make().steps() if "-pretrained_weights" in step.command)
    assert step.to_run() == step.command
    step.makes[-1].parent.mkdir(parents=True)
    (step.makes[-1].parent / "checkpoint_latest.pth").touch()
    assert "-pretrained_weights" not in step.to_run()
    assert step.to_run()[-1] == "--c"
    step.makes[-1].touch()  # trained, and the validation was interrupted
    assert not step.is_done()
    assert step.to_run()[-1] == "--c"


def test_configuration_that_inherits_its_data(folders):
    write_plans(folders, 501, "nnUNetPlans", **{"3d_own": {"inherits_from": "3d_fullres"}})
    chain = make(plans="nnUNetPlans", configuration="3d_own")
    step = next(step for step in chain.steps() if step.command[0] == "nnUNetv2_preprocess")
    assert step.makes[0].parent.name == "nnUNetPlans_3d_fullres"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--uq", "501"], "expected three different ones"),
        (["--uq", "777"], "data set 777 is missing"),
        (["-p", "nnUNetOtherPlans"], "nnUNetOtherPlans.json does not exist"),
    ],
)
def test_mistakes_are_reported(folders, capsys, words, expected):
    assert main(["published_chain", "--dry_run", *words]) == 1
    assert expected in capsys.readouterr().err


def test_unknown_configuration_and_broken_files(folders):
    write_plans(folders, 501, "nnUNetPlans")
    with pytest.raises(UserError, match="has no configuration 3d_other; expected one of 3d_fullres"):
        make(plans="nnUNetPlans", configuration="3d_other").steps()
    (folders / "nnUNet_raw" / NAMES[501] / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        make().steps()


def test_dry_run_prints_what_is_done_as_a_comment(folders, capsys):
    write_plans(folders, 501, "nnUNetPlans")
    assert main(["published_chain", "--dry_run", "--networks", "UNET", "UNET"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# done: nnUNetv2_plan_and_preprocess -d 501")
    assert len(lines) == len(make(["UNET"]).steps())
    assert all(shlex.split(line) for line in lines)


def test_run_goes_through_what_is_left_and_stops_at_a_failure(folders, monkeypatch, capsys):
    ran = []

    class Finished:
        def __init__(self, command, **options):
            assert options["stdout"] is None  # nnU-Net prints to the terminal
            words = ("nnUNetv2_" + command[0].rsplit("nnUNetv2_", 1)[1], *command[1:])
            step = next(step for step in make(["CAN"]).steps() if step.to_run() == words)
            ran.append(words)
            self.returncode = 3 if len(ran) == 13 else 0
            if not self.returncode:
                do(step, folders)

        def poll(self):
            return self.returncode

    monkeypatch.setattr(runner, "nnunet_command", lambda name: name)
    monkeypatch.setattr(runner, "sleep", lambda seconds: None)
    monkeypatch.setattr(runner.subprocess, "Popen", Finished)
    monkeypatch.setattr("nnunetv2_anomaly.device.check_device", lambda name: None)  # as on a machine with a GPU
    assert main(["published_chain", "--networks", "CAN"]) == 3
    assert "ended with status 3" in capsys.readouterr().err
    assert main(["published_chain", "--networks", "CAN"]) == 0
    assert len(ran) == len(make(["CAN"]).steps()) + 1
    assert ran[12] == ran[13]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told_before_anything_is_run(folders, capsys):
    assert main(["published_chain"]) == 1
    told = "-device cuda was asked for (the default), but torch sees no CUDA GPU; give -device cpu or mps"
    assert capsys.readouterr().err == f"nnUNetv2_anomaly: {told}\n"
    assert main(["published_chain", "--jobs"]) == 0  # commands for another machine
    assert "nnUNetv2_plan_and_preprocess" in capsys.readouterr().out
