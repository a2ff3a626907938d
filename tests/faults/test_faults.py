"""Faults made for real: each ends in one sentence, and the last good checkpoint stays."""

import contextlib
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.training.logging import nnunet_logger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import read_json, why_not_writable
from nnunetv2_anomaly.prediction.anomaly_maps import load_detector, predict_anomaly_maps
from nnunetv2_anomaly.training.data_record import case_record

PRESTAGE, SEGMENTATION, PUBLISHED = "AnomalyPreStageTrainer", "AnomalyAwareTrainer", "UNETPlusTrainer"
TRANSFER = "UNETPlusTransferTrainer"
CPU = torch.device("cpu")


def maps_by(model, images, output):
    return predict_anomaly_maps(images, output, load_detector(model, device=CPU))


#: the same code under another trainer, which every run need not try
PRESTAGE_TOO, PUBLISHED_TOO, TRANSFER_TOO = (
    pytest.param(name, marks=pytest.mark.exhaustive) for name in (PRESTAGE, PUBLISHED, TRANSFER)
)
TRAIN_PRESTAGE = "nnUNetv2_train 801 3d_small 0 -tr AnomalyPreStageTrainer -device cpu"


def log_of(trainer):
    return Path(trainer.log_file).read_text()


def stopped_before(trainer, epoch, monkeypatch):
    """Train until an epoch is about to begin, as if stopped there; returns the folder of the checkpoints."""
    start = trainer.on_train_epoch_start

    def stop():
        if trainer.current_epoch == epoch:
            raise KeyboardInterrupt
        start()

    monkeypatch.setattr(trainer, "on_train_epoch_start", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    return Path(trainer.output_folder)


def newest(folder):
    latest = folder / "checkpoint_latest.pth"
    return latest if latest.is_file() else folder / "checkpoint_best.pth"


def sentence_of(action):
    with pytest.raises(UserError) as caught:
        action()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert isinstance(caught.value, SystemExit)  # so that nnU-Net's commands print it, and no traceback
    return sentence


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of two megabytes of its own, and functions that fill it, empty it again and make it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not sys.platform.startswith("linux") or mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", folder).returncode:
        pytest.skip("a disk of two megabytes is made by Linux's mount, which root alone may do")

    class Disk:
        path = folder

        @staticmethod
        def fill(left=0):
            block = b"0" * 4096
            with contextlib.suppress(OSError), (folder / "filling").open("wb", buffering=0) as file:
                while True:
                    file.write(block)
            size = (folder / "filling").stat().st_size
            os.truncate(folder / "filling", max(0, size - left))

        @staticmethod
        def make_room():
            (folder / "filling").unlink()

        @staticmethod
        def make_read_only():
            assert mount("-o", "remount,ro", folder).returncode == 0

    yield Disk
    # Lazily: nnU-Net's maps of preprocessed files live as long as their arrays.
    subprocess.run(["umount", "-l", str(folder)], check=True)


# ------------------------------------------------------------------------------------------------- names of files


def test_error_images_of_names_that_cannot_be_kept_do_not_stop_the_others(trained_results, tiny_dataset, tmp_path):
    (tmp_path / "in").mkdir()
    image = next((tiny_dataset.raw / "imagesTs").iterdir())
    long = "l" * 240
    for name in (b"case", b"kn\xffe", long.encode()):
        shutil.copy(image, tmp_path / "in" / os.fsdecode(name + b"_0000.nii.gz"))
    folder = prestage_checkpoint(trained_results).parents[1]
    with pytest.raises(UserError) as caught:
        maps_by(folder, tmp_path / "in", tmp_path / "out")
    first, *told = str(caught.value).splitlines()
    assert first == "2 of 3 cases could not be predicted:"
    assert told[0].startswith("  kn\\udcffe: the name ")
    assert told[1].endswith(
        f"/{long}_reconstruction.nii.gz: File name too long; expected a name of at most 255 bytes, its ending "
        f"included, so shorten it"
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "anomaly_maps.json",
        "case.png",
        "case_error.nii.gz",
        "case_reconstruction.nii.gz",
    ]
    assert read_json(tmp_path / "out" / "anomaly_maps.json")["cases"] == ["case"]


@pytest.mark.parametrize("changes", [{"batch_size": "2"}, {"batch_size": 0}, {"patch_size": [16, -16, 16]}], ids=str)
@pytest.mark.parametrize("name", [PRESTAGE, SEGMENTATION, PUBLISHED_TOO])
def test_number_of_another_kind_in_the_plans_is_told_at_the_start(trainer_factory, results_folder, name, changes):
    ((key, value),) = changes.items()
    sentence = sentence_of(lambda: trainer_factory(name, changes=changes))
    assert sentence.startswith(f"'{key}' in plans.json is {value!r}; expected ")
    assert list(results_folder.iterdir()) == []


@pytest.mark.parametrize("name", [PRESTAGE, SEGMENTATION, PUBLISHED_TOO])
def test_training_on_cases_that_are_not_preprocessed_names_the_command(trainer_factory, own_preprocessed, name):
    shutil.rmtree(own_preprocessed / "nnUNetPlans_3d_fullres")
    sentence = sentence_of(trainer_factory(name).on_train_start)
    assert sentence == (
        f"{own_preprocessed / 'nnUNetPlans_3d_fullres'} does not exist; expected the preprocessed cases of "
        f"Dataset801_TinyKnee, so run: nnUNetv2_preprocess -d 801 -plans_name nnUNetPlans -c 3d_small"
    )


# ------------------------------------------------------------------------------------------- a loss that is not finite


@pytest.mark.parametrize(("name", "epoch"), [(PRESTAGE, 3), (SEGMENTATION, 1)], ids=str)
def test_diverged_training_stops_and_leaves_the_good_checkpoint(
    trainer_factory, after_prestage, monkeypatch, name, epoch
):
    if name == PRESTAGE:
        shutil.rmtree(next(after_prestage.glob(f"*/{PRESTAGE}__*")))
    folder = stopped_before(trainer_factory(name), epoch, monkeypatch)
    good = newest(folder)
    before = good.read_bytes()
    setting = "prestage_learning_rate" if name == PRESTAGE else "segmentation_learning_rate"
    trainer = trainer_factory(name, anomaly={setting: 1e36, "num_iterations_per_epoch": 40})
    trainer.load_checkpoint(str(good))
    sentence = sentence_of(trainer.run_training)
    assert f"loss became nan in epoch {epoch}, iteration " in sentence
    assert " on case_" in sentence
    assert "what the network or the loss made of it is not finite" in sentence
    assert f"set '{setting}' in the section 'anomaly' of plans.json to less than the present 1e+36 if" in sentence
    assert sentence.endswith(f"resume from {good} with --c")
    assert good.read_bytes() == before
    assert trainer.current_epoch == epoch
    # And that is a way on.
    again = trainer_factory(name)
    again.load_checkpoint(str(good))
    again.run_training()
    assert np.isfinite(again.logger.get_value("train_losses", None)).all()
    assert f"continued with other settings than {good}" in log_of(trainer)


def test_divergence_before_the_first_checkpoint_says_to_start_again(trainer_factory, results_folder):
    trainer = trainer_factory(PRESTAGE, anomaly={"prestage_learning_rate": 1e36, "num_iterations_per_epoch": 40})
    assert sentence_of(trainer.run_training).endswith("start again, as this run has no checkpoint yet")
    assert list(Path(trainer.output_folder).glob("checkpoint*")) == []


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        (PRESTAGE, "set 'prestage_learning_rate' in"),
        (SEGMENTATION, "set 'segmentation_learning_rate' in"),
        ("BoneContrastTrainer", "check images and labels of these cases if"),  # its rate is nnU-Net's
    ],
)
def test_loss_of_the_validation_is_judged_before_such_weights_are_saved(trainer_factory, after_prestage, name, advice):
    trainer = trainer_factory(name)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    with torch.no_grad():
        for parameter in trainer.module.parameters():
            parameter.fill_(float("inf"))
        batch = next(trainer.dataloader_val)
        sentence = sentence_of(lambda: trainer.validation_step(batch))
    assert "the validation loss became nan in epoch 0, iteration 1, on case_" in sentence
    assert f"so {advice} " in sentence


