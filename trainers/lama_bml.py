"""Inpainting of bones by Fourier convolutions as an nnU-Net trainer: generator and discriminator, in turns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.bone_finder import take_bone_model
from nnunetv2_anomaly.detectors.lama_bml.detector import LaMaDetector
from nnunetv2_anomaly.detectors.lama_bml.networks import Discriminator
from nnunetv2_anomaly.detectors.lama_bml.perceptual import perceptual_loss
from nnunetv2_anomaly.detectors.lama_bml.settings import DRAWN
from nnunetv2_anomaly.detectors.lama_bml.training import AdversarialInpainting, holes_of, step
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import sha256_of
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.trainers.slices import AdversarialTrainer


class LaMaBMLTrainer(AdversarialTrainer):
    """Learns to inpaint the bones of slices without a lesion (Qin et al. 2025, with LaMa of Suvorov et al. 2022).

    In full precision and with constant learning rates, as published; flips and random bias fields.
    """

    family = "lama_bml"
    learning_rates = (1e-3, 1e-4)
    mirror_axes = (0, 1)
    lama_features: int = default("lama_features")
    lama_downsamplings: int = default("lama_downsamplings")
    lama_blocks: int = default("lama_blocks")
    lama_global_share: float = default("lama_global_share")
    discriminator_features: int = default("discriminator_features")
    hole: str = default("hole")
    perceptual: str = default("perceptual")
    perceptual_weights: str | None = default("perceptual_weights")
    bone_model: str | None = default("bone_model")
    polarity: str = default("polarity")

    @classmethod
    def build_detector_network(
        cls, configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]
    ) -> AdversarialInpainting:
        """Generator, discriminator and, where one is to be taken, the bone model."""
        detector = LaMaDetector.build(configuration_manager, num_channels, settings)
        return AdversarialInpainting(detector, Discriminator(num_channels, settings["discriminator_features"]))

    @property
    def main_part(self) -> nn.Module:
        """The generator."""
        part: nn.Module = self.module.detector.generator
        return part

    def on_train_start(self) -> None:
        """As in the base, with the perceptual loss, if any.

        Raises: UserError if its weights are missing or of another network.
        """
        if not self.was_initialized:
            self.initialize()
        sources = dict(self.own_detector.sources)
        self.module.perceptual.clear()
        if self.perceptual == "none":
            self.print_to_log_file("WARNING: there is no perceptual loss, as the setting 'perceptual' is none")
        else:
            if self.perceptual_weights is None:
                fault = f"the perceptual loss '{self.perceptual}' has no weights"
                raise UserError(f"{fault}; expected their file as the setting 'perceptual_weights', so set that")
            file = Path(self.perceptual_weights).expanduser()
            self.module.perceptual.append(perceptual_loss(self.perceptual, file).to(self.device))
            sources[f"perceptual loss ({self.perceptual})"] = sha256_of(file)
        self.own_detector.sources = sources
        super().on_train_start()

    def start_from_data(self) -> None:
        """The range of intensities, and the bone model where one is to be taken."""
        super().start_from_data()
        detector = self.own_detector
        if detector.bone_model is not None:
            configuration = self.configuration_manager.configuration
            folder, dataset = Path(str(self.bone_model)), self.plans_manager.dataset_name
            taken = take_bone_model(detector.bone_model, folder, self.fold, dataset, configuration)
            detector.sources = {**detector.sources, "bone model": taken}

    def _image_and_hole(self, batch: dict) -> tuple[Tensor, Tensor]:
        data, target = (batch[name].to(self.device, non_blocking=True) for name in ("data", "target"))
        return self.own_detector.rescale(data), holes_of(target, self.bones, self.hole == DRAWN)

    def train_step(self, batch: dict) -> dict:
        """A step of either network."""
        return self.judged("training", self._step, batch)

    def _step(self, batch: dict) -> dict:
        optimizers = self.optimizer, self.discriminator_optimizer
        generator, discriminator = step(self.module, *self._image_and_hole(batch), optimizers)
        return {"loss": np.array(generator), "discriminator": np.array(discriminator)}

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As in nnU-Net; logs the discriminator's loss as well."""
        super().on_train_epoch_end(train_outputs)
        mean = float(np.mean([output["discriminator"] for output in train_outputs]))
        self.print_to_log_file(f"discriminator loss {mean:.6f}")

    def _validate_batch(self, batch: dict) -> dict:
        error = self.module.hole_error(*self._image_and_hole(batch))
        return {"loss": error.cpu().numpy(), "quality": None}
