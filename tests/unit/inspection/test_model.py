"""Models as nnU-Net exports them, and files that only look like one; what is hostile would leave a marker if it ran."""

import contextlib
import io
import json
import pickle
import shutil
import stat
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.inspection.model import MAX_SHOWN, inspect_model, scan_pickle

# What is installed already is told; other tests may have left models in the results folder of all.
pytestmark = pytest.mark.usefixtures("results_folder")

AWARE = "AnomalyAwareTrainer__nnUNetPlans__3d_small"
DATASET = "Dataset801_TinyKnee"
FOLD_0 = f"{DATASET}/{AWARE}/fold_0/checkpoint_final.pth"
PLANS = f"{DATASET}/{AWARE}/plans.json"


@pytest.fixture(scope="module")
def results(build_trainer, tmp_path_factory):
    """A results folder with a pre-stage, the segmentation behind it, and nnU-Net's own trainer on two folds."""
    folder = tmp_path_factory.mktemp("inspected") / "nnUNet_results"
    folder.mkdir()
    short = {"inpainting_epochs": 1, "distillation_epochs": 1, "num_epochs": 1, "num_iterations_per_epoch": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(folder))
        for name in ("AnomalyPreStageTrainer", "AnomalyAwareTrainer"):
            build_trainer(name, anomaly=short).run_training()
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


@pytest.fixture(scope="module")
def good_checkpoint(results):
    return (results / FOLD_0).read_bytes()


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


def test_an_exported_model_has_no_fault_and_tells_what_it_is(aware_zip):
    findings = inspect_model(aware_zip)
    assert texts(findings, "fault") == []
    assert texts(findings, "warning") == []
    told = {topic: [f.text for f in findings if f.topic == topic] for topic in {f.topic for f in findings}}
    (model,) = told["model"]
    assert model.startswith(
        f"{DATASET}: trainer AnomalyAwareTrainer, plans nnUNetPlans, configuration 3d_small, folds 0; "
        "checkpoint_final.pth, "
    )
    assert told["checkpoint"][0].startswith("fold_0/checkpoint_final.pth: ")
    assert "names nothing but what torch and nnU-Net store" in told["checkpoint"][0]
    assert (
        "all finite, trained by AnomalyAwareTrainer on 3d_small, fold 0, epoch 1, mirrors no axis"
        in (told["weights"][0])
    )
    assert "PlainConvUNet, patch [16, 16, 16], spacing [1.0, 1.0, 1.0] mm, ZScoreNormalization" in told["plans"][0]
    assert "channels MR; labels background, femoral_bone" in told["plans"][1]
    assert "detector_features=4" in told["settings"][0]
    assert told["trainer"][0].startswith("AnomalyAwareTrainer in ")
    assert told["detector"] == ["fold_0/checkpoint_final.pth: the detector is inside, prediction needs no pre-stage"]
    assert told["agreement"] == ["1 checkpoint, plans.json and the folder's name say the same"]


def test_numbers_and_tensors_are_counted_once_each(aware_zip, results):
    weights = torch.load(results / FOLD_0, weights_only=False)["network_weights"]
    distinct = {(value.data_ptr(), tuple(value.shape)): value.numel() for value in weights.values()}
    (text,) = [f.text for f in inspect_model(aware_zip) if f.topic == "weights"]
    assert f"{sum(distinct.values()):,} numbers in {len(distinct)} tensors" in text
    assert len(distinct) < len(weights)


def test_a_prestage_tells_its_cases_and_the_quality_of_its_detector(export):
    findings = inspect_model(export("AnomalyPreStageTrainer"))
    assert texts(findings, "fault") == []
    (detector,) = [finding.text for finding in findings if finding.topic == "detector"]
    assert "a finished detector; the checkpoint names the 4 cases that it was trained on; MSE inside" in detector


def test_nnunets_own_model_of_two_folds_has_no_fault(export):
    findings = inspect_model(export("nnUNetTrainer", folds=(0, 1)))
    assert texts(findings, "fault") == []
    assert any("folds 0, 1; " in finding.text for finding in findings if finding.topic == "model")
    assert "mirrors axes [0, 1, 2]" in " ".join(f.text for f in findings if f.topic == "weights")
    assert [f.text for f in findings if f.topic == "agreement"] == [
        "2 checkpoints, plans.json and the folder's name say the same"
    ]


