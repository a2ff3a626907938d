import copy

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_anomaly.detectors.inpainting.networks import AnomalyDetector, build_prestage_network
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.plans.strides import downsampled_size, planned_strides

SETTINGS = {
    "detector_downsamplings": 4, "detector_features": 2, "compressor_code_length": 5, "detector_resolution": "full"
}  # fmt: skip
HALF = {**SETTINGS, "detector_resolution": "half"}


def configuration(patch_size=(8, 16, 16), strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), **changes):
    planned = {"patch_size": list(patch_size), "architecture": {"arch_kwargs": {"strides": copy.deepcopy(strides)}}}
    return ConfigurationManager({**planned, **changes})


@pytest.mark.parametrize(
    ("patch_size", "strides", "max_downsamplings", "expected"),
    [
        ((8, 16, 16), [[1, 1, 1], [1, 2, 2], [2, 2, 2]], 4, [(1, 2, 2), (2, 2, 2)]),
        ((8, 16, 16), [[1, 1, 1], [1, 2, 2], [2, 2, 2]], 1, [(1, 2, 2)]),
        ((8, 16, 16), [1, 2, 2], 4, [(2, 2, 2), (2, 2, 2)]),
        ((32, 32), [[1, 1], [2, 2], [2, 1]], 4, [(2, 2), (2, 1)]),
        ((64, 64), [1, 2, 2, 2, 2, 2, 2], 4, [(2, 2)] * 4),
    ],
)
def test_strides_are_the_first_planned_downsamplings(patch_size, strides, max_downsamplings, expected):
    assert planned_strides(configuration(patch_size, strides), max_downsamplings) == expected


@pytest.mark.parametrize("strides", [[[1, 1, 1]], []])
def test_plans_that_downsample_nothing_are_refused(strides):
    with pytest.raises(UserError, match="downsample nothing"):
        planned_strides(configuration(strides=strides), 4)


@pytest.mark.parametrize(
    ("planned", "num_channels"),
    [
        (configuration(), 1),
        (configuration(), 3),
        (configuration((16, 24), [1, 2, 2]), 2),
        (configuration((8, 16, 16), [1, 2]), 1),
    ],
    ids=["anisotropic", "three channels", "2D", "one downsampling"],
)
def test_networks_run_on_the_planned_patch(planned, num_channels):
    network = build_prestage_network(planned, num_channels, SETTINGS)
    network.set_phase(1)
    with torch.no_grad():
        output = network(torch.rand(1, num_channels + 1, *planned.patch_size))
    assert output.inpainted.shape == output.reconstruction.shape == (1, num_channels, *planned.patch_size)


@pytest.mark.parametrize(
    "planned",
    [configuration(), configuration((9, 17, 21)), configuration((16, 24), [1, 2, 2])],
    ids=["3D", "odd", "2D"],
)
def test_at_half_resolution_the_first_level_is_left_out(planned):
    network = build_prestage_network(planned, 1, HALF)
    network.set_phase(1)
    with torch.no_grad():
        output = network(torch.rand(1, 2, *planned.patch_size))
    assert output.inpainted.shape == output.reconstruction.shape == (1, 1, *planned.patch_size)
    seen = []
    network.detector.reconstructor.encoder[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    image = torch.rand(1, 1, *planned.patch_size)
    network.detector(image)
    (stride, *others) = planned_strides(planned, 4)
    assert seen[0].shape[2:] == downsampled_size(planned.patch_size, [stride])
    assert len(network.detector.reconstructor.upsampling) == len(others)


def test_half_of_a_single_downsampling_is_refused():
    with pytest.raises(UserError, match="'detector_resolution' is half, and the detector downsamples once"):
        build_prestage_network(configuration((8, 16, 16), [1, 2]), 1, HALF)


def test_settings_reach_the_networks():
    detector = AnomalyDetector.build(
        configuration(), 1, {**SETTINGS, "detector_downsamplings": 1, "detector_features": 3}
    )
    assert len(detector.reconstructor.upsampling) == 1
    assert detector.reconstructor.output.in_channels == 3
    assert detector.compressor.encode.out_features == 5


def test_detector_of_the_segmentation_fits_that_of_the_prestage():
    detector = AnomalyDetector.build(configuration(), 2, SETTINGS)
    detector.load_state_dict(build_prestage_network(configuration(), 2, SETTINGS).detector.state_dict())


def test_patch_that_is_too_small_for_its_downsamplings_is_a_users_mistake():
    with pytest.raises(UserError, match="fewer downsamplings or a larger patch"):
        AnomalyDetector.build(configuration((4, 4, 4), [1, 2, 2]), 1, SETTINGS)