def preprocessed_again(own_preprocessed, case, change):
    """Write a case's preprocessed image anew, changed."""
    folder = own_preprocessed / "nnUNetPlans_3d_fullres"
    image, segmentation, _, properties = nnUNetDatasetBlosc2(str(folder)).load_case(case)
    image, segmentation = np.array(image[:]), np.array(segmentation[:])
    for path in folder.glob(f"{case}[._]*"):
        path.unlink()
    sizes = ((1, 16, 16, 16),) * 4
    nnUNetDatasetBlosc2.save_case(change(image), segmentation, properties, str(folder / case), *sizes)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_image_that_is_not_finite_is_named_as_the_cause(trainer_factory, own_preprocessed, results_folder, value):
    trainer = trainer_factory(PUBLISHED, anomaly={"num_iterations_per_epoch": 4})
    case = trainer.do_split()[0][0]
    preprocessed_again(own_preprocessed, case, lambda image: image + np.float32(value))
    sentence = sentence_of(trainer.run_training)
    assert f"the preprocessed image of {case} holds NaN or infinite voxels" in sentence
    assert "so fix that image, run nnUNetv2_preprocess again, and start again" in sentence


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_prestage_tells_of_an_image_that_is_not_finite_before_it_trains(trainer_factory, own_preprocessed, value):
    preprocessed_again(own_preprocessed, "case_1", lambda image: image + np.float32(value))
    assert "case 'case_1' holds NaN or infinite voxels" in sentence_of(trainer_factory(PRESTAGE).run_training)


def test_gradients_that_overflow_are_left_to_the_scaler(trainer_factory, after_prestage):
    trainer = trainer_factory(SEGMENTATION, anomaly={"alpha": 1e6})
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = copy.deepcopy(trainer.module.state_dict())
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    assert trainer.grad_scaler.get_scale() < 2.0**127  # it met an overflow, and left the step out
    assert all(torch.equal(value, before[key]) for key, value in trainer.module.state_dict().items())


# -------------------------------------------------------------------------------------- checkpoints that are none


