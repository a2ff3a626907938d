"""LaMa as a detector: steps of its training, the perceptual loss, maps, and lesions of a phantom."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nnunetv2_anomaly.detectors.lama_bml.detector import LaMaDetector
from nnunetv2_anomaly.detectors.lama_bml.networks import Discriminator, GeneratorShape
from nnunetv2_anomaly.detectors.lama_bml.perceptual import perceptual_loss
from nnunetv2_anomaly.detectors.lama_bml.training import AdversarialInpainting, holes_of, step
from nnunetv2_anomaly.detectors.thresholds import above_otsu, opened_and_closed
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.networks.planned import planned_network
from nnunetv2_anomaly.training.slices import RandomBiasField

TINY = GeneratorShape(features=4, downsamplings=2, blocks=1)


def tiny_network(seed=0):
    torch.manual_seed(seed)
    return AdversarialInpainting(LaMaDetector(1, TINY, "bright"), Discriminator(1, features=2))


def optimizers_of(network):
    parts = network.detector.generator, network.discriminator
    return tuple(torch.optim.Adam(part.parameters(), rate) for part, rate in zip(parts, (1e-3, 1e-4), strict=True))


def slice_and_hole():
    image, hole = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1)), torch.zeros(2, 1, 32, 32)
    hole[..., 8:20, 8:20] = 1
    return image, hole


def test_a_step_trains_both_networks_each_by_its_own_optimiser():
    network = tiny_network()
    parts = network.detector.generator, network.discriminator
    frozen = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.0)
    for trained in range(2):
        before = [[p.clone() for p in part.parameters()] for part in parts]
        chosen = [frozen, frozen]
        chosen[trained] = optimizers_of(network)[trained]
        step(network, *slice_and_hole(), tuple(chosen))
        same = [
            all(torch.equal(a, b) for a, b in zip(of, part.parameters(), strict=True))
            for of, part in zip(before, parts, strict=True)
        ]
        assert same == [trained != 0, trained != 1]


def test_the_next_losses_follow_from_both_optimisers():
    whole, resumed = tiny_network(), tiny_network(seed=7)
    optimizers = optimizers_of(whole)
    for _ in range(3):
        step(whole, *slice_and_hole(), optimizers)
    state = copy.deepcopy(whole.state_dict())
    resumed.load_state_dict(state)
    theirs = optimizers_of(resumed)
    for own, other in zip(optimizers, theirs, strict=True):
        other.load_state_dict(copy.deepcopy(own.state_dict()))
    expected = [step(whole, *slice_and_hole(), optimizers) for _ in range(2)]
    assert [step(resumed, *slice_and_hole(), theirs) for _ in range(2)] == expected
    without = tiny_network(seed=7)
    without.load_state_dict(state)
    fresh = optimizers_of(without)
    assert [step(without, *slice_and_hole(), fresh) for _ in range(2)] != expected


def test_holes_are_all_bones_or_drawn():
    labels = torch.tensor([[[[0, 1], [2, 3]]]]).repeat_interleave(16, 2).repeat_interleave(16, 3)
    assert holes_of(labels, [[1], [3]], drawn=False)[0, 0, ::16, ::16].tolist() == [[0, 1], [0, 1]]
    np.random.seed(0)
    drawn = holes_of(labels, [[1]], drawn=True)
    assert drawn.shape == labels.shape
    assert 0 < drawn.mean() < 1


def test_bones_alone_have_maps_and_what_is_in_them_is_not_looked_at():
    torch.manual_seed(0)
    detector = LaMaDetector(2, TINY, "both").eval()
    image, bones = torch.rand(3, 2, 30, 26), torch.zeros(3, 30, 26, dtype=torch.long)
    bones[0, 8:20, 8:20] = 2
    difference, error = detector.maps_in(image, bones)
    assert difference[0, :, 8:20, 8:20].ne(0).all()
    outside = (bones == 0)[:, None].expand_as(image)
    assert not difference[outside].any()
    assert not error[outside].any()
    filled = image - difference
    changed = torch.where((bones > 0)[:, None], 1 - image, image)
    torch.testing.assert_close(changed - detector.maps_in(changed, bones)[0], filled)
    with pytest.raises(UserError, match="needs bones, and no bone model is in it; give them with --bones"):
        detector.maps(image)


def test_a_constant_slice_has_no_lesions():
    detector = LaMaDetector(1, TINY, "bright").eval()
    bones = torch.zeros(1, 32, 32, dtype=torch.long)
    bones[0, 8:20, 8:20] = 1
    detector.generator.inpaint = lambda image, hole: image  # a perfect one
    _, error = detector.maps_in(torch.full((1, 1, 32, 32), 0.4), bones)
    assert not error.any()
    assert not above_otsu(error[0, 0].numpy(), bones[0].numpy() > 0).any()


def test_nnunets_prediction_is_told_the_right_verb():
    with pytest.raises(UserError, match=r"nnUNetv2_anomaly anomaly_maps .* -tr LaMaBMLTrainer"):
        tiny_network()(torch.rand(1, 1, 32, 32))


# ---------------------------------------------------------------------------------------------------- perceptual loss


def resnet_weights(deep_stem):
    """ResNet-50's, as torchvision has it, or with the three convolutions of ADE20K's."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    state = resnet50().state_dict()
    if deep_stem:
        widths = ((3, 64), (64, 64), (64, 128))
        for number, (inputs, outputs) in enumerate(widths, start=1):
            state[f"conv{number}.weight"] = torch.randn(outputs, inputs, 3, 3) / 10
            norm = nn.BatchNorm2d(outputs).state_dict()
            state.update({f"bn{number}.{name}": of for name, of in norm.items()})
        state["layer1.0.conv1.weight"] = torch.randn(64, 128, 1, 1) / 10
        state["layer1.0.downsample.0.weight"] = torch.randn(256, 128, 1, 1) / 10
        state = {name: of for name, of in state.items() if not name.endswith("num_batches_tracked")}
    return state


