import copy
import math
import re

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.plans.settings import check_configuration, default, known_settings, section_of
from nnunetv2_anomaly.trainers import (
    AnomalyAwareTrainer,
    AnomalyPreStageTrainer,
    ASCNetTrainer,
    BoneContrastTrainer,
    IMaskRCNNTrainer,
    LaMaBMLTrainer,
    MKDTrainer,
    PastedAnomalyTrainer,
)

SETTINGS = known_settings()
TRAINERS = (
    AnomalyPreStageTrainer,
    PastedAnomalyTrainer,
    BoneContrastTrainer,
    LaMaBMLTrainer,
    MKDTrainer,
    ASCNetTrainer,
    IMaskRCNNTrainer,
    AnomalyAwareTrainer,
)
#: what detectors and segmenters of slices have otherwise
OWN = {
    "mirror_axes": (LaMaBMLTrainer,),
    "mask_rule": (LaMaBMLTrainer, MKDTrainer, ASCNetTrainer),
    "bias_field": (MKDTrainer, ASCNetTrainer),
    "num_epochs": (IMaskRCNNTrainer,),
    "paste_anomalies": (IMaskRCNNTrainer,),
}
PLANS = {
    "plans_name": "nnUNetPlans",
    "configurations": {
        "3d_fullres": {"architecture": {}, "anomaly": {"alpha": 3.0, "erase_margin_voxels": 7}},
        "3d_child": {"inherits_from": "3d_fullres"},
        "3d_other": {"inherits_from": "3d_fullres", "anomaly": {"beta": 2}},
        "3d_plain": {"architecture": {}},
    },
}


def configuration(name):
    return PlansManager(copy.deepcopy(PLANS)).get_configuration(name)


def test_a_trainer_that_diverges_advises_a_setting_that_it_reads():
    advised = {trainer: trainer.learning_rate_setting for trainer in TRAINERS}
    assert [trainer for trainer, setting in advised.items() if setting is None] == [BoneContrastTrainer]
    assert all(hasattr(trainer, setting) for trainer, setting in advised.items() if setting is not None)


def test_unknown_setting_is_told_with_all_known_ones():
    with pytest.raises(UserError, match=r"unknown setting\(s\) alhpa, zzz") as caught:
        section_of({"anomaly": {"alhpa": 1, "beta": 9, "zzz": 2}})
    assert all(name in str(caught.value) for name in SETTINGS)