def truncated(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def changed(path, change):
    checkpoint = torch.load(path, weights_only=False)
    checkpoint = change(checkpoint) or checkpoint
    torch.save(checkpoint, path)


def of_other_plans(checkpoint):
    checkpoint["init_args"] = copy.deepcopy(checkpoint["init_args"])
    checkpoint["init_args"]["plans"]["configurations"]["3d_small"]["patch_size"] = [16, 16, 32]


def of_another_fold(checkpoint):
    checkpoint["init_args"] = {**checkpoint["init_args"], "fold": 3}


def of_another_network(checkpoint):
    name = next(name for name in checkpoint["network_weights"] if name.endswith("reconstructor.output.weight"))
    checkpoint["network_weights"][name] = torch.zeros(1, 9)


#: what is done to a checkpoint, and what --c then says
SPOILED = {
    "nothing in it": (lambda path: truncated(path, 0), "cannot be read (EOFError"),
    "cut short": (lambda path: truncated(path, 0.6), "cannot be read (RuntimeError"),
    "a text": (lambda path: path.write_text("version https://git-lfs.github.com"), "cannot be read (UnpicklingError"),
    "a list": (lambda path: torch.save([1, 2], path), "is not the checkpoint of a training"),
    "bare weights": (lambda path: changed(path, lambda c: c["network_weights"]), "is not the checkpoint of a training"),
    "another trainer's": (
        lambda path: changed(path, lambda c: c.update(trainer_name="nnUNetTrainer")),
        "was written by the trainer nnUNetTrainer, and",
    ),
    "reduced": (
        lambda path: changed(path, lambda c: {k: c[k] for k in ("network_weights", "init_args", "trainer_name")}),
        "does not fit the optimiser or the log of this version",
    ),
    "other plans": (
        lambda path: changed(path, of_other_plans),
        "is of another training: 'patch_size' was [16, 16, 32] and is [16, 16, 16]",
    ),
    "another fold": (lambda path: changed(path, of_another_fold), "is of another training: the fold was 3 and is 0"),
    "another network": (lambda path: changed(path, of_another_network), "does not fit the network: 'detector."),
}


@pytest.mark.parametrize("name", [PRESTAGE_TOO, SEGMENTATION])
@pytest.mark.parametrize("spoil", SPOILED)
def test_spoiled_checkpoint_is_told_in_a_sentence_when_training_continues(
    trainer_factory, after_prestage, tmp_path, name, spoil
):
    trainer = trainer_factory(name)
    trainer.initialize()
    path = tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    make, expected = SPOILED[spoil]
    make(path)
    sentence = sentence_of(lambda: trainer_factory(name).load_checkpoint(str(path)))
    assert str(path) in sentence
    assert expected in sentence
    assert "without --c" in sentence
    if "plans" not in spoil and "fold" not in spoil and "network" not in spoil:
        shutil.copy(path, tmp_path / "checkpoint_best.pth")
        sentence = sentence_of(lambda: trainer_factory(name).load_checkpoint(str(path)))
        assert "move it away, and --c resumes with checkpoint_best.pth" in sentence


def test_checkpoint_of_nnunets_own_trainer_is_told_in_a_sentence(build_trainer, trainer_factory, tmp_path):
    theirs = build_trainer(nnUNetTrainer)
    theirs.initialize()
    path = tmp_path / "checkpoint_final.pth"
    theirs.save_checkpoint(str(path))
    sentence = sentence_of(lambda: trainer_factory(SEGMENTATION).load_checkpoint(str(path)))
    assert "was written by the trainer nnUNetTrainer, and AnomalyAwareTrainer cannot continue it" in sentence
    assert "give -tr nnUNetTrainer" in sentence


def test_phase_1_keeps_its_length_once_phase_2_has_begun(trainer_factory, results_folder, monkeypatch):
    folder = stopped_before(trainer_factory(PRESTAGE), 3, monkeypatch)
    trainer = trainer_factory(PRESTAGE, anomaly={"inpainting_epochs": 1})
    sentence = sentence_of(lambda: trainer.load_checkpoint(str(newest(folder))))
    assert "phase 1 took 2 epochs, and 'inpainting_epochs' is now 1" in sentence


def test_best_score_of_the_latest_checkpoint_is_that_of_its_epoch(trainer_factory, after_prestage, monkeypatch):
    trainer = trainer_factory(SEGMENTATION)
    trainer.save_every = 1
    best = []
    saved = trainer.save_checkpoint

    def see(filename):
        saved(filename)
        best.append((Path(filename).name, torch.load(filename, weights_only=False)["_best_ema"], trainer._best_ema))

    monkeypatch.setattr(trainer, "save_checkpoint", see)
    # nnU-Net writes the latest checkpoint before it settles the best score.
    monkeypatch.setattr(trainer.logger.local_logger, "plot_progress_png", lambda folder: None)
    trainer.on_train_start()
    for epoch, dice in enumerate((0.1, 0.5)):
        for key, value in (("train_losses", 1.0), ("val_losses", 1.0), ("dice_per_class_or_region", [dice])):
            trainer.logger.log(key, value, epoch)
        trainer.logger.log("mean_fg_dice", dice, epoch)
        trainer.num_epochs = 5
        trainer.on_epoch_start()
        trainer.on_epoch_end()
    names, stored, _ = zip(*best, strict=True)
    assert names == ("checkpoint_latest.pth", "checkpoint_best.pth") * 2
    assert stored[2] == stored[3] == pytest.approx(0.14)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process that is killed is a fork of this one")
def test_kill_in_the_middle_of_writing_leaves_a_whole_checkpoint(trainer_factory, results_folder, tmp_path):
    trainer = trainer_factory(PUBLISHED)
    trainer.initialize()
    path = tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    rng = random.Random(0)
    found_half = 0
    for _ in range(20):
        writer = os.fork()
        if writer == 0:
            try:
                while True:
                    trainer.save_checkpoint(str(path))
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.01, 0.1))
        os.kill(writer, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(writer, 0)[1])
        found_half += bool(list(tmp_path.glob("*.part")))
        torch.load(path, weights_only=False)
    assert found_half  # some really fell into the middle


def prestage_checkpoint(results):
    (path,) = results.glob(f"*/{PRESTAGE}__nnUNetPlans__3d_small/fold_0/checkpoint_final.pth")
    return path


def with_nan(checkpoint):
    checkpoint["network_weights"]["detector.compressor.encode.bias"][0] = float("nan")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: truncated(path, 0.6), "cannot be read (RuntimeError"),
        (lambda path: torch.save({"trainer_name": "nnUNetTrainer"}, path), "was written by the trainer nnUNetTrainer"),
        (lambda path: changed(path, lambda c: c.pop("anomaly_detector") and None), "describes no detector"),
        (lambda path: changed(path, of_another_network), "does not fit: 'reconstructor.output.weight' is (1, 9) there"),
        (lambda path: changed(path, with_nan), "holds weights that are NaN or infinite"),
    ],
    ids=["cut short", "nnU-Net's", "no detector", "another network", "diverged"],
)
def test_spoiled_prestage_is_told_when_the_segmentation_takes_its_detector(
    trainer_factory, after_prestage, make, expected
):
    path = prestage_checkpoint(after_prestage)
    make(path)
    sentence = sentence_of(trainer_factory(SEGMENTATION).initialize)
    assert str(path) in sentence
    assert expected in sentence


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: truncated(path, 0.6), "cannot be read (RuntimeError"),
        (lambda path: torch.save([1], path), "is no checkpoint of nnU-Net's"),
        (
            lambda path: changed(path, lambda c: c.update(trainer_name="Nobody")),
            "trainer Nobody, which nnU-Net does not find here",
        ),
        (lambda path: changed(path, of_another_network), "cannot be loaded (RuntimeError"),
        (lambda path: path.unlink(), "cannot be loaded (FileNotFoundError"),
    ],
    ids=["cut short", "a list", "nobody's", "another network", "missing"],
)
def test_spoiled_checkpoint_is_told_when_error_images_are_made(after_prestage, tiny_dataset, tmp_path, make, expected):
    path = prestage_checkpoint(after_prestage)
    make(path)
    images = tiny_dataset.raw / "imagesTs"
    sentence = sentence_of(lambda: maps_by(path.parents[1], images, tmp_path / "out"))
    assert expected in sentence


