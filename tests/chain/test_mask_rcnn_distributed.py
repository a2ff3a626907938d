"""Mask R-CNN on two processes: each learns from slices of its own, and both keep the same weights."""

import copy

import pytest
import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_trainer_module
from quick import skip_progress_figures
from test_distributed import RANKS, OnCPU, in_two_processes, on_cpu, start_gloo
from torch import distributed as dist

from nnunetv2_anomaly import trainers

pytestmark = pytest.mark.exhaustive


def _epoch(rank, folder, plans, dataset_json):
    start_gloo(folder / "store", rank, RANKS)
    skip_progress_figures(pytest.MonkeyPatch())
    nnunet_trainer_module.DDP = OnCPU
    plans = {**copy.deepcopy(plans), "continue_training": False}
    plans["configurations"]["2d_whole"]["anomaly"] |= {"seed": 7, "num_epochs": 1, "mask_rcnn_batch_size": 1}
    trainer = on_cpu(trainers.IMaskRCNNTrainer(plans, "2d_whole", 0, dataset_json, device=torch.device("cpu")))
    trainer.on_train_start()
    begun = {name: of.clone() for name, of in trainer.module.state_dict().items()}
    batch = next(trainer.dataloader_train)
    trainer.run_training()
    losses = trainer.logger.get_value("train_losses", step=None)
    dist.destroy_process_group()
    return {"begun": begun, "ended": trainer.module.state_dict(), "batch": batch["data"], "losses": losses}


def test_two_processes_see_other_slices_and_keep_the_same_weights(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nnUNet_results"))
    first, second = in_two_processes(_epoch, tmp_path, tiny_dataset.plans, tiny_dataset.dataset_json, seconds=300)
    assert first["batch"].shape[0] == second["batch"].shape[0] == 1
    assert not torch.equal(first["batch"], second["batch"])
    for name, of in first["ended"].items():
        assert torch.equal(of, second["ended"][name]), name
    assert all(torch.equal(of, second["begun"][name]) for name, of in first["begun"].items())
    assert any(not torch.equal(of, first["begun"][name]) for name, of in first["ended"].items())
    assert first["losses"] == second["losses"]
