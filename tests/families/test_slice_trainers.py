"""Detectors of whole slices by nnU-Net's own loop: what they learn from, resume, masks, and where they refuse."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.detectors.artefact import read_artefact
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.prediction import anomaly_maps
from nnunetv2_anomaly.prediction.anomaly_maps import load_detector
from nnunetv2_anomaly.trainers import ASCNetTrainer, LaMaBMLTrainer

TRAINERS = ["LaMaBMLTrainer", "MKDTrainer"]
WHOLE = {"configuration": "2d_whole"}


class StoppedError(Exception):
    """As a kill between two epochs."""


def stopping(trainer_class, epoch):
    """The trainer, stopped as an epoch begins; it writes in the same folder."""

    def on_epoch_start(self):
        if self.current_epoch == epoch:
            raise StoppedError
        trainer_class.on_epoch_start(self)

    return type(trainer_class.__name__, (trainer_class,), {"on_epoch_start": on_epoch_start})


def test_a_run_that_was_stopped_ends_as_one_that_was_not(trainer_factory):
    keywords = {**WHOLE, "anomaly": {"seed": 5}}
    whole = trainer_factory("LaMaBMLTrainer", **keywords)
    whole.run_training()
    expected = whole.module.state_dict()
    first = trainer_factory(stopping(LaMaBMLTrainer, 1), **keywords)
    with pytest.raises(StoppedError):
        first.run_training()
    resumed = trainer_factory("LaMaBMLTrainer", **keywords)
    resumed.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 1
    state = resumed.discriminator_optimizer.state_dict()["state"]
    assert all(of["exp_avg"].any() for of in state.values())
    resumed.run_training()
    found = resumed.module.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize("name", TRAINERS)
def test_they_learn_from_slices_without_a_lesion_and_say_how_many(trainer_factory, monkeypatch, name):
    trainer = trainer_factory(name, **WHOLE)
    trainer.on_train_start()
    labels = {}
    for case, slices in trainer.free_slices.items():
        voxels = np.asarray(trainer.dataset_class(trainer.preprocessed_dataset_folder, [case]).load_case(case)[1][0])
        labels[case] = voxels
        assert len(slices)
        assert not (voxels[slices] == 3).any()
        assert all((voxels[index] == 1).any() for index in slices)
    number = sum(len(trainer.free_slices[case]) for case in trainer.training_cases)
    assert f"{number} slices without a lesion in 4 cases" in Path(trainer.log_file).read_text()
    for _ in range(5):
        batch = next(trainer.dataloader_train)
        assert batch["data"].shape[2:] == (32, 32)
        assert not (batch["target"] == 3).any()
        assert (batch["target"] == 1).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("name", TRAINERS)
def test_volumes_and_data_without_known_slices_are_refused(trainer_factory, tiny_dataset, tmp_path, name):
    with pytest.raises(UserError, match=r"whole slices.*plan_whole_image"):
        trainer_factory(name)
    with pytest.raises(UserError, match="learns from slices, and patches of 3d_small have 3 axes"):
        trainer_factory(name, changes={"patch_size": [32, 32, 32]})
    unlabelled = {**tiny_dataset.dataset_json, "labels": {"background": 0, "femoral_bone": 1, "other": 2, "more": 3}}
    with pytest.raises(UserError, match=r"no label is a lesion .* 'lesion_free_slices'"):
        trainer_factory(name, dataset_json=unlabelled, **WHOLE)
    boneless = {**tiny_dataset.dataset_json, "labels": {"background": 0, "a": 1, "b": 2, "lesion": 3}}
    with pytest.raises(UserError, match="no label is a bone"):
        trainer_factory(name, dataset_json=boneless, **WHOLE)


def test_a_list_takes_the_place_of_lesion_labels(trainer_factory, tiny_dataset, tmp_path):
    unlabelled = {**tiny_dataset.dataset_json, "labels": {"background": 0, "femoral_bone": 1, "other": 2, "more": 3}}
    file = tmp_path / "slices.csv"
    anomaly = {"lesion_free_slices": str(file)}
    trainer = trainer_factory("LaMaBMLTrainer", dataset_json=unlabelled, anomaly=anomaly, **WHOLE)
    with pytest.raises(UserError, match=r"slices\.csv cannot be read"):
        trainer.on_train_start()
    training, _ = trainer.do_split()
    file.write_text(f"case,slices\n{training[0]},9-10\n")
    trainer = trainer_factory("LaMaBMLTrainer", dataset_json=unlabelled, anomaly=anomaly, **WHOLE)
    trainer.on_train_start()
    assert trainer.training_cases == [training[0]]
    assert trainer.artefact().fitted_on == {training[0]}
    log = Path(trainer.log_file).read_text()
    assert "2 slices without a lesion in 1 cases" in log
    assert "WARNING: no validation case has a slice without a lesion" in log
    file.write_text(f"case,slices\n{training[0]}.nii.gz,9\n")
    trainer = trainer_factory("LaMaBMLTrainer", dataset_json=unlabelled, anomaly=anomaly, **WHOLE)
    with pytest.raises(
        UserError, match=rf"names {training[0]}\.nii\.gz; expected cases of Dataset801_TinyKnee, as case_0"
    ):
        trainer.on_train_start()
    file.write_text(f"case,slices\n{training[0]},0\n")  # no bone there
    trainer = trainer_factory("LaMaBMLTrainer", dataset_json=unlabelled, anomaly=anomaly, **WHOLE)
    with pytest.raises(UserError, match="no training case of fold 0 has a slice with bone and without a lesion"):
        trainer.on_train_start()


def test_a_random_teacher_has_to_be_allowed_and_is_not_comparable(trainer_factory, tmp_path):
    with pytest.raises(UserError, match="what a random teacher gives is not MKD"):
        trainer_factory("MKDTrainer", anomaly={"allow_random_teacher": False}, **WHOLE)
    missing = trainer_factory("MKDTrainer", anomaly={"teacher_weights": f"file:{tmp_path / 'vgg.pth'}"}, **WHOLE)
    with pytest.raises(UserError, match=r"vgg\.pth do not exist"):
        missing.on_train_start()
    allowed = trainer_factory("MKDTrainer", **WHOLE)
    allowed.on_train_start()
    assert not allowed.artefact().comparable
    assert "WARNING: the teacher is random: not MKD" in Path(allowed.log_file).read_text()


def test_perceptual_weights_are_asked_for_and_recorded(trainer_factory, tmp_path):
    with pytest.raises(UserError, match="perceptual loss 'segnet' has no weights"):
        trainer_factory("LaMaBMLTrainer", anomaly={"perceptual": "segnet"}, **WHOLE).on_train_start()
    bones = trainer_factory("BoneContrastTrainer", **WHOLE)
    bones.run_training()
    wrong = {"perceptual": "segnet", "perceptual_weights": str(Path(bones.output_folder) / "checkpoint_final.pth")}
    with pytest.raises(UserError, match="is of another network than its plans"):  # the network is inside a detector
        trainer_factory("LaMaBMLTrainer", anomaly=wrong, **WHOLE).on_train_start()


def test_a_bone_model_has_to_fit_and_travels_with_the_detector(trainer_factory, tmp_path):
    with pytest.raises(UserError, match=r"the setting 'bone_model' is .* does not exist; expected a finished training"):
        trainer_factory("LaMaBMLTrainer", anomaly={"bone_model": str(tmp_path)}, **WHOLE).on_train_start()
    bones = trainer_factory("BoneContrastTrainer", **WHOLE)
    bones.run_training()
    folder = Path(bones.output_folder).parent
    keywords = {"anomaly": {"bone_model": str(folder)}, **WHOLE}
    other = trainer_factory("LaMaBMLTrainer", changes={"spacing": [0.5, 0.5]}, **keywords)
    with pytest.raises(UserError, match=r"with the spacing 1\.0, 1\.0; expected 0\.5, 0\.5"):
        other.on_train_start()
    trainer = trainer_factory("LaMaBMLTrainer", **keywords)
    trainer.on_train_start()
    elsewhere = {"anomaly": {"bone_model": str(bones.output_folder)}, **WHOLE}
    with pytest.raises(UserError, match="is of fold 0, and has seen validation cases of fold 1"):
        trainer_factory("LaMaBMLTrainer", fold=1, **elsewhere).on_train_start()
    own, theirs = trainer.own_detector.bone_model, bones.own_detector.bones
    assert all(torch.equal(of, own.state_dict()[name]) for name, of in theirs.state_dict().items())
    assert set(trainer.artefact().sources) == {"bone model"}


@pytest.fixture(scope="module")
def lama(build_trainer, tmp_path_factory):
    """A results folder with a trained LaMa, without a bone model, and its validation."""
    folder = tmp_path_factory.mktemp("lama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(folder))
        trainer = build_trainer("LaMaBMLTrainer", **WHOLE)
        trainer.run_training()
        trainer.perform_actual_validation()
    return folder


@pytest.fixture
def options(tiny_dataset, lama, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(lama))
    names = {"-i": tiny_dataset.raw / "imagesTs", "-d": "801", "-c": "2d_whole", "-tr": "LaMaBMLTrainer"}
    names |= {"-device": "cpu", "-o": tmp_path / "maps"}
    return [str(word) for pair in names.items() for word in pair]


def test_maps_need_bones_and_come_with_a_mask(options, lama, tiny_dataset, tmp_path, capsys):
    assert main(["anomaly_maps", *options]) == 1
    assert "needs bones, and no bone model is in it; give segmentations or a model folder" in capsys.readouterr().err
    bones = tmp_path / "bones"
    bones.mkdir()
    image = sitk.ReadImage(str(tiny_dataset.raw / "imagesTs" / "case_5_0000.nii.gz"))
    voxels = sitk.GetArrayFromImage(image)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[6:14, 6:14, 6:18] = 1
    segmentation = sitk.GetImageFromArray(labels)
    segmentation.CopyInformation(image)
    sitk.WriteImage(segmentation, str(bones / "case_5.nii.gz"))
    assert main(["anomaly_maps", *options, "--bones", str(bones)]) == 0
    output = tmp_path / "maps"
    made = {file.name for file in output.iterdir()}
    kinds = {"case_5_error.nii.gz", "case_5_reconstruction.nii.gz", "case_5_lesions.nii.gz", "case_5.png"}
    assert made == {*kinds, "anomaly_maps.json"}
    read = {kind: sitk.ReadImage(str(output / kind)) for kind in kinds if kind.endswith("nii.gz")}
    for of in read.values():
        assert of.GetSize() == image.GetSize()
        assert of.GetSpacing() == image.GetSpacing()
    lesions, error = (sitk.GetArrayFromImage(read[f"case_5_{kind}.nii.gz"]) for kind in ("lesions", "error"))
    assert set(np.unique(lesions)) <= {0, 1}
    assert not lesions[labels == 0].any()
    assert not error[labels == 0].any()
    assert error[labels > 0].any()
    before = {file.name: file.stat().st_mtime_ns for file in output.iterdir() if file.name in kinds}
    assert main(["anomaly_maps", *options, "--bones", str(bones), "--continue_prediction"]) == 0
    assert {name: (output / name).stat().st_mtime_ns for name in before} == before
    assert json.loads((output / "anomaly_maps.json").read_text())["comparable"] is True
    (checkpoint,) = lama.glob("*/LaMaBML*/fold_0/checkpoint_final.pth")
    loaded = load_detector(checkpoint.parents[1], device=torch.device("cpu"))
    assert not loaded.predictor.network.training  # or slices would be normalised by themselves
    fit = read_artefact(checkpoint).threshold
    assert fit["rule"] == "otsu"
    assert fit["fitted_by"] == "labels"
    assert fit["opening_mm"] >= 0


def test_an_image_whose_bones_are_empty_has_no_lesions(options, tiny_dataset, tmp_path):
    bones = tmp_path / "bones"
    bones.mkdir()
    image = sitk.ReadImage(str(tiny_dataset.raw / "imagesTs" / "case_5_0000.nii.gz"))
    sitk.WriteImage(sitk.Cast(image * 0, sitk.sitkUInt8), str(bones / "case_5.nii.gz"))
    assert main(["anomaly_maps", *options, "--bones", str(bones)]) == 0
    for kind in ("lesions", "error"):
        assert not sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "maps" / f"case_5_{kind}.nii.gz"))).any()


def test_folds_without_separate_peaks_have_no_lesions(options, lama, monkeypatch):
    (model,) = lama.glob("*/LaMaBML*")
    loaded = load_detector(model, folds=(0, 0), device=torch.device("cpu"))
    fits = [{"rule": "peak", "value": None, "opening_mm": 1.0}, {"rule": "peak", "value": 0.4, "opening_mm": 3.0}]
    for chosen, value in ((fits[:1] * 2, None), (fits, 0.4)):
        found = iter(chosen)
        monkeypatch.setattr(
            anomaly_maps, "read_artefact", lambda path, found=found: SimpleNamespace(threshold=next(found))
        )
        assert loaded.fit()["value"] == value


def test_a_discriminator_that_is_not_finite_stops_the_training(trainer_factory):
    trainer = trainer_factory("LaMaBMLTrainer", **WHOLE)
    trainer.initialize()
    with pytest.raises(UserError, match="the training loss became nan"):
        trainer.judged(
            "training",
            lambda batch: {"loss": np.array(1.0), "discriminator": np.array(np.nan)},
            {"data": torch.zeros(1, 1, 2, 2)},
        )


# ------------------------------------------------------------------------------------------------------------ ASC-Net

CUTTING = {"asc_cycles": [2, 1], "seed": 3}


@pytest.fixture(scope="module")
def cut(build_trainer, tmp_path_factory):
    """A trained ASC-Net of six epochs, and its state at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("cut")))
        trainer = build_trainer("ASCNetTrainer", anomaly=CUTTING, **WHOLE)
        trainer.run_training()
        trainer.perform_actual_validation()
    return trainer


