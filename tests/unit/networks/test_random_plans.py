"""Whatever nnU-Net may plan: every network of ours builds, runs forward and backward, and survives saving, or says why.

Networks are built as nnU-Net builds them at prediction: through the trainer's ``build_network_architecture``, from
plans, without a trainer.
"""

import tempfile
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_anomaly import trainers
from nnunetv2_anomaly.detectors.inpainting.loss import PreStageLoss
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.segmenters.loss import AnomalyAwareLoss, DiceAndFocalCrossEntropy
from nnunetv2_anomaly.segmenters.published.loss import MultiClassDiceLoss

CONFIGURATION = "planned"
SMALLEST, LARGEST = 8, 96
#: of a patch; a network of two to four feature maps then takes some hundredths of a second
MOST_VOXELS = {2: LARGEST * LARGEST, 3: 24_576}
#: nnU-Net's planner leaves an axis at least 4 voxels; users may want fewer
FEWEST_AT_THE_BOTTLENECK = 2

#: how many random plans each test tries: a few in every run, many in the exhaustive one
amounts = pytest.mark.parametrize("amount", [5, pytest.param(40, marks=pytest.mark.exhaustive)])


def try_plans(amount: int, check, **strategies) -> None:
    """Run a check on so many examples, the same in every run, so that a failure is never a matter of luck."""
    chosen = settings(
        max_examples=amount,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
        database=None,
    )
    chosen(given(**strategies)(check))()


@dataclass(frozen=True)
class Case:
    """What a trainer is given: plans, and the number of image channels and of labels (background included)."""

    plans: dict
    channels: int
    labels: int

    @property
    def configuration(self) -> dict:
        return self.plans["configurations"][CONFIGURATION]

    @property
    def patch_size(self) -> tuple[int, ...]:
        return tuple(self.configuration["patch_size"])

    @property
    def strides(self) -> list[list[int]]:
        return self.configuration["architecture"]["arch_kwargs"]["strides"]

    def build(self, trainer, deep_supervision: bool) -> torch.nn.Module:
        manager = PlansManager(self.plans)
        return trainer.build_network_architecture(
            manager, manager.get_configuration(CONFIGURATION), self.channels, self.labels, deep_supervision
        )


