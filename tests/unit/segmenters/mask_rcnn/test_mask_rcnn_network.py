"""The networks: exact sizes, two RoIAligns, channels, focal mask loss, and learning a bone with a thin rim."""

import builtins
import copy
import math

import numpy as np
import pytest
import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.segmenters.mask_rcnn import network as module
from nnunetv2_anomaly.segmenters.mask_rcnn.instances import instances_of
from nnunetv2_anomaly.segmenters.mask_rcnn.network import MaskRCNNSegmenter, MaskRCNNShape, check_torchvision

BONE, RIM = 1, 2


def shape(improved=True, **changes):
    values = {"backbone": "small", "features": 16, "skip_level": None, "learns_norm": True, "size": 64, "score": 0.5}
    values["boxes"] = 32
    return MaskRCNNShape(improved=improved, **{**values, **changes})


def small(improved=True, in_channels=1, num_classes=3, seed=0, **changes):
    torch.manual_seed(seed)
    return MaskRCNNSegmenter(shape(improved, **changes), in_channels, num_classes)


def knees(number, size=64, seed=0):
    """Slices with a bright bone and a thin dark rim around it: (number, 1, Y, X), and labels."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.mgrid[:size, :size], axis=-1).astype(float)
    images, labels = [], []
    for _ in range(number):
        middle = size / 2 + random.uniform(-size / 10, size / 10, 2)
        radius = size * random.uniform(0.2, 0.3)
        distance = np.linalg.norm(grid - middle, axis=-1)
        of = np.where(distance < radius, BONE, np.where(distance < radius + size * 0.05, RIM, 0))
        image = np.where(of == BONE, 2.0, np.where(of == RIM, -2.0, 0.0))
        images.append(image + random.normal(0, 0.2, image.shape))
        labels.append(of)
    return torch.from_numpy(np.array(images, np.float32))[:, None], labels


def targets_of(labels):
    return [instances_of(of, [BONE, RIM], 4) for of in labels]


def losses_of(net, image, targets):
    net.targets = targets
    return net(image)


def parameters(part):
    return sum(of.numel() for of in part.parameters())


COUNTS = {
    "resnet50": (43_991_661, 45_433_965, 53_120),
    "resnet101": (62_983_789, 64_426_093, 105_344),
    "densenet121": (27_175_341, 28_617_645, 83_648),
}


@pytest.mark.parametrize("backbone", COUNTS)
@pytest.mark.parametrize("learns_norm", [True, False])
def test_parameter_counts(backbone, learns_norm):
    *expected, of_norms = COUNTS[backbone]
    with torch.device("meta"):
        nets = [
            module._build(shape(of, backbone=backbone, features=256, learns_norm=learns_norm), 3, 5) for of in (0, 1)
        ]
    frozen = 0 if learns_norm else of_norms  # the numbers of a frozen normalisation are no parameters
    assert [parameters(net) + frozen for net in nets] == expected
    branches = [parameters(net.roi_heads.mask_head) + parameters(net.roi_heads.mask_predictor) for net in nets]
    assert branches == [2_624_005, 4_066_309]


def test_the_plain_network_is_torchvisions_own():
    with torch.device("meta"):
        ours = module._build(shape(False, backbone="resnet50", features=256), 3, 5)
        theirs = MaskRCNN(
            resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=torch.nn.BatchNorm2d), 5
        )
    running = ("running_mean", "running_var", "num_batches_tracked")  # which groups do not have
    expected = {name: of.shape for name, of in theirs.state_dict().items() if not name.endswith(running)}
    assert {name: of.shape for name, of in ours.state_dict().items()} == expected


@pytest.mark.parametrize(("improved", "size"), [(False, 28), (True, 56)])
def test_masks_are_28_or_56_pixels_wide(improved, size):
    heads = small(improved).rcnn.roi_heads
    pyramid = {str(level): torch.randn(1, 16, 16 >> level, 16 >> level) for level in range(4)}
    boxes = [torch.tensor([[4.0, 4.0, 40.0, 50.0], [0.0, 0.0, 9.0, 9.0]])]
    logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(pyramid, boxes, [(64, 64)])))
    assert logits.shape == (2, 3, size, size)


def test_the_skip_counts_and_comes_from_the_level_that_is_asked_for():
    heads = small(skip_level=0).rcnn.roi_heads
    pyramid = {str(level): torch.randn(1, 16, 256 >> level, 256 >> level) for level in range(4)}
    boxes = [torch.tensor([[10.0, 10.0, 900.0, 900.0]])]  # whose size suits the coarsest level
    pair = heads.mask_roi_pool(pyramid, boxes, [(1024, 1024)])
    other = {**pyramid, "0": pyramid["0"] + 1}
    assert not torch.equal(heads.mask_roi_pool(other, boxes, [(1024, 1024)])[1], pair[1])
    assert torch.equal(heads.mask_roi_pool(other, boxes, [(1024, 1024)])[0], pair[0])
    by_size = small(skip_level=None).rcnn.roi_heads.mask_roi_pool
    assert torch.equal(by_size(other, boxes, [(1024, 1024)])[1], by_size(pyramid, boxes, [(1024, 1024)])[1])
    before = heads.mask_predictor(pair)
    heads.mask_predictor.fuse.weight.data[:, 16:] = 0
    assert not torch.allclose(heads.mask_predictor(pair), before)


def test_gradients_reach_both_ways_into_the_mask():
    net = small()
    sizes = []
    pool = net.rcnn.roi_heads.mask_roi_pool.forward

    def kept(*arguments):
        pair = pool(*arguments)
        for of in pair:
            of.retain_grad()
            sizes.append(of)
        return pair

    net.rcnn.roi_heads.mask_roi_pool.forward = kept
    image, labels = knees(2)
    losses_of(net, image, targets_of(labels))["loss_mask"].backward()
    assert [tuple(of.shape[2:]) for of in sizes] == [(14, 14), (56, 56)]
    assert all(of.grad.abs().sum() > 0 for of in sizes)


@pytest.mark.parametrize("improved", [False, True])
def test_slices_without_instances_are_learned(improved):
    net = small(improved)
    image, labels = knees(2)
    losses = losses_of(net, image, targets_of([labels[0] * 0, labels[1] * 0]))
    assert losses["loss_mask"] == 0
    assert losses["loss_classifier"] > 0
    sum(losses.values()).backward()
    assert all(of.grad is not None for of in net.parameters())  # which distributed training asks for


def test_boxes_of_no_width_are_refused_by_torchvision_and_never_made():
    line = np.zeros((64, 64), int)
    line[10:40, 20] = BONE
    (target,) = targets_of([line])
    assert target["boxes"].tolist() == [[20, 10, 21, 40]]
    net = small()
    assert math.isfinite(sum(losses_of(net, torch.zeros(1, 1, 64, 64), [target]).values()).item())
    flat = {**target, "boxes": torch.tensor([[20.0, 10.0, 20.0, 40.0]])}
    with pytest.raises(AssertionError, match="positive height and width"):
        losses_of(net, torch.zeros(1, 1, 64, 64), [flat])


def test_of_one_channel_three_are_made_and_of_two_the_first_twice():
    image = torch.randn(1, 4, 8, 8)
    for number, places in ((1, (0, 0, 0)), (2, (0, 0, 1)), (3, (0, 1, 2)), (4, (0, 1, 2, 3))):
        seen = module._three_channels(image[:, :number])
        assert torch.equal(seen, image[:, list(places)])


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_count_and_further_ones_start_at_0(channels):
    net = small(in_channels=channels).eval()
    image = torch.randn(1, channels, 64, 48)

    def features(of):
        return net.rcnn.backbone(module._three_channels(of))["0"]

    other = image.clone()
    other[:, -1] += 1
    assert torch.equal(features(other), features(image)) == (channels == 4)
    if channels == 4:
        first = next(of for of in net.modules() if isinstance(of, torch.nn.Conv2d))
        assert first.weight.shape[1] == 4
        first.weight.data[:, 3] = 1
        assert not torch.equal(features(other), features(image))


@pytest.mark.parametrize("size", [(48, 80), (33, 61)])
def test_scores_have_the_size_of_the_slice(size):
    net = small(num_classes=2, size=64).eval()
    with torch.inference_mode():
        scores = net(torch.randn(3, 1, *size))
    assert scores.shape == (3, 2, *size)
    assert not scores[:, 0].any()


def test_slices_in_a_batch_are_what_they_are_alone():
    net = small(score=0.0).eval()
    image, _ = knees(3)
    with torch.inference_mode():
        together, alone = net(image), torch.cat([net(of[None]) for of in image])
    assert (together > -5).any()
    assert torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("improved", [False, True])
def test_the_focal_mask_loss_is_torchvisions_where_all_weights_are_1_and_grows_with_them(improved):
    image, labels = knees(2)
    losses = []
    for weight in (None, 1.0, 3.0):
        net = small(improved)
        if weight is not None:
            net.mask_weight = lambda weight=weight: torch.full((2, 1, 64, 64), weight)
        torch.manual_seed(1)
        losses.append({name: of.item() for name, of in losses_of(net, image, targets_of(labels)).items()})
    assert losses[1] == pytest.approx(losses[0])
    assert losses[2] == pytest.approx({**losses[0], "loss_mask": 3 * losses[0]["loss_mask"]})
    # Where the weight is 0 in one half of the slices, what is missing is the loss of that half.
    net = small(improved)
    half = torch.ones(2, 1, 64, 64)
    half[..., 32:] = 0
    net.mask_weight = lambda: half
    torch.manual_seed(1)
    assert 0 < float(losses_of(net, image, targets_of(labels))["loss_mask"]) < 0.9 * losses[0]["loss_mask"]


def test_torchvision_that_does_not_work_is_reported_in_a_sentence(monkeypatch):
    own = builtins.__import__

    def broken(name, *arguments, **keywords):
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return own(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(
        UserError, match=r"does not work here \(RuntimeError: operator torchvision::nms does not exist\)"
    ):
        check_torchvision()


@pytest.mark.parametrize("improved", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_thirty_steps_lessen_the_loss_of_two_slices(improved):
    net = small(improved)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    image, labels = knees(2)
    targets, losses = targets_of(labels), []
    for _ in range(30):
        optimizer.zero_grad()
        found = losses_of(net, image, copy.deepcopy(targets))
        sum(found.values()).backward()
        optimizer.step()
        losses.append({name: of.item() for name, of in found.items()})
    for name in ("loss_classifier", "loss_mask", "loss_objectness"):
        assert losses[-1][name] < 0.75 * losses[0][name], name


def test_boxes_are_of_full_precision_under_autocast():
    net = small(score=0.0).eval()
    image, _ = knees(1)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = net.detect(image)
    assert len(found["boxes"])
    assert (found["boxes"].dtype, found["scores"].dtype) == (torch.float32, torch.float32)
    assert not torch.equal(found["boxes"], found["boxes"].bfloat16().float())
