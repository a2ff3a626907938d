"""What every segmenter has to do, over the registry's trainers; one trainer of each family is trained."""

import copy

import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from benchmarks.gpu.measure import measure
from nnunetv2_anomaly import trainers
from nnunetv2_anomaly.detectors.artefact import detector_of
from nnunetv2_anomaly.inspection.training_memory import PUBLISHED_NETWORKS
from nnunetv2_anomaly.prediction.models import load_model
from nnunetv2_anomaly.registry import DETECTORS, SEGMENTERS, TRAINERS, load_trainer

SEGMENTATIONS = [name for name, trainer in TRAINERS.items() if trainer.family in SEGMENTERS]
#: family -> the trainer that stands for it
TRAINED = {"planned": "AnomalyAwareTrainer", "published": "UNETSTrainer", "mask_rcnn": "IMaskRCNNTrainer"}
#: families that segment slices alone; they refuse volumes where a training starts
SLICES = ("mask_rcnn",)
CPU = torch.device("cpu")


def test_every_trainer_is_of_a_known_family_and_every_family_has_one():
    families = {trainer.family for trainer in TRAINERS.values()}
    assert families == {*SEGMENTERS, *DETECTORS}
    assert {family.trainer for family in DETECTORS.values()} <= set(TRAINERS)
    assert set(TRAINED) == set(SEGMENTERS)


@pytest.mark.parametrize("name", TRAINERS)
def test_trainer_has_one_identity_however_it_is_reached(name):
    assert load_trainer(name) is getattr(trainers, name) is recursive_find_trainer_class_by_name(name)
    assert name in trainers.__all__
    assert "__" not in name  # nnU-Net splits the result folder's name there


@pytest.mark.parametrize(
    ("name", "configuration", "num_channels"),
    [
        (name, *case)
        for name in SEGMENTATIONS
        for case in (("2d_small", 1) if TRAINERS[name].family in SLICES else ("3d_small", 1), ("2d_small", 2))
    ],
)
def test_network_is_built_without_data_and_takes_plain_images(tiny_dataset, name, configuration, num_channels):
    plans = PlansManager(copy.deepcopy(tiny_dataset.plans))
    planned = plans.get_configuration(configuration)
    network = load_trainer(name).build_network_architecture(plans, planned, num_channels, 4, False).eval()
    with torch.no_grad():
        logits = network(torch.randn(1, num_channels, *planned.patch_size))
    assert logits.shape == (1, 4, *planned.patch_size)
    assert (detector_of(network) is not None) is TRAINERS[name].anomaly_aware


@pytest.mark.parametrize("name", TRAINED.values())
def test_kit_for_a_gpu_measures_it(trainer_factory, after_prestage, monkeypatch, name):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    configuration = "2d_whole" if TRAINERS[name].family in SLICES else "3d_small"
    row = measure(trainer_factory(name, configuration=configuration, anomaly={"num_epochs": 1}), repeats=1)
    assert min(row["step_s"], row["window_s"]) > 0
    assert row["float32"] == row["compiled"] == 0
    assert row["autocast"] < 1
    assert row["estimate_gib"] > 0 or name not in PUBLISHED_NETWORKS.values()


@pytest.mark.parametrize("name", TRAINED.values())
def test_trained_segmenter_is_saved_loaded_and_resumed(trainer_factory, after_prestage, name):
    configuration = "2d_whole" if TRAINERS[name].family in SLICES else "3d_small"
    trainer = trainer_factory(name, configuration=configuration, anomaly={"num_epochs": 1})
    trainer.run_training()
    trained = {key: value.clone() for key, value in trainer.module.state_dict().items()}
    (model,) = after_prestage.glob(f"*/{name}__*")

    predictor = load_model(model, folds=(0,), device=CPU)
    image = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    with torch.no_grad():
        trainer.set_deep_supervision_enabled(False)
        expected = trainer.module.eval()(image)
        predictor.network.load_state_dict(predictor.list_of_parameters[0])
        assert torch.equal(predictor.network.eval()(image), expected)

    resumed = trainer_factory(name, configuration=configuration, anomaly={"num_epochs": 2})
    resumed.load_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))
    assert resumed.current_epoch == 1
    assert all(torch.equal(value, trained[key]) for key, value in resumed.module.state_dict().items())
    assert getattr(resumed, "detector_description", None) == getattr(trainer, "detector_description", None)
