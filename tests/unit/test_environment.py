import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_anomaly import environment
from nnunetv2_anomaly.environment import (
    FOLDER_VARIABLES,
    TRAINER_VARIABLE,
    create_nnunet_folders,
    environment_lines,
    nnunet_command,
    nnunet_environment,
    nnunet_folders,
    shim_folder,
    with_shim,
)
from nnunetv2_anomaly.errors import UserError

SHIM = str(shim_folder())


def joined(*folders):
    return os.pathsep.join(folders)


@pytest.mark.parametrize(
    ("current", "expected"),
    [
        (None, SHIM),
        ("", SHIM),
        ("/a", joined("/a", SHIM)),
        (joined("/b", "/a"), joined("/b", "/a", SHIM)),
        (SHIM, SHIM),
        (joined(SHIM, "/a"), joined(SHIM, "/a")),
        (joined("/a", SHIM + os.sep, "", "/a"), joined("/a", SHIM + os.sep)),
    ],
)
def test_the_shim_is_named_once_and_the_order_is_kept(current, expected):
    assert with_shim(current) == expected
    assert with_shim(expected) == expected


def test_the_shims_folder_holds_the_shim():
    assert (shim_folder() / "nnunetv2_anomaly_trainers.py").is_file()


def test_lines_set_the_variables_in_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv(TRAINER_VARIABLE, "/some one's/trainers")
    base = tmp_path / 'a folder\'s $HOME; "name"'
    shown = "; ".join(f'printf "%s\\n" "${name}"' for name in (*FOLDER_VARIABLES, TRAINER_VARIABLE))
    script = "\n".join([*environment_lines(base), shown])
    lines = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == [*(str(base / name) for name in FOLDER_VARIABLES), joined("/some one's/trainers", SHIM)]


def test_without_a_base_only_the_trainers_variable_is_set():
    assert [line.partition("=")[0] for line in environment_lines()] == [f"export {TRAINER_VARIABLE}"]


def test_folders_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert nnunet_folders(Path("here"))["nnUNet_raw"] == Path.cwd() / "here" / "nnUNet_raw"


def test_folders_are_created_and_may_exist(tmp_path):
    for _ in range(2):
        folders = create_nnunet_folders(tmp_path / "base")
        assert all(folder.is_dir() for folder in folders.values())


def test_a_file_in_the_place_of_the_base_is_a_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"nnUNet_raw cannot be written to"):
        create_nnunet_folders(tmp_path / "file")


def test_child_processes_get_the_shim_the_folders_and_the_extras(tmp_path, monkeypatch):
    monkeypatch.delenv(TRAINER_VARIABLE, raising=False)
    variables = nnunet_environment(tmp_path, nnUNet_compile=0)
    assert variables[TRAINER_VARIABLE] == SHIM
    assert variables["nnUNet_results"] == str(tmp_path / "nnUNet_results")
    assert variables["nnUNet_compile"] == "0"
    assert variables["PATH"] == os.environ["PATH"]
    assert TRAINER_VARIABLE not in os.environ


def test_child_processes_inherit_the_folders_without_a_base(monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "/raw")
    assert nnunet_environment()["nnUNet_raw"] == "/raw"


def test_a_command_beside_this_python_is_preferred(tmp_path, monkeypatch):
    for folder in ("ours", "others"):
        command = tmp_path / folder / "nnUNetv2_train"
        command.parent.mkdir()
        command.write_text("#!/bin/sh\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "others"))
    monkeypatch.setattr(environment.sys, "executable", str(tmp_path / "ours" / "python"))
    assert nnunet_command("nnUNetv2_train") == str(tmp_path / "ours" / "nnUNetv2_train")
    monkeypatch.setattr(environment.sys, "executable", str(tmp_path / "elsewhere" / "python"))
    assert nnunet_command("nnUNetv2_train") == str(tmp_path / "others" / "nnUNetv2_train")


def test_a_missing_command_is_one_sentence():
    with pytest.raises(UserError, match=r"nnUNetv2_no_such_command is neither in .* nor in PATH"):
        nnunet_command("nnUNetv2_no_such_command")


def test_the_module_needs_no_torch():
    code = "import sys, nnunetv2_anomaly.environment; print({'torch', 'numpy', 'nnunetv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
