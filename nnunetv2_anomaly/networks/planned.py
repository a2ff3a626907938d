"""The network that nnU-Net planned."""

from __future__ import annotations

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn
from torch.nn.modules.conv import _ConvNd


def planned_network(
    configuration_manager: ConfigurationManager, num_channels: int, num_outputs: int, deep_supervision: bool = False
) -> nn.Module:
    """The untrained network of a configuration, as nnU-Net 2.8.1's own trainer builds it.

    Args: num_channels, num_outputs: image channels that it sees, and logits of each voxel.
    Returns: (B, num_channels, *patch_size) -> (B, num_outputs, *patch_size), or with deep supervision a list of such
        logits, full resolution first.
    """
    return get_network_from_plans(
        configuration_manager.network_arch_class_name,
        configuration_manager.network_arch_init_kwargs,
        configuration_manager.network_arch_init_kwargs_req_import,
        num_channels,
        num_outputs,
        deep_supervision=deep_supervision,
    )


def see_more_channels(network: nn.Module, num_channels: int) -> None:
    """Widen a network's first convolution for further input channels, in place, by weights of 0.

    It starts as it was: with one seed, what is trained differs from nnU-Net by the method, not by the first weights.
    """
    first = next(module for module in network.modules() if isinstance(module, _ConvNd))
    more = first.weight.new_zeros((first.out_channels, num_channels, *first.kernel_size))
    first.weight = nn.Parameter(torch.cat((first.weight.detach(), more), dim=1))
    first.in_channels += num_channels
