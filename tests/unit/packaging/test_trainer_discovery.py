"""nnU-Net finds our trainers as users let it: by class name, in a process of its own."""

import importlib.metadata
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT
from quick import run_with_torch

from nnunetv2_anomaly import registry
from nnunetv2_anomaly.environment import TRAINER_VARIABLE, shim_folder

TRAINERS = tuple(registry.TRAINERS)
PACKAGES = Path(sys.modules["nnunetv2_anomaly"].__file__).resolve().parents[1]
SHIM_IN_WHEEL = "nnunetv2/training/nnUNetTrainer/anomaly"

FIND_ANOTHERS = """
import warnings
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(recursive_find_trainer_class_by_name("nnUNetTrainerNoMirroring").__name__)
    print(recursive_find_trainer_class_by_name("SomebodysTrainer").__name__)
    assert not [w for w in caught if "nnunetv2_anomaly" in str(w.message)], "only our own names concern us"
    try:
        recursive_find_trainer_class_by_name("AnomalyAwareTrainer")
    except RuntimeError as error:
        print("not found")
    print([str(w.message) for w in caught if "nnunetv2_anomaly" in str(w.message)])
"""


def python(code, folder, **environment):
    """Run code as a script of its own, in an empty folder, away from the checkout."""
    script = folder / "script.py"
    script.write_text(code)
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )


def find_all(file: Path) -> None:
    """By name, twice; pickled into a file as for another process."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

    import nnunetv2_anomaly.trainers

    found = {name: find(name) for name in TRAINERS}
    for name, trainer in found.items():
        assert trainer is getattr(nnunetv2_anomaly.trainers, name), trainer
        assert find(name) is trainer, "a second search gives another class"
        assert trainer.__module__.startswith("nnunetv2_anomaly.trainers"), trainer.__module__
        assert pickle.loads(pickle.dumps(trainer)) is trainer
    file.write_bytes(pickle.dumps(found))


def find_after_loading(file: Path) -> None:
    """As a worker process of nnU-Net's, which is sent what another process has found."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

    assert not [name for name in sys.modules if name.startswith("nnunetv2_anomaly.trainers")]
    found = pickle.loads(file.read_bytes())
    assert list(found) == list(TRAINERS)
    for name, trainer in found.items():
        assert trainer.__name__ == name
        assert find(name) is trainer


def assert_all_are_found(folder: Path, variable: str) -> None:
    environment = {**os.environ, TRAINER_VARIABLE: variable}
    for function in (find_all, find_after_loading):
        run_with_torch(function, folder / "found.pkl", environment=environment, seconds=300)
    assert (folder / "found.pkl").stat().st_size > 0


def installed_as_wheel():
    """Why the installed package is not one that a wheel brought, or "" if it is."""
    try:
        distribution = importlib.metadata.distribution("nnunetv2-anomaly")
    except importlib.metadata.PackageNotFoundError:
        return "nnunetv2-anomaly is not installed"
    if json.loads(distribution.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
        return "nnunetv2-anomaly is an editable install, which does not put the shim inside nnunetv2"
    if ROOT == PACKAGES:
        return "the checkout is what is imported, not the installed package"
    return ""


def test_trainers_are_found_through_the_variable(tmp_path):
    assert_all_are_found(tmp_path, str(shim_folder()))


@pytest.mark.skipif(bool(installed_as_wheel()), reason=installed_as_wheel() or "installed as a wheel")
def test_a_wheel_needs_no_variable(tmp_path):
    assert_all_are_found(tmp_path, "")


@pytest.mark.exhaustive
@pytest.mark.skipif(bool(installed_as_wheel()), reason=installed_as_wheel() or "installed as a wheel")
def test_a_wheels_trainers_are_found_before_nnunet_imports_what_may_be_broken(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('torchvision::nms does not exist')\n")
    search = "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find"
    code = f"{search}\nprint(find('IMaskRCNNTrainer').__name__, flush=True)\nimport torchvision"
    done = python(code, tmp_path, **{TRAINER_VARIABLE: ""})
    assert done.stdout.splitlines() == ["IMaskRCNNTrainer"], done.stderr
    assert "torchvision::nms does not exist" in done.stderr


@pytest.mark.exhaustive
def test_a_broken_installation_of_ours_warns_and_hurts_nobody_else(tmp_path):
    broken = tmp_path / "broken" / "nnunetv2_anomaly"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('half an installation')\n")
    shutil.copy(registry.__file__, broken)
    # Named so that nnU-Net's search comes to our shim first.
    others = tmp_path / "others"
    others.mkdir()
    (others / "somebodys_trainer.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n\n"
        "class SomebodysTrainer(nnUNetTrainer):\n    pass\n"
    )
    folders = os.pathsep.join([str(shim_folder()), str(others)])
    done = python(FIND_ANOTHERS, tmp_path, **{TRAINER_VARIABLE: folders, "PYTHONPATH": str(broken.parent)})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {"nnUNetTrainerNoMirroring", "SomebodysTrainer", "not found"} <= set(lines), done.stdout
    assert "AnomalyAwareTrainer cannot be loaded" in lines[-1]
    assert "half an installation" in lines[-1]


@pytest.mark.parametrize("probe", ["pass", "from nnunetv2_anomaly_trainers import *", "inspect.getmembers(shim)"])
def test_the_shim_is_light(tmp_path, probe):
    done = python(
        f"import inspect, sys\nsys.path.insert(0, {str(shim_folder())!r})\nimport nnunetv2_anomaly_trainers as shim\n"
        f"assert not hasattr(shim, 'nnUNetTrainerNoMirroring')\n{probe}\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'nnunetv2', 'nnunetv2_anomaly'}))",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_shims_folder_shadows_no_other_module():
    # While nnU-Net searches, this folder stands at the front of sys.path.
    assert sorted(file.name for file in shim_folder().glob("*.py")) == ["__init__.py", "nnunetv2_anomaly_trainers.py"]


def test_no_trainers_name_holds_a_double_underscore():
    # nnU-Net splits TRAINER__PLANS__CONFIGURATION there.
    assert not [name for name in TRAINERS if "__" in name]


@pytest.mark.exhaustive
def test_the_wheel_holds_the_shim_inside_nnunets_trainer_folder(build):
    with zipfile.ZipFile(build("build_wheel")) as wheel:
        names = wheel.namelist()
        entry_points = next(wheel.read(name).decode() for name in names if name.endswith("entry_points.txt"))
        record = next(wheel.read(name).decode() for name in names if name.endswith("RECORD"))
    inside = sorted(name for name in names if name.startswith("nnunetv2/"))
    assert inside == [f"{SHIM_IN_WHEEL}/__init__.py", f"{SHIM_IN_WHEEL}/nnunetv2_anomaly_trainers.py"]
    assert all(name in record for name in inside), "pip uninstall removes what RECORD lists"
    assert "nnunetv2_anomaly/trainers/__init__.py" in names
    assert "nnUNetv2_anomaly = nnunetv2_anomaly.command_line.main:main" in entry_points
    assert not [name for name in names if name.startswith(("tests/", "trainers/", "dataset_conversion/"))]


@pytest.mark.exhaustive
def test_an_editable_install_does_not_hide_an_editable_nnunet(build):
    # setuptools would declare nnunetv2 a namespace for the sake of the shim's place in the wheel.
    with zipfile.ZipFile(build("build_editable")) as wheel:
        finder = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("_finder.py"))
    assert "'nnunetv2'" not in finder
    assert "nnunetv2.training" not in finder
    assert "'nnunetv2_anomaly.trainers'" in finder
