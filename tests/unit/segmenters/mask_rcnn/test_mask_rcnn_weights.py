"""Weights at the start: torchvision's cache, files of old and new names, what is recorded, and refusals."""

import re

import pytest
import torch
from torchvision.models import densenet121, resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import sha256_of
from nnunetv2_anomaly.segmenters.mask_rcnn.network import MaskRCNNSegmenter, MaskRCNNShape
from nnunetv2_anomaly.segmenters.mask_rcnn.weights import start_from


def network(backbone="resnet50", in_channels=1, features=256, improved=True):
    return MaskRCNNSegmenter(MaskRCNNShape(backbone, features, improved, None, False, 64, 0.5), in_channels, 3)


def saved(state, file):
    torch.save(dict(state), file)
    return f"file:{file}"


def test_a_backbone_from_torchvisions_cache_and_from_a_file(tmp_path, monkeypatch):
    state = resnet50(weights=None).state_dict()
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "resnet50-0676ba61.pth"
    source = saved(state, file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    net = network(in_channels=4, features=8)
    record = start_from(net, "imagenet", "resnet50")
    own = net.rcnn.state_dict()
    assert record["sha256"] == sha256_of(file)
    assert record["tensors"] == sum("num_batches_tracked" not in name and name[:2] != "fc" for name in state) == 265
    assert record["of"] == len(own) > 265
    assert torch.equal(own["backbone.body.layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])
    first = own["backbone.body.conv1.weight"]
    assert torch.equal(first[:, :3], state["conv1.weight"])
    assert not first[:, 3].any()
    assert start_from(net, source, "resnet50")["sha256"] == record["sha256"]


def test_old_names_of_a_densenet(tmp_path):
    state = densenet121(weights=None).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): of for name, of in state.items()}
    assert old.keys() != state.keys()
    net = network("densenet121", features=8)
    record = start_from(net, saved(old, tmp_path / "densenet.pth"), "densenet121")
    own = net.rcnn.state_dict()
    assert record["tensors"] == sum(name.startswith("backbone.body") for name in own)
    name = "denseblock4.denselayer16.conv2.weight"
    assert torch.equal(own[f"backbone.body.{name}"], state[f"features.{name}"])


@pytest.mark.exhaustive
def test_a_whole_mask_rcnn_of_coco_with_old_names_gives_all_but_its_classes(tmp_path):
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
    state = MaskRCNN(backbone, 91).state_dict()
    old = {}
    for name, of in state.items():
        name = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", name)
        name = re.sub(r"(rpn\.head\.conv)\.0\.0\.", r"\1.", name)
        old[re.sub(r"mask_head\.(\d)\.0", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}", name)] = of
    net = network()
    record = start_from(net, saved(old, tmp_path / "coco.pth"), "resnet50")
    own = net.rcnn.state_dict()
    missed = [name for name, of in state.items() if name not in own or not torch.equal(own[name], of)]
    assert {name.split(".")[2] for name in missed} == {"cls_score", "bbox_pred", "mask_fcn_logits"}
    assert record["tensors"] == len(state) - len(missed)


def test_weights_of_something_else_are_refused(tmp_path):
    net = network(features=8)
    with pytest.raises(UserError, match=r"lacks 264 tensors of resnet50, .* so give another file"):
        start_from(net, saved({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.pth"), "resnet50")
    larger = {**resnet50(weights=None).state_dict(), "layer3.6.conv1.weight": torch.zeros(256, 1024, 1, 1)}
    with pytest.raises(UserError, match=r"holds 1 tensors that this network has no place for, .*layer3\.6\.conv1"):
        start_from(net, saved(larger, tmp_path / "larger.pth"), "resnet50")
    with pytest.raises(UserError, match=r"nowhere\.pth do not exist"):
        start_from(net, "file:nowhere.pth", "resnet50")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.pth .* give another file"):
        start_from(net, f"file:{tmp_path / 'text.pth'}", "resnet50")


def test_weights_that_cannot_be_downloaded_are_asked_for(tmp_path, monkeypatch):
    def offline(*arguments, **keywords):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"resnet50-.* downloaded \(no route\).*'mask_rcnn_weights' to file:PATH"):
        start_from(network(features=8), "imagenet", "resnet50")


def test_nothing_is_taken_from_nowhere():
    net = MaskRCNNSegmenter(MaskRCNNShape("small", 8, True, None, True, 64, 0.5), 1, 3)
    before = {name: of.clone() for name, of in net.state_dict().items()}
    record = start_from(net, "none", "small")
    assert (record["source"], record["sha256"], record["tensors"]) == ("none", None, 0)
    assert all(torch.equal(of, before[name]) for name, of in net.state_dict().items())
