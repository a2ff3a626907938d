"""What our trainers share: settings from plans.json, refusals at start, checkpoints written whole."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_anomaly.errors import UnsupportedError, UserError
from nnunetv2_anomaly.settings import SETTINGS, default, section_of


class AnomalyTrainerBase(nnUNetTrainer):
    """Base of the pre-stage and of the segmentation. Every setting is a class attribute; plans.json overrides it."""

    detector_features: int = default("detector_features")
    detector_downsamplings: int = default("detector_downsamplings")
    compressor_code_length: int = default("compressor_code_length")
    mirror_axes: Sequence[int] | None = default("mirror_axes")
    seed: int | None = default("seed")
    num_iterations_per_epoch: int = default("num_iterations_per_epoch")
    num_val_iterations_per_epoch: int = default("num_val_iterations_per_epoch")

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's own signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        # The base's __init__ has just set attributes of the same names to its own defaults.
        for name, value in self.settings(self.configuration_manager).items():
            setattr(self, name, value)
        if self.seed is not None:
            random.seed(self.seed)
            np.random.seed(self.seed % 2**32)
            torch.manual_seed(self.seed)
        if self.is_cascaded:
            raise UnsupportedError(
                f"{type(self).__name__} does not support the cascade: the configuration '{configuration}' wants the "
                f"segmentation of '{self.configuration_manager.previous_stage_name}' as input; use 2d, 3d_fullres or "
                f"3d_lowres"
            )
        self.set_up()

    def set_up(self) -> None:
        """What a trainer adds to the constructor, once its settings are known.

        A hook, because nnU-Net wants the constructor's signature repeated to the letter wherever it is overridden.
        """

    @classmethod
    def settings(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """This trainer's settings: its class attributes, overridden by the section ``anomaly`` of the configuration.

        Raises: UserError for unknown settings or unacceptable values.
        """
        section = section_of(configuration_manager.configuration)
        return {name: section.get(name, getattr(cls, name)) for name in SETTINGS if hasattr(cls, name)}

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """nnU-Net's choice, with the mirroring of the settings in training and at prediction.

        Raises: UserError if the settings name an axis that the patch does not have.
        """
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self.mirror_axes is not None:
            dimensions = len(self.configuration_manager.patch_size)
            if any(axis >= dimensions for axis in self.mirror_axes):
                raise UserError(
                    f"the setting 'mirror_axes' is {list(self.mirror_axes)}; expected axes below {dimensions}, the "
                    f"number of axes of the patch {self.configuration_manager.patch_size}"
                )
            mirror_axes = tuple(self.mirror_axes) or None  # None is nnU-Net's word for no mirroring
            self.inference_allowed_mirroring_axes = mirror_axes
        return rotation, dummy_2d, initial_patch_size, mirror_axes

    @property
    def module(self) -> nn.Module:
        """The network without the wrappers of torch.compile and of distributed training."""
        module = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return module._orig_mod if isinstance(module, OptimizedModule) else module

    def save_checkpoint(self, filename: str) -> None:
        """As in nnU-Net, but beside and renamed: a kill while writing leaves the last good file."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        temporary = Path(f"{filename}.part")
        try:
            super().save_checkpoint(str(temporary))
            extra = self.extra_checkpoint_entries()
            if extra:
                checkpoint = torch.load(temporary, map_location="cpu", weights_only=False)
                torch.save({**checkpoint, **extra}, temporary)
            os.replace(temporary, filename)
        finally:
            temporary.unlink(missing_ok=True)

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """What a checkpoint holds beyond nnU-Net's own entries."""
        return {}