def test_model_without_detector_is_told_when_error_images_are_made(build_trainer, results_folder, tiny_dataset):
    theirs = build_trainer(nnUNetTrainer)
    theirs.on_train_start()
    theirs.save_checkpoint(str(Path(theirs.output_folder) / "checkpoint_final.pth"))
    folder = Path(theirs.output_folder_base)
    images = tiny_dataset.raw / "imagesTs"
    sentence = sentence_of(lambda: maps_by(folder, images, results_folder / "out"))
    assert "(nnUNetTrainer) has no detector" in sentence


def saved_from_a_gpu(path):
    """As torch writes it on a machine with a GPU: the device's name stands beside every tensor."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"X\x03\0\0\0cpu", b"X\x07\0\0\0cuda:77"))


def of_another_shape(checkpoint):
    name = next(name for name in checkpoint["network_weights"] if "encoder" in name and name.endswith("weight"))
    checkpoint["network_weights"][name] = torch.zeros(1, 9)


def of_another_architecture(checkpoint):
    weights = checkpoint["network_weights"]
    checkpoint["network_weights"] = {f"other.{name}": tensor for name, tensor in weights.items()}


#: what is done to a file of pretrained weights, and what nnUNetv2_train then says
SPOILED_WEIGHTS = {
    "missing": (lambda path: path.unlink(), "cannot be read (FileNotFoundError"),
    "nothing in it": (lambda path: truncated(path, 0), "cannot be read (EOFError"),
    "cut short": (lambda path: truncated(path, 0.6), "cannot be read (RuntimeError"),
    "a text": (lambda path: path.write_text("version 1"), "cannot be read (UnpicklingError"),
    "a list": (lambda path: torch.save([1, 2], path), "hold no tensors under 'network_weights'"),
    "bare weights": (
        lambda path: changed(path, lambda c: c["network_weights"]),
        "hold no tensors under 'network_weights'",
    ),
    "no tensors": (
        lambda path: changed(path, lambda c: c.update(network_weights={"a": 1})),
        "hold no tensors under 'network_weights'",
    ),
    "another shape": (lambda path: changed(path, of_another_shape), "is (1, 9) there and ("),
    "another network": (lambda path: changed(path, of_another_architecture), " do not fit: '"),
    "from a GPU": (saved_from_a_gpu, "were saved from the device cuda:77, which is not here"),
}


@pytest.fixture
def nnunet_train(monkeypatch):
    """Function: nnUNetv2_train's own entry point, with options."""
    threads = torch.get_num_threads()

    def train(*options):
        words = ["nnUNetv2_train", "801", "3d_small", "0", "-device", "cpu", *map(str, options)]
        monkeypatch.setattr(sys, "argv", words)
        run_training_entry()

    yield train
    torch.set_num_threads(threads)  # the command takes all


@pytest.mark.parametrize("name", [SEGMENTATION, PUBLISHED_TOO, TRANSFER_TOO])
@pytest.mark.parametrize("spoil", SPOILED_WEIGHTS)
def test_spoiled_pretrained_weights_are_told_in_a_sentence(
    trainer_factory, after_prestage, nnunet_train, tmp_path, name, spoil
):
    path = tmp_path / "weights.pth"
    source = trainer_factory(name.replace("Transfer", ""))
    source.initialize()
    source.save_checkpoint(str(path))
    make, expected = SPOILED_WEIGHTS[spoil]
    make(path)
    sentence = sentence_of(lambda: nnunet_train("-tr", name, "-pretrained_weights", path))
    assert sentence.startswith(f"the pretrained weights {path} ")
    assert expected in sentence


@pytest.fixture
def started_from(trainer_factory, tmp_path, monkeypatch):
    """Function: a trainer of another one's kind, to which nnU-Net gave its weights, from a file with nothing else."""

    def start(source):
        path = tmp_path / "weights.pth"
        torch.save({"network_weights": source.module.state_dict()}, path)
        monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "-pretrained_weights", str(path)])
        trainer = trainer_factory(type(source).__name__)
        trainer.initialize()
        load_pretrained_weights(trainer.network, str(path))
        return trainer

    return start


@pytest.mark.parametrize("name", [SEGMENTATION, PUBLISHED])
def test_pretrained_weights_of_other_labels_and_nothing_else_in_the_file_are_taken(
    trainer_factory, after_prestage, tiny_dataset, started_from, name
):
    labels = {"background": 0, "femoral_bone": 1}
    source = trainer_factory(name, dataset_json={**tiny_dataset.dataset_json, "labels": labels})
    source.initialize()
    trainer = started_from(source)
    theirs, ours = (each.segmenter.encoder.state_dict() for each in (source, trainer))
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


def test_prestage_keeps_every_pretrained_weight(trainer_factory, started_from):
    source = trainer_factory(PRESTAGE)
    source.initialize()
    with torch.no_grad():
        for weight in source.module.parameters():
            weight.normal_()
    trainer = started_from(source)
    trainer.on_train_start()
    theirs, ours = (dict(each.module.named_parameters()) for each in (source, trainer))
    assert [name for name in theirs if not torch.equal(theirs[name], ours[name])] == []


@pytest.mark.parametrize("name", [PRESTAGE, SEGMENTATION, PUBLISHED, TRANSFER])
@pytest.mark.parametrize(("device", "seen_by"), [("cuda", torch.cuda), ("mps", torch.backends.mps)])
def test_device_that_is_not_there_is_told_before_anything_is_written(
    tiny_dataset, results_folder, nnunet_train, monkeypatch, name, device, seen_by
):
    monkeypatch.setattr(seen_by, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda number: None)  # which a process may do once
    sentence = sentence_of(lambda: nnunet_train("-tr", name, "-device", device))
    assert sentence.startswith(f"-device {device} was asked for")
    assert not list(results_folder.rglob("*"))


@pytest.mark.parametrize("name", [PRESTAGE, PUBLISHED])
def test_weights_are_not_looked_at_where_nnunet_does_not_copy_them(trainer_factory, tmp_path, monkeypatch, name):
    path = tmp_path / "checkpoint_final.pth"
    trainer = trainer_factory(name)
    trainer.initialize()
    trainer.save_checkpoint(str(path))
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "--val", "-pretrained_weights", str(tmp_path / "nowhere.pth")])
    trainer_factory(name).load_checkpoint(str(path))


