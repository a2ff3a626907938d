"""Transfer learning: what comes along, what is frozen, what is new."""

import copy
import signal
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_anomaly import trainers
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.segmenters.published.loss import WeightedDiceLoss

FAMILIES = ("UNET", "UNETPlus", "UNETS", "CAN", "CANPlus", "CANS", "AnomalyAware")
#: the source knows these, of the data set's femoral_bone 1, femoral_cartilage 2, femoral_lesion 3; in another order
SOURCE_LABELS = {"background": 0, "femoral_cartilage": 1, "femoral_bone": 2}


@pytest.fixture
def source(trainer_factory, after_prestage, tiny_dataset, monkeypatch, tmp_path):
    """Function: train a family's trainer for an epoch as if on two labels; returns its checkpoint."""

    def train(family: str) -> Path:
        dataset_json = {**copy.deepcopy(tiny_dataset.dataset_json), "labels": dict(SOURCE_LABELS)}
        trainer = trainer_factory(f"{family}Trainer", dataset_json=dataset_json)
        trainer.initialize()
        path = tmp_path / f"{family}.pth"
        trainer.save_checkpoint(str(path))
        return path

    return train


def start(trainer_factory, monkeypatch, family: str, weights: Path | None, **options):
    """A transfer trainer as nnUNetv2_train starts it."""
    words = ["nnUNetv2_train", "801", "3d_small", "0"]
    monkeypatch.setattr(sys, "argv", words + (["-pretrained_weights", str(weights)] if weights else []))
    trainer = trainer_factory(f"{family}TransferTrainer", **options)
    trainer.initialize()
    if weights is not None:
        load_pretrained_weights(trainer.network, str(weights))
    return trainer


def cloned(trainer):
    return {name: tensor.clone() for name, tensor in trainer.module.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_nnunet_finds_them_by_name(family):
    name = f"{family}TransferTrainer"
    assert recursive_find_trainer_class_by_name(name) is getattr(trainers, name)
    assert getattr(trainers, name).num_epochs == 50


@pytest.mark.parametrize(
    "family",
    [
        name if name in ("UNETS", "AnomalyAware") else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in FAMILIES
    ],
)
def test_what_is_known_is_kept_to_the_bit_and_what_is_frozen_stays(family, trainer_factory, source, monkeypatch):
    checkpoint = source(family)
    weights = torch.load(checkpoint, weights_only=False)["network_weights"]
    trainer = start(trainer_factory, monkeypatch, family, checkpoint)
    trainer.num_epochs = 1
    labels = trainer.dataset_json["labels"]
    begun = {}
    step = trainer.train_step

    def first_look(batch):
        begun.update(begun or cloned(trainer))
        return step(batch)

    monkeypatch.setattr(trainer, "train_step", first_look)
    trainer.run_training()
    assert begun.keys() == weights.keys()
    for name, tensor in begun.items():
        if ".seg_layers." in name:
            for label, value in SOURCE_LABELS.items():
                assert torch.equal(tensor[labels[label]], weights[name][value]), name
        else:
            assert torch.equal(tensor, weights[name]), name
    after = trainer.module.state_dict()
    frozen = {name for name, parameter in trainer.module.named_parameters() if not parameter.requires_grad}
    assert any("encoder" in name for name in frozen)
    aware = family in ("UNETS", "CANS", "AnomalyAware")
    assert any(name.startswith("detector.") for name in frozen) is aware
    for name, _ in trainer.module.named_parameters():
        # nnU-Net gives the deepest of a planned network's outputs no weight in the loss.
        if name in frozen or name.startswith("segmenter.decoder.seg_layers.0."):
            assert torch.equal(after[name], begun[name]), name
        elif ".transposed.bias" not in name and not name.endswith(".conv.bias") and not name.endswith(".0.bias"):
            # A bias in front of an instance normalisation has no effect, and so hardly any gradient.
            assert not torch.equal(after[name], begun[name]), name
    for name, buffer in trainer.module.named_buffers():
        assert torch.equal(buffer, begun[name]), name


def test_protocol_is_the_published_one(trainer_factory, source, monkeypatch):
    trainer = start(trainer_factory, monkeypatch, "UNETS", source("UNETS"))
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert trainer.optimizer.param_groups[0]["lr"] == 2.5e-4
    frozen = [block for block in trainer.segmenter.encoder[0] if not any(p.requires_grad for p in block.parameters())]
    assert len(frozen) == 2
    assert all(parameter.requires_grad for parameter in trainer.segmenter.encoder[1].parameters())
    dice = trainer.loss.loss_of_scale.dice
    assert isinstance(dice, WeightedDiceLoss)
    assert dice.class_weights == (1, 1, 1, 10)
    assert trainer.batch_size == 1


def test_log_says_which_classes_are_kept_and_which_are_new(trainer_factory, source, monkeypatch):
    trainer = start(trainer_factory, monkeypatch, "UNET", source("UNET"), changes={"spacing": [2.0, 1.0, 1.0]})
    trainer.on_train_start()
    log = Path(trainer.log_file).read_text()
    assert "classes kept: background, femoral_bone, femoral_cartilage" in log
    assert "new classes: femoral_lesion" in log
    assert "plans differ" in log
    assert "spacing" in log
    assert "nnUNetv2_move_plans_between_datasets -s Dataset801_TinyKnee" in log


def test_added_classes_stay_added_in_a_resumed_run_and_in_a_further_transfer(trainer_factory, source, monkeypatch):
    trainer = start(trainer_factory, monkeypatch, "UNET", source("UNET"))
    trainer.num_epochs = 1
    trainer.run_training()
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "801", "3d_small", "0", "--c"])
    resumed = trainer_factory("UNETTransferTrainer")
    resumed.load_checkpoint(str(final))
    assert resumed.loss.class_weights == (1, 1, 1, 10)
    resumed.num_epochs = 2
    resumed.run_training()
    further = start(trainer_factory, monkeypatch, "UNET", final)
    assert further.loss.class_weights == (1, 1, 1, 10)
    further.on_train_start()
    assert "new classes: none" in Path(further.log_file).read_text()


def test_without_weights_and_with_foreign_ones_a_sentence(trainer_factory, source, monkeypatch):
    with pytest.raises(UserError, match="-pretrained_weights"):
        start(trainer_factory, monkeypatch, "UNET", None)
    with pytest.raises(UserError, match="do not fit"):
        start(trainer_factory, monkeypatch, "CAN", source("UNET"))


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarm on this system to end a wait")
def test_workers_do_not_wait_for_threads_that_they_do_not_have(trainer_factory, source, monkeypatch):
    """nnU-Net lets torch use every core of a CPU; a worker is forked after that."""
    trainer = start(trainer_factory, monkeypatch, "UNET", source("UNET"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    threads = torch.get_num_threads()

    def too_long(*_):
        raise TimeoutError("no batch within a minute")

    before = signal.signal(signal.SIGALRM, too_long)
    torch.set_num_threads(2)
    try:
        torch.randn(600, 600) @ torch.randn(600, 600)  # the threads begin to live
        signal.alarm(60)
        loaders = trainer.get_dataloaders()
        for _ in range(3):
            assert next(loaders[0])["data"].shape == (1, 1, 16, 16, 16)
        signal.alarm(0)
        for loader in loaders:
            loader._finish()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        torch.set_num_threads(threads)
