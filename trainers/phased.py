"""Detectors that are trained in phases, one after the other in one run."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_anomaly.detectors.artefact import Artefact
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.trainers.detector import DetectorTrainer
from nnunetv2_anomaly.training.phases import PhaseLRScheduler

#: key of a checkpoint under which the phase stands
PHASE_KEY = "anomaly_phase"


class PhasedDetectorTrainer(DetectorTrainer):
    """Each phase trains what ``set_phase`` leaves trainable, with an optimiser, schedule and best score of its own.

    The network has the number of its phase as ``phase``.
    """

    #: name of each phase, for the log and the progress figure -> the setting that holds its number of epochs
    phase_settings: ClassVar[dict[str, str]]
    prestage_learning_rate: float | None = default("prestage_learning_rate")
    learning_rate_setting = "prestage_learning_rate"

    def set_up(self) -> None:
        """As many epochs as all phases together."""
        super().set_up()
        self._iteration = 0
        self.num_epochs = sum(self.phase_epochs)

    @property
    def phase_epochs(self) -> list[int]:
        """Epochs of each phase; one that has none is left out."""
        return [getattr(self, setting) for setting in self.phase_settings.values()]

    def first_epoch_of(self, phase: int) -> int:
        """The epoch in which a phase begins."""
        return sum(self.phase_epochs[:phase])

    def phases(self) -> dict[int, str]:
        """All phases that take an epoch."""
        return {self.first_epoch_of(number): name for number, name in enumerate(self.phase_settings)}

    @abstractmethod
    def learning_rate_of_phase(self, phase: int, steps: int) -> tuple[float, float]:
        """Initial learning rate of a phase of ``steps`` steps, and the exponent of its polynomial decay."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """Adam over what the phase trains."""
        phase = self.module.phase
        # For a phase without epochs it is made all the same, and replaced before the first step.
        epochs = max(self.phase_epochs[phase], 1)
        learning_rate, exponent = self.learning_rate_of_phase(phase, epochs * self.num_iterations_per_epoch)
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=learning_rate)
        return optimizer, PhaseLRScheduler(optimizer, learning_rate, self.first_epoch_of(phase), epochs, exponent)

    def enter_phase(self, phase: int) -> None:
        """Begin a phase, with an optimiser and a best score of its own."""
        self.module.set_phase(phase)
        self._restart_optimizer()
        self.print_to_log_file(f"{list(self.phase_settings)[phase]} begins")

    def _restart_optimizer(self) -> None:
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self._best_ema = None
        if self.is_ddp:  # DDP looks at which parameters want gradients only when it wraps
            self.network = DistributedDataParallel(self.network.module, device_ids=[self.local_rank])  # type: ignore[has-type]
            self.keep_buffers()

    def on_train_epoch_start(self) -> None:
        """Change the phase when its epoch has come, then as in nnU-Net."""
        for phase in range(self.module.phase + 1, len(self.phase_epochs)):
            if self.current_epoch >= self.first_epoch_of(phase):
                self.enter_phase(phase)
        super().on_train_epoch_start()
        self._iteration = 0

    def train_step(self, batch: dict) -> dict:
        """As in the base; the learning rate moves with every iteration, short runs need it."""
        self.lr_scheduler.step(self.current_epoch + self._iteration / self.num_iterations_per_epoch)
        self._iteration += 1
        return super().train_step(batch)

    # ----------------------------------------------------------- checkpoints

    def artefact(self) -> Artefact:
        """Finished from the last phase on."""
        return replace(super().artefact(), finished=self.module.phase == len(self.phase_epochs) - 1)

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """The phase, which a resumed run continues."""
        phase = {"number": self.module.phase, "epochs": self.phase_epochs}
        return {**super().extra_checkpoint_entries(), PHASE_KEY: phase}

    def take_from_checkpoint(self, checkpoint: dict[str, Any], path: Path) -> None:
        """The phase; its optimiser is made before its state is loaded.

        Raises: UserError if a phase that is over was of another length.
        """
        super().take_from_checkpoint(checkpoint, path)
        phase, epochs = checkpoint[PHASE_KEY]["number"], checkpoint[PHASE_KEY]["epochs"]
        settings = list(self.phase_settings.values())
        for number, (then, now) in enumerate(zip(epochs[:phase], self.phase_epochs, strict=False), start=1):
            if then != now:
                advice = "put it back in the section 'anomaly' of plans.json"
                fault = f"in the checkpoint {path} phase {number} took {then} epochs"
                raise UserError(
                    f"{fault}, and '{settings[number - 1]}' is now {now}; expected the same number, because phase "
                    f"{phase + 1} has begun, so {advice}"
                )
        if phase != self.module.phase:
            self.module.set_phase(phase)
            self._restart_optimizer()