BAD_VALUES = [
    ("detector_features", 0),
    ("detector_features", 8.0),
    ("detector_features", True),
    ("detector_features", 10**9),
    ("detector_downsamplings", 0),
    ("detector_downsamplings", 5),
    ("detector_resolution", 0.5),
    ("compressor_code_length", "100"),
    ("compressor_code_length", 10**9),
    ("intensity_clip", 0),
    ("intensity_clip", None),
    ("erase_margin_mm", -0.1),
    ("erase_margin_mm", 1e308),
    ("erase_margin_voxels", -1),
    ("erase_margin_voxels", 1.5),
    ("erase_margin_voxels", 10**20),
    ("polarity", "grey"),
    ("level_mm", 0),
    ("candidates_per_bone", 0),
    ("min_lesion_mm3", -1),
    ("level_epochs", 0),
    ("pasting_epochs", 0),
    ("detector_pasting", "auto"),
    ("detector_pasting", {"probability": 2}),
    ("inpainting_epochs", 0),
    ("distillation_epochs", None),
    ("prestage_learning_rate", 0),
    ("prestage_learning_rate", "auto"),
    ("start_detector_from_inpainter", 1),
    ("skip_cases_without_foreground", "yes"),
    ("inpainter_from_fold_all", 1),
    ("seed", -1),
    ("prestage_augmentation", "none"),
    ("lesion_labels", "lesion"),
    ("bone_labels", [1]),
    ("error_channel", "cubed"),
    ("error_channel", 1),
    ("alpha", -1),
    ("alpha", float("nan")),
    ("alpha", float("inf")),
    ("beta", "99"),
    ("beta", float("inf")),
    ("num_epochs", 0),
    ("detector", None),
    ("prestage_folder", 3),
    ("allow_detector_trained_on_validation_cases", None),
    ("allow_changed_data", 1),
    ("paste_anomalies", {"probability": 2}),
    ("segmentation_learning_rate", 0),
    ("segmentation_learning_rate", "small"),
    ("mirror_axes", [3]),
    ("mirror_axes", "all"),
    ("num_iterations_per_epoch", 0),
    ("num_val_iterations_per_epoch", -1),
    ("bone_model", 3),
    ("lesion_free_slices", ["a.csv"]),
    ("bias_field", -0.1),
    ("mask_rule", "median"),
    ("min_difference", -1),
    ("peak_scope", "slice"),
    ("asc_features", 0),
    ("asc_cycles", [0, 0]),
    ("asc_cycles", [1]),
    ("asc_discriminator_epochs", 0),
    ("asc_main_epochs", 0),
    ("stage2_disjoint", "on"),
    ("reinit_discriminator", 1),
    ("asc_weight_penalty", -1),
    ("transductive", "yes"),
    ("mask_rcnn_backbone", "resnet18"),
    ("mask_rcnn_weights", "coco"),
    ("mask_rcnn_weights", "file:"),
    ("mask_rcnn_features", 3),
    ("mask_rcnn_size", 16),
    ("mask_rcnn_skip_level", 4),
    ("mask_rcnn_score", 1.1),
    ("mask_rcnn_boxes", 0),
    ("mask_rcnn_batch_size", 0),
    ("min_instance_pixels", 0),
    ("empty_slice_rate", -0.1),
    ("empty_slice_rate", "none"),
    ("lama_features", 0),
    ("lama_downsamplings", 6),
    ("lama_blocks", 0),
    ("lama_global_share", 1),
    ("discriminator_features", 0),
    ("hole", "femur"),
    ("perceptual", "vgg"),
    ("perceptual", ["ade20k"]),
    ("perceptual_weights", 1),
    ("teacher_weights", "imagenet"),
    ("teacher_weights", "random:x"),
    ("allow_random_teacher", 1),
    ("lambda_value", -1),
    ("score_pools", []),
    ("score_pools", [1]),
    ("mkd_map", "lime"),
    ("teacher_normalisation", "zscore"),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_unacceptable_value_is_told_with_what_is_accepted(name, value):
    with pytest.raises(UserError, match=f"'{name}'") as caught:
        section_of({"anomaly": {name: value}})
    assert f"is {value!r}; expected {SETTINGS[name].accepts}" in str(caught.value)


def test_every_setting_has_an_unacceptable_value_above():
    assert {name for name, _ in BAD_VALUES} == set(SETTINGS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("detector_downsamplings", 4),
        ("erase_margin_voxels", 0),
        ("prestage_learning_rate", None),
        ("prestage_learning_rate", 1e-3),
        ("lesion_labels", []),
        ("bone_labels", ["femoral_bone"]),
        ("alpha", 0),
        ("beta", 0.5),
        ("prestage_folder", "$HOME/pre"),
    ],
)
def test_acceptable_value_is_served(name, value):
    assert section_of({"anomaly": {name: value}}) == {name: value}


CONFIGURATION = {
    "patch_size": [16, 32, 32],
    "batch_size": 2,
    "spacing": [2, 0.5, 0.5],
    "architecture": {"arch_kwargs": {"strides": [1, [1, 2, 2], [2, 2, 2]]}},
}


