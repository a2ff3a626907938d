import shutil
from pathlib import Path

import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_anomaly.errors import UnsupportedError, UserError
from nnunetv2_anomaly.segmenters.base import AnomalyAwareNetwork
from nnunetv2_anomaly.segmenters.loss import AnomalyAwareLoss, DiceAndFocalCrossEntropy
from nnunetv2_anomaly.trainers import AnomalyAwareTrainer, AnomalyPreStageTrainer
from nnunetv2_anomaly.training.patches import training_patches

NAME = "AnomalyAwareTrainer"
COMMAND = "nnUNetv2_train 801 3d_small 0 -tr AnomalyPreStageTrainer -device cpu"


def log_of(trainer):
    return Path(trainer.log_file).read_text()


def prestage_of(results):
    (folder,) = results.glob("*/AnomalyPreStageTrainer__nnUNetPlans__3d_small")
    return folder


def change_checkpoint(path, change):
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, path)


def batch_of(trainer, seed=0):
    """A batch as nnU-Net's loader hands it over, with one target for each output scale."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [[16] * 3, [8] * 3]
    return {
        "data": torch.randn(2, 1, 16, 16, 16, generator=generator),
        "target": [torch.randint(0, 4, (2, 1, *size), generator=generator, dtype=torch.int16) for size in sizes],
    }


def clone(state):
    return {name: value.clone() for name, value in state.items()}


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# ------------------------------------------------------------------------------------------ found as users find it


@pytest.mark.parametrize("trainer", [AnomalyAwareTrainer, AnomalyPreStageTrainer])
def test_nnunet_finds_the_trainer_by_its_name(trainer):
    assert recursive_find_trainer_class_by_name(trainer.__name__) is trainer


@pytest.mark.parametrize("trainer", [AnomalyAwareTrainer, AnomalyPreStageTrainer])
def test_name_of_the_trainer_survives_the_split_of_the_result_folder(trainer):
    assert "__" not in trainer.__name__


# ---------------------------------------------------------------------------------------------------- refusals


def test_missing_prestage_is_told_with_the_very_command(trainer_factory):
    with pytest.raises(UserError) as caught:
        trainer_factory(NAME).initialize()
    assert isinstance(caught.value, SystemExit)
    assert isinstance(caught.value, ValueError)
    assert "the pre-stage of fold 0 has not been trained" in str(caught.value)
    assert str(caught.value).endswith(f"run: {COMMAND}")


def test_unfinished_prestage_is_to_be_continued(trainer_factory, after_prestage):
    fold = prestage_of(after_prestage) / "fold_0"
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    with pytest.raises(UserError) as caught:
        trainer_factory(NAME).initialize()
    assert str(caught.value).endswith(f"run: {COMMAND} --c")


def test_command_names_other_plans_and_leaves_out_the_defaults(trainer_factory):
    trainer = trainer_factory(NAME, fold="all")
    trainer.plans_manager.plans["plans_name"] = "nnUNetResEncUNetLPlans"
    trainer.device = torch.device("cuda")
    expected = "nnUNetv2_train 801 3d_small all -tr AnomalyPreStageTrainer -p nnUNetResEncUNetLPlans"
    assert trainer.prestage_command() == expected


def test_regions_are_refused_at_start(trainer_factory, tiny_dataset):
    labels = {"background": 0, "knee": [1, 2, 3], "femoral_lesion": [3]}
    regions = {**tiny_dataset.dataset_json, "labels": labels, "regions_class_order": [1, 3]}
    with pytest.raises(UnsupportedError, match="AnomalyAwareTrainer does not support region-based labels"):
        trainer_factory(NAME, dataset_json=regions)


def test_detector_that_was_trained_on_a_validation_case_is_refused(trainer_factory, after_prestage):
    folder = prestage_of(after_prestage) / "fold_0"
    trainer = trainer_factory(NAME, fold=1, anomaly={"prestage_folder": str(folder)})
    with pytest.raises(UserError, match="was trained on 1 of this fold's validation cases"):
        trainer.on_train_start()


def test_detector_that_was_trained_on_a_validation_case_is_accepted_where_set_and_logged(
    trainer_factory, after_prestage
):
    anomaly = {
        "prestage_folder": str(prestage_of(after_prestage) / "fold_0"),
        "allow_detector_trained_on_validation_cases": True,
    }
    trainer = trainer_factory(NAME, fold=1, anomaly=anomaly)
    trainer.on_train_start()
    assert "WARNING: the detector in" in log_of(trainer)
    assert "accepted because 'allow_detector_trained_on_validation_cases' is set" in log_of(trainer)


def test_prestage_of_other_settings_does_not_fit(trainer_factory, after_prestage):
    with pytest.raises(UserError, match="does not fit: 'compressor"):
        trainer_factory(NAME, anomaly={"compressor_code_length": 9}).initialize()


# ----------------------------------------------------------------------------------------------- detector quality


@pytest.mark.parametrize(("mse", "warns"), [(0.5, True), (0.01, False)])
def test_weak_detector_is_warned_about_in_the_log_and_a_good_one_is_not(trainer_factory, after_prestage, mse, warns):
    def change(checkpoint):
        checkpoint["anomaly_detector"]["quality"].update(mse_erased=mse, mse_constant=0.2, mse_blurred=0.1)

    change_checkpoint(prestage_of(after_prestage) / "fold_0" / "checkpoint_final.pth", change)
    trainer = trainer_factory(NAME)
    trainer.on_train_start()
    assert f"MSE inside the erased region on validation patches {mse:.5f}" in log_of(trainer)
    assert ("WARNING: this detector reconstructs" in log_of(trainer)) is warns


# ----------------------------------------------------------------------------------------- the detector's weights


def trained_detector(results):
    checkpoint = torch.load(prestage_of(results) / "fold_0" / "checkpoint_final.pth", weights_only=False)
    weights = checkpoint["network_weights"].items()
    return {name.removeprefix("detector."): value for name, value in weights if name.startswith("detector.")}


def test_detector_is_the_prestages_after_initialize(trainer_factory, after_prestage):
    trainer = trainer_factory(NAME)
    trainer.initialize()
    assert isinstance(trainer.network, AnomalyAwareNetwork)
    assert_same_tensors(trainer.network.detector.state_dict(), trained_detector(after_prestage))
    assert trainer.network.detector.intensity_low.item() < 0  # the range was measured, not left at its default


def test_detector_is_the_prestages_although_pretrained_weights_brought_another(
    trainer_factory, after_prestage, tmp_path
):
    trainer = trainer_factory(NAME)
    trainer.initialize()
    others = {name: value + 1 for name, value in trainer.network.state_dict().items()}
    torch.save({"network_weights": others}, tmp_path / "pretrained.pth")
    load_pretrained_weights(trainer.network, str(tmp_path / "pretrained.pth"))
    trained = trained_detector(after_prestage)
    assert not torch.equal(trainer.network.detector.intensity_low, trained["intensity_low"])
    trainer.on_train_start()
    assert_same_tensors(trainer.network.detector.state_dict(), trained)
    encoder = {name: value for name, value in trainer.network.state_dict().items() if name.startswith("segmenter.enc")}
    assert encoder
    assert_same_tensors(encoder, {name: others[name] for name in encoder})


def test_pretrained_weights_leave_the_output_layers_alone(trainer_factory, after_prestage, tmp_path):
    trainer = trainer_factory(NAME)
    trainer.initialize()
    before = clone(trainer.network.state_dict())
    torch.save({"network_weights": {name: value + 1 for name, value in before.items()}}, tmp_path / "pretrained.pth")
    load_pretrained_weights(trainer.network, str(tmp_path / "pretrained.pth"))
    kept = {name for name, value in trainer.network.state_dict().items() if torch.equal(value, before[name])}
    assert kept == {name for name in before if ".seg_layers." in name}


def test_optimizer_holds_the_segmenter_alone(trainer_factory, after_prestage):
    trainer = trainer_factory(NAME)
    trainer.initialize()
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in trainer.network.segmenter.parameters()}
    assert trainer.optimizer.param_groups[0]["weight_decay"] > 0


def test_training_steps_change_the_segmenter_and_leave_the_detector_bitwise_alone(trainer_factory, after_prestage):
    trainer = trainer_factory(NAME)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    detector = clone(trainer.network.detector.state_dict())
    encoder = clone(trainer.network.encoder.state_dict())
    losses = [float(trainer.train_step(batch_of(trainer, seed=0))["loss"]) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert_same_tensors(trainer.network.detector.state_dict(), detector)
    assert any(not torch.equal(value, encoder[name]) for name, value in trainer.network.encoder.state_dict().items())


def test_with_a_seed_it_starts_as_nnunets_own_network_does(trainer_factory, after_prestage):
    trainer = trainer_factory(NAME)
    torch.manual_seed(0)
    plain = nnUNetTrainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 4, True)
    torch.manual_seed(0)
    aware = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 4, True)
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        for own, other in zip(aware.eval()(image), plain.eval()(image), strict=True):
            torch.testing.assert_close(own, other)
        first = aware.segmenter.encoder.stages[0][0].convs[0].conv
        assert first.weight.shape[1] == first.in_channels == 2
        aware(image)[0].sum()
    aware.segmenter(torch.randn(1, 2, 16, 16, 16))[0].sum().backward()
    assert (first.weight.grad[:, 1] != 0).any()  # and the channel is learned


# ------------------------------------------------------------------------------------------------- error channel


@pytest.mark.parametrize(("anomaly", "channel"), [({}, "published"), ({"error_channel": "signed"}, "signed")])
def test_error_channel_is_the_published_one_or_that_of_the_settings(trainer_factory, after_prestage, anomaly, channel):
    trainer = trainer_factory(NAME, anomaly=anomaly)
    trainer.initialize()
    assert trainer.network.error_channel_name == channel
    trainer.report_channel()
    assert f"Error channel: {channel}" in log_of(trainer)
    assert "WARNING" not in log_of(trainer)


def test_channel_of_the_weights_stays_whatever_the_setting_and_is_told(trainer_factory, after_prestage, tmp_path):
    trainer = trainer_factory(NAME, anomaly={"error_channel": "signed"})
    trainer.initialize()
    other = trainer_factory(NAME)
    other.initialize()
    torch.save({"network_weights": trainer.network.state_dict()}, tmp_path / "pretrained.pth")
    load_pretrained_weights(other.network, str(tmp_path / "pretrained.pth"))
    other.on_train_start()
    assert other.network.error_channel_name == "signed"
    assert "'signed', which stays, although the setting 'error_channel' is 'published'" in log_of(other)


def test_normalised_channel_has_unit_variance_over_training_patches_and_stays_on_resuming(
    trainer_factory, after_prestage, tmp_path
):
    trainer = trainer_factory(NAME, anomaly={"error_channel": "normalised", "num_epochs": 2, "seed": 1})
    trainer.on_train_start()
    factors = trainer.network.error_channel_coefficients.clone()
    patches = [torch.from_numpy(image)[None] for image, _ in training_patches(trainer, 32, 0.33)]
    with torch.no_grad():
        errors = torch.cat([trainer.network.detector(patch) for patch in patches])
    torch.testing.assert_close((errors * factors[1]).std(), torch.tensor(1.0), rtol=1e-3, atol=0)
    assert f"Error channel: normalised, times {factors[1].tolist()}" in log_of(trainer)
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    trainer.on_train_end()

    resumed = trainer_factory(NAME, anomaly={"error_channel": "normalised", "num_epochs": 2, "seed": 2})
    resumed.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    resumed.on_train_start()
    assert torch.equal(resumed.network.error_channel_coefficients, factors)


# --------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize(("name", "alpha"), [(NAME, 1.0), ("AnomalyAwarePublishedTrainer", 10.0)])
def test_alpha_is_nnunets_or_by_name_the_papers(trainer_factory, after_prestage, name, alpha):
    trainer = trainer_factory(name)
    trainer.initialize()
    assert trainer.loss.loss_of_scale.loss.alpha == alpha
    assert trainer.loss.beta == 99.0
    assert trainer.network.error_channel_name == "published"


def test_loss_is_the_planned_one_with_the_settings_alpha_and_beta(trainer_factory, after_prestage):
    trainer = trainer_factory(NAME, anomaly={"alpha": 3.0, "beta": 7.0})
    trainer.initialize()
    planned = nnUNetTrainer._build_loss(trainer)
    assert isinstance(trainer.loss, AnomalyAwareLoss)
    assert trainer.loss.beta == 7.0
    assert trainer.loss.loss_of_scale.weight_factors == planned.weight_factors
    of_scale = trainer.loss.loss_of_scale.loss
    assert isinstance(of_scale, DiceAndFocalCrossEntropy)
    assert of_scale.alpha == 3.0
    assert type(of_scale.dice) is type(planned.loss.dc)
    assert (of_scale.dice.batch_dice, of_scale.dice.do_bg) == (planned.loss.dc.batch_dice, planned.loss.dc.do_bg)


def test_neutral_settings_give_nnunets_own_loss(trainer_factory, after_prestage):
    trainer = trainer_factory(NAME, anomaly={"alpha": 1.0, "beta": 0.0})
    trainer.initialize()
    batch = batch_of(trainer)
    with torch.no_grad():
        output = trainer.network(batch["data"])
        expected = nnUNetTrainer._build_loss(trainer)(output, batch["target"])
        torch.testing.assert_close(trainer.loss(output, batch["target"]), expected)


def test_loss_weighs_with_the_error_image_of_the_same_batch(trainer_factory, after_prestage):
    trainer = trainer_factory(NAME)
    trainer.initialize()
    losses = []
    with torch.no_grad():
        for seed in (0, 1, 0):
            batch = batch_of(trainer, seed)
            output = trainer.network(batch["data"])
            same = AnomalyAwareLoss(
                trainer.loss.loss_of_scale, 99.0, lambda image=batch["data"]: trainer.network.detector(image)
            )
            losses.append(trainer.loss(output, batch["target"]).item())
            assert losses[-1] == same(output, batch["target"]).item()
    assert losses[0] == losses[2] != losses[1]


def test_ignore_label_is_supported(trainer_factory, after_prestage, tiny_dataset, own_preprocessed):
    labels = {"background": 0, "femoral_bone": 1, "femoral_cartilage": 2, "ignore": 3}
    for path in (own_preprocessed / "nnUNetPlans_3d_fullres").glob("*.pkl"):
        # what nnU-Net's preprocessing adds where there is an ignore label: places that were annotated
        properties = load_pickle(str(path))
        properties["class_locations"][(-1, 0, 1, 2)] = properties["class_locations"].pop(3)
        write_pickle(properties, str(path))
    trainer = trainer_factory(NAME, dataset_json={**tiny_dataset.dataset_json, "labels": labels})
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    assert trainer.loss.loss_of_scale.loss.ignore_label == 3
    loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
    assert torch.isfinite(torch.tensor(float(loss)))


def test_segmentation_without_deep_supervision_trains(trainer_factory, after_prestage):
    class SingleScaleTrainer(AnomalyAwareTrainer):
        def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.enable_deep_supervision = False

    trainer = trainer_factory(SingleScaleTrainer)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = batch_of(trainer)
    loss = trainer.train_step({"data": batch["data"], "target": batch["target"][0]})["loss"]
    assert torch.isfinite(torch.tensor(float(loss)))


# -------------------------------------------------------------------------------------- checkpoints and prediction


def trained_for_a_step(trainer_factory):
    trainer = trainer_factory(NAME)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(batch_of(trainer))
    return trainer


def test_nnunets_predictor_gives_bitwise_the_networks_own_output_without_the_prestage(trainer_factory, after_prestage):
    trainer = trained_for_a_step(trainer_factory)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    shutil.rmtree(prestage_of(after_prestage))
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor.network.eval()
    window = torch.randn(1, 1, 16, 16, 16, generator=torch.manual_seed(7))
    with torch.no_grad():
        expected = trainer.network(window)
        assert torch.equal(predictor.network(window), expected)
    assert expected.shape == (1, 4, 16, 16, 16)
    assert predictor.trainer_name == NAME


def test_resumed_training_brings_its_detector_and_needs_no_prestage(trainer_factory, after_prestage):
    trainer = trained_for_a_step(trainer_factory)
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    shutil.rmtree(prestage_of(after_prestage))
    resumed = trainer_factory(NAME)
    resumed.load_checkpoint(str(path))
    resumed.on_train_start()
    assert_same_tensors(resumed.network.state_dict(), trainer.network.state_dict())
    assert resumed.current_epoch == 1


def test_resumed_training_keeps_its_own_detector_although_the_prestage_changed(trainer_factory, after_prestage):
    trainer = trained_for_a_step(trainer_factory)
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))

    def change(checkpoint):
        checkpoint["network_weights"] = {name: value + 1 for name, value in checkpoint["network_weights"].items()}

    change_checkpoint(prestage_of(after_prestage) / "fold_0" / "checkpoint_final.pth", change)
    resumed = trainer_factory(NAME)
    resumed.load_checkpoint(str(path))
    resumed.on_train_start()
    assert_same_tensors(resumed.network.detector.state_dict(), trainer.network.detector.state_dict())


@pytest.mark.parametrize("name", ["AnomalyAwareTrainer", "AnomalyPreStageTrainer"])
def test_failure_while_saving_leaves_the_last_good_checkpoint(
    trainer_factory, after_prestage, monkeypatch, tmp_path, name
):
    trainer = trainer_factory(name)
    trainer.initialize()
    path = tmp_path / "checkpoint_latest.pth"
    save, calls, failing_calls = torch.save, [], []

    def save_until_the_disk_is_full(value, file):
        calls.append(file)
        if len(calls) in failing_calls:
            Path(file).write_bytes(b"half a checkpoint")
            raise OSError("no space left on device")
        save(value, file)

    monkeypatch.setattr(torch, "save", save_until_the_disk_is_full)
    trainer.save_checkpoint(str(path))
    assert [file.name for file in tmp_path.glob("checkpoint*")] == [path.name]
    before, num_calls = path.read_bytes(), len(calls)
    assert num_calls > 0
    for failing_call in range(1, num_calls + 1):
        calls.clear()
        failing_calls[:] = [failing_call]
        with pytest.raises(UserError, match=r"cannot be written to.*no space left"):
            trainer.save_checkpoint(str(path))
        assert path.read_bytes() == before


def test_checkpoint_is_not_written_where_checkpointing_is_disabled(trainer_factory, after_prestage, tmp_path):
    trainer = trainer_factory(NAME)
    trainer.initialize()
    trainer.disable_checkpointing = True
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert list(tmp_path.glob("checkpoint*")) == []


def test_2d_configuration_trains_behind_its_own_prestage(trainer_factory):
    trainer_factory(
        "AnomalyPreStageTrainer", configuration="2d_small", anomaly={"inpainting_epochs": 1, "distillation_epochs": 1}
    ).run_training()
    trainer = trainer_factory(NAME, configuration="2d_small", anomaly={"num_epochs": 1})
    trainer.run_training()
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == NAME
    assert len(checkpoint["logging"]["mean_fg_dice"]) == 1
