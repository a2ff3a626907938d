import importlib
import os
import types

import pytest
import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_anomaly.environment import FOLDER_VARIABLES, TRAINER_VARIABLE, create_nnunet_folders, shim_folder
from nnunetv2_anomaly.inspection import installation as doctor
from nnunetv2_anomaly.inspection.findings import Finding, report
from nnunetv2_anomaly.inspection.installation import diagnose
from nnunetv2_anomaly.registry import TRAINERS

NAME = next(iter(TRAINERS))


@pytest.fixture
def healthy(tmp_path, monkeypatch):
    """The variables of a shell in which everything is set."""
    for variable, folder in create_nnunet_folders(tmp_path).items():
        monkeypatch.setenv(variable, str(folder))
    monkeypatch.setenv(TRAINER_VARIABLE, str(shim_folder()))
    for variable in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA", "nnUNet_compile"):
        monkeypatch.delenv(variable, raising=False)


def states(findings, topic):
    return {finding.state for finding in findings if finding.topic == topic}


def test_nothing_is_wrong_when_everything_is_set(healthy):
    findings = diagnose()
    assert [finding for finding in findings if finding.state == "fault"] == []
    trainers = [finding.text for finding in findings if finding.topic == "trainers"]
    assert [text.split()[0] for text in trainers] == list(TRAINERS)
    assert all(".py, found through" in text for text in trainers)
    assert {finding.topic for finding in findings} >= set(doctor.CHECKS)


def test_unset_paths_are_faults_with_the_remedy(healthy, monkeypatch):
    for variable in FOLDER_VARIABLES:
        monkeypatch.delenv(variable)
    findings = list(doctor._paths())
    assert [(f.state, f.remedy) for f in findings] == [("fault", 'eval "$(nnUNetv2_anomaly env --base DIR)"')] * 3


def test_a_path_that_is_missing_or_a_file_is_a_fault(tmp_path):
    (tmp_path / "file").touch()
    assert doctor._folder("nnUNet_raw", str(tmp_path / "none")).state == "fault"
    assert doctor._folder("nnUNet_raw", str(tmp_path / "file")).state == "fault"


@pytest.mark.parametrize(("variable", "state"), [("nnUNet_raw", "warning"), ("nnUNet_results", "fault")])
def test_only_the_raw_folder_may_be_read_only(tmp_path, monkeypatch, variable, state):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    finding = doctor._folder(variable, str(tmp_path))
    assert finding.state == state
    assert "not writable (Permission denied)" in finding.text


def test_a_trainer_that_is_not_found_is_a_fault_with_the_remedy(healthy, monkeypatch):
    def not_found(name):
        raise RuntimeError(f"Could not find requested nnunet trainer {name}")

    module = importlib.import_module("nnunetv2.utilities.find_objects")
    monkeypatch.setattr(module, "recursive_find_trainer_class_by_name", not_found)
    finding = doctor._trainer(NAME)
    assert (finding.state, finding.remedy) == ("fault", 'eval "$(nnUNetv2_anomaly env)"')


def test_another_class_of_the_same_name_is_a_fault(healthy, monkeypatch):
    module = importlib.import_module("nnunetv2.utilities.find_objects")
    monkeypatch.setattr(module, "recursive_find_trainer_class_by_name", lambda name: types.SimpleNamespace)
    assert doctor._trainer(NAME).text.startswith(f"nnU-Net finds another {NAME} in")


def test_a_folder_of_trainers_that_is_gone_is_a_warning(healthy, monkeypatch):
    monkeypatch.setenv(TRAINER_VARIABLE, os.pathsep.join(["/no/such/folder", str(shim_folder())]))
    assert next(iter(doctor._trainers())).text == f"{TRAINER_VARIABLE} names /no/such/folder, which is not a folder"


