import math
from itertools import chain

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunetv2_anomaly.detectors.inpainting.networks import (
    AnomalyDetector,
    ImageCompressor,
    PreStageNetwork,
    ReconstructionNetwork,
)
from nnunetv2_anomaly.plans.strides import downsampled_size
from nnunetv2_anomaly.segmenters.base import AnomalyAwareNetwork

PATCH_SIZE = (8, 12, 16)
STRIDES = [(1, 2, 2), (2, 2, 2)]


def make_detector(num_channels=1, seed=0):
    torch.manual_seed(seed)
    detector = AnomalyDetector(
        num_channels=num_channels, patch_size=PATCH_SIZE, strides=STRIDES, features=2, code_length=6
    )
    detector.set_intensity_range(torch.full((num_channels,), -2.0), torch.full((num_channels,), 3.0))
    return detector


def make_prestage(num_channels=1):
    detector = make_detector(num_channels)
    return PreStageNetwork(ReconstructionNetwork(num_channels, STRIDES, 2), detector)


def make_segmenter(num_channels=1, deep_supervision=True):
    torch.manual_seed(1)
    return PlainConvUNet(
        2 * num_channels,
        3,
        [2, 4, 4],
        nn.Conv3d,
        3,
        [(1, 1, 1), *STRIDES],
        1,
        3,
        1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=deep_supervision,
    )


def anomaly_aware(num_channels=1, deep_supervision=False, channel="signed"):
    segmenter = make_segmenter(num_channels, deep_supervision)
    return AnomalyAwareNetwork(make_detector(num_channels), segmenter, channel, num_channels)


def random_image(num_channels=1, seed=0):
    return torch.randn(2, num_channels, *PATCH_SIZE, generator=torch.manual_seed(seed))


# --------------------------------------------------------------------------------------------------- compressor C


def test_compressor_of_the_paper_has_5760_bottleneck_units_and_a_code_of_100():
    with torch.device("meta"):  # shapes alone, no memory
        compressor = ImageCompressor(1, (160, 384, 384), [(2, 2, 2)] * 4, code_length=100)
    assert compressor.bottleneck_size == (10, 24, 24)
    assert (compressor.encode.in_features, compressor.encode.out_features) == (5760, 100)
    assert (compressor.decode.in_features, compressor.decode.out_features) == (100, 5760)
    assert [block[0].out_channels for block in compressor.blocks] == [8, 4, 2, 1]


def test_compressor_with_fewer_downsamplings_keeps_the_last_feature_map_numbers():
    compressor = ImageCompressor(3, PATCH_SIZE, STRIDES, code_length=6)
    assert [(block[0].in_channels, block[0].out_channels) for block in compressor.blocks] == [(3, 2), (2, 1)]
    assert compressor.bottleneck_size == downsampled_size(PATCH_SIZE, STRIDES) == (4, 3, 4)


def test_compressors_output_is_one_channel_of_the_bottlenecks_size_in_0_to_1():
    compressor = make_detector().compressor
    output = compressor(torch.rand(2, 1, *PATCH_SIZE))
    assert output.shape == (2, 1, 4, 3, 4)
    assert ((output > 0) & (output < 1)).all()


def test_compressor_sees_the_whole_image_and_the_inpainter_the_erased_one():
    network = make_prestage().eval()
    hole = torch.zeros(1, 1, *PATCH_SIZE)
    hole[:, :, 2:5, 3:8, 2:6] = 1
    image = random_image()[:1].clamp(-2, 3)
    changed = torch.where(hole == 1, -image, image)
    inputs, codes = [], []
    network.inpainter.encoder[0].register_forward_hook(lambda module, given, output: inputs.append(given[0].clone()))
    network.detector.compressor.encode.register_forward_hook(lambda module, given, output: codes.append(output))
    with torch.no_grad():
        for picture in (image, changed):
            network(torch.cat((picture, hole), dim=1))
    assert torch.equal(inputs[0], inputs[1])
    assert (inputs[0][hole == 1] == 0).all()
    assert (inputs[0][hole == 0] != 0).any()
    assert not torch.allclose(codes[0], codes[1])


# ----------------------------------------------------------------------------------------------------- detector A


def test_rescaling_maps_the_data_sets_range_to_0_to_1_and_clips():
    detector = make_detector(num_channels=2)
    detector.set_intensity_range(torch.tensor([-5.0, -1.0]), torch.tensor([5.0, 3.0]))
    values = torch.tensor([-7.0, -5.0, 0.0, 2.5, 5.0, 9.0])
    image = values.view(1, 1, 6, 1, 1).expand(1, 2, 6, 1, 1)
    expected = torch.tensor([[0.0, 0.0, 0.5, 0.75, 1.0, 1.0], [0.0, 0.0, 0.25, 0.875, 1.0, 1.0]])
    torch.testing.assert_close(detector.rescale(image)[0, :, :, 0, 0], expected)


