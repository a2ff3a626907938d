from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.training.pretrained import (
    check_fits,
    differing_plans,
    first_convolutions,
    given_weights_file,
    grow_output_layers,
    read_pretrained,
    without_ignore,
)

OLD = {"background": 0, "femoral_bone": 1, "femoral_cartilage": 2}
#: another order than in the source: classes go by name
NEW = {"background": 0, "patellar_bone": 1, "femoral_cartilage": 2, "femoral_bone": 3, "femoral_lesion": 4}


def network(num_classes: int) -> PlainConvUNet:
    return PlainConvUNet(
        1, 3, [4, 8, 8], nn.Conv3d, 3, [1, 2, 2], [2, 2, 2], num_classes, [2, 2], deep_supervision=True
    )


def save(path: Path, model: nn.Module, labels=OLD, **more) -> Path:
    plans = {
        "dataset_name": "Dataset501_OAIZIB",
        "plans_name": "nnUNetPlans",
        "configurations": {
            "3d_fullres": {"patch_size": [8, 8, 8], "spacing": [1.0, 1.0, 1.0], "architecture": {"arch_kwargs": {}}},
            "3d_own": {"inherits_from": "3d_fullres", "spacing": [2.0, 1.0, 1.0]},
        },
    }
    checkpoint = {
        "network_weights": model.state_dict(),
        "init_args": {"plans": plans, "configuration": "3d_own", "dataset_json": {"labels": labels}},
        "trainer_name": "SomeTrainer",
        **more,
    }
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["501", "3d_fullres", "0", "-pretrained_weights", "a b.pth", "--npz"], Path("a b.pth")),
        (["501", "-pretrained_weights=x.pth"], Path("x.pth")),
        (["501", "3d_fullres", "0"], None),
        (["501", "-pretrained_weights"], None),
        (["501", "-pretrained", "x.pth", "-p", "plans"], Path("x.pth")),
        (["501", "-p", "plans"], None),
    ],
)
def test_file_on_the_command_line(arguments, expected):
    assert given_weights_file(arguments) == expected


def test_output_channels_follow_the_labels_names(tmp_path):
    torch.manual_seed(0)
    old, new = network(len(OLD)), network(len(NEW))
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    source = read_pretrained(save(tmp_path / "x.pth", old))
    check_fits(source, new, "move")
    kept, added = grow_output_layers(new, source, NEW)
    assert (kept, added) == (["background", "femoral_cartilage", "femoral_bone"], ["patellar_bone", "femoral_lesion"])
    layers = [name for name in before if ".seg_layers." in name]
    assert len(layers) == 4  # weight and bias of two scales
    for name in layers:
        after = new.state_dict()[name]
        for label in kept:
            assert torch.equal(after[NEW[label]], old.state_dict()[name][OLD[label]])
        for label in added:
            assert torch.equal(after[NEW[label]], before[name][NEW[label]])


def test_ignore_label_is_no_class(tmp_path):
    source = read_pretrained(save(tmp_path / "x.pth", network(2), {"background": 0, "femoral_bone": 1, "ignore": 2}))
    assert source.labels == {"background": 0, "femoral_bone": 1}
    labels = without_ignore({"background": 0, "femoral_lesion": 1, "femoral_bone": 2, "ignore": 3})
    assert grow_output_layers(network(3), source, labels) == (["background", "femoral_bone"], ["femoral_lesion"])


def test_what_a_checkpoint_tells(tmp_path):
    source = read_pretrained(save(tmp_path / "x.pth", network(3), anomaly_transfer={"added_labels": ["femoral_bone"]}))
    assert source.labels == OLD
    assert source.added_labels == ("femoral_bone",)
    assert source.configuration["patch_size"] == [8, 8, 8]
    assert differing_plans(source, {"patch_size": [8, 8, 8], "spacing": [2.0, 1.0, 1.0]}) == []
    assert differing_plans(source, {"patch_size": [8, 8, 16], "spacing": [2.0, 1.0, 1.0]}) == [
        "patch_size [8, 8, 8] there, [8, 8, 16] here"
    ]


def test_what_does_not_fit_is_named(tmp_path):
    source = read_pretrained(save(tmp_path / "x.pth", network(3)))
    other = PlainConvUNet(1, 3, [4, 8, 16], nn.Conv3d, 3, [1, 2, 2], [2, 2, 2], 3, [2, 2], deep_supervision=True)
    with pytest.raises(UserError, match=r"do not fit: '.*' is \(8, .* there and \(16, .* move the plans: MOVE"):
        check_fits(source, other, "MOVE")
    with pytest.raises(UserError, match="expected some in common, by name"):
        grow_output_layers(network(2), source, {"background": 0, "liver": 1})


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "x.pth"
    if content is None:
        torch.save({"network_weights": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read|hold no tensors"):
        read_pretrained(path)
    with pytest.raises(UserError, match=r"cannot be read|hold no tensors"):
        read_pretrained(tmp_path / "missing.pth")


def test_first_two_convolution_blocks_of_a_planned_network():
    model = network(3)
    blocks = first_convolutions(model.encoder)
    parameters = {id(parameter) for block in blocks for parameter in block.parameters()}
    expected = {id(parameter) for parameter in model.encoder.stages[0].parameters()}
    assert len(blocks) == 2
    assert parameters == expected
