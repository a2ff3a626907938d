"""Trainings with pasted anomalies: any segmentation of ours, by nnU-Net's own loop."""

from pathlib import Path

import pytest
import torch

import nnunetv2_anomaly.training.pasting as pasting
from nnunetv2_anomaly.errors import UserError

DESCRIPTION = {"channel_names": {"0": "MRI"}, "numTraining": 6, "file_ending": ".nii.gz"}
PASTED = {"probability": 1.0, "size_mm": [3.0, 6.0], "hosts": ["femoral_bone"]}


@pytest.mark.parametrize("name", ["PastingTrainer", "AnomalyAwareTrainer", "UNETSTrainer"])
def test_training_pastes_until_its_share_and_shows_eight_patches(trainer_factory, after_prestage, monkeypatch, name):
    pasted, apply = [], pasting.PasteAnomalies._apply_to_image
    monkeypatch.setattr(
        pasting.PasteAnomalies, "_apply_to_image",
        lambda self, img, anomalies=(): pasted.append((float(self.now), len(anomalies))) or apply(self, img, anomalies),
    )  # fmt: skip
    trainer = trainer_factory(name, anomaly={"paste_anomalies": {**PASTED, "until": 0.5}, "num_epochs": 2})
    trainer.run_training()
    by_probability = {now: [number for of, number in pasted if of == now] for now in {now for now, _ in pasted}}
    assert sum(by_probability[1.0]) > 0
    assert sum(by_probability[0.0]) == 0
    options = "probability: 1.0, size_mm: 3.0, 6.0, hosts: femoral_bone, until: 0.5"
    assert f"Anomalies are pasted while training: {options}" in Path(trainer.log_file).read_text()
    assert (Path(trainer.output_folder) / "pasted_anomalies.png").read_bytes()[:4] == b"\x89PNG"


def test_without_the_setting_the_batches_are_bitwise_those_without_pasting(trainer_factory, after_prestage):
    batches = []
    for options in (None, {**PASTED, "probability": 0.0}):
        trainer = trainer_factory("AnomalyAwareTrainer", anomaly={"paste_anomalies": options, "seed": 3})
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        batches.append([next(trainer.dataloader_train) for _ in range(3)])
        trainer.on_train_end()
    for plain, other in zip(*batches, strict=True):
        assert torch.equal(plain["data"], other["data"])
        for one, another in zip(plain["target"], other["target"], strict=True):
            assert torch.equal(one, another)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"background": 0, "femoral_bone": 1, "cartilage": 2}, None),
        ({"background": 0, "femoral_bone": 1, "femoral_lesion": 2}, "lesions are labels of their own"),
        ({"background": 0, "liver": 1, "kidney": 2}, "no label is a bone"),
    ],
)
def test_the_default_pastes_into_bones_where_lesions_are_not_to_be_told_from_them(trainer_factory, labels, reason):
    trainer = trainer_factory("AnomalyAwareTrainer", dataset_json={**DESCRIPTION, "labels": labels})
    trainer.report_pasting()
    log = Path(trainer.log_file).read_text()
    if reason is None:
        assert trainer.pasting.hosts == [(1,)]
        assert "Anomalies are pasted while training: as by default" in log
    else:
        assert trainer.pasting is None
        assert f"No anomalies are pasted, as {reason}" in log


@pytest.mark.parametrize("name", ["AnomalyAwarePublishedTrainer", "UNETSTrainer"])
def test_what_is_as_published_pastes_nothing(trainer_factory, name):
    assert trainer_factory(name).pasting is None


def test_unknown_hosts_are_refused_at_the_start(trainer_factory):
    with pytest.raises(UserError, match="names liver among its hosts"):
        trainer_factory("PastingTrainer", anomaly={"paste_anomalies": {"hosts": ["liver"]}})
