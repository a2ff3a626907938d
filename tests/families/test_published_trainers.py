"""UNET, CAN and their forms as trainers: composed as published, trained, resumed and predicted by nnU-Net."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_anomaly import trainers
from nnunetv2_anomaly.segmenters.loss import AnomalyAwareLoss
from nnunetv2_anomaly.segmenters.published.loss import MultiClassDiceLoss
from nnunetv2_anomaly.segmenters.published.networks import CAN, UNET

PLAIN = ("UNETTrainer", "UNETPlusTrainer", "CANTrainer", "CANPlusTrainer")
AWARE = ("UNETSTrainer", "CANSTrainer")
#: an epoch is every case once unless the section says otherwise
ONCE = {"num_iterations_per_epoch": None, "num_val_iterations_per_epoch": None}


@pytest.fixture
def published_trainer(trainer_factory):
    """Build one on the tiny data set, without the section's numbers of iterations."""

    def build(name, **options):
        trainer = trainer_factory(name, **options)
        trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = None
        return trainer

    return build


@pytest.mark.parametrize("name", PLAIN + AWARE)
def test_nnunet_finds_them_by_name(name):
    assert recursive_find_trainer_class_by_name(name) is getattr(trainers, name)


@pytest.mark.parametrize(
    ("name", "shape", "additive", "aware"),
    [
        ("UNETTrainer", UNET, False, False),
        ("UNETPlusTrainer", UNET, True, False),
        ("UNETSTrainer", UNET, True, True),
        ("CANTrainer", CAN, False, False),
        ("CANPlusTrainer", CAN, True, False),
        ("CANSTrainer", CAN, True, True),
    ],
)
def test_network_loss_and_protocol_are_the_published_ones(
    published_trainer, after_prestage, name, shape, additive, aware
):
    trainer = published_trainer(name)
    trainer.initialize()
    segmenter = trainer.segmenter
    assert segmenter.shape is shape
    assert len(segmenter.scores.seg_layers) == (1 if not additive else min(shape.downsamplings, 2) + 1)
    assert segmenter.encoder[0][0][0].in_channels == (2 if aware else 1)
    assert isinstance(trainer.loss, AnomalyAwareLoss if aware else MultiClassDiceLoss)
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert trainer.optimizer.param_groups[0]["lr"] == 5e-4
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0
    trainer.lr_scheduler.step(1)
    assert trainer.optimizer.param_groups[0]["lr"] == 5e-4
    assert trainer.batch_size == 1
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in segmenter.parameters()}
    if aware:
        assert trainer.loss.loss_of_scale.alpha == 10
        assert isinstance(trainer.loss.loss_of_scale.dice, MultiClassDiceLoss)


def test_default_length_is_the_published_one():
    assert trainers.UNETTrainer.num_epochs == 50
    assert trainers.UNETTrainer.num_iterations_per_epoch is None
    assert trainers.CANSTrainer.num_epochs == 50


@pytest.mark.parametrize("processes", ["0", "2"])
def test_an_epoch_is_every_training_case_once_without_augmentation(published_trainer, monkeypatch, processes):
    monkeypatch.setenv("nnUNet_n_proc_DA", processes)
    trainer = published_trainer("UNETTrainer")
    trainer.initialize()
    training, validation = trainer.do_split()
    loaders = trainer.get_dataloaders()
    try:
        assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (
            len(training),
            len(validation),
        )
        for loader, cases in zip(loaders, (training, validation), strict=True):
            epochs = [[str(next(loader)["keys"][0]) for _ in cases] for _ in range(3)]
            assert all(sorted(epoch) == sorted(cases) for epoch in epochs)
        batch = next(loaders[0])
        assert batch["data"].shape == (1, 1, 16, 16, 16)
        # Untouched voxels of the preprocessed image, so no augmentation.
        data, *_ = trainer.dataset_class(trainer.preprocessed_dataset_folder).load_case(batch["keys"][0])
        voxels = set(np.round(np.asarray(data[:]).ravel(), 4).tolist()) | {0.0}
        assert set(np.round(batch["data"].numpy().ravel(), 4).tolist()) <= voxels
    finally:
        for loader in loaders:
            if hasattr(loader, "_finish"):
                loader._finish()