def test_rescaled_half_precision_image_is_float32():
    assert make_detector().rescale(torch.zeros(1, 1, 2, dtype=torch.float16)).dtype == torch.float32


def test_intensity_range_travels_in_the_state_dict():
    trained, fresh = make_detector(), make_detector(seed=9)
    trained.set_intensity_range(torch.tensor([-1.5]), torch.tensor([2.5]))
    fresh.load_state_dict(trained.state_dict())
    assert (fresh.intensity_low.item(), fresh.intensity_high.item()) == (-1.5, 2.5)


def test_detector_returns_the_error_image_of_its_own_reconstruction():
    detector = make_detector(num_channels=2).eval()
    image = random_image(2)
    with torch.no_grad():
        rescaled = detector.rescale(image)
        expected = torch.square(rescaled - detector.reconstruct(rescaled))
        error = detector(image)
    assert error.shape == image.shape
    torch.testing.assert_close(error, expected)


def test_error_image_under_autocast_is_float32_and_close_to_full_precision():
    detector, image = make_detector().eval(), random_image()
    with torch.no_grad():
        full = detector(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = detector(image)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, full, atol=0.03, rtol=0)
    assert not torch.equal(mixed, full)  # autocast was really at work


def test_start_at_makes_the_mean_the_level_of_the_untrained_output():
    torch.manual_seed(0)
    network = ReconstructionNetwork(2, STRIDES, 2)
    network.start_at(torch.tensor([0.2, 0.7]))
    torch.testing.assert_close(torch.sigmoid(network.output.bias), torch.tensor([0.2, 0.7]))
    with torch.no_grad():
        network.output.weight.zero_()
        output = network(torch.rand(1, 2, *PATCH_SIZE), torch.rand(1, 1, 4, 3, 4))
    torch.testing.assert_close(output[0, 0], torch.full(PATCH_SIZE, 0.2))
    torch.testing.assert_close(output[0, 1], torch.full(PATCH_SIZE, 0.7))


def test_start_at_the_end_of_the_range_stays_finite():
    network = ReconstructionNetwork(2, STRIDES, 2)
    network.start_at(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(network.output.bias, torch.tensor([math.log(1e-3 / 0.999), math.log(0.999 / 1e-3)]))


# --------------------------------------------------------------------------------------------------------- phases


def gradients(module):
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize("num_channels", [1, 2])
def test_phase_1_trains_the_inpainter_with_the_compressor_alone(num_channels):
    network = make_prestage(num_channels)
    batch = torch.cat((random_image(num_channels), torch.ones(2, 1, *PATCH_SIZE)), dim=1)
    batch[:, -1, :4] = 0
    output = network(batch)
    assert output.reconstruction is None
    torch.square(output.image - output.inpainted).mean().backward()
    trained = gradients(network.inpainter) + gradients(network.detector.compressor)
    assert all(gradient is not None for gradient in trained)
    assert gradients(network.detector.compressor)[-1].abs().sum() > 0
    assert all(gradient is None for gradient in gradients(network.detector.reconstructor))


@pytest.mark.parametrize("num_channels", [1, 2])
def test_phase_2_trains_the_detectors_reconstructor_alone(num_channels):
    network = make_prestage(num_channels)
    network.set_phase(1)
    output = network(torch.cat((random_image(num_channels), torch.ones(2, 1, *PATCH_SIZE)), dim=1))
    assert not output.inpainted.requires_grad
    torch.square(output.reconstruction - output.inpainted).mean().backward()
    assert all(gradient is not None for gradient in gradients(network.detector.reconstructor))
    frozen = chain(network.inpainter.parameters(), network.detector.compressor.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


def test_phase_can_be_set_back():
    network = make_prestage()
    network.set_phase(1)
    network.set_phase(0)
    assert network(torch.zeros(1, 2, *PATCH_SIZE)).reconstruction is None
    assert all(parameter.requires_grad for parameter in network.inpainter.parameters())
    assert not any(parameter.requires_grad for parameter in network.detector.reconstructor.parameters())


def test_phase_2_shows_the_detector_the_whole_image():
    network = make_prestage().eval()
    network.set_phase(1)
    image = random_image()
    with torch.no_grad():
        erased_all = network(torch.cat((image, torch.ones(2, 1, *PATCH_SIZE)), dim=1))
        erased_none = network(torch.cat((image, torch.zeros(2, 1, *PATCH_SIZE)), dim=1))
        expected = network.detector.reconstruct(network.detector.rescale(image))
    assert torch.equal(erased_all.reconstruction, expected)
    assert torch.equal(erased_none.reconstruction, expected)
    assert not torch.allclose(erased_all.inpainted, erased_none.inpainted)


# ------------------------------------------------------------------------------------------- anomaly-aware network


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ("published", lambda difference: difference**2),
        ("squared", lambda difference: 100 * difference**2),
        ("signed", lambda difference: 10 * difference),
    ],
)
def test_segmenter_sees_the_image_then_the_error_channel(channel, expected):
    network = anomaly_aware(num_channels=2, channel=channel).eval()
    seen = []
    network.segmenter.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    image = random_image(2)
    with torch.no_grad():
        network(image)
        difference = network.detector.rescale(image) - network.detector.reconstruct(network.detector.rescale(image))
        torch.testing.assert_close(seen[0], torch.cat((image, expected(difference)), dim=1))
        assert torch.equal(network.latest_error_image, network.detector(image))  # of the loss: E, whatever is seen