def test_half_written_split_is_told(trainer_factory, own_preprocessed):
    (own_preprocessed / "splits_final.json").write_text('[{"train": ["case_')
    sentence = sentence_of(trainer_factory(PUBLISHED).do_split)
    assert f"{own_preprocessed}/splits_final.json cannot be read" in sentence
    assert "delete it" in sentence


def test_new_training_warns_of_an_older_ones_checkpoints_and_removes_half_of_one(trainer_factory, results_folder):
    trainer = trainer_factory(PUBLISHED)
    folder = Path(trainer.output_folder)
    (folder / "checkpoint_final.pth").write_bytes(b"of an earlier training")
    (folder / "checkpoint_best.pth.part").write_bytes(b"half")
    trainer.on_train_start()
    assert f"WARNING: {folder} holds checkpoint_final.pth of an earlier training" in log_of(trainer)
    assert not (folder / "checkpoint_best.pth.part").exists()


# --------------------------------------------------------------------------------------- a full disk, and a locked one


@pytest.mark.parametrize("name", [PRESTAGE, SEGMENTATION])
def test_full_disk_leaves_the_last_good_checkpoint(trainer_factory, after_prestage, small_disk, monkeypatch, name):
    trainer = trainer_factory(name)
    trainer.initialize()
    path = small_disk.path / "checkpoint_latest.pth"
    trainer.output_folder = str(small_disk.path)
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()
    for left in (0, 20_000):
        small_disk.fill(left)
        sentence = sentence_of(lambda: trainer.save_checkpoint(str(path)))
        assert f"the checkpoint {path} cannot be written to (No space left on device)" in sentence
        assert sentence.endswith(f"resume from {path} with --c")
        assert path.read_bytes() == before
        assert [entry.name for entry in small_disk.path.glob("*.part*")] == []
        small_disk.make_room()
    trainer.save_checkpoint(str(path))  # and with room it goes on


def test_training_on_a_full_disk_ends_in_a_sentence(trainer_factory, small_disk, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(small_disk.path))
    trainer = trainer_factory(PRESTAGE)
    monkeypatch.setattr(trainer, "log_file", os.devnull)  # nnU-Net would try each of its lines for seconds
    start = trainer.on_train_epoch_start

    def fill_and_start():
        if trainer.current_epoch == 1:
            small_disk.fill()
        start()

    monkeypatch.setattr(trainer, "on_train_epoch_start", fill_and_start)
    sentence = sentence_of(trainer.run_training)
    good = Path(trainer.output_folder) / "checkpoint_latest.pth"
    assert "cannot be written to (No space left on device)" in sentence
    assert sentence.endswith(f"resume from {good} with --c")
    small_disk.make_room()
    resumed = trainer_factory(PRESTAGE)
    resumed.load_checkpoint(str(good))
    assert resumed.current_epoch == 1


@pytest.mark.parametrize("name", [PRESTAGE, SEGMENTATION])
def test_full_disk_under_the_figure_of_the_progress_ends_in_a_sentence(
    trainer_factory, after_prestage, drawn_figures, small_disk, monkeypatch, name
):
    trainer = trainer_factory(name)
    trainer.output_folder = str(small_disk.path)
    monkeypatch.setattr(trainer, "log_file", os.devnull)  # nnU-Net would try each of its lines for seconds
    save = trainer.save_checkpoint

    def save_and_fill(filename):
        save(filename)
        if filename.endswith("checkpoint_best.pth"):  # the last thing that is written before the figure
            small_disk.fill()

    monkeypatch.setattr(trainer, "save_checkpoint", save_and_fill)
    sentence = sentence_of(trainer.run_training)
    assert f"{small_disk.path} cannot be written to (No space left on device); make room" in sentence
    torch.load(small_disk.path / "checkpoint_best.pth", weights_only=False)


@pytest.mark.parametrize("name", [PRESTAGE, SEGMENTATION])
def test_training_that_cannot_begin_to_write_ends_in_a_sentence(
    trainer_factory, after_prestage, small_disk, monkeypatch, name
):
    trainer = trainer_factory(name)
    small_disk.fill()
    trainer.output_folder_base = str(small_disk.path)  # nnU-Net copies the plans there
    assert "cannot be written to (No space left on device); make room" in sentence_of(trainer.run_training)


@pytest.mark.parametrize("name", [PRESTAGE, SEGMENTATION])
def test_validation_on_a_full_disk_ends_in_a_sentence(trainer_factory, after_prestage, small_disk, monkeypatch, name):
    trainer = trainer_factory(name)
    trainer.on_train_start()
    trainer.output_folder = str(small_disk.path)
    small_disk.fill()
    sentence = sentence_of(trainer.perform_actual_validation)
    assert str(small_disk.path) in sentence
    full = (
        "the disk is likely full; make room",
        "the disk is likely full); make room",
        "(No space left on device); make",
    )
    assert any(part in sentence for part in full)
    assert not (small_disk.path / "validation" / "summary.json").exists()


def test_error_images_on_a_full_disk_end_in_a_sentence_and_leave_nothing_half(
    trained_results, tiny_dataset, small_disk
):
    folder = prestage_checkpoint(trained_results).parents[1]
    output = small_disk.path / "out"
    output.mkdir()
    small_disk.fill(20_000)
    sentence = sentence_of(lambda: maps_by(folder, tiny_dataset.raw / "imagesTs", output))
    assert f"{output} cannot be written to (" in sentence
    assert not [path for path in output.iterdir() if path.name.startswith("part_")]


@pytest.fixture
def predictions(tiny_dataset, tmp_path):
    """As good as predictions: the labels, with the dataset.json that nnU-Net puts beside its own."""
    folder = tmp_path / "predictions"
    shutil.copytree(tiny_dataset.raw / "labelsTr", folder)
    shutil.copy(tiny_dataset.raw / "dataset.json", folder)
    return folder


@pytest.mark.parametrize(
    ("left", "reached"), [(0, "*"), (30_000, "cases/*.json"), (400_000, "figures/*.png")], ids=lambda value: str(value)
)
def test_evaluation_on_a_full_disk_ends_in_a_sentence(tiny_dataset, predictions, small_disk, capsys, left, reached):
    output = small_disk.path / "out"
    small_disk.fill(left)
    words = ["-ref", tiny_dataset.raw / "labelsTr", "-pred", predictions, "-o", output, "-np", "1"]
    assert main(["evaluate", *map(str, words)]) == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert f"{output} cannot be written to (No space left on device)" in sentence
    assert bool(list(output.glob(reached))) is (left > 0)
    assert not (output / "report.html").exists()
    assert not list(output.rglob("part_*"))