def test_configuration_as_nnunet_plans_it_is_taken():
    check_configuration(CONFIGURATION)
    check_configuration({**CONFIGURATION, "patch_size": [32, 32], "spacing": [0.5, 0.5], "architecture": {}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("batch_size", value) for value in ("2", 0, -2, 2.0, True, None, [2])),
        *(("patch_size", value) for value in ("16", ["16", "32", "32"], [-16, 32, 32], [0, 32, 32], [16.5, 32, 32])),
        *(("patch_size", value) for value in (None, 16, [], [16], [16, 16, 16, 16], [math.inf, 32, 32])),
        *(("spacing", value) for value in ("1", [1, 1], [1, 0, 1], [1, -1, 1], [math.nan, 1, 1], [math.inf, 1, 1])),
    ],
)
def test_number_of_another_kind_in_the_plans_is_told(name, value):
    told = rf"'{name}' in plans\.json is {re.escape(repr(value))}; expected .* run nnUNetv2_plan_experiment again"
    with pytest.raises(UserError, match=told):
        check_configuration({**CONFIGURATION, name: value})


@pytest.mark.parametrize("strides", ["1", [0, 2], [[2, 2]], [[1, 2, -2]], ["2"]])
def test_strides_of_another_kind_are_told(strides):
    with pytest.raises(UserError, match=r"'strides' in plans\.json is .*; expected whole numbers from 1"):
        check_configuration({**CONFIGURATION, "architecture": {"arch_kwargs": {"strides": strides}}})


@pytest.mark.parametrize("section", [None, [], "alpha", 3])
def test_section_that_is_no_dictionary_is_refused(section):
    with pytest.raises(UserError, match="expected a dictionary of settings"):
        section_of({"anomaly": section})


def test_configuration_without_a_section_sets_nothing():
    assert section_of({"patch_size": [8, 8, 8]}) == {}


@pytest.mark.parametrize("name", SETTINGS)
def test_default_is_acceptable_and_the_class_attribute_of_every_trainer_that_has_it(name):
    assert section_of({"anomaly": {name: default(name)}}) == {name: default(name)}
    values = {trainer: getattr(trainer, name) for trainer in TRAINERS if hasattr(trainer, name)}
    assert values, "no trainer reads this setting"
    others = tuple(trainer for trainer, value in values.items() if value != SETTINGS[name].default)
    assert others == OWN.get(name, ())


def test_unknown_setting_has_no_default():
    with pytest.raises(KeyError):
        default("alhpa")


def test_section_overrides_the_class_attribute():
    settings = AnomalyAwareTrainer.settings(configuration("3d_fullres"))
    assert (settings["alpha"], settings["beta"]) == (3.0, 99.0)
    assert AnomalyPreStageTrainer.settings(configuration("3d_fullres"))["erase_margin_voxels"] == 7
    assert AnomalyPreStageTrainer.settings(configuration("3d_plain"))["erase_margin_voxels"] is None


def test_class_attribute_of_a_subclass_overrides_the_default_and_gives_way_to_the_section():
    class MyTrainer(AnomalyAwareTrainer):
        alpha = 5.0
        beta = 7.0

    settings = MyTrainer.settings(configuration("3d_fullres"))
    assert (settings["alpha"], settings["beta"]) == (3.0, 7.0)
    assert AnomalyAwareTrainer.settings(configuration("3d_plain"))["alpha"] == 1.0


def test_section_is_inherited_from_the_parent_configuration():
    assert AnomalyAwareTrainer.settings(configuration("3d_child"))["alpha"] == 3.0


def test_section_of_a_child_replaces_that_of_its_parent():
    settings = AnomalyAwareTrainer.settings(configuration("3d_other"))
    assert (settings["alpha"], settings["beta"]) == (1.0, 2)


def test_detectors_settings_reach_a_segmentation_that_has_no_such_attributes():
    assert not hasattr(AnomalyAwareTrainer, "detector_features")
    assert AnomalyAwareTrainer.settings(configuration("3d_plain"))["detector_features"] == 8
    assert AnomalyAwareTrainer.settings(configuration("3d_fullres"))["erase_margin_voxels"] == 7