@pytest.mark.parametrize(("source", "deep", "weight"), [("imagenet_dilated", False, 1), ("ade20k", True, 30)])
def test_features_of_a_dilated_resnet_are_compared(tmp_path, source, deep, weight):
    torch.save(resnet_weights(deep), tmp_path / "weights.pth")
    loss = perceptual_loss(source, tmp_path / "weights.pth")
    assert loss.weight == weight
    image, other = torch.rand(1, 1, 64, 64), torch.rand(1, 1, 64, 64, requires_grad=True)
    scale = torch.zeros(1), torch.ones(1)
    with torch.no_grad():
        stages = loss.features(image.expand(-1, 3, -1, -1))
    assert [tuple(of.shape[1:]) for of in stages] == [(256, 16, 16), *((w, 8, 8) for w in (512, 1024, 2048))]
    assert loss(image, image, *scale) == 0
    value = loss(other, image, *scale)
    assert value > 0
    value.backward()
    assert other.grad.any()
    assert all(parameter.grad is None for parameter in loss.parameters())
    wrong = "imagenet_dilated" if deep else "ade20k"
    with pytest.raises(UserError, match="holds other weights"):
        perceptual_loss(wrong, tmp_path / "weights.pth")


def test_a_missing_file_is_named_and_nothing_stands_in(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth does not exist; expected the weights of the perceptual loss"):
        perceptual_loss("ade20k", tmp_path / "none.pth")


def test_an_encoder_of_nnunet_sees_the_image_as_nnunet_normalised_it(tmp_path, tiny_dataset):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(tiny_dataset.plans)
    network = planned_network(plans.get_configuration("2d_small"), 1, 4)
    given = {"plans": tiny_dataset.plans, "configuration": "2d_small", "dataset_json": tiny_dataset.dataset_json}
    torch.save({"init_args": given, "network_weights": network.state_dict()}, tmp_path / "checkpoint.pth")
    loss = perceptual_loss("segnet", tmp_path / "checkpoint.pth")
    image, other, low, high = torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16), torch.tensor([-2.0]), torch.ones(1)
    expected = [
        (a - b).square().mean() for a, b in zip(*(network.encoder(3 * x - 2) for x in (image, other)), strict=True)
    ]
    torch.testing.assert_close(loss(image, other, low, high), sum(expected))
    torch.save(
        {**given, "init_args": {**given, "configuration": "3d_small"}, "network_weights": {}}, tmp_path / "3d.pth"
    )
    with pytest.raises(UserError, match="with 3 axes; expected a 2d one"):
        perceptual_loss("segnet", tmp_path / "3d.pth")
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="is no checkpoint of nnU-Net's"):
        perceptual_loss("segnet", tmp_path / "empty.pth")


