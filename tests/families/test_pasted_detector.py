"""The detector of pasted anomalies by nnU-Net's own loop: its two phases, what it pastes, and where it refuses."""

from pathlib import Path

import pytest
import torch

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.trainers import PastedAnomalyTrainer
from nnunetv2_anomaly.training import pasting

NAME = "PastedAnomalyTrainer"
DESCRIPTION = {"channel_names": {"0": "MRI"}, "numTraining": 6, "file_ending": ".nii.gz"}


class StoppedError(Exception):
    """As a kill between two epochs."""


class StoppedBefore(PastedAnomalyTrainer):
    """Stops as its epoch begins."""

    stop_before = 3

    def on_epoch_start(self):
        if self.current_epoch == self.stop_before:
            raise StoppedError
        super().on_epoch_start()


StoppedBefore.__name__ = NAME  # in whose folder it writes


def test_it_pastes_in_the_second_phase_alone_and_shows_how(trainer_factory, monkeypatch):
    drawn, draw = [], pasting.PasteAnomalies.get_parameters
    trainer = trainer_factory(NAME)

    def noted(self, **data):
        found = draw(self, **data)
        drawn.append((trainer.current_epoch, len(found["anomalies"])))
        return found

    monkeypatch.setattr(pasting.PasteAnomalies, "get_parameters", noted)
    trainer.run_training()
    numbers = {epoch: [number for of, number in drawn if of == epoch] for epoch in range(4)}
    assert sum(numbers[0] + numbers[1]) == 0
    assert sum(numbers[3]) > 0  # batches are loaded ahead, so that the third epoch begins without
    assert (Path(trainer.output_folder) / "pasted_anomalies.png").read_bytes()[:4] == b"\x89PNG"
    log = Path(trainer.log_file).read_text()
    assert "phase 2, pasted begins" in log
    assert "count [2, 5], strength [0.7, 3.5]" in log
    assert trainer.module.detector.deviation_scale.item() != 1.0
    assert trainer.artefact().finished


@pytest.mark.parametrize("stop_before", [*(pytest.param(of, marks=pytest.mark.exhaustive) for of in (1, 2)), 3])
def test_a_run_that_was_stopped_in_either_phase_ends_as_one_that_was_not(trainer_factory, monkeypatch, stop_before):
    whole = trainer_factory(NAME, anomaly={"seed": 5})
    whole.run_training()
    expected = whole.module.state_dict()
    monkeypatch.setattr(StoppedBefore, "stop_before", stop_before)
    first = trainer_factory(StoppedBefore, anomaly={"seed": 5})
    with pytest.raises(StoppedError):
        first.run_training()
    assert first.artefact().finished == (stop_before > 2)
    resumed = trainer_factory(NAME, anomaly={"seed": 5})
    resumed.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == stop_before
    assert resumed.module.phase == (stop_before > 2)
    resumed.run_training()
    found = resumed.module.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_first_phase_of_another_length_is_refused_once_the_second_has_begun(trainer_factory):
    trainer = trainer_factory(NAME)
    trainer.run_training()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    other = trainer_factory(NAME, anomaly={"level_epochs": 3})
    with pytest.raises(UserError, match="phase 1 took 2 epochs, and 'level_epochs' is now 3"):
        other.load_checkpoint(str(path))


def test_any_healthy_structure_can_be_the_host(trainer_factory):
    organs = {**DESCRIPTION, "labels": {"background": 0, "liver": 1, "kidney": 2, "tumour": 3}}
    with pytest.raises(UserError, match="'detector_pasting' has no host, as no label is a bone"):
        trainer_factory(NAME, dataset_json=organs)
    named = trainer_factory(NAME, dataset_json=organs, anomaly={"detector_pasting": {"hosts": ["liver"]}})
    assert named.pasting.hosts == [(1,)]
    roles = {"bones": ["liver", "kidney"], "lesions": {"tumour": "liver"}}
    by_role = trainer_factory(NAME, dataset_json={**organs, "label_roles": roles})
    assert by_role.pasting.hosts == [(1, 3), (2,)]


def test_bone_contrast_refuses_regions(trainer_factory):
    regions = {"background": 0, "bone": [1, 2], "femoral_lesion": 2}
    description = {**DESCRIPTION, "labels": regions, "regions_class_order": [1, 2]}
    with pytest.raises(UserError, match="does not support region-based labels"):
        trainer_factory("BoneContrastTrainer", dataset_json=description)
