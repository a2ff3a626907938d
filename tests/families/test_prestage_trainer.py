import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.errors import UnsupportedError, UserError
from nnunetv2_anomaly.prediction.validation import AUC_KEYS, SIGNED_AUC_KEYS
from nnunetv2_anomaly.trainers import AnomalyPreStageTrainer

NAME = "AnomalyPreStageTrainer"


def log_of(trainer):
    return Path(trainer.log_file).read_text()


def fixed_batches(num_batches, seed=0, dimensions=3):
    """Batches as nnU-Net's loader hands them over: image, and the segmentation with the hole mask under it."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(num_batches):
        data = torch.randn(2, 1, *[16] * dimensions, generator=generator)
        target = torch.zeros(2, 2, *[16] * dimensions, dtype=torch.int16)
        target[:, :, 4:9, 5:12] = 1
        batches.append({"data": data, "target": target, "keys": ["a", "b"]})
    return batches


class FixedData(AnomalyPreStageTrainer):
    """The trainer with batches that depend on nothing but the epoch."""

    def get_dataloaders(self):
        self.inference_allowed_mirroring_axes = (0, 1, 2)
        return None, None

    def run_epochs(self, epochs):
        for _ in range(epochs):
            self.on_epoch_start()
            self.on_train_epoch_start()
            batches = fixed_batches(self.num_iterations_per_epoch, seed=self.current_epoch)
            self.on_train_epoch_end([self.train_step(batch) for batch in batches])
            with torch.no_grad():
                self.on_validation_epoch_start()
                self.on_validation_epoch_end([self.validation_step(batch) for batch in fixed_batches(1, seed=99)])
            self.on_epoch_end()


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# ---------------------------------------------------------------------------------------------------- learning


def test_training_on_one_sample_drives_down_the_loss_of_each_phase(trainer_factory):
    torch.manual_seed(0)
    trainer = trainer_factory(
        NAME,
        anomaly={
            "num_iterations_per_epoch": 20,
            "inpainting_epochs": 2,
            "distillation_epochs": 2,
            "start_detector_from_inpainter": False,
        },
    )
    trainer.prepare()
    trainer.initialize()
    data = np.asarray(nnUNetDatasetBlosc2(trainer.preprocessed_dataset_folder).load_case("case_0")[0][:])
    target = torch.zeros(1, 2, 16, 16, 16, dtype=torch.int16)
    target[:, :, 5:11, 5:11, 5:11] = 1
    batch = {"data": torch.from_numpy(data[None, :, :16, :16, :16]), "target": target}
    trainer.module.detector.set_intensity_range(
        torch.tensor(trainer.intensities.low), torch.tensor(trainer.intensities.high)
    )
    for first_epoch in (0, 2):
        losses = []
        for epoch in (first_epoch, first_epoch + 1):
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            losses += [float(trainer.train_step(batch)["loss"]) for _ in range(20)]
        assert trainer.module.distilling is (first_epoch == 2)
        assert losses[-1] < 0.6 * losses[0]


def test_learning_rate_of_a_short_phase_decays_within_the_epochs(trainer_factory):
    trainer = trainer_factory(FixedData, anomaly={"num_iterations_per_epoch": 4})
    trainer.on_train_start()
    rates = []
    trainer.on_train_epoch_start()
    for batch in fixed_batches(4):
        trainer.train_step(batch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2e-3 * (1 - step / 8) ** 0.9 for step in range(4)])


def test_detector_starts_from_the_inpainter_where_set(trainer_factory):
    for start in (True, False):
        trainer = trainer_factory(NAME, anomaly={"start_detector_from_inpainter": start})
        trainer.initialize()
        trainer.enter_phase(1)
        pairs = zip(
            trainer.module.detector.reconstructor.parameters(), trainer.module.inpainter.parameters(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs) is start


def test_phase_2_leaves_inpainter_and_compressor_bitwise_alone(trainer_factory):
    trainer = trainer_factory(FixedData)
    trainer.on_train_start()
    trainer.run_epochs(2)
    frozen = {
        name: value.clone()
        for name, value in trainer.module.state_dict().items()
        if not name.startswith("detector.reconstructor")
    }
    trainer.on_train_epoch_start()
    before = {name: value.clone() for name, value in trainer.module.detector.reconstructor.state_dict().items()}
    for batch in fixed_batches(2):
        trainer.train_step(batch)
    after = trainer.module.state_dict()
    assert_same_tensors({name: after[name] for name in frozen}, frozen)
    assert any(
        not torch.equal(value, before[name])
        for name, value in trainer.module.detector.reconstructor.state_dict().items()
    )


def test_intensity_range_and_untrained_level_come_from_the_training_cases(trainer_factory):
    trainer = trainer_factory(FixedData)
    trainer.on_train_start()
    dataset = nnUNetDatasetBlosc2(trainer.preprocessed_dataset_folder)
    images = [np.asarray(dataset.load_case(case)[0][:]).clip(-5, 5) for case in trainer.training_cases]
    low, high = min(image.min() for image in images), max(image.max() for image in images)
    detector = trainer.module.detector
    assert detector.intensity_low.item() == pytest.approx(low)
    assert detector.intensity_high.item() == pytest.approx(high)
    level = (np.mean([image.mean() for image in images]) - low) / (high - low)
    for network in (detector.reconstructor, trainer.module.inpainter):
        assert torch.sigmoid(network.output.bias).item() == pytest.approx(level, rel=1e-4)


# ------------------------------------------------------------------------------------------------- the hole mask


def test_hole_mask_lies_behind_the_image_channels_and_not_in_the_target():
    batch = fixed_batches(1)[0]
    batch["target"][0, 1, 0] = -1  # nnU-Net's padding
    moved = AnomalyPreStageTrainer._with_hole_mask(batch)
    assert moved["data"].shape == (2, 2, 16, 16, 16)
    assert torch.equal(moved["data"][:, 1] == 1, batch["target"][:, 1] == 1)
    assert set(moved["data"][:, 1].unique().tolist()) == {0.0, 1.0}
    assert moved["target"].shape == (2, 1, 16, 16, 16)
    assert batch["target"].shape == (2, 2, 16, 16, 16)  # the batch itself is untouched


def loader_of(trainer, training):
    trainer.prepare()
    trainer.initialize()
    loaders = trainer.get_dataloaders()
    return loaders[0 if training else 1]


def test_hole_mask_of_margin_0_is_the_foreground_exactly_without_augmentation(trainer_factory):
    loader = loader_of(trainer_factory(NAME, anomaly={"erase_margin_voxels": 0}), training=False)
    for _ in range(3):
        target = next(loader)["target"]
        assert target.shape[1] == 2
        assert (target[:, 0] > 0).any()
        assert torch.equal(target[:, 1] > 0, target[:, 0] > 0)


def test_hole_mask_of_margin_0_follows_the_foreground_through_nnunets_augmentation(trainer_factory):
    np.random.seed(0)
    torch.manual_seed(0)
    loader = loader_of(trainer_factory(NAME, anomaly={"erase_margin_voxels": 0}), training=True)
    targets = torch.cat([next(loader)["target"] for _ in range(12)])
    foreground, hole = targets[:, 0] > 0, targets[:, 1] > 0
    assert foreground.any()
    # Interpolation draws the edge between two labels a little differently than that of their union.
    assert (foreground == hole).float().mean() > 0.99
    equal = [torch.equal(*pair) for pair in zip(foreground, hole, strict=True)]
    assert sum(equal) >= len(equal) // 3  # those that were mirrored and cropped only


def test_margin_widens_the_hole_mask_of_a_patch(trainer_factory):
    loader = loader_of(trainer_factory(NAME, anomaly={"erase_margin_voxels": 3}), training=False)
    target = next(loader)["target"]
    assert ((target[:, 1] > 0) | (target[:, 0] <= 0)).all()
    assert (target[:, 1] > 0).sum() > (target[:, 0] > 0).sum()


# -------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("stop_after", [1, 2, 3], ids=["in phase 1", "between the phases", "in phase 2"])
def test_resumed_run_continues_as_if_it_had_never_stopped(trainer_factory, tmp_path, stop_after):
    torch.manual_seed(0)
    whole = trainer_factory(FixedData)
    whole.on_train_start()
    whole.run_epochs(stop_after)
    latest = tmp_path / "stopped.pth"
    shutil.copy(Path(whole.output_folder) / "checkpoint_latest.pth", latest)
    expected = {
        "epoch": whole.current_epoch,
        "distilling": whole.module.distilling,
        "optimizer": copy.deepcopy(whole.optimizer.state_dict()),
        "logs": copy.deepcopy(whole.logger.get_checkpoint()),
        "requires_grad": [parameter.requires_grad for parameter in whole.module.parameters()],
        "cases": whole.training_cases,
        "quality": copy.deepcopy(whole.quality),
        "weights": {name: value.clone() for name, value in whole.module.state_dict().items()},
    }
    whole.run_epochs(4 - stop_after)

    torch.manual_seed(1)
    resumed = trainer_factory(FixedData)
    resumed.load_checkpoint(str(latest))
    resumed.on_train_start()
    assert resumed.current_epoch == expected["epoch"] == stop_after
    assert resumed.module.distilling is expected["distilling"] is (stop_after > 2)
    assert [parameter.requires_grad for parameter in resumed.module.parameters()] == expected["requires_grad"]
    assert (resumed.training_cases, resumed.quality) == (expected["cases"], expected["quality"])
    assert resumed.logger.get_checkpoint() == expected["logs"]
    assert_same_tensors(resumed.module.state_dict(), expected["weights"])
    state = resumed.optimizer.state_dict()
    assert state["param_groups"] == expected["optimizer"]["param_groups"]
    for index, moments in expected["optimizer"]["state"].items():
        assert_same_tensors(state["state"][index], moments)

    resumed.run_epochs(4 - stop_after)
    assert_same_tensors(resumed.module.state_dict(), whole.module.state_dict())
    assert resumed.logger.get_value("lrs", None) == whole.logger.get_value("lrs", None)
    assert resumed.logger.get_value("val_losses", None) == whole.logger.get_value("val_losses", None)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_resumed_run_knows_the_best_score_so_far(trainer_factory, stop_after):
    trainer = trainer_factory(FixedData)
    trainer.on_train_start()
    trainer.run_epochs(stop_after)
    resumed = trainer_factory(FixedData)
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert resumed._best_ema == trainer._best_ema
    assert resumed._best_ema is not None


def test_best_score_restarts_with_phase_2(trainer_factory):
    trainer = trainer_factory(FixedData)
    trainer.on_train_start()
    trainer.run_epochs(2)
    trainer._best_ema = -1e-9  # a score that phase 2 cannot reach
    trainer.run_epochs(1)
    assert trainer._best_ema == -trainer.logger.get_value("val_losses", -1)
    best = torch.load(Path(trainer.output_folder) / "checkpoint_best.pth", weights_only=False)
    assert best["anomaly_phase"] == {"number": 1, "epochs": [2, 2]}


def test_optimizer_holds_what_the_phase_trains_alone(trainer_factory):
    trainer = trainer_factory(NAME)
    trainer.initialize()
    for distilling in (False, True):
        if distilling:
            trainer.enter_phase(1)
        held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
        reconstructor = {id(parameter) for parameter in trainer.module.detector.reconstructor.parameters()}
        everything = {id(parameter) for parameter in trainer.module.parameters()}
        assert held == (reconstructor if distilling else everything - reconstructor)


def test_checkpoint_of_another_trainer_is_refused(trainer_factory, tmp_path):
    torch.save({"trainer_name": "nnUNetTrainer", "network_weights": {}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="written by the trainer nnUNetTrainer"):
        trainer_factory(NAME).load_checkpoint(str(tmp_path / "other.pth"))


# ------------------------------------------------------------------------------------- what a whole run leaves


def test_final_checkpoint_holds_nnunets_entries_and_ours(trained_results):
    (path,) = trained_results.glob("*/AnomalyPreStageTrainer__nnUNetPlans__3d_small/fold_0/checkpoint_final.pth")
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint["trainer_name"] == NAME
    assert checkpoint["current_epoch"] == 4
    assert {"network_weights", "optimizer_state", "logging", "_best_ema", "init_args"} <= checkpoint.keys()
    assert checkpoint["anomaly_phase"] == {"number": 1, "epochs": [2, 2]}
    extra = checkpoint["anomaly_detector"]
    assert extra["finished"] is True
    named = ("lesion_auc", "lesion_ap")  # added once the validation is over
    of_validation = {f"{of}{name}" for of in ("", "intensity_", "contrast_") for name in named}
    assert set(extra["quality"]) == {"mse_erased", "mse_constant", "mse_blurred", "mse_outside"} | of_validation
    assert all(math.isfinite(extra["quality"][key]) for key in ("mse_erased", "mse_constant", "mse_blurred"))
    assert sorted(path.name for path in path.parent.glob("checkpoint_*")) == ["checkpoint_best.pth", path.name]


def test_final_checkpoint_names_the_folds_training_cases(trained_results, tiny_dataset):
    (path,) = trained_results.glob("*/AnomalyPreStageTrainer__nnUNetPlans__3d_small/fold_0/checkpoint_final.pth")
    splits = json.loads((tiny_dataset.preprocessed / "splits_final.json").read_text())
    cases = torch.load(path, weights_only=False)["anomaly_detector"]["fitted_on"]
    assert cases == sorted(splits[0]["train"])
    assert not set(cases) & set(splits[0]["val"])


def test_every_epoch_is_logged_once(trained_results):
    (path,) = trained_results.glob("*/AnomalyPreStageTrainer__nnUNetPlans__3d_small/fold_0/checkpoint_final.pth")
    logged = torch.load(path, weights_only=False)["logging"]
    for key in ("train_losses", "val_losses", "lrs", "mse_erased", "mse_constant", "mse_blurred"):
        assert len(logged[key]) == 4, key


def test_validation_writes_each_case_in_the_geometry_of_its_image(trained_results, tiny_dataset):
    (folder,) = trained_results.glob("*/AnomalyPreStageTrainer__nnUNetPlans__3d_small/fold_0/validation")
    splits = json.loads((tiny_dataset.preprocessed / "splits_final.json").read_text())
    expected = {"summary.json"}
    for case in splits[0]["val"]:
        expected |= {f"{case}.png", f"{case}_reconstruction.nii.gz", f"{case}_error.nii.gz"}
        image = sitk.ReadImage(str(tiny_dataset.raw / "imagesTr" / f"{case}_0000.nii.gz"))
        for kind in ("reconstruction", "error"):
            written = sitk.ReadImage(str(folder / f"{case}_{kind}.nii.gz"))
            assert written.GetSize() == image.GetSize()
            assert written.GetDirection() == image.GetDirection()
            voxels = sitk.GetArrayFromImage(written)
            # At a volume's edges the rounding of nnU-Net's float16 windows moves what was expected a little.
            beyond = 0.05 if kind == "reconstruction" else 0
            assert -beyond <= voxels.min()
            assert voxels.max() <= 1 + beyond
            assert voxels.std() > 0
    assert {path.name for path in folder.iterdir()} == expected


def test_validation_summary_measures_detector_and_inpainter(trained_results, tiny_dataset):
    (folder,) = trained_results.glob("*/AnomalyPreStageTrainer__nnUNetPlans__3d_small/fold_0/validation")
    summary = json.loads((folder / "summary.json").read_text())
    for network in ("detector", "inpainter"):
        assert summary["mean"][network]["mse_erased"] > 0
        for key in (*AUC_KEYS, *SIGNED_AUC_KEYS):
            assert 0 <= summary["mean"][network][key] <= 1  # the cases have femoral_lesion
    assert summary["mean"]["num_cases"] == summary["mean"]["num_cases_with_lesion"] == 1


# --------------------------------------------------------------------------------------------- refused and supported


def without_foreground(preprocessed, case):
    folder = preprocessed / "nnUNetPlans_3d_fullres"
    image, segmentation, _, properties = nnUNetDatasetBlosc2(str(folder)).load_case(case)
    image, segmentation = np.array(image[:]), np.zeros_like(np.array(segmentation[:]))
    properties["class_locations"] = {label: [] for label in properties["class_locations"]}
    for path in folder.glob(f"{case}*"):
        path.unlink()
    size = (1, 16, 16, 16)
    nnUNetDatasetBlosc2.save_case(image, segmentation, properties, str(folder / case), size, size, size, size)


def test_case_without_foreground_is_refused_naming_it_and_the_setting(trainer_factory, own_preprocessed):
    without_foreground(own_preprocessed, "case_2")
    with pytest.raises(UserError, match=r"1 case\(s\) have no foreground .*: case_2;") as caught:
        trainer_factory(NAME).on_train_start()
    assert "'skip_cases_without_foreground'" in str(caught.value)


def test_case_without_foreground_is_left_out_where_set(trainer_factory, own_preprocessed):
    without_foreground(own_preprocessed, "case_2")
    for fold in range(5):
        trainer = trainer_factory(NAME, fold=fold, anomaly={"skip_cases_without_foreground": True})
        trainer.prepare()
        training, validation = trainer.do_split()
        assert "case_2" not in (*training, *validation, *trainer.training_cases)
        assert len({*training, *validation}) == 4
        assert "Left out, without foreground: case_2" in log_of(trainer)


def test_case_of_the_split_that_was_not_preprocessed_is_named(trainer_factory, own_preprocessed):
    split = {"train": ["case_0", "case_7"], "val": ["case_1"]}
    (own_preprocessed / "splits_final.json").write_text(json.dumps([split]))
    with pytest.raises(UserError, match=r"names 1 case\(s\) .*\(case_7\)"):
        trainer_factory(NAME).prepare()


@pytest.mark.parametrize("name", ["AnomalyPreStageTrainer", "AnomalyAwareTrainer"])
def test_cascade_is_refused(trainer_factory, name):
    with pytest.raises(UnsupportedError, match=r"does not support the cascade.*'3d_lowres'") as caught:
        trainer_factory(name, changes={"previous_stage": "3d_lowres"})
    assert isinstance(caught.value, NotImplementedError)


def test_regions_are_supported(trainer_factory, tiny_dataset):
    regions = {
        **tiny_dataset.dataset_json,
        "labels": {"background": 0, "knee": [1, 2, 3], "femoral_lesion": [3]},
        "regions_class_order": [1, 3],
    }
    trainer = trainer_factory(NAME, anomaly={"erase_margin_voxels": 0}, dataset_json=regions)
    loader = loader_of(trainer, training=False)
    batch = next(loader)
    assert torch.equal(batch["target"][:, 1] > 0, batch["target"][:, 0] > 0)
    assert np.isfinite(trainer.train_step(batch)["loss"])


def test_ignored_voxels_are_not_erased(trainer_factory, tiny_dataset):
    labels = {"background": 0, "femoral_bone": 1, "femoral_cartilage": 2, "ignore": 3}
    trainer = trainer_factory(
        NAME, anomaly={"erase_margin_voxels": 0}, dataset_json={**tiny_dataset.dataset_json, "labels": labels}
    )
    trainer.prepare()
    dataset = nnUNetDatasetBlosc2(
        trainer.preprocessed_dataset_folder, ["case_0"], trainer.folder_with_segs_from_previous_stage
    )
    _, segmentation, hole, _ = dataset.load_case("case_0")
    segmentation, hole = np.asarray(segmentation[:])[0], np.asarray(hole[:]) > 0
    assert (segmentation == 3).any()
    assert np.array_equal(hole, np.isin(segmentation, (1, 2)))


def test_all_images_train_and_validate_in_fold_all(trainer_factory):
    trainer = trainer_factory(NAME, fold="all")
    trainer.prepare()
    assert trainer.training_cases == [f"case_{number}" for number in range(5)]


def test_2d_configuration_trains_and_validates(trainer_factory):
    trainer = trainer_factory(
        NAME, configuration="2d_small", anomaly={"inpainting_epochs": 1, "distillation_epochs": 1}
    )
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    assert (folder / "checkpoint_final.pth").is_file()
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    assert summary["mean"]["detector"]["mse_erased"] > 0


@pytest.mark.parametrize("name", ["AnomalyPreStageTrainer", "AnomalyAwareTrainer"])
@pytest.mark.parametrize(
    ("anomaly", "expected"), [({}, None), ({"mirror_axes": [0, 2]}, (0, 2)), ({"mirror_axes": None}, (0, 1, 2))]
)
def test_mirroring_is_the_same_in_training_and_at_prediction(trainer_factory, name, anomaly, expected):
    trainer = trainer_factory(name, anomaly=anomaly)
    *_, mirror_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert mirror_axes == expected
    assert trainer.inference_allowed_mirroring_axes == expected


def test_mirroring_along_a_missing_axis_is_refused(trainer_factory):
    trainer = trainer_factory(NAME, configuration="2d", changes={"anomaly": {"mirror_axes": [2]}})
    with pytest.raises(UserError, match="'mirror_axes' is \\[2\\]; expected axes below 2"):
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()


@pytest.fixture
def two_folds(after_prestage):
    """A results folder with fold 0, and a fold 1 that has its weights times 0.9."""
    (fold_0,) = after_prestage.glob(f"*/{NAME}__*/fold_0")
    shutil.copytree(fold_0, fold_0.with_name("fold_1"))
    path = fold_0.with_name("fold_1") / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    for name, value in checkpoint["network_weights"].items():
        if "reconstructor" in name:
            value *= 0.9
    torch.save(checkpoint, path)
    return after_prestage


@pytest.mark.parametrize("words", [("-f", "0", "1"), ()], ids=["named", "those that are trained"])
def test_error_images_of_several_folds_are_the_means_of_theirs(two_folds, tiny_dataset, tmp_path, capsys, words):
    images = ["-i", str(tiny_dataset.raw / "imagesTs"), "-d", "801", "-c", "3d_small", "-device", "cpu"]
    for name, chosen in {"both": words, "0": ("-f", "0"), "1": ("-f", "1")}.items():
        assert main(["error_images", *images, "-o", str(tmp_path / name), *chosen]) == 0
    record = json.loads((tmp_path / "both" / "anomaly_maps.json").read_text())
    assert record["folds"] == [0, 1]
    assert "__3d_small, fold 0 1\n" in capsys.readouterr().out
    for kind in ("error", "reconstruction"):
        volume = {
            name: sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name / f"case_5_{kind}.nii.gz")))
            for name in ("both", "0", "1")
        }
        assert np.abs(volume["0"] - volume["1"]).max() > 1e-3
        np.testing.assert_allclose(volume["both"], (volume["0"] + volume["1"]) / 2, atol=1e-6)


def test_a_fold_that_is_not_trained_is_told_with_all_that_were_wanted(two_folds, tiny_dataset, tmp_path, capsys):
    images = ["-i", str(tiny_dataset.raw / "imagesTs"), "-d", "801", "-c", "3d_small", "-device", "cpu"]
    assert main(["error_images", *images, "-o", str(tmp_path / "o"), "-f", "0", "2"]) == 1
    told = capsys.readouterr().err
    assert "no model with fold_0/checkpoint_final.pth and fold_2/checkpoint_final.pth in " in told
    assert "nnUNetv2_train 801 3d_small 2 -tr AnomalyPreStageTrainer" in told
    assert not (tmp_path / "o").exists()
