"""Adversarial selective cutting as an nnU-Net trainer: main network and discriminator in turns, in two stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.artefact import Artefact
from nnunetv2_anomaly.detectors.asc_net.detector import ASCNetDetector
from nnunetv2_anomaly.detectors.asc_net.networks import LEVELS, Discriminator
from nnunetv2_anomaly.detectors.asc_net.schedule import DISCRIMINATOR, Schedule
from nnunetv2_anomaly.detectors.asc_net.settings import PAPER
from nnunetv2_anomaly.detectors.asc_net.training import SelectiveCutting
from nnunetv2_anomaly.detectors.thresholds import PEAK
from nnunetv2_anomaly.errors import UserError, counted
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.reporting.drawing import save_cuts_figure
from nnunetv2_anomaly.trainers.slices import AdversarialTrainer
from nnunetv2_anomaly.training.distributed import rank
from nnunetv2_anomaly.training.slices import ChosenSlices

#: a wild cut with a lower mean is empty
_EMPTY = 0.01
#: slices in the picture of the cuts
_SHOWN = 6


class ASCNetTrainer(AdversarialTrainer):
    """Learns to cut slices into what looks like slices without a lesion, the reference set, and the rest (Dey et al.).

    The main network sees the slices that are not of the reference set. As many are drawn of either set.
    """

    family = "asc_net"
    learning_rates = (5e-5, 5e-5)
    quality_keys = ("fence", "disjoint", "reconstruction", "wild_mean", "wild_weight")
    needs_bones: ClassVar[bool] = False
    whole_image: ClassVar[bool] = True
    mirror_axes = ()
    bias_field: float = 0.0
    mask_rule: str = PEAK
    asc_features: int = default("asc_features")
    asc_cycles: list[int] = default("asc_cycles")
    asc_discriminator_epochs: int = default("asc_discriminator_epochs")
    asc_main_epochs: int = default("asc_main_epochs")
    stage2_disjoint: str = default("stage2_disjoint")
    reinit_discriminator: bool = default("reinit_discriminator")
    asc_weight_penalty: float = default("asc_weight_penalty")
    transductive: bool = default("transductive")
    polarity: str = default("polarity")

    def set_up(self) -> None:
        """As in the base, with the epochs of the schedule.

        Raises: UserError if the sides of a patch are no multiples of 16, to which the discriminator is bound.
        """
        super().set_up()
        cycles = self.asc_cycles[0], self.asc_cycles[1]
        self.schedule = Schedule(cycles, self.asc_discriminator_epochs, self.asc_main_epochs)
        self.num_epochs = self.schedule.num_epochs
        size = self.configuration_manager.patch_size
        if any(voxels % 2**LEVELS for voxels in size):
            fault = f"the patch of {self.configuration_name} is {' x '.join(map(str, size))}"
            advice = f"expected multiples of {2**LEVELS}, so plan slices with nnUNetv2_anomaly plan_whole_image -c 2d"
            raise UserError(f"{fault}; {advice}")

    @classmethod
    def build_detector_network(
        cls, configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]
    ) -> SelectiveCutting:
        """Both networks."""
        detector = ASCNetDetector.build(configuration_manager, num_channels, settings)
        size = [-(-voxels // 2**LEVELS) * 2**LEVELS for voxels in configuration_manager.patch_size]
        discriminator = Discriminator(num_channels, size, settings["asc_features"])
        return SelectiveCutting(detector, discriminator, settings["asc_weight_penalty"])

    @property
    def main_part(self) -> nn.Module:
        """The main network."""
        part: nn.Module = self.module.detector.main
        return part

    def phases(self) -> dict[int, str]:
        """All phases of the schedule."""
        return {phase.first_epoch: phase.name for phase in self.schedule.phases}

    # ------------------------------------------------------------------ data

    def prepare_cases(self, training: Sequence[str], validation: Sequence[str]) -> None:
        """The reference set, and what is to be cut.

        Raises: as the base; UserError if all slices are of the reference set.
        """
        super().prepare_cases(training, validation)
        sources = [*training, *(validation if self.transductive else ())]
        reference = [case for case in training if len(self.free_slices[case])]
        self.training_cases = sorted({*reference, *(case for case in sources if len(self.other_slices[case]))})
        number = sum(len(self.other_slices[case]) for case in sources)
        if not number:
            fault = "all slices are of the reference set, so that there is nothing to cut"
            raise UserError(f"{fault}; expected some with lesions, or a list that leaves slices out")
        self.print_to_log_file(f"{counted(number, 'slice')} to cut{' (transductive)' if self.transductive else ''}")

    def get_tr_and_val_datasets(self) -> tuple:
        """As in the base; with validation cases in training where the settings ask for it."""
        training, validation = super().get_tr_and_val_datasets()
        if self.transductive and self.loaded_slices is self.other_slices:
            cases = [case for case in self.training_cases if len(self.other_slices[case])]
            dataset = self.dataset_class(self.preprocessed_dataset_folder, cases)
            training = ChosenSlices(dataset, {case: self.other_slices[case] for case in cases})
        return training, validation

    def get_dataloaders(self) -> tuple:
        """Loaders of what is cut; that of the reference set stays beside them."""
        self.loaded_slices = self.free_slices
        self.reference_loader, unused = super().get_dataloaders()
        _finish(unused)
        self.loaded_slices = self.other_slices
        return super().get_dataloaders()

    def on_train_end(self) -> None:
        """As in nnU-Net, and ends the reference set's loader, too."""
        super().on_train_end()
        _finish(self.reference_loader)

    # -------------------------------------------------------------- training

    def _rescaled(self, batch: dict) -> Tensor:
        return self.own_detector.rescale(batch["data"].to(self.device, non_blocking=True))

    def on_train_epoch_start(self) -> None:
        """As in nnU-Net; a cycle begins with a fresh discriminator where the settings ask for it."""
        super().on_train_epoch_start()
        phase = self.schedule.at(self.current_epoch)
        if self.current_epoch == phase.first_epoch:
            self.print_to_log_file(f"{phase.name} begins")
            self._best_ema = None  # losses against another discriminator are others
            if self.reinit_discriminator and phase.trained == DISCRIMINATOR:
                self.module.restart_discriminator()
                self.discriminator_optimizer.state.clear()

    def train_step(self, batch: dict) -> dict:
        """A step of the phase's network."""
        return self.judged("training", self._step, batch)

    def _step(self, batch: dict) -> dict:
        phase, image = self.schedule.at(self.current_epoch), self._rescaled(batch)
        if phase.trained == DISCRIMINATOR:
            reference = self._rescaled(next(self.reference_loader))
            optimizer, second = self.discriminator_optimizer, phase.stage == 2
            loss = self.module.train_discriminator(image, reference, optimizer, second_stage=second)
        else:
            disjoint = phase.stage == 1 or self.stage2_disjoint == PAPER
            loss = self.module.train_main(image, self.optimizer, disjoint)
        return {"loss": np.array(loss)}

    @torch.no_grad()
    def _validate_batch(self, batch: dict) -> dict:
        image = self._rescaled(batch)
        losses = self.module.main_losses(image)
        wild = float(self.module.cuts(image).wild.mean())
        quality = [*(float(of) for of in losses), wild, self.module.detector.main.wild_weight]
        return {"loss": sum(losses).cpu().numpy(), "quality": quality}

    def summarise_batches(self, measured: Sequence[Any]) -> dict[str, float]:
        """Means over batches."""
        return dict(zip(self.quality_keys, np.mean(measured, axis=0).tolist(), strict=True))

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As in the base; warns of a wild cut that is empty, which costs the disjoint term nothing."""
        super().on_validation_epoch_end(val_outputs)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in self.quality.items())
        self.print_to_log_file(shown)
        if self.quality["wild_mean"] < _EMPTY:
            mean = f"its mean is {self.quality['wild_mean']:.4f}"
            self.print_to_log_file(f"WARNING: the wild cut has collapsed ({mean}): nothing is cut away")

    def artefact(self) -> Artefact:
        """Finished from the last phase on."""
        last = self.schedule.phases[-1]
        return replace(super().artefact(), finished=self.current_epoch >= last.first_epoch)

    # ------------------------------------------------------------ validation

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As in the base, and a picture of the cuts of validation slices."""
        super().perform_actual_validation(save_probabilities)
        if rank() == 0:
            with self.write_failures_as_user_errors():
                self._draw_cuts()

    def _draw_cuts(self) -> None:
        _, cases = self.do_split()
        dataset = self.dataset_class(self.preprocessed_dataset_folder, list(cases))
        rows = []
        for name in list(dataset.identifiers)[:_SHOWN]:
            data, labels, *_ = dataset.load_case(name)
            shown = _most_of(np.asarray(labels[0]), self.lesions())
            image = torch.from_numpy(np.asarray(data[:, shown]))[None].to(self.device)
            rescaled = self.own_detector.rescale(self.own_detector.padded(image))
            size = image.shape[2:]
            pictures = [of[0, 0, : size[0], : size[1]].cpu().numpy() for of in (rescaled, *self.module.cuts(rescaled))]
            rows.append((name, pictures))
        if not rows:
            return
        spacing = self.configuration_manager.spacing
        save_cuts_figure(Path(self.output_folder) / "cuts.png", rows, spacing)


def _most_of(labels: NDArray, lesions: Sequence[int]) -> int:
    """The slice with most of the lesions; of a case without any, with most foreground. Args: labels: (Z, Y, X)."""
    marked = np.isin(labels, lesions)
    marked = marked if marked.any() else labels > 0
    return int(marked.sum(axis=(1, 2)).argmax())


def _finish(loader: Any) -> None:
    """End a loader's worker processes, if it has any."""
    if hasattr(loader, "_finish"):
        loader._finish()
