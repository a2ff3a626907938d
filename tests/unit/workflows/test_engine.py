import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.workflows import engine
from nnunetv2_anomaly.workflows.configuration import PREFIX
from nnunetv2_anomaly.workflows.engine import run_steps
from nnunetv2_anomaly.workflows.report import commands_table, read_record
from nnunetv2_anomaly.workflows.steps import Dataset, Step, levels, train_step


def step(name, command, *needs, **more):
    return Step(name, command, "train", needs=tuple(of.output for of in needs), **more)


def run(folder, *steps, jobs=1, **variables):
    run_steps(folder, steps, {**os.environ, **variables}, jobs)


def test_steps_run_once_in_their_order_with_log_and_record(tmp_path):
    first = step("first", "sleep 0.3 && echo one | tee -a order.txt && touch a", makes="a", title="The first")
    last = step("last", "echo two >> order.txt", first)
    for _ in range(2):
        run(tmp_path, last, first, step("beside", "true"), jobs=2)
        assert (tmp_path / "order.txt").read_text() == "one\ntwo\n"
    assert (tmp_path / "logs" / "first.log").read_text() == "one\n"
    assert read_record(tmp_path, "first")["s"] > 0.2
    assert read_record(tmp_path, "other") is None
    rows = [[cell.text for cell in row] for row in commands_table(tmp_path, [first]).rows]
    assert rows[0][:2] == ["The first", first.command]
    (tmp_path / "a").unlink()
    run(tmp_path, last, first, step("beside", "true"))
    assert (tmp_path / "order.txt").read_text() == "one\ntwo\none\ntwo\n"


def test_a_failed_step_is_named_with_its_log_and_the_rest_is_done(tmp_path):
    bad = step("bad", "echo 'knee 7 is empty' && test -e fixed", title="Measuring")
    after, other = step("after", "true", bad), step("other", "true")
    with pytest.raises(UserError, match=r"'Measuring' failed \(knee 7 is empty\).*logs/bad\.log.*run the same"):
        run(tmp_path, bad, after, other)
    assert (tmp_path / "done" / "other").exists()
    assert not (tmp_path / "done" / "after").exists()
    (tmp_path / "fixed").touch()
    run(tmp_path, bad, after, other)
    assert (tmp_path / "done" / "after").exists()


def test_a_step_that_leaves_cases_out_is_named_until_it_is_repeated_and_the_rest_goes_on(tmp_path):
    said = "nnUNetv2_anomaly: 1 of 2 cases could not be measured:\n  knee_7: it is empty"
    some = step("some", f"echo 'reading {{' && echo '{said}' && (test -e fixed || exit 3)", title="Measuring")
    after = step("after", "true", some)
    named = r"Measuring: 1 of 2 cases could not be measured:\s+knee_7: it is empty\s.*log"
    with pytest.raises(UserError, match=named):
        run(tmp_path, some, after)
    assert (tmp_path / "done" / "after").exists()
    before = (tmp_path / "done" / "after").read_text()
    (tmp_path / "fixed").touch()
    (tmp_path / "done" / "some").unlink()
    run(tmp_path, some, after)
    assert not (tmp_path / "failed" / "some").exists()
    assert (tmp_path / "done" / "after").read_text() != before  # it follows what was repeated


def test_a_step_that_a_signal_ends_is_not_done(tmp_path):
    (tmp_path / "done").mkdir()
    (tmp_path / ".snakemake").mkdir()
    script = f"set -euo pipefail; {PREFIX} set +e; ( touch begun; sleep 30 ); finish long done/long"
    process = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it had started
    assert not (tmp_path / "done" / "long").exists()


@pytest.mark.parametrize("there", [False, True])
def test_an_interrupted_training_continues_from_its_checkpoint_and_not_from_its_weights(tmp_path, there):
    data = Dataset("Dataset501_Knees", tmp_path, tmp_path, tmp_path)
    training = train_step(data, ("T", "P", "C"), "0", "cpu", weights="some where/w.pth")
    folder = tmp_path / data.name / "T__P__C" / "fold_0"
    if there:
        folder.mkdir(parents=True)
        (folder / "checkpoint_latest.pth").touch()
    shown = subprocess.run(["bash", "-c", f"echo {training.command}"], capture_output=True, text=True, check=True)
    start = "--c" if there else "-pretrained_weights some where/w.pth"
    assert shown.stdout.strip() == f"nnUNetv2_train 501 C 0 -tr T -p P -device cpu {start}"
    assert train_step(data, ("T", "P", "C"), "0", "cpu").command.endswith("-device cpu --c")


@pytest.mark.exhaustive
def test_a_step_that_outlives_its_run_keeps_the_next_one_out(tmp_path):
    script = (
        "import os, sys; from nnunetv2_anomaly.workflows.engine import run_steps; "
        "from nnunetv2_anomaly.workflows.steps import Step; from pathlib import Path; "
        "run_steps(Path(sys.argv[1]), [Step('long', 'touch begun && sleep 60', 'train')], os.environ)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], start_new_session=True)
    end = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    with pytest.raises(UserError, match="another run is at work"):
        run(tmp_path, step("other", "true"))
    children = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout.split()
    for number in {process.pid, *map(int, children)}:
        os.kill(number, signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match="a step that outlived one"):  # sleep
        run(tmp_path, step("other", "true"))
    holder = subprocess.run(
        ["bash", "-c", f"for p in /proc/[0-9]*; do readlink $p/fd/9 2>/dev/null | grep -q {tmp_path} && "
         "basename $p; done; true"], capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert holder
    for number in holder:
        os.kill(int(number), signal.SIGKILL)
    while any(Path("/proc", number, "fd", "9").exists() for number in holder):  # the kernel closes files a little later
        time.sleep(0.1)
    run(tmp_path, step("other", "true"))


@pytest.mark.exhaustive
def test_steps_of_a_gpu_get_one_each_and_others_none(tmp_path):
    command = "true -device cuda && echo ${CUDA_VISIBLE_DEVICES:-none} > %s && sleep 1.5"
    steps = [step(name, command % name) for name in ("a", "b")]
    alone = step("c", "echo ${CUDA_VISIBLE_DEVICES:-none} > c")
    run(tmp_path, *steps, alone, jobs=3, NNUNETV2_ANOMALY_GPUS="0,3", CUDA_VISIBLE_DEVICES="")
    assert sorted((tmp_path / name).read_text().strip() for name in ("a", "b")) == ["0", "3"]
    assert (tmp_path / "c").read_text().strip() == "none"


@pytest.mark.exhaustive
def test_ctrl_c_ends_the_steps(tmp_path, monkeypatch):
    class Interrupted(subprocess.Popen):
        def wait(self, *arguments, **keywords):
            if not self.__dict__.setdefault("asked", False):
                self.asked = True
                while not (tmp_path / "begun").exists():
                    time.sleep(0.1)
                raise KeyboardInterrupt
            return super().wait(*arguments, **keywords)

    monkeypatch.setattr(engine.subprocess, "Popen", Interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, step("long", "touch begun && sleep 100"))
    assert time.monotonic() - began < 60
    monkeypatch.undo()
    run(tmp_path, step("other", "true"))  # no lock is left


def test_levels_hold_steps_of_one_kind_that_can_run_side_by_side():
    a, b = step("a", "x"), step("b", "x")
    c = Step("c", "x", "predict", needs=(a.output,))
    d = Step("d", "x", "predict", follows=(c.output, b.output))
    assert [[one.name for one in level] for level in levels([a, b, c, d])] == [["a", "b"], ["c"], ["d"]]
