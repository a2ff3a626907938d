"""nnU-Net's sliding window for networks whose output is an image instead of class scores."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn


@dataclass(frozen=True)
class Windows:
    """Plans and device of a prediction: what nnU-Net's sliding window asks for."""

    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict
    device: torch.device

    def predict(self, network: nn.Module, volume: Tensor, num_output_channels: int) -> Tensor:
        """Run a window network over a whole volume and blend the windows with nnU-Net's Gaussian weights.

        Windows overlap by half, without mirroring: the segmenter, too, sees the error image of the window it is given.

        Args: network: (1, C, *patch_size) -> (1, num_output_channels, *patch_size). volume: (C, X, Y, Z), preprocessed.
        Returns: (num_output_channels, X, Y, Z), float32, on the CPU; relative error 5e-4, as nnU-Net sums in float16.
        """
        on_device = self.device.type == "cuda"
        predictor = nnUNetPredictor(
            use_mirroring=False, perform_everything_on_device=on_device, device=self.device, allow_tqdm=False
        )
        plans = (self.plans_manager, self.configuration_manager)
        predictor.manual_initialization(network, *plans, None, self.dataset_json, "", None)
        # All that the sliding window asks the label manager for is the number of output channels.
        predictor.label_manager = SimpleNamespace(num_segmentation_heads=num_output_channels)
        return predictor.predict_sliding_window_return_logits(volume).float().cpu()
