"""Mask R-CNN by nnU-Net's own loop: what it learns from, resume, prediction, the detector in front, and refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2_anomaly.errors import UnsupportedError, UserError
from nnunetv2_anomaly.trainers import IMaskRCNNTrainer
from nnunetv2_anomaly.training.safe_loading import load_file

WHOLE = {"configuration": "2d_whole"}
PLAIN_AND_IMPROVED = ["MaskRCNNTrainer", "IMaskRCNNTrainer"]


class StoppedError(Exception):
    """As a kill between two epochs."""


class Stopped(IMaskRCNNTrainer):
    """Stopped as the second epoch begins."""

    def on_epoch_start(self):
        if self.current_epoch == 1:
            raise StoppedError
        super().on_epoch_start()


Stopped.__name__ = "IMaskRCNNTrainer"  # so that it writes in the same folder


def test_a_run_that_was_stopped_ends_as_one_that_was_not(trainer_factory):
    keywords = {**WHOLE, "anomaly": {"seed": 5}}
    whole = trainer_factory("IMaskRCNNTrainer", **keywords)
    whole.run_training()
    first = trainer_factory(Stopped, **keywords)
    with pytest.raises(StoppedError):
        first.run_training()
    latest = Path(first.output_folder) / "checkpoint_best.pth"
    resumed = trainer_factory("IMaskRCNNTrainer", **keywords)
    resumed.load_checkpoint(str(latest))
    assert resumed.current_epoch == 1
    assert resumed.started_from == first.started_from
    resumed.run_training()
    found = resumed.module.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in whole.module.state_dict().items())


@pytest.mark.parametrize("name", PLAIN_AND_IMPROVED)
def test_training_logs_its_losses_and_records_what_it_began_with(trainer_factory, name):
    trainer = trainer_factory(name, anomaly={"num_epochs": 1}, **WHOLE)
    trainer.run_training()
    trainer.perform_actual_validation()
    log = Path(trainer.log_file).read_text()
    for loss in ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"):
        assert f"{loss} 0." in log or f"{loss} 1." in log
    assert "Weights at the start: {'source': 'none'" in log
    assert (Path(trainer.output_folder) / "validation" / "summary.json").is_file()
    record = load_file(Path(trainer.output_folder) / "checkpoint_final.pth", "")["anomaly_mask_rcnn"]
    assert record["source"] == "none"
    assert record["torchvision"]
    group = trainer.optimizer.param_groups[0]
    assert (type(trainer.optimizer), group["lr"], group["weight_decay"]) == (torch.optim.Adam, 1e-3, 0)


def test_batches_hold_empty_slices_at_the_rate_and_foreground_else(trainer_factory):
    for rate in (0.0, 1.0):
        trainer = trainer_factory("MaskRCNNTrainer", anomaly={"empty_slice_rate": rate}, **WHOLE)
        trainer.on_train_start()
        for _ in range(4):
            filled = (next(trainer.dataloader_train)["target"] > 0).flatten(1).any(dim=1)
            assert (not filled.any()) if rate else filled.all()


def test_thin_labels_win_ties(trainer_factory):
    trainer = trainer_factory("IMaskRCNNTrainer", **WHOLE)
    trainer.initialize()
    # femoral_cartilage and femoral_lesion go before femoral_bone
    assert trainer.segmenter.goes_first.tolist() == [0, 0, 1, 1]


def test_a_label_that_no_slice_has_is_learned_as_nothing(trainer_factory, tiny_dataset):
    labels = {**tiny_dataset.dataset_json["labels"], "tibial_bone": 4}
    trainer = trainer_factory("IMaskRCNNTrainer", dataset_json={**tiny_dataset.dataset_json, "labels": labels}, **WHOLE)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    output = trainer.train_step(next(trainer.dataloader_train))
    assert np.isfinite(output["loss"])
    assert trainer.segmenter.num_classes == 5


def test_a_detector_in_front_is_seen_and_weights_the_mask_loss(trainer_factory):
    trainer_factory("AnomalyPreStageTrainer", **WHOLE).run_training()
    trainer = trainer_factory("IMaskRCNNSTrainer", anomaly={"seed": 1, "num_epochs": 1}, **WHOLE)
    trainer.run_training()
    trainer.perform_actual_validation()
    assert "Detector from" in Path(trainer.log_file).read_text()
    batch = next(trainer.dataloader_train)
    seen = []
    trainer.segmenter.register_forward_pre_hook(lambda _, given: seen.append(given[0]))

    def mask_loss(beta):
        trainer.beta = beta
        torch.manual_seed(0)
        trainer.network.train()
        return trainer._losses(batch)["loss_mask"]

    plain, weighted = mask_loss(0.0), mask_loss(1e3)
    assert seen[0].shape[1] == 2  # image and error
    assert torch.equal(seen[0][:, 1:], trainer.module.latest_error_image)
    assert weighted > plain
    trainer.segmenter.mask_weight = None
    assert torch.allclose(mask_loss(0.0), plain)
    before = {name: of.clone() for name, of in trainer.module.detector.state_dict().items()}
    trainer.train_step(batch)
    assert all(torch.equal(of, before[name]) for name, of in trainer.module.detector.state_dict().items())


def test_what_is_not_supported_is_refused_at_the_start(trainer_factory, tiny_dataset):
    with pytest.raises(UserError, match=r"learns from slices, and patches of 3d_small have 3 axes; train the .* 2d"):
        trainer_factory("IMaskRCNNTrainer")
    dataset_json = tiny_dataset.dataset_json
    ignoring = {**dataset_json, "labels": {**dataset_json["labels"], "ignore": 4}}
    with pytest.raises(UnsupportedError, match="does not support the ignore label"):
        trainer_factory("IMaskRCNNTrainer", dataset_json=ignoring, **WHOLE)
    regions = {**dataset_json, "labels": {"background": 0, "bone": [1, 3], "rim": 2, "lesion": 3}}
    regions["regions_class_order"] = [1, 2, 3]
    with pytest.raises(UnsupportedError, match="does not support region-based labels"):
        trainer_factory("IMaskRCNNTrainer", dataset_json=regions, **WHOLE)
    with pytest.raises(UserError, match="no weights of ImageNet for it; set 'mask_rcnn_weights' to none"):
        trainer_factory("IMaskRCNNTrainer", anomaly={"mask_rcnn_weights": "imagenet"}, **WHOLE)
    missing = trainer_factory("IMaskRCNNTrainer", anomaly={"mask_rcnn_weights": "file:nowhere.pth"}, **WHOLE)
    with pytest.raises(UserError, match=r"the weights nowhere\.pth do not exist"):
        missing.initialize()


def test_patches_smaller_than_slices_are_warned_of(trainer_factory):
    trainer = trainer_factory("IMaskRCNNTrainer", configuration="2d_small")
    trainer.on_train_start()
    assert "WARNING: patches of [16, 16] are smaller than slices" in Path(trainer.log_file).read_text()
    whole = trainer_factory("IMaskRCNNTrainer", **WHOLE)
    whole.on_train_start()
    assert "smaller than slices" not in Path(whole.log_file).read_text()