@pytest.mark.parametrize("stop_before", [*(pytest.param(of, marks=pytest.mark.exhaustive) for of in (1, 2, 5)), 3])
def test_cutting_resumes_in_any_phase(cut, trainer_factory, stop_before):
    first = trainer_factory(stopping(ASCNetTrainer, stop_before), anomaly=CUTTING, **WHOLE)
    with pytest.raises(StoppedError):
        first.run_training()
    resumed = trainer_factory("ASCNetTrainer", anomaly=CUTTING, **WHOLE)
    resumed.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == stop_before
    resumed.run_training()
    found = resumed.module.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in cut.module.state_dict().items())


def test_cutting_alternates_and_shows_its_terms_and_cuts(cut):
    log = Path(cut.log_file).read_text()
    places = [log.index(f"{phase.name} begins") for phase in cut.schedule.phases]
    assert places == sorted(places)
    assert "wild_mean" in log
    assert "wild_weight" in log
    assert (Path(cut.output_folder) / "cuts.png").read_bytes()[:4] == b"\x89PNG"
    assert cut.num_epochs == 6
    artefact = read_artefact(Path(cut.output_folder) / "checkpoint_final.pth")
    assert artefact.finished
    fit = artefact.threshold
    assert fit["rule"] == "peak"
    assert fit["scope"] == "dataset"