def test_error_channel_travels_in_the_state_dict():
    trained, other = anomaly_aware(channel="signed").eval(), anomaly_aware(channel="squared").eval()
    other.load_state_dict(trained.state_dict())
    image = random_image()
    with torch.no_grad():
        assert torch.equal(other(image), trained(image))


def test_a_normalised_error_has_unit_variance_in_each_channel():
    network = anomaly_aware(num_channels=2, channel="normalised").eval()
    seen = []
    network.segmenter.register_forward_pre_hook(lambda module, given: seen.append(given[0][:, 2:]))
    patches = [random_image(2, seed) * scale for seed, scale in ((0, 1.0), (1, 0.3), (2, 2.0))]
    network.normalise_error_channel(iter(patches))
    with torch.no_grad():
        for patch in patches:
            network(patch)
            error, factors = network.detector(patch), network.error_channel_coefficients[1]
            torch.testing.assert_close(seen[-1], error * factors.view(1, 2, 1, 1, 1))
    deviations = torch.cat(seen).transpose(0, 1).flatten(1).std(dim=1)
    torch.testing.assert_close(deviations, torch.ones(2), rtol=1e-3, atol=0)
    assert network.error_channel_coefficients[1, 0] != network.error_channel_coefficients[1, 1]


@pytest.mark.parametrize(("before", "after"), [("published", "normalised"), ("normalised", "published")])
def test_the_channel_of_the_weights_stays_also_where_its_form_is_another(before, after):
    trained, other = anomaly_aware(channel=before).eval(), anomaly_aware(channel=after).eval()
    if before == "normalised":
        trained.normalise_error_channel([random_image()])
    other.load_state_dict(trained.state_dict())
    assert other.error_channel_name == before
    with torch.no_grad():
        assert torch.equal(other(random_image()), trained(random_image()))


def test_latest_error_image_is_the_detectors_of_the_latest_image():
    network = anomaly_aware().eval()
    with torch.no_grad():
        for seed in (0, 1):
            image = random_image(seed=seed)
            network(image)
            assert torch.equal(network.latest_error_image, network.detector(image))


def test_latest_error_image_is_the_float32_one_also_for_a_half_precision_image():
    network = anomaly_aware().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        network(random_image().bfloat16())
    assert network.latest_error_image.dtype == torch.float32


def test_gradients_reach_the_segmenter_and_never_the_detector():
    network = anomaly_aware(deep_supervision=True)
    sum(scale.square().mean() for scale in network(random_image())).backward()
    assert all(gradient is not None for gradient in gradients(network.segmenter))
    assert all(gradient is None for gradient in gradients(network.detector))
    assert not any(parameter.requires_grad for parameter in network.detector.parameters())


def test_detector_stays_in_evaluation_mode_while_the_segmenter_trains():
    network = anomaly_aware().train()
    assert network.segmenter.training
    assert not any(module.training for module in network.detector.modules())
    network.eval()
    assert not network.segmenter.training


def test_deep_supervision_is_switched_at_the_decoder():
    network = anomaly_aware(deep_supervision=True)
    image = random_image()
    with torch.no_grad():
        scales = network(image)
        network.decoder.deep_supervision = False
        single = network(image)
    assert [tuple(scale.shape[2:]) for scale in scales] == [PATCH_SIZE, (8, 6, 8)]
    assert torch.equal(single, scales[0])


def test_state_dict_names_the_output_layers_as_nnunet_looks_for_them():
    names = [name for name in anomaly_aware().state_dict() if "seg_layers" in name]
    assert names
    assert all(".seg_layers." in name and name.startswith("segmenter.") for name in names)


def test_compiled_network_gives_the_same_output_and_the_same_latest_error_image():
    network = anomaly_aware(deep_supervision=True).train()
    compiled = torch.compile(network, backend="aot_eager")
    for seed in (0, 1):
        image = random_image(seed=seed)
        expected = [scale.detach().clone() for scale in network(image)]
        expected_error = network.latest_error_image.clone()
        network.latest_error_image = None
        output = compiled(image)
        for scale, wanted in zip(output, expected, strict=True):
            torch.testing.assert_close(scale, wanted)
        torch.testing.assert_close(network.latest_error_image, expected_error)
        assert compiled._orig_mod.latest_error_image is network.latest_error_image
        sum(scale.square().mean() for scale in output).backward()
        assert all(gradient is None for gradient in gradients(network.detector))
    torch.compiler.reset()
