import os
import stat
import sys

import pytest

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.workflows import runner as chain_module
from nnunetv2_anomaly.workflows.runner import Chain, Step


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A command that appends its arguments to calls.txt and fails while a file named 'broken' exists."""
    script = tmp_path / "command"
    script.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nhere = pathlib.Path({str(tmp_path)!r})\n"
        "with open(here / 'calls.txt', 'a') as f:\n    f.write(' '.join(sys.argv[1:]) + '\\n')\n"
        "print('Epoch 3')\n"
        "print('the last words')\nsys.exit(3 if (here / 'broken').exists() else 0)\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(chain_module, "nnunet_command", lambda name: str(script))
    return tmp_path


def calls(folder):
    return (folder / "calls.txt").read_text().splitlines()


def open_chain(folder, **arguments):
    return Chain(folder / "demo", {"quick": True, **arguments}, os.environ)


def test_a_finished_step_is_not_run_again(command):
    steps = [Step("first", "First", ("tool", "a"))]
    open_chain(command).run(steps)
    open_chain(command).run(steps)
    assert calls(command) == ["a"]


def test_a_failed_step_names_its_log_and_is_tried_again(command):
    steps = [Step("first", "First", ("tool", "a")), Step("second", "Second", ("tool", "b"))]
    (command / "broken").touch()
    with pytest.raises(UserError, match=r"First.*status 3.*the last words.*first\.log"):
        open_chain(command).run(steps)
    (command / "broken").unlink()
    chain = open_chain(command)
    chain.run(steps)
    assert calls(command) == ["a", "a", "b"]
    assert all(entry["finished"] for entry in chain.state["steps"].values())


def test_an_interrupted_training_goes_on_with_c(command):
    folder = command / "fold_0"
    folder.mkdir()
    step = Step("train", "Train", ("tool", "501"), training_folder=folder)
    (command / "broken").touch()
    with pytest.raises(UserError):
        open_chain(command).run([step])
    (command / "broken").unlink()
    (folder / "checkpoint_latest.pth").touch()
    open_chain(command).run([step])
    assert calls(command) == ["501", "501 --c"]


def test_other_arguments_are_refused(command):
    open_chain(command)
    with pytest.raises(UserError, match="other arguments"):
        open_chain(command, device="cuda")


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no demo"):
        open_chain(tmp_path)
    assert os.listdir(tmp_path / "demo") == ["thesis.txt"]
