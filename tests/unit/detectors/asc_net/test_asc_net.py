"""ASC-Net: networks of the published sizes, its losses, and steps that leave the other network as it is."""

import numpy as np
import pytest
import torch
from torch import nn

from nnunetv2_anomaly.detectors.asc_net import loss
from nnunetv2_anomaly.detectors.asc_net.detector import ASCNetDetector
from nnunetv2_anomaly.detectors.asc_net.networks import Discriminator, MainNetwork
from nnunetv2_anomaly.detectors.asc_net.schedule import DISCRIMINATOR, MAIN, Schedule
from nnunetv2_anomaly.detectors.asc_net.training import SelectiveCutting
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.trainers.asc_net import _most_of


def number_of(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_networks_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        main = MainNetwork(1)
        assert number_of(main.encoder) == 4_715_616
        assert number_of(main.fence) == number_of(main.wild) == 3_049_793
        assert number_of(main.mixer) == 3
        assert number_of(main) == 10_815_205
        statistics = [name for name, _ in main.named_buffers() if not name.endswith("num_batches_tracked")]
        assert sum(main.get_buffer(name).numel() for name in statistics) == 7_808
        assert number_of(Discriminator(1, (160, 160))) == 4_766_817
        assert number_of(Discriminator(1, (240, 240))) == 4_830_817


@pytest.mark.parametrize("size", [160, 240])
def test_cuts_have_the_size_of_the_slice(size):
    with torch.device("meta"):
        cuts = MainNetwork(1)(torch.zeros(2, 1, size, size))
        assert all(of.shape == (2, 1, size, size) for of in cuts)
        assert Discriminator(1, (size, size))(cuts.fence).shape == (2,)


def test_decoders_share_nothing_and_the_encoder_is_one():
    main = MainNetwork(1, 2)
    shared = {id(of) for of in main.fence.parameters()} & {id(of) for of in main.wild.parameters()}
    assert not shared
    cuts = main(torch.rand(2, 1, 32, 32))
    for cut in (cuts.fence, cuts.wild):
        main.zero_grad()
        cut.sum().backward(retain_graph=True)
        assert all(parameter.grad is not None for parameter in main.encoder.parameters())


def test_a_convolution_comes_before_its_relu_and_that_before_the_norm():
    order = []
    main = MainNetwork(1, 2)
    for layer in main.modules():
        if isinstance(layer, nn.Conv2d | nn.ReLU | nn.BatchNorm2d):
            layer.register_forward_hook(lambda module, *_: order.append(type(module).__name__))
    main(torch.rand(2, 1, 16, 16))
    assert order[:30] == ["Conv2d", "ReLU", "BatchNorm2d"] * 10  # the encoder


def test_dropout_stands_before_every_block_but_the_fences_last():
    main = MainNetwork(1, 2)
    assert [of.p for of in main.fence.dropouts] == [0.3, 0.3, 0.3, 0.0]
    assert [of.p for of in main.wild.dropouts] == [0.3] * 4


def test_the_mixer_is_a_weight_for_each_cut():
    main = MainNetwork(1, 2).eval()
    cuts = main(torch.rand(1, 1, 32, 32))
    fence, wild = main.mixer.weight.detach()[0, :, 0, 0]
    expected = torch.sigmoid(fence * cuts.fence + wild * cuts.wild + main.mixer.bias)
    torch.testing.assert_close(cuts.reconstruction, expected)
    assert main.wild_weight == pytest.approx(float(wild.abs() / (fence.abs() + wild.abs())))


def test_the_disjoint_loss_of_binary_maps_and_over_the_batch_as_one():
    fence, wild = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    fence[:, :, :2], wild[:, :, 2:] = 1, 1
    assert loss.disjoint_loss(fence, wild) == pytest.approx(1 / 33)
    assert loss.disjoint_loss(fence, fence) == 1
    wild[0] = fence[0]
    wild[1] = 0
    mean = torch.stack([loss.disjoint_loss(fence[i], wild[i]) for i in range(2)]).mean()
    assert loss.disjoint_loss(fence, wild) == pytest.approx((2 * 8 + 1) / (16 + 8 + 1))
    assert loss.disjoint_loss(fence, wild) != mean


def test_the_discriminators_loss_by_hand_and_the_penalty_of_kernels():
    found = loss.discriminator_loss(torch.tensor([0.5, 1.0]), torch.tensor([-1.0]))
    assert found == pytest.approx((0.5 + 0 + 0) / 3)
    assert loss.fence_loss(torch.tensor([-1.0, 0.0])) == pytest.approx(1.5)
    network = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False), nn.Conv2d(1, 1, 1, bias=False), nn.ConvTranspose2d(1, 1, 3))
    network[0].weight.data.fill_(2.0)
    assert loss.weight_penalty(network) == 36


def cutting(seed=0):
    torch.manual_seed(seed)
    detector = ASCNetDetector(1, 2, "bright")
    return SelectiveCutting(detector, Discriminator(1, (32, 32), 2), 2e-4).train()


def states(network):
    parts = network.detector.main, network.discriminator
    return [{name: of.clone() for name, of in part.state_dict().items()} for part in parts]


def same(before, after):
    return [all(torch.equal(of, b[name]) for name, of in a.items()) for a, b in zip(before, after, strict=True)]


def test_either_step_changes_its_own_network_alone_statistics_included():
    network = cutting()
    optimizers = [torch.optim.Adam(part.parameters()) for part in (network.detector.main, network.discriminator)]
    images, reference = torch.rand(3, 1, 32, 32), torch.rand(3, 1, 32, 32)
    before = states(network)
    network.train_main(images, optimizers[0], disjoint=True)
    assert same(before, states(network)) == [False, True]
    before = states(network)
    for second in (False, True):
        network.train_discriminator(images, reference, optimizers[1], second_stage=second)
    assert same(before, states(network)) == [True, False]