def test_reference_and_other_slices_are_told_apart(trainer_factory):
    trainer = trainer_factory("ASCNetTrainer", **WHOLE)
    trainer.on_train_start()
    for _ in range(5):
        assert not (next(trainer.reference_loader)["target"] == 3).any()
        assert (next(trainer.dataloader_train)["target"] == 3).flatten(1).any(dim=1).all()


def test_a_discriminator_stays_unless_each_cycle_is_to_have_its_own(trainer_factory, monkeypatch):
    restarted = []
    for options in ({}, {"reinit_discriminator": True}):
        trainer = trainer_factory("ASCNetTrainer", anomaly={**CUTTING, **options}, **WHOLE)
        trainer.on_train_start()
        found = []
        monkeypatch.setattr(trainer.module, "restart_discriminator", lambda found=found: found.append(1))
        judge = trainer.module.discriminator
        for trainer.current_epoch in range(6):
            trainer.on_train_epoch_start()
        assert trainer.module.discriminator is judge
        restarted.append(len(found))
    assert restarted == [0, 3]


def test_transductive_training_is_refused_by_the_fold_rule(trainer_factory):
    trainer = trainer_factory("ASCNetTrainer", anomaly={"transductive": True}, **WHOLE)
    trainer.on_train_start()
    _, validation = trainer.do_split()
    assert set(validation) <= trainer.artefact().fitted_on
    assert "(transductive)" in Path(trainer.log_file).read_text()
    plain = trainer_factory("ASCNetTrainer", **WHOLE)
    plain.on_train_start()
    assert not set(validation) & plain.artefact().fitted_on


def test_a_collapsed_wild_cut_is_warned_of(trainer_factory):
    trainer = trainer_factory("ASCNetTrainer", **WHOLE)
    trainer.on_train_start()
    trainer.module.detector.main.wild.head.bias.data.fill_(-20.0)
    trainer.module.detector.main.wild.head.weight.data.zero_()
    trainer.network.eval()
    output = trainer.validation_step(next(trainer.dataloader_val))
    trainer.logger.log("train_losses", 1.0, 0)
    trainer.on_validation_epoch_end([output])
    assert "WARNING: the wild cut has collapsed (its mean is 0.0000)" in Path(trainer.log_file).read_text()


def test_patches_that_cannot_be_halved_are_refused(trainer_factory):
    with pytest.raises(UserError, match="the patch of 2d_whole is 40 x 24; expected multiples of 16"):
        trainer_factory("ASCNetTrainer", changes={"patch_size": [40, 24]}, **WHOLE)
