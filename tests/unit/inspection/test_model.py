"""Models as nnU-Net exports them, and files that only look like one; what is hostile would leave a marker if it ran."""

import builtins
import importlib
import io
import json
import os
import pickle
import shutil
import socket
import stat
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.inspection.model import inspect_model
from nnunetv2_anomaly.training.safe_loading import load_safely

# What is installed already is reported; other tests may have left models in the results folder of all.
pytestmark = pytest.mark.usefixtures("results_folder")

AWARE = "AnomalyAwareTrainer__nnUNetPlans__3d_small"
DATASET = "Dataset801_TinyKnee"
FOLD_0 = f"{DATASET}/{AWARE}/fold_0/checkpoint_final.pth"
PLANS = f"{DATASET}/{AWARE}/plans.json"
#: takes no room in the file and any amount of it in memory
LARGE = torch.zeros(1).expand(10**12)
QUALITY = {"mse_erased": 0.02, "mse_constant": 0.05, "mse_blurred": 0.03}


@pytest.fixture(scope="module")
def results(build_trainer, trained_results, tmp_path_factory):
    """A results folder with a pre-stage, the segmentation behind it, and nnU-Net's own trainer on two folds."""
    folder = tmp_path_factory.mktemp("inspected") / "nnUNet_results"
    shutil.copytree(trained_results, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(folder))
        build_trainer("AnomalyAwareTrainer", anomaly={"num_epochs": 1, "num_iterations_per_epoch": 1}).run_training()
        for fold in (0, 1):
            trainer = build_trainer(nnUNetTrainer, fold=fold)
            trainer.on_train_start()
            trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    for fold in folder.glob("*/*/fold_*"):
        (fold / "checkpoint_best.pth").unlink(missing_ok=True)
        (fold / "progress.png").touch()  # this and a validation's summary is what an export asks for
        (fold / "validation").mkdir(exist_ok=True)
        (fold / "validation" / "summary.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def export(results, tmp_path_factory):
    """Function that exports a model of the results folder with nnU-Net's own function."""

    def export(trainer, folds=(0,)):
        path = tmp_path_factory.mktemp("exported") / "model.zip"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("nnUNet_results", str(results))
            export_pretrained_model(DATASET, str(path), ("3d_small",), trainer, folds=folds)
        return path

    return export


@pytest.fixture(scope="module")
def aware_zip(export):
    return export("AnomalyAwareTrainer")


@pytest.fixture
def model_folder(results, tmp_path):
    """A copy of the anomaly-aware model's folder that a test may change."""
    folder = tmp_path / DATASET / AWARE
    shutil.copytree(results / DATASET / AWARE, folder)
    return folder


def rewritten(source, target, changes=None, added=None):
    """A copy of a zip file: ``changes`` replaces members by name (None drops one), ``added`` appends (info, bytes)."""
    changes = changes or {}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            content = changes.get(info.filename, old.read(info))
            if content is not None:
                new.writestr(info, content)
        for info, content in added or []:
            new.writestr(info, content)
    return target


def texts(findings, state):
    return [finding.text for finding in findings if finding.state == state]


def faults(path):
    return " | ".join(texts(inspect_model(path), "fault"))


def snapshot(*folders):
    """Every file below the folders with its size and time."""
    paths = [path for folder in folders for path in Path(folder).rglob("*") if "__pycache__" not in path.parts]
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


# --------------------------------------------------------------------------------------------------- models as made


def by_topic(findings, topic):
    return [finding.text for finding in findings if finding.topic == topic]


def test_an_exported_model_has_no_fault_and_says_what_it_is(aware_zip):
    findings = inspect_model(aware_zip)
    assert texts(findings, "fault") == []
    assert by_topic(findings, "model") == [f"{DATASET}: trainer AnomalyAwareTrainer, configuration 3d_small, folds 0"]
    (checkpoint,) = by_topic(findings, "checkpoint")
    assert checkpoint.startswith("fold_0/checkpoint_final.pth: ")
    assert checkpoint.endswith("runs no code when loaded")
    (weights,) = by_topic(findings, "weights")
    assert "trained by AnomalyAwareTrainer on 3d_small, fold 0, epoch 1, mirrors no axis" in weights
    plans, dataset = by_topic(findings, "plans")
    assert "PlainConvUNet, patch [16, 16, 16], spacing [1.0, 1.0, 1.0] mm, ZScoreNormalization" in plans
    assert '"detector_features": 4' in plans
    assert "channels MR; labels background, femoral_bone" in dataset
    assert by_topic(findings, "trainer")[0].startswith("AnomalyAwareTrainer in ")
    assert by_topic(findings, "detector")[0].startswith("fold_0/checkpoint_final.pth: inpainting detector, ")
    assert by_topic(findings, "agreement") == ["checkpoints, plans.json and the folder's name say the same"]


def test_what_a_model_names_of_its_computer_and_its_cases_is_reported(aware_zip, results, tmp_path):
    summary = {
        "metric_per_case": [
            {"reference_file": f"/home/ann/labels/{case}.nii.gz", "prediction_file": f"C:\\out\\{case}.nii.gz"}
            for case in ("knee_2", "knee_1")
        ]
    }
    name = FOLD_0.replace("checkpoint_final.pth", "validation/summary.json")
    path = rewritten(aware_zip, tmp_path / "told.zip", {name: json.dumps(summary)})
    told = {finding.text.split(" ")[0]: finding for finding in inspect_model(path) if finding.topic == "disclosure"}
    assert told["fold_0/validation/summary.json"].text == (
        "fold_0/validation/summary.json names 4 paths (/home/ann/labels/knee_2.nii.gz, ...) "
        "and 2 cases (knee_1.nii.gz, knee_2.nii.gz)"
    )
    debug = told["fold_0/debug.json"].text
    assert f" and the computer {socket.gethostname()}" in debug
    assert str(results) in debug
    assert {place: finding.state for place, finding in told.items()} == {
        "fold_0/debug.json": "warning",
        "fold_0/validation/summary.json": "warning",
        "fold_0/checkpoint_final.pth": "ok",
    }
    assert told["fold_0/checkpoint_final.pth"].text.endswith(" names 4 cases (case_1, case_2, case_3, case_4)")
    # As the page on sharing models says.
    removed = rewritten(path, tmp_path / "clean.zip", {name: None, name.replace("validation/summary", "debug"): None})
    assert {finding.state for finding in inspect_model(removed) if finding.topic == "disclosure"} == {"ok"}
    assert texts(inspect_model(removed), "fault") == []


def test_nnunets_own_model_of_two_folds_has_no_fault(export):
    findings = inspect_model(export("nnUNetTrainer", folds=(0, 1)))
    assert texts(findings, "fault") == []
    assert {finding.topic for finding in findings if finding.state == "warning"} <= {"disclosure"}
    assert by_topic(findings, "model")[0].endswith("folds 0, 1")
    assert all("mirrors axes [0, 1, 2]" in text for text in by_topic(findings, "weights"))
    assert by_topic(findings, "detector") == []


def test_model_folders_data_set_folders_and_checkpoints_are_inspected_alike(results):
    for path in (results / DATASET / AWARE, results / DATASET, results / FOLD_0):
        findings = inspect_model(path)
        assert texts(findings, "fault") == [], path
        assert by_topic(findings, "weights"), path


def test_the_verb_prints_the_report_and_its_status_says_whether_there_is_a_fault(aware_zip, tmp_path, capsys):
    assert main(["doctor", "--model", str(aware_zip)]) == 0
    assert "0 faults, " in capsys.readouterr().out
    broken = rewritten(aware_zip, tmp_path / "model.zip", {FOLD_0: None})
    assert main(["doctor", "--model", str(broken)]) == 1
    captured = capsys.readouterr()
    assert "without a checkpoint" in captured.out
    assert captured.err == ""


def test_nothing_is_written(aware_zip, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = (aware_zip.parent, results, tmp_path)
    before = snapshot(*folders)
    inspect_model(aware_zip)
    inspect_model(results / DATASET / AWARE)
    inspect_model(results / FOLD_0)
    assert snapshot(*folders) == before


# ------------------------------------------------------------------------------------------------ the detector inside


def change_checkpoint(folder, change, fold=0):
    path = folder / f"fold_{fold}" / "checkpoint_final.pth"
    checkpoint = load_safely(path)
    change(checkpoint)
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("changes", "state", "told"),
    [
        ({"quality": QUALITY}, "ok", "inpainting detector, fitted on 4 cases; MSE inside the erased region"),
        ({"quality": {**QUALITY, "mse_erased": 0.04}}, "warning", "no better than those, so its error image may"),
        ({"quality": {**QUALITY, "mse_erased": 0.06}}, "warning", "no better than those, so its error image may"),
        ({"quality": QUALITY, "comparable": False}, "ok", "a part of it is random or a stand-in"),
        ({"quality": QUALITY, "finished": False}, "warning", "its pre-stage was not finished"),
        ({"quality": {}}, "ok", "no quality recorded"),
        ({"quality": {"mse_erased": "x"}}, "fault", "describes its detector in a way that is not ours (KeyError)"),
        ({"contract": 3}, "fault", "describes its detector in a way that is not ours (TypeError)"),
    ],
)
def test_the_quality_of_the_detector_is_reported(model_folder, changes, state, told):
    change_checkpoint(model_folder, lambda checkpoint: checkpoint["anomaly_detector"].update(changes))
    (finding,) = [finding for finding in inspect_model(model_folder) if finding.topic == "detector"]
    assert finding.state == state
    assert told in finding.text


def test_a_prestage_reports_its_cases_and_the_quality_of_its_detector(export):
    findings = inspect_model(export("AnomalyPreStageTrainer"))
    assert texts(findings, "fault") == []
    assert "inpainting detector, fitted on 4 cases; MSE inside" in by_topic(findings, "detector")[0]


def test_an_aware_model_without_its_detector_is_a_fault(model_folder):
    change_checkpoint(model_folder, lambda checkpoint: checkpoint.pop("anomaly_detector"))
    assert "holds no detector, although AnomalyAwareTrainer needs one" in faults(model_folder)


# --------------------------------------------------------------------------------------------------------- bad input


def zip_of(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path, good: None, "does not exist"),
        (lambda path, good: path.touch(), "is no zip file, or not a whole one"),
        (lambda path, good: path.write_text("a model"), "is no zip file, or not a whole one"),
        (lambda path, good: path.write_bytes(good[: len(good) // 2]), "is no zip file, or not a whole one"),
        (lambda path, good: zip_of(path, readme_txt="a model"), "holds no plans.json, and so no model"),
        (lambda path, good: path.mkdir(), "holds no plans.json, and so no model"),
    ],
    ids=["missing", "empty", "text", "truncated", "foreign zip", "empty folder"],
)
def test_bad_input_is_one_sentence(make, told, aware_zip, tmp_path, capsys):
    path = tmp_path / "model.zip"
    make(path, aware_zip.read_bytes())
    assert main(["doctor", "--model", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.count("\n") == 1


def test_a_cut_or_changed_checkpoint_is_a_fault(results, tmp_path):
    good = (results / FOLD_0).read_bytes()
    path = tmp_path / "checkpoint_final.pth"
    for position in (0, 5, len(good) // 2, len(good) - 10):
        path.write_bytes(good[:position])
        assert "is damaged, or holds what nnU-Net does not store" in faults(path)
    position = good.index(b"network_weights")
    path.write_bytes(good[:position] + b"XXXXXXXXXXXXXXX" + good[position + 15 :])
    assert faults(path)


def test_a_damaged_member_is_a_fault(aware_zip, tmp_path):
    with zipfile.ZipFile(aware_zip) as archive:
        info = archive.getinfo(FOLD_0)
    data = bytearray(aware_zip.read_bytes())
    data[info.header_offset + 30 + len(FOLD_0) + info.compress_size // 2] ^= 0xFF
    (tmp_path / "model.zip").write_bytes(bytes(data))
    assert "fold_0/checkpoint_final.pth is damaged, or holds what nnU-Net does not store" in faults(
        tmp_path / "model.zip"
    )


# --------------------------------------------------------------------------------------------------- hostile pickles


class Call:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def text(word):
    """SHORT_BINUNICODE."""
    return b"\x8c" + bytes([len(word)]) + word.encode()


def dumps(protocol, function, *arguments):
    return pickle.dumps({"network_weights": Call(function, *arguments)}, protocol)


#: attack -> pickle that would make the folder, and the name that the finding gives
ATTACKS = {
    "os.system": lambda folder: (dumps(2, os.system, f"mkdir {folder}"), f"{os.name}.system"),
    "os.system, protocol 0": lambda folder: (dumps(0, os.system, f"mkdir {folder}"), f"{os.name}.system"),
    "os.system, protocol 4": lambda folder: (dumps(4, os.system, f"mkdir {folder}"), f"{os.name}.system"),
    "eval": lambda folder: (dumps(2, builtins.eval, f"__import__('os').mkdir('{folder}')"), "__builtin__.eval"),
    "import_module": lambda folder: (dumps(2, importlib.import_module, "hostile_module"), "importlib.import_module"),
    "names behind decoys": lambda folder: (
        b"\x80\x04" + text("os") + text("mkdir") + text("collections") + text("OrderedDict") + b"00\x93"
        + text(folder) + b"\x85R.",
        "os.mkdir",
    ),
    "names in the memo": lambda folder: (
        b"\x80\x04(" + text("os") + b"q\x00" + text("mkdir") + b"q\x011h\x00h\x01\x93" + text(folder) + b"\x85R.",
        "os.mkdir",
    ),
    "dotted name": lambda folder: (b"\x80\x04cshutil\nos.mkdir\n" + text(folder) + b"\x85R.", "shutil.os.mkdir"),
    "INST": lambda folder: (b"(S'" + folder.encode() + b"'\nios\nmkdir\n.", "os.mkdir"),
    "torch.hub": lambda folder: (dumps(2, torch.hub.load, "owner/repository", "model"), "torch.hub.load"),
    "torch.load": lambda folder: (dumps(2, torch.load, folder), "torch.serialization.load"),
}  # fmt: skip


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A folder that a hostile sample would make; it must not be there afterwards."""
    folder = tmp_path / "marker"
    (tmp_path / "hostile_module.py").write_text(f"import os\nos.mkdir({str(folder)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    assert not folder.exists()
    assert "hostile_module" not in sys.modules


def torch_archive(path, pickled):
    """An archive as torch.save lays it out, with any pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", content)
    return path


def test_these_attacks_are_real(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, attack in list(ATTACKS.items())[:9]:
        folder = tmp_path / "marker"
        (tmp_path / "hostile_module.py").write_text(f"import os\nos.mkdir({str(folder)!r})\n")
        pickle.loads(attack(str(folder))[0])
        assert folder.is_dir(), name
        folder.rmdir()
    sys.modules.pop("hostile_module", None)


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_pickles_are_named_and_never_run(attack, aware_zip, marker, tmp_path):
    pickled, name = ATTACKS[attack](str(marker))
    expected = f"would run code when loaded: it names {name}, which no checkpoint of nnU-Net's does"
    archive = torch_archive(tmp_path / "checkpoint_final.pth", pickled)
    assert expected in faults(archive)
    (tmp_path / "bare.pth").write_bytes(pickled)  # torch's format before 1.6
    assert expected in faults(tmp_path / "bare.pth")
    members = {
        FOLD_0: archive.read_bytes(),
        f"{DATASET}/{AWARE}/crossval_results_folds_0/postprocessing.pkl": pickled,
        f"{DATASET}/{AWARE}/weights": archive.read_bytes(),  # torch.load asks for no suffix
    }
    added = [(zipfile.ZipInfo(member), content) for member, content in members.items() if member != FOLD_0]
    found = faults(rewritten(aware_zip, tmp_path / "model.zip", {FOLD_0: members[FOLD_0]}, added))
    for member in members:
        assert f"{member.removeprefix(f'{DATASET}/{AWARE}/')} {expected}" in found


def test_a_call_among_good_weights_is_found(results, marker, tmp_path):
    checkpoint = load_safely(results / FOLD_0)
    checkpoint["logging"]["note"] = Call(os.system, f"mkdir {marker}")
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    assert f"would run code when loaded: it names {os.name}.system" in faults(tmp_path / "checkpoint.pth")


def test_postprocessing_as_nnunet_writes_it_is_no_fault(model_folder):
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

    content = ([remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": [1, (1, 2)]}])
    for protocol in (2, 4):
        (model_folder / "postprocessing.pkl").write_bytes(pickle.dumps(content, protocol))
        assert faults(model_folder) == ""
    (model_folder / "postprocessing.pkl").write_bytes(pickle.dumps(content)[:-10])
    assert "postprocessing.pkl is damaged, or holds what nnU-Net does not store" in faults(model_folder)


def test_object_arrays_are_faults_and_numbers_are_not(model_folder, marker):
    np.savez(model_folder / "case.npz", probabilities=np.zeros(3))
    assert faults(model_folder) == ""
    np.savez(model_folder / "case.npz", probabilities=np.array([Call(os.system, f"mkdir {marker}")], dtype=object))
    assert "holds what nnU-Net does not store (ValueError: Object arrays" in faults(model_folder)


# ------------------------------------------------------------------------------------------------- hostile zip files


def plain(name):
    return zipfile.ZipInfo(name)


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def packed(name):
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


@pytest.mark.parametrize(
    ("info", "content", "told"),
    [
        (plain(f"{DATASET}/../../outside.txt"), b"", "leads out of the folder"),
        (plain("/etc/outside.txt"), b"", "leads out of the folder"),
        (plain("C:/outside.txt"), b"", "leads out of the folder"),
        (plain(f"{DATASET}\\..\\outside\x1b[2J.txt"), b"", "leads out of the folder"),
        (link(f"{DATASET}/link"), b"/etc", "is a link"),
        (plain(PLANS.upper()), b"{}", "is there twice"),
        (packed(f"{DATASET}/{AWARE}/fold_0/validation/a.nii"), bytes(20_000_000), "times its size"),
    ],
    ids=["parent", "absolute", "drive", "backslash", "link", "twice", "bomb"],
)
def test_dangerous_members_are_faults(info, content, told, aware_zip, tmp_path):
    path = rewritten(aware_zip, tmp_path / "model.zip", added=[(info, content)])
    before = snapshot(tmp_path)
    found = faults(path)
    assert told in found
    assert "\x1b" not in found
    assert snapshot(tmp_path) == before


def test_program_code_and_archives_are_warnings(aware_zip, tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.txt", "a")
    added = [(plain(f"{DATASET}/{AWARE}/trainer.py"), b"import os"), (plain("more.zip"), inner.getvalue())]
    findings = inspect_model(rewritten(aware_zip, tmp_path / "model.zip", added=added))
    assert texts(findings, "fault") == []
    warned = by_topic([finding for finding in findings if finding.state == "warning"], "members")
    assert warned == [
        "trainer.py is program code; nnU-Net exports no such file",
        "more.zip is an archive, and was not looked into; nnU-Net exports no such file",
    ]


def test_links_in_a_folder_are_faults_and_not_followed(model_folder, tmp_path):
    (tmp_path / "outside.pth").write_bytes(b"x")
    (model_folder / "fold_0" / "checkpoint_best.pth").symlink_to(tmp_path / "outside.pth")
    (model_folder / "fold_2").symlink_to(tmp_path)
    found = texts(inspect_model(model_folder), "fault")
    assert [text.partition(" is a link and was not followed")[0] for text in found] == [
        "fold_0/checkpoint_best.pth",
        "fold_2",
    ]


# ------------------------------------------------------------------------------------------- models that do not fit


def change_plans(folder, change):
    path = folder / "plans.json"
    plans = json.loads(path.read_text())
    change(plans, plans["configurations"]["3d_small"])
    path.write_text(json.dumps(plans))


@pytest.mark.parametrize("name", ["torch.hub.load", "hostile_module.Network", "torch.nn.modules.conv.os.system"])
@pytest.mark.parametrize("key", ["network_class_name", "nonlin"])
def test_foreign_names_in_plans_are_faults_and_not_imported(model_folder, marker, key, name):
    def change(plans, configuration):
        architecture = configuration["architecture"]
        (architecture if key == "network_class_name" else architecture["arch_kwargs"])[key] = name

    change_plans(model_folder, change)
    assert f"names '{name}', neither nnU-Net's, torch's nor ours: prediction would import it" in faults(model_folder)
    assert any("another plans than" in text for text in texts(inspect_model(model_folder), "warning"))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("inherits_from", "3d_small", "no configuration 3d_small that nnU-Net could read"),
        ("architecture", [], "no configuration 3d_small that nnU-Net could read"),
        ("anomaly", {"alhpa": 1}, "holds unknown setting(s) alhpa"),
        ("anomaly", {"alpha": -1}, "the setting 'alpha' in the section 'anomaly' of plans.json is -1; expected"),
    ],
)
def test_plans_that_set_what_is_not_there_are_faults(key, value, told, model_folder):
    change_plans(model_folder, lambda plans, configuration: configuration.update({key: value}))
    assert told in faults(model_folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_plans_that_are_none_are_a_fault(content, model_folder):
    (model_folder / "plans.json").write_bytes(content)
    assert "plans.json has no configuration" in faults(model_folder)


def test_missing_and_poor_dataset_json_are_faults(model_folder):
    (model_folder / "dataset.json").write_text("{}")
    assert "dataset.json is missing, or lacks channel_names, labels or file_ending" in faults(model_folder)
    (model_folder / "dataset.json").unlink()
    assert "dataset.json is missing" in faults(model_folder)


def test_weights_that_are_not_finite_are_a_fault_that_names_them(model_folder):
    def change(checkpoint):
        checkpoint["network_weights"]["detector.intensity_low"].fill_(float("nan"))

    change_checkpoint(model_folder, change)
    assert "1 tensors hold NaN or infinity (detector.intensity_low)" in faults(model_folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda checkpoint: checkpoint.update(trainer_name="TheirTrainer"), "TheirTrainer is not found"),
        (lambda checkpoint: checkpoint.update(trainer_name=3), "is no checkpoint of nnU-Net's"),
        (lambda checkpoint: checkpoint.pop("network_weights"), "is no checkpoint of nnU-Net's"),
        (lambda checkpoint: checkpoint.update(network_weights={1: 2}), "is no checkpoint of nnU-Net's"),
        (lambda checkpoint: checkpoint.update(network_weights={"a": LARGE}), "is no checkpoint of nnU-Net's"),
        (lambda checkpoint: checkpoint.pop("init_args"), "is no checkpoint of nnU-Net's"),
    ],
)
def test_checkpoints_that_nnunet_could_not_use_are_faults(change, told, model_folder):
    change_checkpoint(model_folder, change)
    assert told in faults(model_folder)


def test_folds_that_do_not_belong_together_are_warnings(model_folder):
    shutil.copytree(model_folder / "fold_0", model_folder / "fold_1")

    def change(checkpoint):
        checkpoint["trainer_name"] = "nnUNetTrainer"
        checkpoint["init_args"]["plans"]["plans_name"] = "otherPlans"

    change_checkpoint(model_folder, change, fold=1)
    warned = texts(inspect_model(model_folder), "warning")
    for what in ("trainer", "plans", "fold"):
        text = f"fold_1/checkpoint_final.pth was trained with another {what} than its folder or plans.json says"
        assert text in warned


def test_a_trainer_is_never_imported_from_the_inspected_folder(model_folder, marker, monkeypatch):
    shutil.copy(marker.parent / "hostile_module.py", model_folder / "their_trainer.py")
    monkeypatch.setenv("nnUNet_extTrainer", str(model_folder))
    change_checkpoint(model_folder, lambda checkpoint: checkpoint.update(trainer_name="TheirTrainer"))
    findings = inspect_model(model_folder)
    assert any("TheirTrainer was not looked up" in text for text in texts(findings, "warning"))


def test_what_installing_would_overwrite_or_confuse_is_warned_about(aware_zip, results_folder):
    assert by_topic(inspect_model(aware_zip), "installation") == []
    (results_folder / DATASET / AWARE).mkdir(parents=True)
    (results_folder / "Dataset801_Another").mkdir()
    warned = texts(inspect_model(aware_zip), "warning")
    assert any("exists; installing would write over its files" in text for text in warned)
    assert any("holds Dataset801_Another, of the same number" in text for text in warned)


def test_a_model_folder_zipped_by_hand_is_told_where_it_should_lie(aware_zip, tmp_path):
    with zipfile.ZipFile(aware_zip) as old, zipfile.ZipFile(tmp_path / "model.zip", "w") as new:
        for name in old.namelist():
            new.writestr(name.removeprefix(f"{DATASET}/{AWARE}/"), old.read(name))
    assert "plans.json lies at plans.json; expected DatasetXXX_NAME/TRAINER" in faults(tmp_path / "model.zip")
