import os
import subprocess

import pytest

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.command_line import main as command_line
from nnunetv2_anomaly.environment import FOLDER_VARIABLES, TRAINER_VARIABLE, create_nnunet_folders, shim_folder
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.inspection import installation as doctor

main = command_line.main


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"nnunetv2-anomaly {__version__}"


@pytest.mark.parametrize("argv", [[], ["no-such-verb"], ["env", "--no-such-option"]])
def test_wrong_arguments_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage: nnUNetv2_anomaly" in capsys.readouterr().err


def test_a_misspelt_verb_is_told_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evalute", "-o", "x"])
    assert stop.value.code == 2
    assert "there is no verb evalute; the nearest is evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("verb", command_line.VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"usage: nnUNetv2_anomaly {verb}" in capsys.readouterr().out


def test_a_users_mistake_is_one_sentence(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["env", "--base", str(tmp_path / "file")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nnUNet_raw cannot be written to (" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["-djfile", "-i", "-o"])
def test_an_argument_that_is_no_text_is_told(tmp_path, capsys, verb):
    assert main(["postprocess", "-i", str(tmp_path), verb, os.fsdecode(b"kn\xffe")]) == 1
    assert "the name kn\\udcffe holds bytes that are no text" in capsys.readouterr().err


def test_a_name_that_the_file_system_refuses_is_told(tmp_path, capsys):
    assert main(["doctor", "--model", "d" * 256]) == 1
    expected = "expected a name of at most 255 bytes, its ending included, so shorten it"
    assert capsys.readouterr().err == f"nnUNetv2_anomaly: {'d' * 256}: File name too long; {expected}\n"
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    assert main(["doctor", "--model", str(circle)]) == 1
    assert f"{circle} does not exist" in capsys.readouterr().err


def test_a_users_error_is_told_and_not_raised(monkeypatch, capsys):
    def fail():
        raise UserError("the sentence")

    # The verb's module has imported the function by name.
    monkeypatch.setattr("nnunetv2_anomaly.command_line.doctor.diagnose", fail)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "nnUNetv2_anomaly: the sentence\n"


def test_the_output_of_env_evaluates_in_a_shell(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(TRAINER_VARIABLE, "/other trainers")
    base = tmp_path / "with space"
    assert main(["env", "--base", str(base)]) == 0
    lines = capsys.readouterr().out
    names = (*FOLDER_VARIABLES, TRAINER_VARIABLE)
    show = " ".join(f'"${name}"' for name in names)
    shell = ["sh", "-c", f'eval "$LINES_TO_EVALUATE"; printf "%s\\n" {show}']
    done = subprocess.run(
        shell, env={**os.environ, "LINES_TO_EVALUATE": lines}, capture_output=True, text=True, check=True
    )
    expected = [*(str(base / name) for name in FOLDER_VARIABLES), f"/other trainers{os.pathsep}{shim_folder()}"]
    assert done.stdout.splitlines() == expected
    assert all((base / name).is_dir() for name in FOLDER_VARIABLES)


def test_doctor_exits_with_1_without_paths_and_0_with_them(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(TRAINER_VARIABLE, str(shim_folder()))
    # This machine's GPU, if any, and its compiler are no matter of this test.
    monkeypatch.setenv("nnUNet_compile", "0")
    for variable in FOLDER_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert main(["doctor"]) == 1
    assert f"-> {doctor.SET_PATHS}" in capsys.readouterr().out
    for variable, folder in create_nnunet_folders(tmp_path).items():
        monkeypatch.setenv(variable, str(folder))
    assert main(["doctor"]) == 0
    assert "0 faults" in capsys.readouterr().out
