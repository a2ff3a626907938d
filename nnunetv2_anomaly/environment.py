"""The environment variables and commands through which nnU-Net and this package find each other.

Imports nothing heavy: every command passes through this module before it knows whether it needs torch.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from nnunetv2_anomaly.errors import UserError, check_name
from nnunetv2_anomaly.files import write_failures_as_user_errors

#: nnU-Net's variable for folders outside of nnunetv2 that hold trainers, separated by os.pathsep
TRAINER_VARIABLE = "nnUNet_extTrainer"
#: nnU-Net's three folders; each variable is also the name of the folder below a common base
FOLDER_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def shim_folder() -> Path:
    """The folder in nnUNet_extTrainer through which nnU-Net finds our trainers; absolute."""
    return Path(__file__).resolve().parent / "trainer_shim"


def with_shim(current: str | None) -> str:
    """The value of nnUNet_extTrainer with our shim in it.

    nnU-Net searches the folders in order and takes the first class of a name, so other folders keep their places and
    ours comes last. The variable is needed only in an editable install of nnU-Net or of this package.

    Args: current: the present value, folders separated by os.pathsep, or None if the variable is not set.
    Returns: the same folders in order, without repetitions and empty entries, our shim exactly once.
    """
    folders: dict[str, str] = {}
    for folder in filter(str.strip, [*(current or "").split(os.pathsep), str(shim_folder())]):
        folders.setdefault(os.path.normcase(os.path.realpath(folder)), folder)
    return os.pathsep.join(folders.values())


def environment_folder(variable: str) -> Path:
    """One of nnU-Net's folders. Raises: UserError if its environment variable is not set, or holds no text."""
    folder = os.environ.get(variable)
    if not folder:
        advice = 'set nnU-Net\'s folders, for example with eval "$(nnUNetv2_anomaly env --base DIR)"'
        raise UserError(f"the environment variable {variable} is not set; {advice}")
    check_name(folder)
    return Path(os.path.abspath(folder))


def nnunet_folders(base: Path) -> dict[str, Path]:
    """Variable -> absolute path of nnU-Net's three folders below one, which need not exist; ``~`` is allowed."""
    return {variable: Path(os.path.abspath(base.expanduser())) / variable for variable in FOLDER_VARIABLES}


def create_nnunet_folders(base: Path) -> dict[str, Path]:
    """Create ``nnunet_folders`` where they do not exist yet. Raises: UserError if one of them cannot be created."""
    folders = nnunet_folders(base)
    for folder in folders.values():
        with write_failures_as_user_errors(folder, "give --base a folder in which you may write"):
            folder.mkdir(parents=True, exist_ok=True)
    return folders


def _variables(base: Path | None) -> dict[str, str]:
    paths = {} if base is None else {variable: str(folder) for variable, folder in nnunet_folders(base).items()}
    return {**paths, TRAINER_VARIABLE: with_shim(os.environ.get(TRAINER_VARIABLE))}


def environment_lines(base: Path | None = None) -> list[str]:
    """Lines that set nnU-Net's variables when a POSIX shell evaluates them: ``eval "$(nnUNetv2_anomaly env)"``.

    Args: base: the folder that holds nnU-Net's three folders, or None to leave their variables alone.
    Returns: one ``export NAME=VALUE`` a line, each value quoted for the shell.
    """
    return [f"export {variable}={shlex.quote(value)}" for variable, value in _variables(base).items()]


def nnunet_environment(base: Path | None = None, **extra: object) -> dict[str, str]:
    """The environment for a process that runs one of nnU-Net's commands.

    Args:
        base: the folder that holds nnU-Net's three folders, or None to inherit their variables.
        extra: further variables, for example ``nnUNet_compile=0``; each value is turned into text.
    Returns: a copy of this process's environment with nnUNet_extTrainer naming our shim, the folders and the extras.
    """
    return {**os.environ, **_variables(base), **{name: str(value) for name, value in extra.items()}}


def let_nnunet_find_trainers() -> None:
    """Add our shim to nnUNet_extTrainer of this process, for library functions that let nnU-Net load a model."""
    os.environ[TRAINER_VARIABLE] = with_shim(os.environ.get(TRAINER_VARIABLE))


def nnunet_command(name: str) -> str:
    """Path of a command of nnU-Net, the one that belongs to the running Python.

    A command of that name in PATH may belong to another environment without this package, so PATH comes last.

    Returns: absolute path. Raises: UserError if there is no such command.
    """
    beside_python = Path(sys.executable).parent  # not resolved: a virtual environment's python is a link out of it
    found = shutil.which(name, path=str(beside_python)) or shutil.which(name)
    if found is None:
        raise UserError(f"the command {name} is neither in {beside_python} nor in PATH; run pip install nnunetv2")
    return os.path.abspath(found)
