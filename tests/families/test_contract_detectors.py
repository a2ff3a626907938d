"""What every family of detectors has to do, over the registry and a toy family of another package."""

import copy
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from benchmarks.gpu.measure import measure
from nnunetv2_anomaly.detectors.artefact import detector_of, read_artefact
from nnunetv2_anomaly.detectors.base import Contract, Detector, check_fits_configuration, detector_class
from nnunetv2_anomaly.detectors.error import squared
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.plans.settings import known_settings
from nnunetv2_anomaly.prediction.anomaly_maps import load_detector, predict_anomaly_maps
from nnunetv2_anomaly.registry import DETECTORS, detector_families, load_trainer
from nnunetv2_anomaly.trainers.slices import SliceDetectorTrainer

#: of three families of slices one stands for the others in the quick tests
_LONG = ("asc_net", "mkd")
FAMILIES = [
    *(pytest.param(name, marks=pytest.mark.exhaustive) if name in _LONG else name for name in DETECTORS),
    "median",
]
#: families that learn from slices, which no other configuration serves
WHOLE = {name for name, of in DETECTORS.items() if issubclass(load_trainer(of.trainer), SliceDetectorTrainer)}
CPU = torch.device("cpu")


@pytest.fixture(params=FAMILIES)
def family(request, toy_family):
    return detector_families()[request.param]


