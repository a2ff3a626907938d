import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.workflows import demo, runner
from nnunetv2_anomaly.workflows.runner import Runner, Step, StepError, locked


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A command that appends its arguments to calls.txt, makes a file of its first argument's name, and fails while
    a file named 'broken' exists."""
    script = tmp_path / "command"
    script.write_text(
        f"#!{sys.executable}\nimport os, pathlib, sys, time\nhere = pathlib.Path({str(tmp_path)!r})\n"
        "with open(here / 'calls.txt', 'a') as f:\n    f.write(' '.join(sys.argv[1:]) + '\\n')\n"
        "print('Epoch 3')\ntime.sleep(float(os.environ.get('SECONDS', 0)))\n"
        "print('the last words')\nsys.exit(3) if (here / 'broken').exists() else (here / sys.argv[1]).touch()\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(runner, "nnunet_command", lambda name: str(script))
    return tmp_path


def calls(folder):
    return (folder / "calls.txt").read_text().splitlines()


def step(folder, name, **more):
    return Step(name, (folder / name,), ("tool", name), **more)


def run(folder, *steps, jobs=1, **options):
    Runner(os.environ, folder / "run", **options).run(steps, jobs=jobs)


def test_a_finished_step_is_not_run_again(command):
    for _ in range(2):
        run(command, step(command, "a"))
    assert calls(command) == ["a"]
    (command / "a").unlink()
    run(command, step(command, "a"))
    assert calls(command) == ["a", "a"]


@pytest.mark.parametrize(
    ("name", "threads"),
    [("nnUNetv2_plan_and_preprocess", "1"), ("nnUNetv2_plan_experiment", "1"), ("nnUNetv2_train", "0")],
)
def test_planning_is_not_given_the_no_workers_of_an_exact_training(command, name, threads):
    (command / "command").write_text(
        f'#!/bin/sh\nprintf %s "$nnUNet_n_proc_DA" > {command / "threads.txt"}\n: > "$2"\n'
    )
    one = Step("one", (command / "made",), (name, "x", str(command / "made")))
    Runner({**os.environ, "nnUNet_n_proc_DA": "0"}, command / "run").run([one])
    assert (command / "threads.txt").read_text() == threads


def test_a_failed_step_names_its_log_and_is_run_again(command):
    steps = [step(command, "a", title="First"), step(command, "b", title="Second")]
    (command / "broken").touch()
    with pytest.raises(StepError, match=r"First.*status 3 \(the last words\).*run/logs/a\.log") as raised:
        run(command, *steps)
    assert raised.value.status == 3
    (command / "broken").unlink()
    run(command, *steps)
    assert calls(command) == ["a", "a", "b"]
    assert (command / "run" / "logs" / "a.log").read_text().splitlines() == ["Epoch 3", "the last words"] * 2


def test_a_step_that_leaves_files_out_has_failed(command):
    with pytest.raises(StepError, match="ended well, but not all of its files exist"):
        run(command, Step("a", (command / "other",), ("tool", "a")))
    run(command, Step("always", (), ("tool", "a")))


@pytest.mark.parametrize("weights", [(), ("-pretrained_weights", "file")])
def test_an_interrupted_training_continues_from_its_checkpoint(command, weights):
    folder = command / "fold_0"
    folder.mkdir()
    training = Step(
        "train", (folder / "checkpoint_final.pth",), ("nnUNetv2_train", "fold_0/checkpoint_final.pth", *weights)
    )
    (command / "broken").touch()
    with pytest.raises(UserError):
        run(command, training)
    seconds = Runner(os.environ, command / "run").record(training)["seconds"]
    (command / "broken").unlink()
    (folder / "checkpoint_latest.pth").touch()
    run(command, training)
    assert calls(command)[1] == "fold_0/checkpoint_final.pth --c"
    record = Runner(os.environ, command / "run").record(training)
    assert record["seconds"] > seconds > 0
    assert record["title"] == "train"


def test_a_step_waits_for_those_it_needs_and_runs_beside_others(command):
    first = step(command, "a", variables={"SECONDS": "0.6"})
    last = step(command, "b", after=(first,))
    run(command, first, last, step(command, "c"), jobs=2)
    assert calls(command)[-1] == "b"


def test_when_a_step_fails_those_beside_it_are_finished_and_no_other_begins(command):
    lasting = step(command, "a", variables={"SECONDS": "0.6"})
    failing = Step("failing", (), ("tool", "no/such/folder"))
    with pytest.raises(StepError, match="'failing' ended with status 1"):
        run(command, failing, lasting, step(command, "c"), jobs=2)
    assert (command / "a").exists()
    assert not (command / "c").exists()


def test_functions_and_commands_have_records(command):
    function = Step("function", (command / "f",), function=(command / "f").touch, title="A function")
    steps = [function, step(command, "a", variables={"SECONDS": "0.5"})]
    run(command, *steps, measure=lambda pid: {"pid": pid}, facts={"machine": "this one"})
    records = [Runner(os.environ, command / "run").record(step) for step in steps]
    assert [record["command"] for record in records] == ["", "tool a"]
    assert records[0]["title"] == "A function"
    assert records[1]["pid"] > 1
    assert records[1]["seconds"] >= 0.5
    assert records[1]["machine"] == "this one"


def test_an_interrupt_ends_the_step_that_runs(command):
    def interrupt(pid):
        if calls_begun(command):
            raise KeyboardInterrupt
        return {}

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(command, step(command, "a", variables={"SECONDS": "60"}), measure=interrupt)
    assert time.monotonic() - began < 30
    assert not (command / "a").exists()


def calls_begun(folder):
    return (folder / "calls.txt").exists()


def test_without_a_folder_nothing_is_written_and_the_output_goes_on(command, capfd):
    Runner(os.environ).run([step(command, "a")])
    assert sorted(file.name for file in command.iterdir()) == ["a", "calls.txt", "command"]
    output = capfd.readouterr().out
    assert output.index("[1/1] a: tool a") < output.index("the last words")


def test_a_folder_holds_one_run_at_a_time(tmp_path):
    advice = "give another folder"
    with locked(tmp_path, advice), pytest.raises(UserError, match="another run"), locked(tmp_path, advice):
        pytest.fail("let in")
    with locked(tmp_path, advice) as lock:
        outliving = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
    with pytest.raises(UserError, match=r"or a step that outlived one.*or give another"), locked(tmp_path, advice):
        pytest.fail("let in")
    outliving.send_signal(signal.SIGKILL)
    outliving.wait()
    with locked(tmp_path, advice):
        pass


def test_a_demo_with_other_arguments_is_refused(tmp_path):
    demo.take_folder(tmp_path / "demo", {"quick": True})
    demo.take_folder(tmp_path / "demo", {"quick": True})
    with pytest.raises(UserError, match="other arguments"):
        demo.take_folder(tmp_path / "demo", {"quick": True, "device": "cuda"})


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no demo"):
        demo.take_folder(tmp_path / "demo", {"quick": True})
    assert os.listdir(tmp_path / "demo") == ["thesis.txt"]