def test_cleaning_on_a_full_disk_ends_in_a_sentence_and_goes_on(predictions, small_disk, capsys):
    output = small_disk.path / "out"
    words = ["postprocess", "-i", str(predictions), "-o", str(output), "-np", "1"]
    small_disk.fill(16_384)
    assert main(words) == 1
    assert f"{output} cannot be written to (" in capsys.readouterr().err.splitlines()[-1]
    assert not list(output.rglob("part_*"))
    small_disk.make_room()
    assert main(words) == 0
    assert len(list(output.glob("*.nii.gz"))) == 5


@pytest.mark.parametrize("left", [0, 16_384])
def test_simulation_on_a_full_disk_ends_in_a_sentence_and_goes_on(small_disk, capsys, left):
    output = small_disk.path / "out"
    words = ["simulate", "-o", str(output), "--phantoms", "2", "--size", "24", "32", "32", "-np", "1"]
    small_disk.fill(left)
    assert main(words) == 1
    assert f"{output} cannot be written to (" in capsys.readouterr().err.splitlines()[-1]
    assert not list(output.rglob("part_*"))
    small_disk.make_room()
    assert main(words) == 0
    assert len(list((output / "images").iterdir())) == 2


def test_erased_regions_on_a_full_disk_end_in_a_sentence(trainer_factory, own_preprocessed, results_folder, small_disk):
    (own_preprocessed / "anomaly_erased_regions").symlink_to(small_disk.path)
    small_disk.fill()
    sentence = sentence_of(trainer_factory(PRESTAGE).run_training)
    assert sentence.startswith("the cache of erased regions ")
    assert "cannot be written to (" in sentence
    small_disk.make_room()
    assert not list(small_disk.path.rglob("part_*"))
    trainer_factory(PRESTAGE).prepare()