def test_a_broken_import_is_a_fault_not_a_traceback(monkeypatch):
    def broken(name):
        raise OSError("libcudart.so: cannot open\nshared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    findings = diagnose()
    text = report(findings)
    assert "torch" in text
    assert "libcudart.so: cannot open shared object file" in text
    assert states(findings, "trainers") == {"fault"}


def test_a_version_out_of_range_is_a_fault(monkeypatch):
    from packaging.specifiers import SpecifierSet

    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "2.7.0")
    finding = doctor._version("nnunetv2", "nnunetv2", [("nnunetv2-anomaly", SpecifierSet(">=2.8.1,<3"))])
    assert finding.state == "fault"
    assert "nnunetv2 2.7.0 is installed, but nnunetv2-anomaly needs nnunetv2" in finding.text
    assert finding.remedy.startswith("pip install 'nnunetv2")


def test_a_bare_folder_that_hides_nnunet_is_a_fault(monkeypatch):
    namespace = types.SimpleNamespace(__file__=None, __path__=["/site-packages/nnunetv2"])
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: namespace)
    monkeypatch.setattr(doctor, "_editable_source", lambda name: "/check out")
    finding = doctor._version("nnunetv2", "nnunetv2", [])
    assert finding.state == "fault"
    assert finding.remedy == "pip install --no-deps --config-settings editable_mode=compat -e '/check out'"


@pytest.mark.parametrize(
    ("variable", "value", "state"),
    [
        ("nnUNet_def_n_proc", "many", "fault"),
        ("nnUNet_def_n_proc", "0", "fault"),
        ("nnUNet_n_proc_DA", "0", "warning"),
        ("nnUNet_n_proc_DA", "-1", "fault"),
        ("nnUNet_n_proc_DA", "4", "ok"),
        ("nnUNet_n_proc_DA", "5", "warning"),
    ],
)
def test_worker_counts(monkeypatch, variable, value, state):
    monkeypatch.setenv(variable, value)
    least = 1 if variable == "nnUNet_def_n_proc" else 0
    assert doctor._worker_count(variable, "work", 2, default=2, least=least).state == state


def test_no_workers_are_for_training_alone(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    finding = doctor._worker_count("nnUNet_n_proc_DA", "data augmentation", 2, default=2, least=0)
    assert finding.remedy == "unset nnUNet_n_proc_DA, and write nnUNet_n_proc_DA=0 before nnUNetv2_train"
    with pytest.raises(RuntimeError, match="set_num_threads expects a positive integer"):
        torch.set_num_threads(get_allowed_n_proc_DA())  # as nnU-Net's planner does


@pytest.mark.parametrize(("free", "state"), [(0.5e9, "warning"), (8e9, "ok")])
def test_little_shared_memory_is_a_warning(monkeypatch, free, state):
    monkeypatch.setattr(doctor.os.path, "isdir", lambda folder: True)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: types.SimpleNamespace(total=9e9, free=free))
    assert [finding.state for finding in doctor._shared_memory()] == [state]


def test_memory_is_one_finding():
    assert len(list(doctor._memory())) == 1


@pytest.mark.parametrize(("wish", "state"), [(None, "fault"), ("1", "fault"), ("0", "ok")])
def test_compilation_without_triton_is_a_fault_unless_it_is_off(monkeypatch, wish, state):
    monkeypatch.delenv("nnUNet_compile", raising=False)
    if wish is not None:
        monkeypatch.setenv("nnUNet_compile", wish)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor._compilation().state == state


def test_no_gpu_is_only_a_warning(monkeypatch):
    torch = importlib.import_module("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert states(list(doctor._gpu()), "GPU") == {"warning"}


def test_the_report_shows_each_remedy_on_a_line_below_its_finding():
    findings = [Finding("paths", "fault", "nothing is set", "set it"), Finding("GPU", "ok", "one")]
    assert report(findings).splitlines() == [
        "fault    paths  nothing is set",
        "                -> set it",
        "ok       GPU    one",
        "1 faults, 0 warnings: training and prediction could not run",
    ]
