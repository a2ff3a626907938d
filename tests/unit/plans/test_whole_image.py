"""Whole-image plans: the patch, the topology, and what is written beside nnU-Net's plans."""

import copy
import json
import math
from math import prod

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.plans.strides import downsampled_size
from nnunetv2_anomaly.plans.whole_image import (
    PLANNED_FROM,
    WHOLE_IMAGE_PLANS,
    largest_image,
    plan_whole_image,
    planned_for,
    whole_image_plans,
)
from nnunetv2_anomaly.trainers import AnomalyPreStageTrainer

NAME = "Dataset901_Knees"


def architecture(stages, dimensions=3, **keywords):
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(32 * 2**stage, 320) for stage in range(stages)],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * stages,
            "strides": [[1] * dimensions] + [[2] * dimensions] * (stages - 1),
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
            **keywords,
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(name, spacing, patch, stages):
    return {
        "data_identifier": f"nnUNetPlans_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "spacing": spacing,
        "normalization_schemes": ["ZScoreNormalization"],
        "architecture": architecture(stages, len(patch)),
        "batch_dice": True,
    }


def make_plans():
    """As nnU-Net plans a data set whose files run y, z, x: the coarse axis comes first after transposition."""
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [2, 0, 1],
        "transpose_backward": [1, 2, 0],
        "label_manager": "LabelManager",
        "configurations": {
            "2d": configuration("2d", [1.0, 1.0], [32, 32], 4),
            "3d_fullres": configuration("3d_fullres", [1.9, 1.0, 1.0], [16, 32, 32], 3),
            "3d_lowres": configuration("3d_lowres", [2.0, 2.0, 2.0], [16, 16, 16], 2),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


# y, z, x: after resampling to 1 mm, 1 mm, 1.9 mm these have 40, 60, 20 and 100, 30, 10 voxels
FINGERPRINT = {
    "shapes_after_crop": [[40, 60, 20], [50, 30, 20]],
    "spacings": [[1.0, 1.0, 1.9], [2.0, 1.0, 0.95]],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A planned data set in $nnUNet_preprocessed."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    folder = tmp_path / "nnUNet_preprocessed" / NAME
    folder.mkdir()
    dataset_json = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "bone": 1}, "numTraining": 2}
    for name, content in (
        ("nnUNetPlans", make_plans()),
        ("dataset_fingerprint", FINGERPRINT),
        ("dataset", dataset_json),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


# ------------------------------------------------------------------------------------------------ the rule


@pytest.mark.parametrize(
    ("spacing", "size", "bottleneck"),
    [
        ((0.7, 0.365, 0.365), (160, 384, 384), (10, 24, 24)),
        ((0.3646, 0.3646, 0.7), (384, 384, 160), (24, 24, 10)),
        ((0.8, 0.365, 0.365), (160, 384, 384), (20, 24, 24)),
        ((3.0, 0.3, 0.3), (24, 448, 448), (12, 28, 28)),
    ],
)
def test_bottleneck_of_g_is_the_published_one_for_the_oai_and_larger_for_coarser_slices(spacing, size, bottleneck):
    """The table of docs/how-to/whole-image.md."""
    patch, planned = planned_for(architecture(6), spacing, size)
    assert tuple(patch) == size
    assert downsampled_size(patch, planned["arch_kwargs"]["strides"][1:5]) == bottleneck


def test_a_coarse_axis_waits_until_the_others_are_as_coarse():
    patch, planned = planned_for(architecture(6), (3.0, 0.3, 0.3), (24, 448, 448))
    keywords = planned["arch_kwargs"]
    assert patch == [24, 448, 448]
    assert keywords["strides"] == [[1, 1, 1], *[[1, 2, 2]] * 3, *[[2, 2, 2]] * 2, [1, 2, 2]]
    assert keywords["kernel_sizes"][0] == [1, 3, 3]
    assert keywords["n_stages"] == len(keywords["strides"]) == len(keywords["kernel_sizes"]) == 7


def test_patch_is_rounded_up_to_a_multiple_of_the_strides():
    patch, planned = planned_for(architecture(6), (0.7, 0.365, 0.365), (150, 371, 380))
    assert patch == [160, 384, 384]
    for axis, voxels in enumerate(patch):
        assert voxels % prod(stride[axis] for stride in planned["arch_kwargs"]["strides"]) == 0


def test_numbers_per_stage_are_continued_and_the_limit_of_feature_maps_is_kept():
    given = architecture(4, n_blocks_per_stage=[1, 3, 4, 6], n_conv_per_stage_decoder=[1, 1, 1])
    _, planned = planned_for(given, (0.7, 0.365, 0.365), (160, 384, 384))
    keywords = planned["arch_kwargs"]
    assert keywords["features_per_stage"] == [32, 64, 128, 256, 320, 320, 320]
    assert keywords["n_blocks_per_stage"] == [1, 3, 4, 6, 6, 6, 6]
    assert keywords["n_conv_per_stage_decoder"] == [1] * 6
    assert given["arch_kwargs"]["n_blocks_per_stage"] == [1, 3, 4, 6]

    narrow = architecture(4, features_per_stage=[8, 16, 24, 24])
    assert planned_for(narrow, (1, 1, 1), (128, 128, 128))[1]["arch_kwargs"]["features_per_stage"][2:] == [24] * 4


def test_fewer_stages_shorten_the_lists():
    _, planned = planned_for(architecture(6), (1, 1, 1), (16, 16, 16))
    keywords = planned["arch_kwargs"]
    assert keywords["n_stages"] == 3
    assert [len(keywords[name]) for name in ("n_conv_per_stage", "n_conv_per_stage_decoder")] == [3, 2]


def test_network_without_strides_is_refused():
    given = {"network_class_name": "my.Network", "arch_kwargs": {"depth": 3}, "_kw_requires_import": []}
    with pytest.raises(UserError, match=r"my\.Network"):
        planned_for(given, (1, 1, 1), (16, 16, 16))


def test_largest_image_is_the_maximum_of_every_axis_after_transposition_and_resampling():
    assert largest_image(FINGERPRINT, [2, 0, 1], [1.9, 1.0, 1.0]) == (20, 100, 60)
    assert largest_image(FINGERPRINT, [2, 0, 1], [1.0, 1.0]) == (100, 60)
    assert largest_image(FINGERPRINT, [0, 1, 2], [1.0, 1.0, 1.9]) == (100, 60, 20)


# ----------------------------------------------------------------------------------------------- the plans


def test_one_configuration_stays_and_what_is_not_the_patch_stays_as_it_was():
    source = make_plans()
    source["configurations"]["3d_fullres"] = {"inherits_from": "base", "anomaly": {"num_epochs": 3}}
    source["configurations"]["base"] = configuration("base", [1.9, 1.0, 1.0], [16, 32, 32], 3)
    before = copy.deepcopy(source)
    plans = whole_image_plans(source, FINGERPRINT, "Whole")
    assert source == before
    assert list(plans["configurations"]) == ["3d_fullres"]
    planned = plans["configurations"]["3d_fullres"]
    assert planned["patch_size"] == [20, 112, 64]
    assert (planned["batch_size"], planned["batch_dice"]) == (1, False)
    assert (planned["data_identifier"], plans["plans_name"]) == ("Whole_3d_fullres", "Whole")
    assert planned["anomaly"] == {"prestage_augmentation": False, "erase_margin_voxels": 50, "num_epochs": 3}
    assert not {"inherits_from", "previous_stage", "next_stage"} & set(planned)
    changed = {"patch_size", "batch_size", "batch_dice", "data_identifier", "architecture", "anomaly"}
    for key in set(planned) - changed:
        assert planned[key] == before["configurations"]["base"][key]
    for key in set(plans) - {"configurations", "plans_name", PLANNED_FROM}:
        assert plans[key] == before[key]


def test_2d_is_planned_where_there_is_nothing_else():
    source = make_plans()
    source["configurations"] = {"2d": source["configurations"]["2d"]}
    plans = whole_image_plans(source, FINGERPRINT, "Whole")
    assert plans["configurations"]["2d"]["patch_size"] == [112, 64]
    assert plans["configurations"]["2d"]["data_identifier"] == "Whole_2d"


def test_plans_without_either_configuration_are_refused():
    with pytest.raises(UserError, match="mine; expected 3d_fullres or 2d"):
        whole_image_plans({**make_plans(), "configurations": {"mine": {}}}, FINGERPRINT, "Whole")


def test_planned_network_and_prestage_are_built_for_the_patch():
    manager = PlansManager(whole_image_plans(make_plans(), FINGERPRINT, "Whole"))
    planned = manager.get_configuration("3d_fullres")
    prestage = AnomalyPreStageTrainer.build_network_architecture(manager, planned, 1, 2, False)
    assert prestage.detector.patch_size == (20, 112, 64)
    with torch.no_grad():
        assert prestage(torch.zeros(1, 2, 20, 112, 64)).inpainted.shape == (1, 1, 20, 112, 64)
        network = nnUNetTrainer.build_network_architecture(manager, planned, 1, 2, False)
        assert network(torch.zeros(1, 1, 20, 112, 64)).shape == (1, 2, 20, 112, 64)


# ------------------------------------------------------------------------------------------------ the file


@pytest.mark.exhaustive
def test_verb_writes_plans_beside_nnunets_own_and_says_what_comes_next(folder, capsys):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert main(["plan_whole_image", "-d", "901"]) == 0
    told = capsys.readouterr().out
    assert "patch 20 x 112 x 64 voxels, batch 1, from the largest training image, 20 x 100 x 60" in told
    assert f"nnUNetv2_preprocess -d 901 -plans_name {WHOLE_IMAGE_PLANS} -c 3d_fullres" in told
    assert "UNET-S" in told
    assert {file.name for file in folder.iterdir()} == {*before, f"{WHOLE_IMAGE_PLANS}.json"}
    assert all((folder / name).read_bytes() == content for name, content in before.items())


def test_same_plans_are_left_alone_and_others_are_replaced_only_when_asked_to(folder):
    assert plan_whole_image("901").written
    assert not plan_whole_image("901").written
    file = folder / f"{WHOLE_IMAGE_PLANS}.json"
    changed = json.loads(file.read_text())
    changed["configurations"]["3d_fullres"]["batch_size"] = 2
    file.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="exists and differs; replace it with --overwrite"):
        plan_whole_image("901")
    assert json.loads(file.read_text()) == changed
    assert plan_whole_image(NAME, overwrite=True).written
    assert json.loads(file.read_text())["configurations"]["3d_fullres"]["batch_size"] == 1