def test_read_only_results_folder_is_told_before_anything_else(trainer_factory, small_disk, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_results", str(small_disk.path))
    small_disk.make_read_only()
    for name in (PRESTAGE, SEGMENTATION):
        sentence = sentence_of(lambda name=name: trainer_factory(name))
        assert sentence.startswith(f"nothing can be written into {small_disk.path}")
        assert "(Read-only file system)" in sentence
    assert "failed to log" not in capsys.readouterr().out


def test_read_only_output_folder_of_error_images_is_told(trained_results, tiny_dataset, small_disk):
    folder = prestage_checkpoint(trained_results).parents[1]
    small_disk.make_read_only()
    output = small_disk.path / "out"
    sentence = sentence_of(lambda: maps_by(folder, tiny_dataset.raw / "imagesTs", output))
    assert f"{output} cannot be written to (Read-only file system)" in sentence


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions as POSIX has them")
def test_missing_permission_is_seen_and_told(trainer_factory, monkeypatch):
    # Not below pytest's own folder, which is closed to others as a whole.
    with tempfile.TemporaryDirectory() as base:
        locked = Path(base) / "results"
        locked.mkdir()
        os.chmod(base, 0o755)
        os.chmod(locked, 0o555)
        monkeypatch.setenv("nnUNet_results", str(locked))
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may write anywhere
            assert why_not_writable(locked / "not" / "there") == "Permission denied"
            sentence = sentence_of(lambda: trainer_factory(PRESTAGE))
        finally:
            os.seteuid(user)
        assert "(Permission denied); expected a results folder with write permission" in sentence


# --------------------------------------------------------------------------------- a data set that has changed since


def test_unchanged_data_and_new_cases_are_taken_in_silence(trainer_factory, after_prestage, own_preprocessed):
    folder = own_preprocessed / "nnUNetPlans_3d_fullres"
    for path in list(folder.glob("case_1[._]*")):
        shutil.copy(path, folder / path.name.replace("case_1", "case_new"))
    preprocessed_again(own_preprocessed, "case_2", lambda image: image + np.float32(1e-4))  # another machine's rounding
    shutil.copy(own_preprocessed / "nnUNetPlans.json", own_preprocessed / "copy.json")
    split = prestage_split(after_prestage)
    split["train"].append("case_new")
    (own_preprocessed / "splits_final.json").write_text(json.dumps([split]))
    trainer = trainer_factory(SEGMENTATION)
    trainer.on_train_start()
    assert "has changed since" not in log_of(trainer)


def prestage_split(results):
    seen = torch.load(prestage_checkpoint(results), weights_only=False)["anomaly_detector"]["fitted_on"]
    return {"train": list(seen), "val": [f"case_{n}" for n in range(5) if f"case_{n}" not in seen]}


def remove_a_case(own_preprocessed, split, plans):
    case = split["train"].pop()
    for path in (own_preprocessed / "nnUNetPlans_3d_fullres").glob(f"{case}[._]*"):
        path.unlink()
    return f"1 of its 4 training cases are gone ({case})"


def brighten_a_case(own_preprocessed, split, plans):
    preprocessed_again(own_preprocessed, split["train"][0], lambda image: image * np.float32(1.2))
    return f"1 training case(s) are other images or preprocessed otherwise ({split['train'][0]})"


def crop_a_case(own_preprocessed, split, plans):
    preprocessed_again(own_preprocessed, split["train"][1], lambda image: image[..., 1:])
    return f"1 training case(s) are other images or preprocessed otherwise ({split['train'][1]})"


def plan_another_spacing(own_preprocessed, split, plans):
    plans["spacing"] = [2.0, 1.0, 1.0]
    return "'spacing' was [1.0, 1.0, 1.0] and is [2.0, 1.0, 1.0]"


@pytest.mark.parametrize("change", [remove_a_case, brighten_a_case, crop_a_case, plan_another_spacing])
@pytest.mark.parametrize("allowed", [False, True])
def test_data_set_that_has_changed_since_the_prestage_is_told(
    trainer_factory, after_prestage, own_preprocessed, change, allowed
):
    split, plans = prestage_split(after_prestage), {}
    expected = change(own_preprocessed, split, plans)
    (own_preprocessed / "splits_final.json").write_text(json.dumps([split]))
    trainer = trainer_factory(SEGMENTATION, changes=plans, anomaly={"allow_changed_data": allowed})
    if allowed:
        trainer.on_train_start()
        sentence = log_of(trainer)
        assert "accepted because 'allow_changed_data' is set" in sentence
    else:
        sentence = sentence_of(trainer.on_train_start)
        assert f"so train that again: {TRAIN_PRESTAGE}, or set 'allow_changed_data'" in sentence
    assert "the data set has changed since the detector in" in sentence
    assert expected in sentence


def test_detector_from_another_data_set_is_not_asked_for_its_cases(trainer_factory, after_prestage):
    def change(checkpoint):
        checkpoint["anomaly_detector"]["data"]["dataset"] = "Dataset500_OAIZIB"
        checkpoint["anomaly_detector"]["data"]["preprocessing"]["spacing"] = [3.0, 1.0, 1.0]

    changed(prestage_checkpoint(after_prestage), change)
    trainer = trainer_factory(SEGMENTATION)
    trainer.on_train_start()
    assert "comes from Dataset500_OAIZIB, where 'spacing' was [3.0, 1.0, 1.0] and is [1.0" in log_of(trainer)


@pytest.fixture
def interrupted(trainer_factory, own_preprocessed, after_prestage, monkeypatch):
    """Function: train until the second epoch; the checkpoint to go on with, and the training cases."""

    def train(name):
        if name == PRESTAGE:
            shutil.rmtree(next(after_prestage.glob(f"*/{PRESTAGE}__*")))
        first = trainer_factory(name)
        folder = stopped_before(first, 1, monkeypatch)
        return newest(folder), first.do_split()[0]

    return train


@pytest.fixture
def continued(trainer_factory, capsys):
    """Function: go on from a checkpoint; the trainer, and what it has printed."""

    def go_on(name, checkpoint):
        capsys.readouterr()
        trainer = trainer_factory(name)
        trainer.load_checkpoint(str(checkpoint))
        trainer.on_train_start()
        return trainer, capsys.readouterr().out

    return go_on


@pytest.mark.parametrize("name", [PRESTAGE, SEGMENTATION, PUBLISHED_TOO])
def test_continued_training_warns_of_changed_data(own_preprocessed, interrupted, continued, name):
    checkpoint, cases = interrupted(name)
    assert "since this run began" not in continued(name, checkpoint)[1]
    preprocessed_again(own_preprocessed, cases[0], lambda image: -image)
    trainer, told = continued(name, checkpoint)
    assert (
        f"WARNING: the data set has changed since this run began: 1 training case(s) are other images or preprocessed "
        f"otherwise ({cases[0]})"
    ) in told
    trainer.save_checkpoint(str(checkpoint))  # told once: from here on it is this run's data
    assert "since this run began" not in continued(name, checkpoint)[1]


def test_continued_training_tells_of_cases_that_are_gone(own_preprocessed, interrupted, continued):
    checkpoint, cases = interrupted(PUBLISHED)
    for path in (own_preprocessed / "nnUNetPlans_3d_fullres").glob(f"{cases[0]}[._]*"):
        path.unlink()
    sentence = sentence_of(lambda: continued(PUBLISHED, checkpoint))
    assert "splits_final.json names 1 case(s) that are not in" in sentence
    assert f"({cases[0]}); expected every case of the fold" in sentence
    splits = json.loads((own_preprocessed / "splits_final.json").read_text())
    splits[0]["train"].remove(cases[0])
    (own_preprocessed / "splits_final.json").write_text(json.dumps(splits))
    told = continued(PUBLISHED, checkpoint)[1]
    assert f"since this run began: 1 of its 4 training cases are gone ({cases[0]})" in told


@pytest.mark.parametrize("name", [PRESTAGE, PUBLISHED_TOO])
@pytest.mark.parametrize("subset", [0, 1], ids=["training", "validation"])
@pytest.mark.parametrize("which", [".b2nd", "_seg.b2nd", ".pkl"])
def test_preprocessed_file_that_is_cut_short_is_told(
    trainer_factory, own_preprocessed, results_folder, name, subset, which
):
    trainer = trainer_factory(name)
    case = trainer.do_split()[subset][0]
    truncated(own_preprocessed / "nnUNetPlans_3d_fullres" / f"{case}{which}", 0.5)
    sentence = sentence_of(trainer.run_training)
    assert f"the preprocessed case '{case}' in" in sentence
    assert "run nnUNetv2_preprocess again" in sentence


@pytest.mark.parametrize("share", [0, 0.5])
def test_preprocessed_file_of_nnunets_older_format_that_is_cut_short_is_told(tmp_path, share):
    image = np.zeros((1, 4, 4, 4), np.float32)
    nnUNetDatasetNumpy.save_case(image, image.astype(np.int8), {}, str(tmp_path / "case_0"))
    dataset = nnUNetDatasetNumpy(str(tmp_path), ["case_0"])
    assert case_record(dataset, "case_0")["shape"] == [1, 4, 4, 4]
    truncated(tmp_path / "case_0.npz", share)
    assert "the preprocessed case 'case_0' in" in sentence_of(lambda: case_record(dataset, "case_0"))


# ------------------------------------------------------------------------------------------------ unusual images


def write_raw(array, path):
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing((1.0, 1.0, 1.0))
    sitk.WriteImage(image, str(path))


UNUSUAL = {
    "constant": np.full((20, 22, 24), 350.3),
    "zero": np.zeros((20, 22, 24)),
    "one slice": np.random.default_rng(0).normal(300, 50, (1, 22, 24)),
    "one column": np.random.default_rng(1).normal(300, 50, (20, 1, 1)),
    "small": np.random.default_rng(2).normal(300, 50, (5, 4, 3)),
    "one voxel": np.full((1, 1, 1), 7.0),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_error_images_of_unusual_images_are_finite(trained_results, tmp_path, kind):
    (tmp_path / "in").mkdir()
    write_raw(UNUSUAL[kind], tmp_path / "in" / "case_0000.nii.gz")
    folder = prestage_checkpoint(trained_results).parents[1]
    maps_by(folder, tmp_path / "in", tmp_path / "out")
    error = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "case_error.nii.gz")))
    assert error.shape == UNUSUAL[kind].shape
    assert np.isfinite(error).all()
    assert (tmp_path / "out" / "case.png").is_file()


