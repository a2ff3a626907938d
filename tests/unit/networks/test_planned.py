"""The planned network is the one that nnU-Net's own trainer builds."""

import copy

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_anomaly.networks.planned import planned_network


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_it_is_nnunets_to_the_bit(tiny_dataset, deep_supervision):
    plans = PlansManager(copy.deepcopy(tiny_dataset.plans))
    given = (plans.get_configuration("3d_small"), 2, 4, deep_supervision)
    torch.manual_seed(0)
    ours = planned_network(*given)
    torch.manual_seed(0)
    theirs = nnUNetTrainer.build_network_architecture(plans, *given)
    image = torch.randn(1, 2, *given[0].patch_size)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(image), theirs.eval()(image), rtol=0, atol=0)
    assert ours.decoder.deep_supervision is deep_supervision