@pytest.mark.parametrize(
    "name",
    [name if name == "UNETSTrainer" else pytest.param(name, marks=pytest.mark.exhaustive) for name in PLAIN + AWARE],
)
def test_train_resume_validate_predict(published_trainer, after_prestage, tiny_dataset, name, tmp_path):
    trainer = published_trainer(name)
    trainer.num_epochs = 1
    trainer.run_training()
    trainer.perform_actual_validation()
    assert (Path(trainer.output_folder) / "validation" / "summary.json").is_file()
    resumed = published_trainer(name)
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for key, tensor in trainer.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[key]), key
    resumed.num_epochs = 2
    resumed.run_training()
    assert resumed.current_epoch == 2
    losses = resumed.logger.get_value("train_losses", step=None)
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    predictor = nnUNetPredictor(device=torch.device("cpu"), verbose=False, allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    image = next((tiny_dataset.raw / "imagesTs").iterdir())
    predictor.predict_from_files_sequential(
        [[str(image)]], [str(tmp_path / "prediction.nii.gz")], save_probabilities=False
    )
    assert (tmp_path / "prediction.nii.gz").is_file()


def test_2d(published_trainer):
    trainer = published_trainer("CANPlusTrainer", configuration="2d_small")
    trainer.num_epochs = 1
    trainer.run_training()
    assert trainer.segmenter.dimensions == 2


def test_every_epoch_leaves_a_checkpoint_to_continue_from(published_trainer, monkeypatch):
    trainer = published_trainer("CANTrainer")
    trainer.num_epochs = 3
    start = trainer.on_train_epoch_start

    def killed_in_the_third():
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt
        start()

    monkeypatch.setattr(trainer, "on_train_epoch_start", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    latest = torch.load(Path(trainer.output_folder) / "checkpoint_latest.pth", weights_only=False)
    assert latest["current_epoch"] == 2


def test_fold_without_validation_cases_is_refused_before_it_begins(published_trainer, monkeypatch):
    trainer = published_trainer("UNETTrainer")
    trainer.initialize()
    training, _ = trainer.do_split()
    monkeypatch.setattr(trainer, "do_split", lambda: (training, []))
    with pytest.raises(SystemExit, match="0 validation case"):
        trainer.get_dataloaders()


def test_nothing_is_mirrored_at_prediction_either(trainer_factory):
    trainer = trainer_factory("UNETTrainer", anomaly={"mirror_axes": [0, 1, 2]})
    trainer.initialize()
    trainer.get_dataloaders()
    assert trainer.inference_allowed_mirroring_axes is None


def test_missing_levels_are_told(published_trainer):
    trainer = published_trainer("UNETTrainer")
    trainer.on_train_start()
    log = Path(trainer.log_file).read_text()
    assert "UNET has 2 level(s) fewer than published" in log


def test_aware_ones_ask_for_their_prestage(published_trainer):
    with pytest.raises(SystemExit, match="-tr AnomalyPreStageTrainer"):
        published_trainer("UNETSTrainer").initialize()


def test_a_folds_detector_from_the_inpainter_of_all_cases(trainer_factory, results_folder):
    whole = trainer_factory("AnomalyPreStageTrainer", fold="all")
    whole.run_training()
    trainer = trainer_factory("AnomalyPreStageTrainer", anomaly={"inpainter_from_fold_all": True})
    assert trainer.num_epochs == trainer.distillation_epochs == 2
    trainer.run_training()
    there, here = whole.module.state_dict(), trainer.module.state_dict()
    for name in here:
        if not name.startswith("detector.reconstructor."):
            assert torch.equal(here[name], there[name]), name
    assert not torch.equal(here["detector.reconstructor.output.weight"], there["detector.reconstructor.output.weight"])
    training, _validation = trainer.do_split()
    assert trainer.training_cases == sorted(training)
    aware = trainer_factory("AnomalyAwareTrainer")  # the fold rule holds: A has seen the fold's training cases alone
    aware.on_train_start()
    for name, value, told in (
        ("intensity_clip", 2.0, r"intensity_clip 5\.0, and this fold has 2"),
        ("erase_margin_voxels", 7, r"erase_margin .*, and this fold has 7 voxels"),
    ):
        with pytest.raises(SystemExit, match=rf"trained with {told}"):
            trainer_factory(
                "AnomalyPreStageTrainer", anomaly={"inpainter_from_fold_all": True, name: value}
            ).run_training()
    shutil.rmtree(whole.output_folder)
    with pytest.raises(SystemExit, match="nnUNetv2_train 801 3d_small all -tr AnomalyPreStageTrainer"):
        trainer_factory("AnomalyPreStageTrainer", anomaly={"inpainter_from_fold_all": True}).run_training()


def test_prestage_without_augmentation_sees_the_images_voxels(trainer_factory):
    trainer = trainer_factory("AnomalyPreStageTrainer", anomaly={"prestage_augmentation": False})
    trainer.initialize()
    trainer.prepare()
    batch = next(trainer.get_dataloaders()[0])
    data, *_ = trainer.dataset_class(trainer.preprocessed_dataset_folder).load_case(batch["keys"][0])
    voxels = set(np.round(np.asarray(data[:]).ravel(), 4).tolist()) | {0.0}
    assert set(np.round(batch["data"][0].numpy().ravel(), 4).tolist()) <= voxels


def test_one_seed_gives_one_result(trainer_factory, tmp_path, monkeypatch):
    weights = []
    for run, seed in enumerate((3, 3, 4)):
        monkeypatch.setenv("nnUNet_results", str(tmp_path / str(run)))
        trainer = trainer_factory("UNETPlusTrainer", anomaly={"seed": seed, "num_epochs": 1})
        trainer.run_training()
        weights.append(trainer.module.state_dict())
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    assert not torch.equal(weights[0]["encoder.0.0.0.weight"], weights[2]["encoder.0.0.0.weight"])