@pytest.mark.parametrize(
    ("value", "cut"), [("nan", False), ("inf", False), ("nan", True)], ids=["nan", "inf", "cut short"]
)
def test_error_images_refuse_damaged_images_by_their_file(trained_results, tmp_path, value, cut):
    (tmp_path / "in").mkdir()
    voxels = np.random.default_rng(0).normal(300, 50, (20, 22, 24))
    voxels[3, 3, 3] = float(value)
    path = tmp_path / "in" / "case_0000.nii.gz"
    write_raw(voxels, path)
    if cut:
        truncated(path, 0.5)
    folder = prestage_checkpoint(trained_results).parents[1]
    write_raw(np.random.default_rng(0).normal(300, 50, (20, 22, 24)), tmp_path / "in" / "other_0000.nii.gz")
    with pytest.raises(UserError, match="1 of 2 cases could not be predicted:\n  case: ") as caught:
        maps_by(folder, tmp_path / "in", tmp_path / "out")
    sentence = str(caught.value)
    assert str(path) in sentence
    assert sorted(file.name for file in (tmp_path / "out").glob("*.gz")) == [
        "other_error.nii.gz",
        "other_reconstruction.nii.gz",
    ]
    assert ("is cut short or damaged" if cut else "holds infinite voxels or NaN") in sentence


@pytest.mark.parametrize("configuration", ["3d_small", pytest.param("2d_small", marks=pytest.mark.exhaustive)])
def test_both_stages_train_and_validate_on_unusual_images(
    trainer_factory, own_preprocessed, tiny_dataset, results_folder, configuration
):
    """A constant image, one of a single slice and one smaller than a patch, through nnU-Net's own preprocessing."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(copy.deepcopy(tiny_dataset.plans))
    fullres = plans.get_configuration("3d_fullres")
    preprocessor = fullres.preprocessor_class(verbose=False)
    folder = own_preprocessed / "nnUNetPlans_3d_fullres"
    for number, kind in enumerate(("constant", "one slice", "small")):
        image = UNUSUAL[kind].astype(np.float32)[None]
        labels = np.zeros_like(image, dtype=np.int8)
        labels[:, :, 1:3, 1:3] = 1
        _, _, properties = nnUNetDatasetBlosc2(str(folder)).load_case("case_0")[1:]
        properties = {
            "spacing": [1.0, 1.0, 1.0],
            "sitk_stuff": {"spacing": (1.0,) * 3, "origin": (0.0,) * 3, "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)},
        }
        data, segmentation, properties = preprocessor.run_case_npy(
            image, labels, properties, plans, fullres, tiny_dataset.dataset_json
        )
        assert np.isfinite(data).all()
        case = f"case_{number}"
        for path in folder.glob(f"{case}[._]*"):
            path.unlink()
        sizes = (data.shape,) * 4
        nnUNetDatasetBlosc2.save_case(data, segmentation, properties, str(folder / case), *sizes)
    once = {"inpainting_epochs": 1, "distillation_epochs": 1, "num_epochs": 1, "num_iterations_per_epoch": 2}
    prestage = trainer_factory(PRESTAGE, fold="all", configuration=configuration, anomaly=once)
    prestage.run_training()
    prestage.perform_actual_validation()
    trainer = trainer_factory(SEGMENTATION, fold="all", configuration=configuration, anomaly=once)
    trainer.run_training()
    for each in (prestage, trainer):
        assert np.isfinite(each.logger.get_value("train_losses", None)).all()
    predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=CPU)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, ("all",), "checkpoint_final.pth")
    for image in UNUSUAL.values():
        voxels = image.astype(np.float32)[None]
        assert predictor.predict_single_npy_array(voxels, {"spacing": [1.0] * 3}, None, None).shape == image.shape


def test_constant_training_images_have_no_contrast_to_learn_and_are_told(trainer_factory, own_preprocessed):
    for number in range(5):
        preprocessed_again(own_preprocessed, f"case_{number}", lambda image: image * 0)
    sentence = sentence_of(trainer_factory(PRESTAGE).run_training)
    assert "image channel 0 has the one value 0 in all 4 training cases" in sentence


# --------------------------------------------------------------------------------------------------------- one seed


def test_one_seed_gives_one_prestage_and_one_segmentation(trainer_factory, tmp_path, monkeypatch):
    weights = {PRESTAGE: [], SEGMENTATION: []}
    once = {"inpainting_epochs": 1, "distillation_epochs": 1, "num_epochs": 1}
    for run, seed in enumerate((3, 3, 4)):
        monkeypatch.setenv("nnUNet_results", str(tmp_path / str(run)))
        for name in weights if run < 2 else [PRESTAGE]:
            trainer = trainer_factory(name, anomaly={"seed": seed, **once})
            trainer.run_training()
            weights[name].append(trainer.module.state_dict())
    for first, second, *others in weights.values():
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not any(all(torch.equal(first[name], other[name]) for name in first) for other in others)


# ------------------------------------------------------------------------------------------------------- no network


@pytest.mark.parametrize("choice", [pytest.param(None, marks=pytest.mark.exhaustive), "0", "1"])
@pytest.mark.parametrize("name", [PRESTAGE_TOO, SEGMENTATION, PUBLISHED_TOO])
def test_weights_and_biases_hears_of_a_training_if_it_is_asked_for_alone(
    trainer_factory, after_prestage, monkeypatch, name, choice
):
    wandb = MagicMock()
    monkeypatch.setattr(nnunet_logger, "wandb", wandb)
    if choice is None:
        monkeypatch.delenv("nnUNet_wandb_enabled", raising=False)
    else:
        monkeypatch.setenv("nnUNet_wandb_enabled", choice)
    trainer_factory(name, anomaly={"inpainting_epochs": 1, "distillation_epochs": 1, "num_epochs": 1}).run_training()
    assert bool(wandb.mock_calls) is (choice == "1")
    if choice == "1":
        logged = {key for call in wandb.init.return_value.log.call_args_list for key in call.args[0]}
        assert {"train_losses", "val_losses"} <= logged
