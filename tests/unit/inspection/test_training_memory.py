"""The memory estimate, held against counts by hand and against real training steps on the CPU."""

import re

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from places import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunetv2_anomaly.inspection.training_memory import (
    PRESTAGE_NETWORKS,
    PUBLISHED_NETWORKS,
    build_step,
    estimate_all,
    estimate_network,
)
from nnunetv2_anomaly.plans.memory import (
    CUDA_CONTEXT_BYTES,
    GIB,
    LiveStorages,
    MemoryEstimate,
    describe,
    walk_through,
)

NAMES = (*PRESTAGE_NETWORKS, *PUBLISHED_NETWORKS)
PAGE = ROOT / "docs" / "how-to" / "whole-image.md"


def configuration(*patch):
    strides = [[1] * len(patch)] + [[2] * len(patch)] * 4
    return ConfigurationManager({"patch_size": list(patch), "architecture": {"arch_kwargs": {"strides": strides}}})


def counted(name, patch, mixed_precision=True, fake=True):
    """The storages of one step, fake or really computed."""
    if fake:
        with FakeTensorMode():
            return counted(name, patch, mixed_precision, fake=False)
    step = build_step(name, configuration(*patch), 1, 5)
    return walk_through(step, patch, mixed_precision=mixed_precision)


def test_storages_are_counted_from_birth_to_end_and_shared_ones_once():
    with LiveStorages() as storages:
        first = torch.zeros(1000)
        assert storages.now == 4000
        second = first * 2
        view = second.view(10, 100)
        assert storages.now == 8000
        del first, second
        assert storages.now == 4000
        del view
        assert storages.now == 0
    assert storages.peak == 8000


def test_what_autograd_alone_keeps_is_counted():
    weight = torch.ones(1000, requires_grad=True)
    with LiveStorages() as storages:
        squared = (weight * 2).exp().sum()  # exp keeps its result
        assert storages.now == 4000 + 4
        squared.backward()
        assert storages.now == 4000 + 4  # now the gradient; the result of exp is gone
    assert storages.peak >= 8000


@pytest.mark.parametrize(
    ("name", "mixed_precision"),
    [
        ("G", True),
        ("A", False),
        ("UNET-S", False),
        ("CAN-S", True),
        *(pytest.param(name, mixed, marks=pytest.mark.exhaustive) for name, mixed in (("UNET+", True), ("CAN", False))),
    ],
)
def test_walking_through_counts_what_a_real_step_takes(name, mixed_precision):
    patch = (32, 32, 32)
    expected = counted(name, patch, mixed_precision, fake=False)
    found = counted(name, patch, mixed_precision)
    assert found.peak == pytest.approx(expected.peak, rel=0.02)
    assert found.largest_convolution == expected.largest_convolution


@pytest.mark.parametrize("name", ["UNET-S", "CAN", "G"])
def test_most_of_the_peak_is_what_autograd_saves(name):
    """Counted in another way: every storage once that a real forward pass saves, without the parameters."""
    patch = (32, 64, 64)
    step = build_step(name, configuration(*patch), 1, 5)
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.loss(
            step.network(torch.zeros(1, step.in_channels, *patch)), torch.zeros(1, 1, *patch, dtype=torch.int16)
        )
    parameters = {parameter.untyped_storage()._cdata for parameter in step.network.parameters()}
    kept = sum(size for storage, size in saved.items() if storage not in parameters)
    assert loss.isfinite()
    assert 0.75 * counted(name, patch, mixed_precision=False).peak < kept < counted(name, patch, False).peak


@pytest.mark.parametrize("name", ["G", "UNET-S", "CAN"])
def test_peak_grows_with_the_voxels(name):
    small, middle, large = (counted(name, (64, size, 128)).peak for size in (128, 256, 384))
    assert large == pytest.approx(2 * middle - small, rel=0.1)


@pytest.mark.exhaustive
def test_anomaly_aware_networks_cost_the_detector_more():
    found = {row.network: row for row in estimate_all(configuration(64, 128, 128), 1, 5)}
    assert list(found) == list(NAMES)
    for name in ("UNET", "CAN"):
        plain, plus, aware = (found[name + ending] for ending in ("", "+", "-S"))
        assert plain.mixed_precision_bytes < plus.mixed_precision_bytes < aware.mixed_precision_bytes
        assert aware.parameters - plus.parameters == 27 * 16  # one more input channel; the detector is not trained
    assert all(row.mixed_precision_bytes < row.float32_bytes for row in found.values())


def test_published_number_of_parameters_and_the_parts_of_the_sum():
    found = estimate_network("UNET", configuration(32, 32, 32), 1, 5)
    assert found.parameters == 5_887_765
    step = counted("UNET", (32, 32, 32), mixed_precision=False)
    parts = 12 * found.parameters + step.peak + step.largest_convolution + CUDA_CONTEXT_BYTES
    assert found.float32_bytes == parts


def test_two_dimensions_are_estimated_too():
    assert estimate_network("CAN-S", configuration(64, 64), 1, 5).mixed_precision_bytes > CUDA_CONTEXT_BYTES


def test_description_names_what_fits():
    rows = [MemoryEstimate("UNET", 1, 20 * GIB, 90 * GIB), MemoryEstimate("CAN", 1, 10 * GIB, 70 * GIB)]
    table, sentence = describe(rows).rsplit("\n", 1)
    assert "UNET                       20.0         90.0" in table
    assert sentence == "Estimated to fit into 80 GiB: all with mixed precision; CAN in float32."
    assert "none with mixed precision" in describe(rows, capacity_gib=5)


def assert_is_in_the_docs_table(row, classes):
    """Within a tenth: releases of torch differ a little in what they keep."""
    column = {5: 0, 10: 2}[classes]
    line = re.search(rf"^\| {re.escape(row.network)} \|(.*)\|$", PAGE.read_text(), re.MULTILINE).group(1)
    figures = [float(figure) for figure in line.split("|")][column : column + 2]
    assert figures == pytest.approx([row.mixed_precision_bytes / GIB, row.float32_bytes / GIB], rel=0.1)


@pytest.mark.parametrize("name", ["A", "CAN-S"])
def test_row_of_the_docs_page_is_what_is_estimated(name):
    assert_is_in_the_docs_table(estimate_network(name, configuration(160, 384, 384), 1, 5), 5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("classes", [5, 10])
def test_table_of_the_docs_page_is_what_is_estimated(classes):
    rows = estimate_all(configuration(160, 384, 384), 1, classes)
    assert [row.network for row in rows] == list(NAMES)
    for row in rows:
        assert_is_in_the_docs_table(row, classes)
