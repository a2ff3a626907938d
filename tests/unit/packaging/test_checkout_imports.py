"""A process started in a checkout imports the checkout's own trainers, each of them once, however it is installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nnunetv2
import pytest
from places import ROOT

from nnunetv2_anomaly.environment import TRAINER_VARIABLE

#: Every trainer that nnU-Net finds is the one that is imported, and no module of ours is there under two names
PROBE = """
import collections, importlib, pathlib, pkgutil, sys
import nnunetv2_anomaly.dataset_conversion
import nnunetv2_anomaly.trainers as trainers
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

for name in trainers.__all__:
    assert recursive_find_trainer_class_by_name(name) is getattr(trainers, name), name
folders = [pathlib.Path(p.__file__).parent for p in (trainers, nnunetv2_anomaly.dataset_conversion)]
for package in (trainers, nnunetv2_anomaly.dataset_conversion):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
times = collections.Counter(file for file in files if file and pathlib.Path(file).parent in folders)
assert len(times) > 10 and set(times.values()) == {1}, times
print("trainers in", *folders)
"""
#: The ways to start Python in a checkout, and whether it then imports the folder it is started in
WAYS = {
    "python -c": True,
    "python -m pytest": True,
    "pytest": False,
    "python -m nnunetv2_anomaly.command_line.main": True,
}


def test_a_checkout_adds_nothing_but_the_two_folders_to_the_package():
    code = """
import importlib.util, pkgutil, nnunetv2_anomaly
for name in ("trainers", "dataset_conversion"):
    print(importlib.util.find_spec("nnunetv2_anomaly." + name).origin)
for name in ("tests", "setup", "benchmarks", "nnunetv2_anomaly"):
    assert importlib.util.find_spec("nnunetv2_anomaly." + name) is None, name
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(ROOT / name / "__init__.py") for name in ("trainers", "dataset_conversion")]


def environment_with(wheel: Path | None, folder: Path) -> Path:
    """A virtual environment with the packages of the running one, an nnU-Net of its own, and perhaps our wheel.

    Returns: its interpreter.
    """
    venv.create(folder, with_pip=wheel is not None, symlinks=True)
    python = folder / "bin" / "python"
    packages = next(folder.glob("lib/python*/site-packages"))
    theirs = Path(sysconfig.get_path("purelib"))
    kept = {entry.name for entry in packages.iterdir()} | {"nnunetv2"}
    for name in {entry.name for entry in theirs.iterdir()} - kept:
        if not name.startswith(("nnunetv2_anomaly", "__editable__")):  # ours, however it is installed
            (packages / name).symlink_to(theirs / name)
    shutil.copytree(
        Path(nnunetv2.__file__).parent, packages / "nnunetv2", ignore=shutil.ignore_patterns("anomaly", "__pycache__")
    )
    if wheel is not None:
        command = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--force-reinstall", wheel]
        subprocess.run(command, check=True, timeout=300, env={**os.environ, "PYTHONPATH": ""})
    return python


@pytest.fixture(scope="module", params=["normal", "editable", "none"])
def installation(request, source, build, tmp_path_factory):
    """Kind of the installation of a copy of the checkout, and its interpreter."""
    hook = {"normal": "build_wheel", "editable": "build_editable"}.get(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, environment_with(build(hook) if hook else None, folder / "venv")


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", WAYS)
def test_trainers_are_imported_once_from_the_checkout(installation, way, source, tmp_path):
    kind, python = installation
    test = source / "tests" / "test_probe.py"
    test.parent.mkdir(exist_ok=True)
    test.write_text("def test_probe():\n    code = " + repr(PROBE) + "\n    exec(code, {})\n")
    script = tmp_path / "pytest.py.script"  # as the command pytest: the started script's folder is on the path
    script.write_text("import sys, pytest\nsys.exit(pytest.main(sys.argv[1:]))\n")
    options = ["-q", "-s", "-p", "no:cacheprovider", "tests/test_probe.py"]
    arguments = {
        "python -c": ["-c", PROBE],
        "python -m pytest": ["-m", "pytest", *options],
        "pytest": [script, *options],
        "python -m nnunetv2_anomaly.command_line.main": ["-m", "nnunetv2_anomaly.command_line.main", "doctor"],
    }[way]
    settings = {name: value for name, value in os.environ.items() if name not in (TRAINER_VARIABLE, "PYTHONPATH")}
    if kind != "normal":  # a wheel has a module inside nnU-Net
        settings[TRAINER_VARIABLE] = str(source / "nnunetv2_anomaly" / "trainer_shim")
    if kind == "none":
        settings["PYTHONPATH"] = str(source)
    done = subprocess.run(
        [python, *arguments], cwd=source, env=settings, capture_output=True, text=True, check=False, timeout=300
    )
    if "main" in way:
        # the verb compares what nnU-Net finds with what is imported
        found = [line for line in done.stdout.splitlines() if line.split()[1:2] == ["trainers"]]
        assert len(found) >= 16, done.stdout + done.stderr
        assert all(line.startswith("ok ") for line in found), done.stdout
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        found = [line for line in done.stdout.splitlines() if line.startswith("trainers in")]
        assert len(found) == 1, done.stdout
    from_checkout = kind != "normal" or WAYS[way]
    place = source if from_checkout else python.parents[1]
    assert all(str(place) in line for line in found), found