def test_plans_of_others_are_never_replaced(folder):
    (folder / "Mine.json").write_text(json.dumps(make_plans()))
    for name, told in (("Mine", "not whole-image plans of ours"), ("nnUNetPlans", "cannot have the name")):
        with pytest.raises(UserError, match=told):
            plan_whole_image("901", plans_name=name, overwrite=True)
    with pytest.raises(UserError, match="single underscores"):
        plan_whole_image("901", plans_name="dataset")


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("dataset_fingerprint.json", "dataset_fingerprint.json cannot be read .* or make it again with nnU-Net"),
        ("nnUNetPlans.json", "has no plans; expected nnUNetPlans, so run nnUNetv2_plan_and_preprocess -d 901 first"),
        ("dataset.json", "dataset.json cannot be read .* or make it again with nnU-Net"),
    ],
)
def test_what_is_missing_is_told_with_the_command_that_makes_it(folder, missing, told):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=told):
        plan_whole_image("901")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("shapes_after_crop", [[40, 60, edge], [50, 30, 20]]) for edge in (0, -20, None, math.nan)),
        *(("shapes_after_crop", value) for value in (None, [], [[40, 60, 20]], [[40, 60], [50, 30]], "none", 3)),
        *(("spacings", [[1.0, 1.0, step], [2.0, 1.0, 0.95]]) for step in (0, -1.9, None, math.nan)),
        *(("spacings", value) for value in (None, [], [[1.0, 1.0, 1.9]], {})),
    ],
)
def test_damaged_fingerprint_is_told_and_nothing_is_planned(folder, name, value):
    (folder / "dataset_fingerprint.json").write_text(json.dumps({**FINGERPRINT, name: value}))
    with pytest.raises(
        UserError, match=r"dataset_fingerprint\.json in .* is not as nnU-Net writes it .*; run nnUNetv2_plan_and"
    ):
        plan_whole_image("901")
    assert not (folder / "nnUNetWholeImagePlans.json").exists()


