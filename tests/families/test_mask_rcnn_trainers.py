"""Mask R-CNN by nnU-Net's own loop: what it learns from, resume, prediction, the detector in front, and refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.errors import UnsupportedError, UserError
from nnunetv2_anomaly.prediction.instances import predict_instances
from nnunetv2_anomaly.segmenters.mask_rcnn.network import MaskRCNNSegmenter
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


class Filled:
    """Cases that are all foreground, of which a loader knows the last corner of each slice."""

    def __init__(self, dataset):
        self.dataset, self.identifiers = dataset, dataset.identifiers

    def load_case(self, case):
        image, labels, previous, properties = self.dataset.load_case(case)
        _, slices, *size = image.shape
        places = np.array([(0, index, *(edge - 1 for edge in size)) for index in range(slices)])
        return image, np.ones_like(np.asarray(labels)), previous, {**properties, "class_locations": {1: places}}


def test_slices_reach_the_network_whole_wherever_their_labels_lie(trainer_factory):
    trainer = trainer_factory("MaskRCNNTrainer", anomaly={"empty_slice_rate": 0.0}, **WHOLE)
    trainer.on_train_start()
    loader = trainer.dataloader_train.data_loader
    dataset = loader._data
    object.__setattr__(dataset, "dataset", Filled(dataset.dataset))
    sizes = {dataset.load_case(case)[0].shape[2:] for case in dataset.identifiers}
    loader.transforms = None
    for target in loader.generate_train_batch()["target"]:
        assert int((target > 0).sum()) in {y * x for y, x in sizes}


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
        trainer._give_targets(batch)
        return trainer.network(batch["data"])["loss_mask"]

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


@pytest.fixture(scope="module")
def models(build_trainer, tmp_path_factory):
    """nnUNet_results with improved Mask R-CNN without and with a detector, fold 0, that report all they propose."""
    results = tmp_path_factory.mktemp("instances")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(results))
        for name in ("AnomalyPreStageTrainer", "IMaskRCNNTrainer", "IMaskRCNNSTrainer"):
            build_trainer(name, anomaly={"num_epochs": 1, "mask_rcnn_score": 0.05}, **WHOLE).run_training()
    return results


@pytest.mark.parametrize("name", ["IMaskRCNNTrainer", "IMaskRCNNSTrainer"])
def test_instances_are_listed_in_the_images_own_voxels(models, tiny_dataset, tmp_path, monkeypatch, name):
    monkeypatch.setenv("nnUNet_results", str(models))
    size = sitk.ReadImage(str(tiny_dataset.raw / "imagesTs" / "case_5_0000.nii.gz")).GetSize()

    def always(self, image):
        """A box of a known place in the padded patch of 32 x 32."""
        one = {"boxes": torch.tensor([[10.0, 8.0, 16.0, 20.0]]), "labels": torch.tensor([2])}
        return [{**one, "scores": torch.tensor([0.75]), "masks": torch.ones(1, 1, 56, 56)}]

    options = ["-i", str(tiny_dataset.raw / "imagesTs"), "-d", "801", "-c", "2d_whole", "-device", "cpu", "-tr", name]
    assert main(["instances", *options, "-o", str(tmp_path / "found")]) == 0
    found = json.loads((tmp_path / "found" / "case_5_instances.json").read_text())
    assert found["axes"] == {"slice": 2, "y": 1, "x": 0}
    assert found["instances"]
    for row in found["instances"]:
        assert row["fold"] == 0
        assert row["class"] in ("femoral_bone", "femoral_cartilage", "femoral_lesion")
        assert 0.05 <= row["score"] <= 1
        assert 0 <= row["slice"] < size[2]
    monkeypatch.setattr(MaskRCNNSegmenter, "detect", always)
    assert main(["instances", *options, "-o", str(tmp_path / "always")]) == 0
    rows = json.loads((tmp_path / "always" / "case_5_instances.json").read_text())["instances"]
    assert [row["slice"] for row in rows] == list(range(size[2]))
    # Slices of 22 x 24 lie in the middle of the patch: 5 rows and 4 columns from its edges.
    start = [(32 - size[0]) // 2, (32 - size[1]) // 2]
    assert rows[0]["box"] == [10 - start[0], 8 - start[1], 16 - start[0], 20 - start[1]]
    kept = (tmp_path / "always" / "case_5_instances.json").stat().st_mtime_ns
    assert main(["instances", *options, "-o", str(tmp_path / "always"), "--continue_prediction"]) == 0
    assert (tmp_path / "always" / "case_5_instances.json").stat().st_mtime_ns == kept


def test_parts_find_the_instances_of_their_own_cases(models, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(models))
    images = sorted(file.name[:-12] for file in (tiny_dataset.raw / "imagesTr").glob("*_0000.nii.gz"))
    output = tmp_path / "found"
    options = ["-i", str(tiny_dataset.raw / "imagesTr"), "-d", "801", "-c", "2d_whole", "-device", "cpu"]
    found = []
    for part in ("0", "1"):
        assert main(["instances", *options, "-o", str(output), "-num_parts", "2", "-part_id", part]) == 0
        found.append(sorted(file.name[:-15] for file in output.glob("*_instances.json")))
    assert found == [images[::2], images]


def test_a_model_without_instances_and_slices_that_are_cut_are_refused(models, tiny_dataset, tmp_path, capsys):
    folder = next(models.glob("*/AnomalyPreStageTrainer__*"))
    keywords = {"folds": [0], "device": torch.device("cpu")}
    with pytest.raises(UserError, match=r"finds no instances; expected IMaskRCNNTrainer"):
        predict_instances(tiny_dataset.raw / "imagesTs", tmp_path / "none", folder, **keywords)
    cut = next(models.glob("*/IMaskRCNNTrainer__*"))
    plans = json.loads((cut / "plans.json").read_text())
    copied = tmp_path / "model"
    shutil.copytree(cut, copied)
    plans["configurations"]["2d_whole"]["patch_size"] = [16, 16]
    (copied / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match=r"slices of case_5 have 22 x 24 voxels, and the model sees 16 x 16"):
        predict_instances(tiny_dataset.raw / "imagesTs", tmp_path / "cut", copied, **keywords)