def architecture(draw, dimensions: int, strides: list[list[int]]) -> dict:
    """A plain or residual U-Net as nnU-Net's planners write it, with few feature maps."""
    stages = len(strides)
    residual = draw(st.booleans(), label="residual encoder")
    kernel = st.lists(st.sampled_from([1, 3]), min_size=dimensions, max_size=dimensions)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [draw(st.integers(2, 4))] * stages,
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [draw(kernel) for _ in range(stages)],
            "strides": strides,
            "n_blocks_per_stage" if residual else "n_conv_per_stage": [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


@st.composite
def cases(draw, divisible: bool) -> Case:
    """Plans with patches of 8 to 96 voxels an axis, each axis pooled in stages of its own.

    Args: divisible: a patch that the strides divide and that leaves every axis two voxels, as nnU-Net's own network
        needs; else any patch.
    """
    dimensions = draw(st.sampled_from([2, 3, 3]))
    downsamplings = draw(st.integers(1, 5))
    patch_size, pooled, left = [], [], MOST_VOXELS[dimensions]
    for axis in range(dimensions):
        largest = min(LARGEST, left // SMALLEST ** (dimensions - 1 - axis))
        stages = draw(st.sets(st.integers(1, downsamplings)), label="stages that pool the axis")
        divisor = 2 ** len(stages) if divisible else 1
        while FEWEST_AT_THE_BOTTLENECK * divisor > largest and divisible:
            stages.remove(max(stages))
            divisor //= 2
        fewest = max(-(-SMALLEST // divisor), FEWEST_AT_THE_BOTTLENECK if divisible else 1)
        patch_size.append(divisor * draw(st.integers(fewest, largest // divisor)))
        pooled.append(stages)
        left //= patch_size[-1]
    order = draw(st.permutations(range(dimensions)))
    strides = [[2 if stage in pooled[axis] else 1 for axis in order] for stage in range(downsamplings + 1)]
    of_detector = draw(st.integers(1, 4))
    resolutions = ["full", "half"] if min(of_detector, sum(max(stride) > 1 for stride in strides)) > 1 else ["full"]
    configuration = {
        "patch_size": [patch_size[axis] for axis in order],
        "architecture": architecture(draw, dimensions, strides),
        "anomaly": {
            "detector_features": draw(st.integers(1, 3)),
            "detector_downsamplings": of_detector,
            "detector_resolution": draw(st.sampled_from(resolutions)),
            "compressor_code_length": draw(st.integers(1, 6)),
        },
    }
    plans = {"dataset_name": "Dataset001_Any", "plans_name": "any", "configurations": {CONFIGURATION: configuration}}
    return Case(plans, draw(st.integers(1, 4), label="channels"), draw(st.integers(2, 12), label="labels"))


def small(trainer):
    """A published trainer whose network has two feature maps at full resolution; all else is the published shape."""
    return type(f"Small{trainer.__name__}", (trainer,), {"network_shape": replace(trainer.network_shape, features=2)})


PUBLISHED = [
    small(trainer)
    for trainer in (
        trainers.UNETTrainer,
        trainers.UNETPlusTrainer,
        trainers.UNETSTrainer,
        trainers.CANTrainer,
        trainers.CANPlusTrainer,
        trainers.CANSTrainer,
    )
]


# --------------------------------------------------------------------------------------------------------- the checks


def built(case: Case, trainer, max_downsamplings: list[int], deep_supervision: bool = True):
    """The network, or None where it cannot be built, which must be so for the two known reasons and be said."""
    downsampling = [stride for stride in case.strides if max(stride) > 1]
    sizes = []
    for number in max_downsamplings:
        size = case.patch_size
        for stride in downsampling[:number]:
            size = [-(-voxels // step) for voxels, step in zip(size, stride, strict=True)]
        sizes.append(prod(size))
    possible = bool(downsampling) and min(sizes) > 1
    event("can be built" if possible else "cannot be built")
    if possible:
        return case.build(trainer, deep_supervision)
    with pytest.raises(UserError) as caught:
        case.build(trainer, deep_supervision)
    sentence = str(caught.value)
    assert "expected at least one downsampling" in sentence or "use fewer downsamplings" in sentence
    assert "\n" not in sentence
    return None


def image_of(case: Case) -> torch.Tensor:
    generator = torch.Generator().manual_seed(prod(case.patch_size))
    return torch.randn(1, case.channels, *case.patch_size, generator=generator)


def target_of(case: Case, size) -> torch.Tensor:
    return torch.randint(0, case.labels, (1, 1, *size), generator=torch.Generator().manual_seed(case.labels))


def set_intensities(detector, case: Case) -> None:
    """What the pre-stage measures: it must travel with the weights."""
    detector.set_intensity_range(torch.tensor([-2.0 - c for c in range(case.channels)]), torch.tensor(2.5))


def assert_learns(network, loss, without_gradient=()) -> None:
    """A finite loss, and a finite gradient for everything that is trained."""
    assert torch.isfinite(loss)
    network.zero_grad(set_to_none=True)
    loss.backward()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad or name.startswith(tuple(without_gradient)):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def assert_survives_saving(network, fresh, run) -> None:
    """Weights in a file, loaded into a network built again, give the same output to the bit."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(network.state_dict(), Path(folder) / "weights.pth")
        fresh.load_state_dict(torch.load(Path(folder) / "weights.pth", weights_only=True), strict=True)
    with torch.no_grad():
        for output, expected in zip(run(fresh.eval()), run(network.eval()), strict=True):
            assert torch.equal(output, expected)


def anomaly_aware_loss(network, scales: int | None) -> AnomalyAwareLoss:
    """Dice and focal cross-entropy (Eq. 5), over all scales alike, so that every output layer is asked."""
    loss = DiceAndFocalCrossEntropy(MultiClassDiceLoss(), alpha=10.0, ignore_label=None)
    if scales is not None:
        loss = DeepSupervisionWrapper(loss, [1.0] * scales)
    return AnomalyAwareLoss(loss, 99.0, lambda: network.latest_error_image)


# ---------------------------------------------------------------------------------------------------------- the tests


@amounts
def test_prestage(amount):
    try_plans(amount, check_prestage, case=cases(divisible=False))


def check_prestage(case):
    trainer = trainers.AnomalyPreStageTrainer
    levels = [case.configuration["anomaly"]["detector_downsamplings"]]
    network = built(case, trainer, levels)
    if network is None:
        return
    set_intensities(network.detector, case)
    image = image_of(case)
    hole = torch.zeros_like(image[:, :1])
    hole[..., 2:7] = 1
    for distilling in (False, True):
        network.train()
        network.set_phase(int(distilling))
        output = network(torch.cat((image, hole), dim=1))
        given_back = output.reconstruction if distilling else output.inpainted
        assert given_back.shape == output.image.shape == image.shape
        assert (output.reconstruction is not None) is distilling
        assert_learns(network, PreStageLoss()(output, None))

    def run(network):
        network.set_phase(1)
        return network(torch.cat((image, hole), dim=1))

    assert_survives_saving(network, case.build(trainer, False), run)


@amounts
def test_published_networks(amount):
    try_plans(amount, check_published_networks, case=cases(divisible=False), trainer=st.sampled_from(PUBLISHED))


def check_published_networks(case, trainer):
    aware = issubclass(trainer, (trainers.UNETSTrainer, trainers.CANSTrainer))
    levels = [trainer.network_shape.downsamplings]
    if aware:
        levels.append(case.configuration["anomaly"]["detector_downsamplings"])
    network = built(case, trainer, levels)
    if network is None:
        return
    if aware:
        set_intensities(network.detector, case)
    image, target = image_of(case), target_of(case, case.patch_size)
    logits = network.train()(image)
    assert logits.shape == (1, case.labels, *case.patch_size)
    loss = anomaly_aware_loss(network, None) if aware else MultiClassDiceLoss()
    assert_learns(network, loss(logits, target))
    assert_survives_saving(network, case.build(trainer, False), lambda network: [network(image)])


@amounts
def test_anomaly_aware_network(amount):
    try_plans(amount, check_anomaly_aware_network, case=cases(divisible=True), deep_supervision=st.booleans())


def check_anomaly_aware_network(case, deep_supervision):
    trainer = trainers.AnomalyAwareTrainer
    levels = [case.configuration["anomaly"]["detector_downsamplings"]]
    network = built(case, trainer, levels, deep_supervision)
    if network is None:
        return
    set_intensities(network.detector, case)
    image = image_of(case)
    outputs = network.train()(image)
    sizes, size = [], list(case.patch_size)
    for stride in case.strides[:-1]:  # nnU-Net has no output at the bottleneck
        size = [voxels // step for voxels, step in zip(size, stride, strict=True)]
        sizes.append(size)
    layers = range(len(sizes))  # of nnU-Net's decoder, which has one for every scale in any case, the finest last
    if deep_supervision:
        assert [tuple(output.shape) for output in outputs] == [(1, case.labels, *size) for size in sizes]
        targets = [target_of(case, size) for size in sizes]
        assert_learns(network, anomaly_aware_loss(network, len(sizes))(outputs, targets))
    else:
        assert outputs.shape == (1, case.labels, *case.patch_size)
        unused = [f"segmenter.decoder.seg_layers.{layer}." for layer in layers[:-1]]
        loss = anomaly_aware_loss(network, None)(outputs, target_of(case, case.patch_size))
        assert_learns(network, loss, without_gradient=unused)
    network.decoder.deep_supervision = False  # as in prediction, where a network is built without
    assert_survives_saving(network, case.build(trainer, False), lambda network: [network(image)])