def test_the_disjoint_term_has_a_gradient_where_it_counts():
    network = cutting()
    before = states(network)[0]["wild.head.weight"]
    changes = []
    for disjoint in (True, False):
        network = cutting()
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(network.detector.main.parameters(), 1.0)
        network.train_main(torch.full((1, 1, 32, 32), 0.5), optimizer, disjoint)
        changes.append(states(network)[0]["wild.head.weight"] - before)
    assert not torch.allclose(*changes)


def test_a_second_stage_takes_the_reference_sets_own_cuts_for_true():
    network = cutting()
    seen = []
    network.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    optimizer = torch.optim.SGD(network.discriminator.parameters(), 0.0)
    images, reference = torch.rand(2, 1, 32, 32), torch.rand(3, 1, 32, 32)
    network.train_discriminator(images, reference, optimizer, second_stage=False)
    network.train_discriminator(images, reference, optimizer, second_stage=True)
    assert [len(of) for of in seen] == [3 + 2, 2 * 3 + 2 * 2]
    assert torch.equal(seen[1][:3], reference)
    assert torch.equal(seen[1][3:6], network.cuts(reference).fence)
    assert torch.equal(seen[0][3:], network.cuts(images).fence)


def test_the_discriminator_learns_what_differs():
    network = cutting()
    optimizer = torch.optim.Adam(network.discriminator.parameters(), 1e-3)
    for _ in range(60):
        images, reference = torch.rand(4, 1, 32, 32), torch.rand(4, 1, 32, 32) ** 4
        network.train_discriminator(images, reference, optimizer, second_stage=False)
    held_out, cuts = torch.rand(8, 1, 32, 32) ** 4, network.cuts(torch.rand(8, 1, 32, 32)).fence

    def judged():  # as the main network is judged: both kinds in a batch that is normalised by itself
        with torch.no_grad(), network.discriminator.as_judge():
            return network.discriminator(torch.cat((held_out, cuts)))

    assert judged()[:8].median() > 0.5
    assert judged()[8:].median() < -0.5
    network.restart_discriminator()
    assert judged()[:8].median() < 0.5


def test_training_lessens_reconstruction_error_and_overlap():
    network = cutting()
    optimizers = [torch.optim.Adam(part.parameters(), 5e-3) for part in (network.detector.main, network.discriminator)]
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 2, indexing="ij")
    disc = (0.4 * (x**2 + y**2 < 0.6))[None, None]

    def slices(number):
        spots = torch.rand(number, 2, 1, 1) - 0.5
        blobs = 0.6 * ((x - spots[:, :1]) ** 2 + (y - spots[:, 1:]) ** 2 < 0.03)
        return (disc + blobs).clamp(max=1), disc.expand(number, 1, 32, 32) + 0.02 * torch.rand(number, 1, 32, 32)

    first = network.main_losses(slices(8)[0])
    for _ in range(3):
        for _ in range(5):
            network.train_discriminator(*slices(8), optimizers[1], second_stage=False)
        for _ in range(15):
            network.train_main(slices(8)[0], optimizers[0], disjoint=True)
    last = network.main_losses(slices(8)[0])
    assert last.reconstruction < 0.8 * first.reconstruction
    assert last.disjoint < first.disjoint


def test_the_schedule_alternates_in_both_stages():
    schedule = Schedule((2, 1), 1, 2)
    assert schedule.num_epochs == 9
    names = [(of.stage, of.cycle, of.trained) for of in map(schedule.at, range(9))]
    first = [(1, 1, DISCRIMINATOR), (1, 1, MAIN), (1, 1, MAIN), (1, 2, DISCRIMINATOR), (1, 2, MAIN), (1, 2, MAIN)]
    assert names == [*first, (2, 1, DISCRIMINATOR), (2, 1, MAIN), (2, 1, MAIN)]
    assert schedule.at(20).name == "stage 2, cycle 1, main"
    assert Schedule((0, 1), 1, 1).at(0).stage == 2


def test_dark_anomalies_are_bright_ones_of_the_inverted_reconstruction():
    detectors = {polarity: ASCNetDetector(1, 2, polarity).eval() for polarity in ("bright", "dark")}
    detectors["dark"].load_state_dict(detectors["bright"].state_dict())
    image = torch.rand(1, 1, 30, 34)
    bright, dark = (of(image) for of in detectors.values())
    torch.testing.assert_close(dark, 1 - bright)
    assert bright.shape == image.shape


def test_a_slice_has_the_same_map_alone_and_among_others():
    detector = ASCNetDetector(1, 2, "bright").eval()
    images = torch.rand(10, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(detector(images)[4:5], detector(images[4:5]))


def test_nnunets_prediction_is_told_the_right_verb():
    with pytest.raises(UserError, match=r"nnUNetv2_anomaly anomaly_maps .* -tr ASCNetTrainer"):
        cutting()(torch.rand(1, 1, 32, 32))


def test_a_number_of_channels_goes_in_and_comes_out():
    cuts = MainNetwork(3, 2)(torch.rand(2, 3, 16, 16))
    assert all(of.shape == (2, 3, 16, 16) for of in cuts)
    assert np.isfinite(cuts.wild.detach().numpy()).all()


def test_the_slice_with_most_of_the_lesions_is_shown_and_of_a_case_without_any_one_with_anatomy():
    labels = np.zeros((4, 3, 3), dtype=np.uint8)
    labels[1, 0] = labels[2] = 1
    assert _most_of(labels, lesions=[7]) == 2
    labels[1, 1] = 7
    assert _most_of(labels, lesions=[7]) == 1