def test_model_folders_data_set_folders_and_checkpoints_are_inspected_alike(results):
    for path in (results / DATASET / AWARE, results / DATASET, results / FOLD_0):
        findings = inspect_model(path)
        assert texts(findings, "fault") == [], path
        assert any(finding.topic == "weights" for finding in findings)


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_that_nnunet_writes_beside_the_model_are_clean(protocol):
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

    content = ([remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": [1, (1, 2)]}])
    assert scan_pickle(pickle.dumps(content, protocol)).clean
    numbers = torch.arange(3).numpy()
    assert scan_pickle(pickle.dumps({"a": numbers, "b": numbers[1], "c": numbers.astype("f4")[0]}, protocol)).clean


def test_the_verb_prints_the_report_and_its_status_tells_faults(aware_zip, tmp_path, capsys):
    assert main(["doctor", "--model", str(aware_zip)]) == 0
    assert "0 faults, 0 warnings: no fault found" in capsys.readouterr().out
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


# --------------------------------------------------------------------------------------------------------- bad input


def zip_of(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path, good: None, "does not exist"),
        (lambda path, good: path.touch(), "is empty"),
        (lambda path, good: path.write_text("a model"), "is no zip file, or not a whole one"),
        (lambda path, good: path.write_bytes(good[: len(good) // 2]), "is no zip file, or not a whole one"),
        (lambda path, good: zip_of(path, readme_txt="a model"), "holds no plans.json"),
        (lambda path, good: path.mkdir(), "holds no plans.json"),
    ],
    ids=["missing", "empty", "text", "truncated", "without plans", "empty folder"],
)
def test_bad_input_is_one_sentence(make, told, aware_zip, tmp_path, capsys):
    path = tmp_path / "model.zip"
    make(path, aware_zip.read_bytes())
    assert main(["doctor", "--model", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.count("\n") == 1
    with pytest.raises(UserError):
        inspect_model(path)


@pytest.mark.parametrize("name", ["model.zip", "checkpoint_final.pth"])
def test_a_file_that_is_cut_or_changed_anywhere_ends_in_a_finding_or_a_sentence(name, aware_zip, results, tmp_path):
    good = (aware_zip if name == "model.zip" else results / FOLD_0).read_bytes()
    path = tmp_path / name
    for position in (5, 40, len(good) // 3, len(good) // 2, len(good) - 300, len(good) - 60, len(good) - 10):
        path.write_bytes(good[:position])
        with pytest.raises(UserError) if name == "model.zip" else contextlib.suppress(UserError):
            inspect_model(path)
        path.write_bytes(good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :])
        with contextlib.suppress(UserError):
            inspect_model(path)


# --------------------------------------------------------------------------------------------------- hostile pickles


def text(word):
    """SHORT_BINUNICODE."""
    return b"\x8c" + bytes([len(word)]) + word.encode()


def by_reduce(folder):
    return b"\x80\x02cos\nmkdir\n" + text(folder) + b"\x85R."


def by_stack_global(folder):
    return b"\x80\x04" + text("os") + text("mkdir") + b"\x93" + text(folder) + b"\x85R."


def by_memo_beside_decoys(folder):
    """BINPUT and MEMOIZE mixed: who counts only one of them takes the harmless pair for what BINGET brings back."""
    real = text("os") + b"q\x00" + text("mkdir") + b"q\x01"
    decoys = text("collections") + b"\x94" + text("OrderedDict") + b"\x94"
    return b"\x80\x04" + real + decoys + b"0000" + b"h\x00h\x01\x93" + text(folder) + b"\x85R."


def by_memo_written_over(folder):
    first = text("collections") + b"q\x00" + text("OrderedDict") + b"q\x01"
    second = text("os") + b"q\x00" + text("mkdir") + b"q\x01"
    return b"\x80\x04(" + first + second + b"1" + b"h\x00h\x01\x93" + text(folder) + b"\x85R."


def by_decoys_on_the_stack(folder):
    """The last two strings before STACK_GLOBAL are not the ones on top of the stack."""
    decoys = text("collections") + text("OrderedDict") + b"00"
    return b"\x80\x04" + text("os") + text("mkdir") + decoys + b"\x93" + text(folder) + b"\x85R."


def by_getattr(folder):
    module = b"cbuiltins\n__import__\n" + text("os") + b"\x85R"
    return b"\x80\x04cbuiltins\ngetattr\n" + module + text("mkdir") + b"\x86R" + text(folder) + b"\x85R."


def by_eval(folder):
    return b"\x80\x04cbuiltins\neval\n" + text(f"__import__('os').mkdir('{folder}')") + b"\x85R."


def by_old_name_of_eval(folder):
    return b"\x80\x02c__builtin__\neval\n" + text(f"__import__('os').mkdir('{folder}')") + b"\x85R."


def by_dotted_name(folder):
    """From protocol 4 on, a name may lead through a module that is allowed."""
    return b"\x80\x04ccollections\n_sys.modules\n0cshutil\nos.mkdir\n" + text(folder) + b"\x85R."


def by_inst(folder):
    return b"(S'" + folder.encode() + b"'\nios\nmkdir\n."


def by_obj(folder):
    return b"\x80\x02(cos\nmkdir\n" + text(folder) + b"o."


def by_attributes_of_a_class(folder):
    """BUILD gives an allowed class an attribute, and a dotted name takes it back as a part of another name."""
    attributes = b"N}" + text("x") + text("os") + b"s\x86b"
    return b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n" + attributes + by_stack_global(folder)[2:]


def by_another_codec(folder):
    return b"\x80\x02c_codecs\nencode\n" + text(folder) + text("hex") + b"\x86R."


def by_registered_number(folder):
    return b"\x80\x02\x82\x01" + text(folder) + b"\x85R."


def by_a_frame_that_ends_too_soon(folder):
    """Inside of bytes for whoever ignores frames; unpickled from a file, the bytes are cut and the rest is code."""
    hidden = bytes(2) + b"0cos\nmkdir\n" + text(folder) + b"\x85R."
    return b"\x80\x04\x95" + struct.pack("<Q", 3) + b"B" + struct.pack("<I", len(hidden)) + hidden + b"."


def by_torch_hub(folder):
    return b"\x80\x02ctorch.hub\nload\n" + text("owner/repository") + text("model") + b"\x86R."


def by_torch_load(folder):
    return b"\x80\x02ctorch.serialization\nload\n" + text(folder) + b"\x85R."


def by_names_in_a_container(folder):
    """The name of the function comes out of a call: nobody can know it without making the call."""
    module = b"c_codecs\nencode\n" + text("os") + text("latin1") + b"\x86R"
    return b"\x80\x04" + module + text("mkdir") + b"\x93" + text(folder) + b"\x85R."


def by_backslashes(folder):
    """A module called 'c\\x6fllections', which a tool that resolves the escape takes for collections."""
    return b"\x80\x02cc\\x6fllections\nOrderedDict\n)R."


def after_the_end(folder):
    return b"\x80\x02}." + by_reduce(folder)


def by_filling_an_object(folder):
    """SETITEM on something else than a dictionary calls its method."""
    return b"\x80\x02ccollections\nOrderedDict\n" + text("k") + text("v") + b"s."


#: attack -> does plain unpickling run it here, and what the finding must tell
ATTACKS = {
    by_reduce: (True, "names os.mkdir"),
    by_stack_global: (True, "names os.mkdir"),
    by_memo_beside_decoys: (True, "names os.mkdir"),
    by_memo_written_over: (True, "names os.mkdir"),
    by_decoys_on_the_stack: (True, "names os.mkdir"),
    by_getattr: (True, "names builtins.getattr"),
    by_eval: (True, "names builtins.eval"),
    by_old_name_of_eval: (True, "names builtins.eval"),
    by_dotted_name: (True, "names shutil.os.mkdir"),
    by_inst: (True, "names os.mkdir"),
    by_obj: (True, "names os.mkdir"),
    by_attributes_of_a_class: (True, "sets attributes"),
    by_a_frame_that_ends_too_soon: (True, "reaches over the end of its frame"),
    by_another_codec: (False, "calls _codecs.encode with arguments"),
    by_registered_number: (False, "by a registered number (EXT1 1)"),
    by_torch_hub: (False, "names torch.hub.load"),
    by_torch_load: (False, "names torch.serialization.load"),
    by_names_in_a_container: (False, "works out while loading what it imports"),
    by_backslashes: (False, "spelt in a way"),
    after_the_end: (False, "bytes follow the end"),
    by_filling_an_object: (False, "fills something that is no plain list"),
}


def torch_archive(path, pickled, root="archive", added=()):
    """An archive as torch.save lays it out, with any pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        archive.writestr(f"{root}/byteorder", b"little")
        archive.writestr(f"{root}/version", b"3\n")
        for name, content in added:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("attack", [attack for attack, (runs, _) in ATTACKS.items() if runs])
def test_these_attacks_are_real(attack, tmp_path):
    marker = tmp_path / "marker"
    try:
        pickle.load(io.BytesIO(attack(str(marker))))  # from a file, as torch does
    finally:
        torch._utils._rebuild_tensor_v2.__dict__.pop("x", None)  # by_attributes_of_a_class
    assert marker.is_dir()


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_pickles_are_faults_and_never_run(attack, aware_zip, tmp_path):
    marker = tmp_path / "marker"
    told = ATTACKS[attack][1]
    checkpoint = torch_archive(tmp_path / "checkpoint_final.pth", attack(str(marker)))
    assert told in faults(checkpoint)
    model = rewritten(aware_zip, tmp_path / "model.zip", {FOLD_0: checkpoint.read_bytes()})
    modules = set(sys.modules)
    found = faults(model)
    assert told in found
    assert "fold_0/checkpoint_final.pth" in found
    assert set(sys.modules) == modules
    assert not marker.exists()


class Hostile:
    """Pickled as a call; what a stranger would write."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"mkdir {self.marker}",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_call_among_good_weights_is_found(protocol, results, tmp_path):
    checkpoint = torch.load(results / FOLD_0, weights_only=False)
    checkpoint["logging"]["note"] = Hostile(tmp_path / "marker")
    torch.save(checkpoint, tmp_path / "checkpoint.pth", pickle_protocol=protocol)
    assert "would run code when loaded: it names posix.system" in faults(tmp_path / "checkpoint.pth") or (
        "nt.system" in faults(tmp_path / "checkpoint.pth")
    )
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("other/data.pkl", by_reduce("x"), "names os.mkdir"),
        ("archive/data/data.pkl", by_reduce("x"), "names os.mkdir"),
        ("archive/DATA.PKL", by_reduce("x"), "names os.mkdir"),
        ("archive/data.pkl", by_reduce("x"), "names os.mkdir"),
        ("archive/constants.pkl", b"\x80\x02).", "which torch.save does not write"),
        ("archive/code/__torch__.py", b"import os", "which torch.save does not write"),
        ("archive/extra/model.zip", b"PK\x03\x04", "which torch.save does not write"),
        ("../../outside.py", b"import os", "which torch.save does not write"),
    ],
)
def test_what_torch_does_not_write_into_an_archive_is_a_fault(name, content, told, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate") if name == "archive/data.pkl" else contextlib.nullcontext():
        path = torch_archive(tmp_path / "checkpoint.pth", b"\x80\x02}.", added=[(name, content)])
    assert told in faults(path)


def test_an_archive_that_torch_reads_otherwise_than_python_is_a_fault(tmp_path):
    """The directory that the zip64 locator points at is not the one in front of it, which Python reads."""
    hostile = torch_archive(tmp_path / "hostile.pth", by_reduce(str(tmp_path / "marker"))).read_bytes()
    harmless = torch_archive(tmp_path / "harmless.pth", b"\x80\x02}.").read_bytes()

    def directory(data):
        end = data.rindex(b"PK\x05\x06")
        count, size, start = struct.unpack("<HII", data[end + 10 : end + 20])
        return count, size, start

    def zip64_end(count, size, start):
        return b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, start)

    count, size, start = directory(harmless)
    shifted = bytearray(hostile[: directory(hostile)[2]])  # the hostile members, in front of the harmless ones
    shift = len(shifted)
    entries = bytearray(harmless[start : start + size])
    for position in [i for i in range(len(entries)) if entries[i : i + 4] == b"PK\x01\x02"]:
        offset = struct.unpack_from("<I", entries, position + 42)[0]
        struct.pack_into("<I", entries, position + 42, offset + shift)
    body = bytes(shifted) + harmless[:start]
    hostile_count, hostile_size, hostile_start = directory(hostile)
    hostile_directory = hostile[hostile_start : hostile_start + hostile_size]
    first = len(body)
    body += hostile_directory
    hidden_end = len(body)
    body += zip64_end(hostile_count, hostile_size, first)
    second = len(body)
    body += bytes(entries) + zip64_end(count, size, second)
    body += b"PK\x06\x07" + struct.pack("<IQI", 0, hidden_end, 1)
    body += b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, size, second, 0)
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(body)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("archive/data.pkl") == b"\x80\x02}."
    assert b"mkdir" in torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    assert "torch's reader sees another file in it than Python's does" in faults(path)
    assert not (tmp_path / "marker").exists()


def test_the_old_format_is_refused_and_its_names_are_told(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "no archive as torch.save has written since version 1.6" in faults(tmp_path / "old.pth")
    torch.save({"a": Hostile(tmp_path / "marker")}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert ".system" in faults(tmp_path / "old.pth")
    # torch.load goes by the first bytes: behind a pickle, an archive is not looked at.
    hidden = by_reduce(str(tmp_path / "marker")) + torch_archive(tmp_path / "good.pth", b"\x80\x02}.").read_bytes()
    (tmp_path / "both.pth").write_bytes(hidden)
    assert "names os.mkdir" in faults(tmp_path / "both.pth")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("shape", "strides"), [((10**12,), (0,)), ((3,), (1,)), ((2,), (2**40,)), ((2**62, 2**62), (0, 0)), ((-1,), (1,))]
)
def test_a_tensor_larger_than_what_is_stored_is_a_fault(shape, strides, tmp_path):
    """Such a tensor takes no room in the file and any amount of it in memory."""

    def counted(numbers):
        longs = [b"\x8a\x10" + number.to_bytes(16, "little", signed=True) for number in numbers]
        return b"(" + b"".join(longs) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x02tQ"
    arguments = storage + b"K\x00" + counted(shape) + counted(strides) + b"\x89ccollections\nOrderedDict\n)R"
    pickled = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR."
    path = torch_archive(tmp_path / "checkpoint.pth", pickled, added=[("archive/data/0", bytes(8))])
    assert "_rebuild_tensor_v2 with arguments" in faults(path)


def test_a_storage_that_disagrees_with_its_member_is_a_fault(tmp_path):
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x03tQ."
    path = torch_archive(tmp_path / "checkpoint.pth", b"\x80\x02" + storage, added=[("archive/data/0", bytes(8))])
    assert "refers to data outside of the pickle" in faults(path)


@pytest.mark.parametrize(
    ("code", "state"),
    [(b"f8", (8, 4, 0)), (b"f8", (-1, -1, 63)), (b"U1", (400, 4, 8)), (b"U1", (4, 4, 63)), (b"O8", (-1, -1, 63))],
)
def test_types_of_numpys_with_a_state_of_their_own_are_oddities(code, state):
    """numpy believes them, and reads or counts references beside its memory."""
    numbers = b"".join(b"J" + struct.pack("<i", number) for number in state)
    dtype = b"cnumpy\ndtype\n" + text(code.decode()) + b"\x89\x88\x87R(K\x03" + text("<") + b"NNN" + numbers + b"tb"
    assert scan_pickle(b"\x80\x02" + dtype + b".").oddities


def test_a_scalar_with_too_few_bytes_is_an_oddity():
    dtype = b"cnumpy\ndtype\n" + text("f8") + b"\x89\x88\x87R"
    scalar = b"\x80\x04cnumpy._core.multiarray\nscalar\n" + dtype + b"C%c" + b"%b\x86R."
    assert scan_pickle(scalar % (8, bytes(8))).clean
    assert scan_pickle(scalar % (4, bytes(4))).oddities


def test_random_pickles_are_read_without_an_exception():
    good = pickle.dumps({"a": [1, (2.0, "b")], "c": {3}}, 4)
    for position in range(len(good)):
        for value in (0, 1, 40, 82, 98, 113, 148, 255):
            scan_pickle(good[:position] + bytes([value]) + good[position + 1 :])
        assert not scan_pickle(good[:position]).clean


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
        (plain("../outside.txt"), b"", "points out of the folder"),
        (plain(f"{DATASET}/../../outside.txt"), b"", "points out of the folder"),
        (plain("/etc/outside.txt"), b"", "is an absolute path"),
        (plain("C:/outside.txt"), b"", "names a drive"),
        (plain(f"{DATASET}\\..\\outside.txt"), b"", "holds a backslash"),
        (plain(f"{DATASET}/a\x1b[2J.txt"), b"", "control characters"),
        (link(f"{DATASET}/link"), b"/etc", "is a link"),
        (plain(PLANS.upper()), b"{}", "is there twice"),
        (packed(f"{DATASET}/{AWARE}/fold_0/validation/a.nii"), bytes(20_000_000), "times its size, 20.0 MB"),
    ],
    ids=["parent", "parent below", "absolute", "drive", "backslash", "control", "link", "twice", "bomb"],
)
def test_dangerous_members_are_faults(info, content, told, aware_zip, tmp_path):
    path = rewritten(aware_zip, tmp_path / "model.zip", added=[(info, content)])
    before = snapshot(tmp_path)
    found = faults(path)
    assert told in found
    assert "\x1b" not in found
    assert snapshot(tmp_path) == before


def test_a_bomb_with_a_wrong_size_in_its_header_is_a_fault_and_not_unpacked(aware_zip, tmp_path):
    name = f"{DATASET}/{AWARE}/fold_0/validation/a.nii"
    path = rewritten(aware_zip, tmp_path / "model.zip", added=[(packed(name), bytes(50_000_000))])
    data = bytearray(path.read_bytes())
    size = struct.pack("<I", 50_000_000)
    assert data.count(size) == 2  # before the member, and in the directory
    path.write_bytes(bytes(data.replace(size, struct.pack("<I", 1000))))
    assert "validation/a.nii cannot be read: damaged or cut short" in faults(path)


def test_an_implausible_total_and_overlapping_members_are_faults(aware_zip, tmp_path, monkeypatch):
    monkeypatch.setattr("nnunetv2_anomaly.inspection.model.MAX_UNPACKED_BYTES", 1000)
    assert "no model is that large" in faults(aware_zip)
    monkeypatch.undo()
    data = bytearray(aware_zip.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 24] = struct.pack("<I", len(data) + 1)
    (tmp_path / "model.zip").write_bytes(bytes(data))
    assert "its members overlap" in faults(tmp_path / "model.zip")


def test_encrypted_and_damaged_members_are_faults(aware_zip, tmp_path):
    data = bytearray(aware_zip.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "model.zip").write_bytes(bytes(data))
    assert "is encrypted" in faults(tmp_path / "model.zip")
    with zipfile.ZipFile(aware_zip) as archive:
        info = archive.getinfo(FOLD_0)
    data = bytearray(aware_zip.read_bytes())
    data[info.header_offset + 30 + len(FOLD_0) + info.compress_size // 2] ^= 0xFF
    (tmp_path / "model.zip").write_bytes(bytes(data))
    assert "fold_0/checkpoint_final.pth cannot be read: damaged" in faults(tmp_path / "model.zip")


def test_a_checkpoint_with_damaged_weights_is_a_fault(good_checkpoint, tmp_path):
    with zipfile.ZipFile(io.BytesIO(good_checkpoint)) as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
    data = bytearray(good_checkpoint)
    data[data.index(info.filename.encode()) + len(info.filename) + 200] ^= 0xFF
    (tmp_path / "checkpoint.pth").write_bytes(bytes(data))
    assert faults(tmp_path / "checkpoint.pth")


def test_many_faults_are_counted_and_not_all_shown(aware_zip, tmp_path):
    added = [(plain(f"../{number}.txt"), b"") for number in range(50)]
    findings = inspect_model(rewritten(aware_zip, tmp_path / "model.zip", added=added))
    assert len(texts(findings, "fault")) == MAX_SHOWN + 1
    assert f"{50 - MAX_SHOWN} more of this kind" in texts(findings, "fault")


def test_foreign_members_are_warnings_and_hidden_pickles_faults(aware_zip, tmp_path):
    added = [
        (plain(f"{DATASET}/{AWARE}/trainer.py"), b"import os"),
        (plain("readme.md"), b"read me"),
        (plain(f"{DATASET}/{AWARE}/more.zip"), b"PK\x05\x06" + bytes(18)),
    ]
    findings = inspect_model(rewritten(aware_zip, tmp_path / "model.zip", added=added))
    assert texts(findings, "fault") == []
    assert texts(findings, "warning") == [
        "trainer.py is program code",
        "readme.md is nothing that nnU-Net exports",
        "more.zip is nothing that nnU-Net exports",
    ]
    marker = tmp_path / "marker"
    inner = torch_archive(tmp_path / "inner", by_reduce(str(marker))).read_bytes()
    for name, content in (
        ("postprocessing.pkl", by_stack_global(str(marker))),
        ("notes", by_stack_global(str(marker))),
        ("weights", inner),
        ("fold_0/checkpoint_best.pth", inner),
    ):
        info = plain(f"{DATASET}/{AWARE}/{name}")
        found = faults(rewritten(aware_zip, tmp_path / "model.zip", added=[(info, content)]))
        assert f"{name} would run code when loaded: it names os.mkdir" in found
    assert not marker.exists()


# ------------------------------------------------------------------------------------------- models that do not fit


def change_plans(folder, change):
    path = folder / "plans.json"
    plans = json.loads(path.read_text())
    change(plans, plans["configurations"]["3d_small"])
    path.write_text(json.dumps(plans))


def change_checkpoint(folder, change, fold=0):
    path = folder / f"fold_{fold}" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, path)


def test_a_foreign_network_class_is_a_warning_that_names_it_and_is_not_imported(model_folder, tmp_path, monkeypatch):
    (tmp_path / "foreign_networks.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'marker')!r})\n")
    monkeypatch.syspath_prepend(tmp_path)

    def change(plans, configuration):
        configuration["architecture"]["network_class_name"] = "foreign_networks.Network"
        configuration["architecture"]["arch_kwargs"]["nonlin"] = "torch.nn.modules.conv.os.system"

    change_plans(model_folder, change)
    warned = " | ".join(texts(inspect_model(model_folder), "warning"))
    assert "network class 'foreign_networks.Network', neither nnU-Net's nor ours" in warned
    assert "'torch.nn.modules.conv.os.system' as the network's nonlin" in warned
    assert "plans.json is not the one that the checkpoints were trained with" in warned
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("image_reader_writer", "TheirReader", "image reader TheirReader, which is not nnU-Net's"),
        ("image_reader_writer", "np", "names np as the image reader, which is no such thing"),
        ("label_manager", "os.path", "which is no name of a class or function"),
        ("preprocessor_name", "TheirPreprocessor", "preprocessor TheirPreprocessor, which is not nnU-Net's"),
        ("normalization_schemes", ["TheirNormalization"], "normalisation TheirNormalization"),
        ("resampling_fn_data", "deepcopy", "names deepcopy as the resampling, which is no such thing"),
        ("inherits_from", "3d_small", "no configuration 3d_small that nnU-Net could read"),
        ("architecture", [], "no configuration 3d_small that nnU-Net could read"),
        ("anomaly", {"alhpa": 1}, "holds unknown setting(s) alhpa"),
        ("anomaly", {"alpha": -1}, "the setting 'alpha' in the section 'anomaly' of plans.json is -1; expected"),
    ],
)
def test_plans_that_name_or_set_what_is_not_there_are_faults(key, value, told, model_folder):
    def change(plans, configuration):
        (plans if key in plans else configuration)[key] = value

    change_plans(model_folder, change)
    assert told in faults(model_folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_plans_that_are_none_are_a_fault(content, model_folder):
    (model_folder / "plans.json").write_bytes(content)
    assert "plans.json" in faults(model_folder)


def test_missing_and_poor_dataset_json_are_faults(model_folder):
    (model_folder / "dataset.json").write_text("{}")
    assert "dataset.json lacks channel_names, labels or file_ending" in faults(model_folder)
    (model_folder / "dataset.json").unlink()
    assert "dataset.json is missing" in faults(model_folder)


def test_weights_that_are_not_finite_are_a_fault_that_names_them(model_folder):
    def change(checkpoint):
        checkpoint["network_weights"]["detector.intensity_low"].fill_(float("nan"))

    change_checkpoint(model_folder, change)
    assert "1 hold NaN or infinity (detector.intensity_low)" in faults(model_folder)


def test_an_aware_model_without_its_detector_is_a_fault(model_folder):
    def change(checkpoint):
        weights = checkpoint["network_weights"]
        checkpoint["network_weights"] = {key: weights[key] for key in weights if not key.startswith("detector.")}

    change_checkpoint(model_folder, change)
    assert "holds no detector, although AnomalyAwareTrainer needs one" in faults(model_folder)


def test_an_unfinished_prestage_is_a_warning(results, tmp_path):
    name = "AnomalyPreStageTrainer__nnUNetPlans__3d_small"
    folder = tmp_path / DATASET / name
    shutil.copytree(results / DATASET / name, folder)
    change_checkpoint(folder, lambda checkpoint: checkpoint["anomaly"].update(distilling=False))
    assert any("the detector is not distilled yet" in text for text in texts(inspect_model(folder), "warning"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda checkpoint: checkpoint.update(trainer_name="TheirTrainer"), "TheirTrainer is not found"),
        (lambda checkpoint: checkpoint.update(trainer_name="os; x"), "no name of a class"),
        (lambda checkpoint: checkpoint.update(trainer_name=3), "does not tell its trainer"),
        (lambda checkpoint: checkpoint.pop("network_weights"), "no checkpoint of nnU-Net's"),
        (lambda checkpoint: checkpoint.update(network_weights={1: 2}), "no checkpoint of nnU-Net's"),
        (lambda checkpoint: checkpoint.pop("init_args"), "does not tell its trainer and configuration"),
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
    assert "fold_1/checkpoint_final.pth was trained with another trainer than fold_0/checkpoint_final.pth" in warned
    assert "fold_1/checkpoint_final.pth was trained with another plans than fold_0/checkpoint_final.pth" in warned
    assert "fold_1/checkpoint_final.pth was trained as fold 0" in warned
    assert "fold_1/checkpoint_final.pth says trainer nnUNetTrainer, its folder says AnomalyAwareTrainer" in warned


def test_a_trainer_is_never_imported_from_the_inspected_folder(model_folder, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    (model_folder / "their_trainer.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass TheirTrainer: pass\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(model_folder))
    change_checkpoint(model_folder, lambda checkpoint: checkpoint.update(trainer_name="TheirTrainer"))
    findings = inspect_model(model_folder)
    assert any("TheirTrainer was not looked up" in text for text in texts(findings, "warning"))
    assert "their_trainer.py is program code" in texts(findings, "warning")
    assert not marker.exists()


def test_links_in_a_folder_are_faults_and_not_followed(model_folder, tmp_path):
    outside = tmp_path / "outside.pth"
    outside.write_bytes(by_reduce("x"))
    (model_folder / "fold_0" / "checkpoint_best.pth").symlink_to(outside)
    (model_folder / "fold_2").symlink_to(tmp_path)
    assert texts(inspect_model(model_folder), "fault") == [
        "fold_2 is a link and was not followed: what it leads to is not judged",
        "fold_0/checkpoint_best.pth is a link and was not followed: what it leads to is not judged",
    ]


def test_very_many_models_are_a_fault(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for number in range(21):
            archive.writestr(f"Dataset{number:03}_A/B__C__D/plans.json", b"{}")
    assert "21 models, more than anybody hands on at once" in faults(tmp_path / "model.zip")


def test_what_installing_would_overwrite_or_confuse_is_warned_about(aware_zip, results_folder):
    assert texts(inspect_model(aware_zip), "warning") == []
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


def test_without_memory_for_the_weights_the_pickle_is_still_scanned(aware_zip, tmp_path, monkeypatch):
    monkeypatch.setattr("nnunetv2_anomaly.inspection.model.memory", lambda: (1000.0, 1000.0))
    findings = inspect_model(aware_zip)
    assert any("the memory is too small for its weights" in text for text in texts(findings, "warning"))
    checkpoint = torch_archive(tmp_path / "checkpoint.pth", by_reduce("x")).read_bytes()
    assert "names os.mkdir" in faults(rewritten(aware_zip, tmp_path / "model.zip", {FOLD_0: checkpoint}))