def build(family, tiny_dataset, configuration, num_channels):
    planned = PlansManager(copy.deepcopy(tiny_dataset.plans)).get_configuration(configuration)
    settings = {name: setting.default for name, setting in known_settings().items()} | {"num_labels": 10}
    settings.update(planned.configuration["anomaly"])
    settings["bone_model"] = "any" if configuration == "2d_whole" else None
    return detector_class(family.name).build(planned, num_channels, settings).eval(), planned


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("configuration", ["3d_small", "2d_small"])
def test_maps_are_of_the_windows_size_with_the_channels_of_the_contract(
    family, tiny_dataset, configuration, num_channels
):
    if family.name in WHOLE:
        configuration = "2d_whole"
    detector, planned = build(family, tiny_dataset, configuration, num_channels)
    assert isinstance(detector, Detector)
    assert detector.contract.family == family.name
    check_fits_configuration(detector.contract, planned)
    # Only a family that takes any window is given one that its own multiples do not divide.
    window = [size - 3 if detector.contract.window == "any" else size for size in planned.patch_size]
    image = torch.randn(2, num_channels, *window, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference, error = detector.maps(image)
        expected = (2, detector.contract.num_error_channels(num_channels), *window)
        assert difference.shape == error.shape == expected
        assert difference.dtype == error.dtype == torch.float32
        assert torch.equal(detector(image), error)
        if type(detector).error is Detector.error:
            assert torch.equal(error, squared(difference))
        elif not any(size % detector.contract.multiple_of for size in window):
            torch.testing.assert_close(detector.error(image, difference), error)
        if detector.takes_bones:
            bones = torch.zeros(2, *window, dtype=torch.long)
            bones[(0, *[slice(4, 12)] * len(window))] = 1
            for of in detector.maps_in(image, bones):
                assert of.shape == expected
                assert of.dtype == torch.float32
                assert of[0].any()
                assert not of[1].any()
        assert detector.rescale(image).shape == image.shape


def test_slices_of_a_volume_are_each_treated_alone_where_the_family_is_two_dimensional(family, tiny_dataset):
    detector, planned = build(family, tiny_dataset, "3d_small", 1)
    if 3 in detector.contract.dimensions:
        pytest.skip("the family takes whole volumes")
    if detector.needs_bones:
        pytest.skip("the family has to know the bones: its slices are told them one by one")
    image = torch.randn(1, 1, *planned.patch_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = detector(image)
        for number in (0, planned.patch_size[0] - 1):
            torch.testing.assert_close(detector(image[:, :, number]), whole[:, :, number])


@pytest.mark.parametrize("configuration", ["3d_small", "2d_small"])
def test_state_dict_carries_all_that_the_detector_is(family, tiny_dataset, configuration):
    if family.name in WHOLE:
        configuration = "2d_whole"
    (detector, planned), (other, _) = (build(family, tiny_dataset, configuration, 1) for _ in range(2))
    other.load_state_dict(detector.state_dict())
    image = torch.randn(1, 1, *planned.patch_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(other(image), detector(image))


def test_nnunet_finds_the_families_trainer(family):
    found = recursive_find_trainer_class_by_name(family.trainer)
    assert issubclass(found, nnUNetTrainer)
    assert found.family == family.name


# ------------------------------------------------------------------------------------------- trained by its trainer


@pytest.fixture(scope="module")
def bone_model(build_trainer, tmp_path_factory):
    """The model folder of a segmentation of whole slices."""
    folder = tmp_path_factory.mktemp("bones")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(folder))
        build_trainer("BoneContrastTrainer", configuration="2d_whole").run_training()
    (model,) = folder.glob("*/BoneContrastTrainer__*")
    return model


@pytest.fixture(scope="module")
def of_family(bone_model):
    """Function: what a family's trainings are built with: configuration and settings."""

    def keywords(family, **anomaly):
        if family.name not in WHOLE:
            return {"configuration": "3d_small", "anomaly": anomaly}
        of_family = {"bone_model": str(bone_model)} if detector_class(family.name).takes_bones else {}
        return {"configuration": "2d_whole", "anomaly": {**of_family, **anomaly}}

    return keywords


@pytest.fixture(scope="module")
def trained(build_trainer, toy_family, of_family, tmp_path_factory):
    """Function: the model folder of a family, trained once for this module on fold 0."""
    folders = {}

    def train(family):
        if family.name not in folders:
            folders[family.name] = tmp_path_factory.mktemp(family.name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("nnUNet_results", str(folders[family.name]))
                trainer = build_trainer(recursive_find_trainer_class_by_name(family.trainer), **of_family(family))
                trainer.run_training()
                trainer.perform_actual_validation()
        (model,) = folders[family.name].glob(f"*/{family.trainer}__*")
        return folders[family.name], model

    return train


def test_artefact_of_a_trained_detector_says_what_it_is_and_what_it_saw(
    family, trained, of_family, build_trainer, monkeypatch
):
    results, model = trained(family)
    monkeypatch.setenv("nnUNet_results", str(results))
    artefact = read_artefact(model / "fold_0" / "checkpoint_final.pth")
    trainer = build_trainer(recursive_find_trainer_class_by_name(family.trainer), **of_family(family))
    training, validation = trainer.do_split()
    assert artefact.contract == detector_class(family.name).contract
    assert artefact.fitted_on == set(training)
    assert not artefact.fitted_on & set(validation)
    assert sorted(artefact.data["cases"]) == sorted(training)
    assert artefact.finished
    # The tiny data set's labels hold lesions, so that the validation measured them.
    assert 0 <= artefact.quality["lesion_auc"] <= 1


def test_kit_for_a_gpu_measures_it(family, of_family, build_trainer, results_folder, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    trainer = build_trainer(recursive_find_trainer_class_by_name(family.trainer), **of_family(family))
    row = measure(trainer, repeats=1)
    assert min(row["step_s"], row["window_s"]) > 0
    assert row["float32"] == row["compiled"] == 0
    assert row["autocast"] < 1


def test_training_resumes_where_it_was(family, trained, of_family, build_trainer, results_folder):
    _, model = trained(family)
    resumed = build_trainer(recursive_find_trainer_class_by_name(family.trainer), **of_family(family))
    resumed.load_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))
    before = read_artefact(model / "fold_0" / "checkpoint_final.pth")
    assert resumed.current_epoch == resumed.num_epochs
    state = detector_of(resumed.module).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.state.items())
    assert resumed.artefact().fitted_on == before.fitted_on
    assert resumed.artefact().sources == before.sources


def test_anomaly_maps_of_new_images_are_written_in_their_geometry(family, trained, tiny_dataset, tmp_path):
    _, model = trained(family)
    written = predict_anomaly_maps(tiny_dataset.raw / "imagesTs", tmp_path / "maps", load_detector(model, device=CPU))
    assert written
    image = sitk.ReadImage(str(tiny_dataset.raw / "imagesTs" / f"{written[0]}_0000.nii.gz"))
    error = sitk.ReadImage(str(tmp_path / "maps" / f"{written[0]}_error.nii.gz"))
    assert error.GetSize() == image.GetSize()
    assert error.GetSpacing() == image.GetSpacing()
    assert np.isfinite(sitk.GetArrayFromImage(error)).all()
    assert (tmp_path / "maps" / f"{written[0]}.png").is_file()


def test_segmentation_takes_the_detector_and_keeps_its_description(
    family, trained, of_family, build_trainer, monkeypatch
):
    results, model = trained(family)
    monkeypatch.setenv("nnUNet_results", str(results))
    trainer = build_trainer("AnomalyAwareTrainer", **of_family(family, detector=family.name))
    trainer.on_train_start()
    artefact = read_artefact(model / "fold_0" / "checkpoint_final.pth")
    state = trainer.module.detector.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in artefact.state.items())
    assert trainer.extra_checkpoint_entries()["anomaly_detector"] == artefact.description()
    assert "WARNING: the detector in" not in Path(trainer.log_file).read_text()