@pytest.mark.parametrize("value", [["1.9", 1.0, 1.0], [0, 1.0, 1.0], None])
def test_damaged_plans_are_told_and_nothing_is_planned(folder, value):
    plans = make_plans()
    plans["configurations"]["3d_fullres"]["spacing"] = value
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match=r"'spacing' in plans\.json is .*; expected 3 numbers above 0"):
        plan_whole_image("901")
    assert not (folder / "nnUNetWholeImagePlans.json").exists()


def test_unknown_data_set_plans_and_folder_are_told(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="'902' is not known"):
        plan_whole_image("902")
    (tmp_path / "nnUNet_raw" / "Dataset903_New").mkdir()
    with pytest.raises(UserError, match=r"has no plans; .* run nnUNetv2_plan_and_preprocess -d 903 first"):
        plan_whole_image("903")
    (tmp_path / "nnUNet_raw" / "Dataset901_Other").mkdir()
    with pytest.raises(UserError, match="'901' is there more than once"):
        plan_whole_image("901")
    with pytest.raises(UserError, match="has the plans nnUNetPlans; expected Other"):
        plan_whole_image(NAME, source_plans="Other")
    (folder / "dataset_fingerprint.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        plan_whole_image(NAME)
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(UserError, match="nnUNet_preprocessed is not set"):
        plan_whole_image(NAME)


def test_whole_slices_of_a_size_are_resampled_and_padded_to_32():
    plans = make_plans()
    plans["configurations"]["2d"]["median_image_size_in_voxels"] = [40.0, 60.0]
    planned = whole_image_plans(plans, FINGERPRINT, "new", "2d", 50)["configurations"]
    assert list(planned) == ["2d"]
    of = planned["2d"]
    # The largest slices have 100 x 60 voxels of 1 mm: now 50 x 30 of 2 mm.
    assert of["spacing"] == [2.0, 2.0]
    assert of["patch_size"] == [64, 32]
    assert of["median_image_size_in_voxels"] == [20.0, 30.0]
    assert of["batch_size"] == 64
    as_planned = whole_image_plans(plans, FINGERPRINT, "new", "2d")["configurations"]["2d"]
    assert as_planned["patch_size"] == [128, 64]
    assert as_planned["spacing"] == [1.0, 1.0]


def test_a_size_needs_slices_and_slices_have_plans_of_their_own(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="the size 64 is of whole slices; expected the configuration 2d, so give -c 2d"):
        plan_whole_image("901", size=64)
    with pytest.raises(UserError, match="expected 3d_lowres"):
        whole_image_plans({"configurations": {"2d": {}}}, FINGERPRINT, "new", "3d_lowres")
