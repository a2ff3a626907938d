"""Files that would run code when loaded are refused before anything of them runs; what nnU-Net saves is read."""

import io
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.training.checkpoints import read_own_checkpoint
from nnunetv2_anomaly.training.pretrained import read_pretrained
from nnunetv2_anomaly.training.safe_loading import UnsafeFileError, load_file, load_safely, names_in_pickle, shown


class Hostile:
    """Pickled as a call that leaves a file behind."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path):
    """A file that a hostile sample would make; it must not be there afterwards."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


def test_numbers_and_arrays_of_numpy_are_read():
    content = {"log": [np.float64(0.5), np.float32(2), np.int64(3), np.bool_(True)], "array": np.arange(3.0)}
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    read = load_safely(file)
    assert read["log"] == content["log"]
    np.testing.assert_array_equal(read["array"], content["array"])


@pytest.mark.parametrize(("module", "other"), [(b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")])
def test_files_of_numpy_1_and_2_are_read_alike(module, other, tmp_path):
    """Their pickles differ in the name of one module."""
    file = io.BytesIO()
    torch.save([np.float64(0.5)], file)
    torch_file = torch._C.PyTorchFileReader(io.BytesIO(file.getvalue()))
    pickled = torch_file.get_record("data.pkl").replace(other + b".", module + b".")
    writer = torch._C.PyTorchFileWriter(str(tmp_path / "x.pth"))
    writer.write_record("data.pkl", pickled, len(pickled))
    writer.write_end_of_file()
    assert load_safely(tmp_path / "x.pth") == [0.5]


@pytest.mark.parametrize("old", [False, True], ids=["archive", "before torch 1.6"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_call_among_good_weights_is_named_and_not_made(protocol, old, marker, tmp_path):
    content = {"network_weights": {"a": torch.zeros(2)}, "logging": [np.float64(1), Hostile(marker)]}
    path = tmp_path / "x.pth"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
    with pytest.raises(UnsafeFileError, match=rf"it names {os.name}\.system, which"):
        load_safely(path)
    for read in (lambda: load_file(path, "x"), lambda: read_own_checkpoint(path, "x"), lambda: read_pretrained(path)):
        with pytest.raises(UserError, match=rf" {path} would run code when loaded: it names {os.name}\.system, which"):
            read()


def test_names_are_read_to_the_end_without_importing(marker):
    pickled = pickle.dumps([Hostile(marker), {1, 2}, np.zeros(2)]) + b"rest"
    file = io.BytesIO(pickled)
    names, fault = names_in_pickle(file)
    assert names[0] == f"{os.name}.system"
    assert fault is None
    assert file.read() == b"rest"
    modules = set(sys.modules)
    assert names_in_pickle(io.BytesIO(b"\x80\x02cno.such.module\nname\n"))[0] == ["no.such.module.name"]
    assert set(sys.modules) == modules


def test_what_a_file_says_is_shown_without_control_characters():
    assert shown("a\x1b[2Jb") == "a?[2Jb"
    assert shown("a" * 200) == "a" * 120 + "..."


# ---------------------------------------------------------------- before nnU-Net loads them with weights_only=False


def spoiled(path, marker):
    checkpoint = load_safely(path)
    torch.save({**checkpoint, "note": Hostile(marker)}, path)


@pytest.fixture
def nnunet_train(monkeypatch):
    """Function: nnUNetv2_train's own entry point, with options."""
    from nnunetv2.run.run_training import run_training_entry

    threads = torch.get_num_threads()

    def train(*options):
        words = ["nnUNetv2_train", "801", "3d_small", "0", "-device", "cpu", *map(str, options)]
        monkeypatch.setattr(sys, "argv", words)
        run_training_entry()

    yield train
    torch.set_num_threads(threads)  # the command takes all


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("AnomalyPreStageTrainer", "--c"),
        ("UNETTrainer", "--val"),
        ("UNETTrainer", "-pretrained_weights"),
        ("UNETTransferTrainer", "-pretrained_weights"),
    ],
)
def test_nnunetv2_train_refuses_before_it_loads(trainer_factory, nnunet_train, marker, name, option):
    trainer = trainer_factory(name.replace("Transfer", ""))
    trainer.initialize()
    path = Path(trainer.output_folder, "checkpoint_final.pth")
    trainer.save_checkpoint(str(path))
    spoiled(path, marker)
    with pytest.raises(UserError, match=r"would run code when loaded: it names \w+\.system"):
        nnunet_train("-tr", name, option, *([path] if option.startswith("-p") else []))


def test_a_segmentation_refuses_a_hostile_prestage(trainer_factory, after_prestage, marker):
    (path,) = after_prestage.glob("*/AnomalyPreStageTrainer*/fold_0/checkpoint_final.pth")
    spoiled(path, marker)
    with pytest.raises(UserError, match="would run code when loaded"):
        trainer_factory("AnomalyAwareTrainer").initialize()


def test_error_images_refuses_a_hostile_model(after_prestage, tiny_dataset, marker, tmp_path, capsys):
    from nnunetv2_anomaly.command_line.main import main

    (path,) = after_prestage.glob("*/AnomalyPreStageTrainer*/fold_0/checkpoint_final.pth")
    spoiled(path, marker)
    folders = ["-i", str(tiny_dataset.raw / "imagesTs"), "-o", str(tmp_path / "out"), "-d", "801", "-c", "3d_small"]
    assert main(["error_images", *folders, "-tr", "AnomalyPreStageTrainer", "-device", "cpu"]) == 1
    assert "would run code when loaded" in capsys.readouterr().err