# ------------------------------------------------------------------------------------------------------------ phantom


def phantom(rng, size=64, lesion=False):
    """A round bone in muscle, darker towards one side, under a strong bias field; with a lesion of 0.1 more."""
    y, x = np.mgrid[:size, :size] / size
    centre, radius = 0.5 + rng.uniform(-0.05, 0.05, 2), rng.uniform(0.24, 0.3)
    bone = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    image = np.where(bone, 0.42, 0.62) + 0.03 * np.sin(12 * x) + rng.normal(0, 0.01, bone.shape)
    there = np.zeros_like(bone)
    if lesion:
        place = centre + rng.uniform(-0.1, 0.1, 2)
        there = ((y - place[0]) ** 2 + (x - place[1]) ** 2 < rng.uniform(0.06, 0.09) ** 2) & bone
        image = image + 0.1 * there
    np.random.seed(rng.integers(2**31))
    image = RandomBiasField(0.6)(image=torch.from_numpy(image)[None].float())["image"]
    return image, torch.from_numpy(bone)[None], there


@pytest.mark.exhaustive
def test_lesions_of_a_phantom_are_found_where_a_constant_fill_finds_them_worse():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    shape = GeneratorShape(features=8, downsamplings=3, blocks=3)
    network = AdversarialInpainting(LaMaDetector(1, shape, "bright"), Discriminator(1, features=16)).train()
    optimizers = optimizers_of(network)
    scale = 1.5  # the field may brighten what is 1
    for _ in range(150):
        slices = [phantom(rng) for _ in range(4)]
        image, hole = (torch.stack([of[part] for of in slices]).float() for part in (0, 1))
        step(network, (image / scale).clamp(0, 1), hole, optimizers)
    detector = network.detector.eval()
    detector.intensity_high.fill_(scale)
    inpaint, found = detector.generator.inpaint, {"LaMa": [], "constant": [], "itself": [], "raw": []}
    for _ in range(12):
        image, bone, lesion = phantom(rng, lesion=True)
        inside = bone[0].numpy()

        def dice(score, inside=inside, lesion=lesion):
            mask = opened_and_closed(above_otsu(score, inside), inside, 1.0, 1.0, (1.0, 1.0))
            return 2 * (mask & lesion).sum() / max(1, mask.sum() + lesion.sum())

        fills = {"LaMa": inpaint, "itself": lambda x, hole: x}
        fills["constant"] = lambda x, hole: torch.where(hole > 0, torch.full_like(x, 0.42 / scale), x)
        for name, fill in fills.items():
            detector.generator.inpaint = fill
            found[name].append(dice(detector.maps_in(image[None], bone.long())[1][0, 0].numpy()))
        found["raw"].append(dice(image[0].numpy()))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    print(means)
    assert means["LaMa"] > 0.75
    assert means["LaMa"] > means["constant"] + 0.1
    assert means["LaMa"] > means["raw"] + 0.1
    assert means["itself"] == 0