def test_fold_rule_refuses_a_detector_that_saw_the_validation_cases(
    family, trained, of_family, build_trainer, results_folder
):
    _, model = trained(family)
    keywords = of_family(family, detector=family.name, prestage_folder=str(model / "fold_0"))
    trainer = build_trainer("AnomalyAwareTrainer", fold=1, **keywords)
    with pytest.raises(UserError, match="was trained on 1 of this fold's validation cases"):
        trainer.on_train_start()


def test_missing_prestage_is_reported_with_the_families_command(family, of_family, build_trainer, results_folder):
    keywords = of_family(family, detector=family.name)
    trainer = build_trainer("AnomalyAwareTrainer", **keywords)
    command = f"nnUNetv2_train 801 {keywords['configuration']} 0 -tr {family.trainer} -device cpu"
    with pytest.raises(UserError, match=f"run: {command}"):
        trainer.initialize()


def test_detector_of_another_family_is_refused(trained, toy_family, build_trainer, results_folder):
    _, model = trained(detector_families()["median"])
    trainer = build_trainer("AnomalyAwareTrainer", anomaly={"prestage_folder": str(model)})
    with pytest.raises(UserError, match="is of the family 'median'"):
        trainer.initialize()


# --------------------------------------------------------------------------------------------------------- refusals


def test_unknown_family_is_refused_naming_the_known_ones(build_trainer, results_folder, toy_family):
    with pytest.raises(
        UserError,
        match=r"'cubist' is not installed; known are inpainting, pasted, bone_contrast, lama_bml, asc_net, mkd, median",
    ):
        build_trainer("AnomalyAwareTrainer", anomaly={"detector": "cubist"})


def planned(patch_size, median_size=None):
    sizes = {} if median_size is None else {"median_image_size_in_voxels": median_size}
    return ConfigurationManager({"patch_size": list(patch_size), "architecture": {"arch_kwargs": {}}, **sizes})


def test_family_without_the_axes_of_the_patch_is_refused():
    volumes = Contract("volumes", error_channels=1, dimensions=(3,), window="any")
    with pytest.raises(UserError, match="takes 3 axes, and patches of this configuration have 2"):
        check_fits_configuration(volumes, planned((16, 16)))
    check_fits_configuration(volumes, planned((16, 16, 16)))


def test_family_of_whole_slices_is_refused_where_patches_are_smaller():
    slices = Contract("slices", error_channels=1, dimensions=(2,), window="whole")
    with pytest.raises(UserError, match=r"needs whole slices.*plan_whole_image"):
        check_fits_configuration(slices, planned((16, 16), [40.0, 20.2, 24.0]))
    check_fits_configuration(slices, planned((32, 32), [40.0, 20.2, 24.0]))
