"""The pre-stage of the inpainting family as an nnU-Net trainer: G with C, then A, in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunetv2_anomaly.detectors.artefact import find_checkpoint
from nnunetv2_anomaly.detectors.inpainting import networks, preparation
from nnunetv2_anomaly.detectors.inpainting.loss import PreStageLoss
from nnunetv2_anomaly.detectors.inpainting.quality import ErasedRegionQuality, erased_region_quality
from nnunetv2_anomaly.detectors.inpainting.schedule import learning_rate_of_phase
from nnunetv2_anomaly.detectors.quality import ERROR_AND_BASELINES
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.geometry import preprocessed_spacing
from nnunetv2_anomaly.images.sliding_window import Windows
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.prediction.validation import CaseForValidation, Rivals
from nnunetv2_anomaly.trainers.phased import PhasedDetectorTrainer
from nnunetv2_anomaly.training.augmentation import transforms_without_augmentation
from nnunetv2_anomaly.training.checkpoints import first_difference
from nnunetv2_anomaly.training.commands import train_command
from nnunetv2_anomaly.training.distributed import rank
from nnunetv2_anomaly.training.pretrained import given_weights_file
from nnunetv2_anomaly.training.safe_loading import load_file

#: a larger share of erased voxels leaves G little to go by
MOST_ERASED = 0.7
#: key of a checkpoint under which the settings stand with which alone its inpainter serves
_INPAINTER_KEY = "anomaly_inpainter"


class AnomalyPreStageTrainer(PhasedDetectorTrainer):
    """Learns to inpaint the erased anatomy (G with C, Eq. 1), then distils that into the detector A (Eq. 2).

    Both phases see the fold's training cases only, through nnU-Net's own patches and augmentation, so that A meets
    in the segmenter's training the kind of patches it was trained on. The published amount of training is 50 times
    every image with batch 1: 25,350 steps for G (507 images), 20,280 for A (4/5 of them); 100 and 80 epochs of 250
    iterations are 25,000 and 20,000.
    """

    family = "inpainting"
    quality_keys = ERROR_AND_BASELINES
    phase_settings: ClassVar = {"phase 1, G": "inpainting_epochs", "phase 2, A": "distillation_epochs"}
    detector_features: int = default("detector_features")
    detector_downsamplings: int = default("detector_downsamplings")
    detector_resolution: str = default("detector_resolution")
    compressor_code_length: int = default("compressor_code_length")
    intensity_clip: float = default("intensity_clip")
    erase_margin_mm: float = default("erase_margin_mm")
    erase_margin_voxels: int | None = default("erase_margin_voxels")
    inpainting_epochs: int = default("inpainting_epochs")
    distillation_epochs: int = default("distillation_epochs")
    start_detector_from_inpainter: bool = default("start_detector_from_inpainter")
    inpainter_from_fold_all: bool = default("inpainter_from_fold_all")
    prestage_augmentation: bool = default("prestage_augmentation")
    skip_cases_without_foreground: bool = default("skip_cases_without_foreground")

    def set_up(self) -> None:
        """Two phases, or the second alone."""
        if self.inpainter_from_fold_all and self.fold != "all":
            self.inpainting_epochs = 0
        super().set_up()
        if not self.prestage_augmentation:
            self.get_training_transforms = transforms_without_augmentation
        self._cases_without_foreground: set[str] = set()

    @property
    def erase_margin(self) -> str:
        """In words."""
        voxels = self.erase_margin_voxels
        return f"{self.erase_margin_mm:g} mm" if voxels is None else f"{voxels} voxels"

    @classmethod
    def build_detector_network(
        cls, configuration_manager: ConfigurationManager, num_channels: int, settings: Mapping[str, Any]
    ) -> networks.PreStageNetwork:
        """G, C and A for the planned patch size."""
        return networks.build_prestage_network(configuration_manager, num_channels, settings)

    def _build_loss(self) -> nn.Module:
        return PreStageLoss()

    def learning_rate_of_phase(self, phase: int, steps: int) -> tuple[float, float]:
        """As published, or faster where a phase is shorter (method paper, Section 4.1)."""
        return learning_rate_of_phase(steps, distilling=phase == 1, chosen=self.prestage_learning_rate)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """As in the base; without augmentation patches are loaded as large as they are trained on."""
        chosen = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.prestage_augmentation:
            return (0.0, 0.0), False, self.configuration_manager.patch_size, chosen[-1]
        return chosen

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, without the cases that hold no foreground if the settings say so."""
        training, validation = super().do_split()
        return self._with_foreground(training), self._with_foreground(validation)

    def _with_foreground(self, cases: Sequence[str]) -> list[str]:
        return [case for case in cases if case not in self._cases_without_foreground]

    def prepare_cases(self, training: Sequence[str], validation: Sequence[str]) -> None:
        """Erased regions and intensities of the fold's cases, from the cache where it holds.

        Raises: UserError for a case without foreground (unless such cases are skipped), NaN, or mismatched sizes.
        """
        margin, identifier = self.erase_margin.replace(" ", "_"), self.configuration_manager.data_identifier
        cache = preparation.cache_folder(self.preprocessed_dataset_folder_base, identifier, margin)
        with self.queue.rank_0_first():  # it fills the cache
            statistics = preparation.prepare_cases(
                self.dataset_class(self.preprocessed_dataset_folder, sorted({*training, *validation})),
                cache,
                foreground_labels=self.foreground_labels(),
                margin_voxels=self.erase_margin_voxels,
                margin_mm=self.erase_margin_mm,
                spacing_of=lambda case: preprocessed_spacing(case, self.plans_manager, self.configuration_manager),
                clip=self.intensity_clip,
                patch_size=self.configuration_manager.patch_size,
                show_progress=rank() == 0,
            )
        empty = sorted(case for case, entry in statistics.items() if entry.foreground_voxels == 0)
        if empty and not self.skip_cases_without_foreground:
            fault = f"{len(empty)} case(s) have no foreground in their segmentation, so that there is nothing to erase"
            advice = "correct the segmentation, take them out of splits_final.json, or set"
            setting = "'skip_cases_without_foreground' to true in the section 'anomaly' of plans.json"
            raise UserError(f"{fault}: {', '.join(empty[:5])}; {advice} {setting}")
        if empty:
            self.print_to_log_file(f"Left out, without foreground: {', '.join(empty)}")
        self._cases_without_foreground |= set(empty)
        self.training_cases = sorted(self._with_foreground(training))
        if not self.training_cases:
            raise UserError(f"fold {self.fold} has no training case with foreground; expected at least one")
        # nnU-Net's own way to bring along a second label map that all spatial augmentation treats alike.
        self.folder_with_segs_from_previous_stage = str(cache)
        shares = [statistics[case].erased_voxels / statistics[case].num_voxels for case in self.training_cases]
        self.erased_share = float(np.mean(shares))
        self.intensities = preparation.intensity_statistics([statistics[case] for case in self.training_cases])

    # -------------------------------------------------------------- training

    def on_train_start(self) -> None:
        """As in the base, once the detector has its intensity range, and its output starts at the mean."""
        super().on_train_start()
        clip, found = f"+-{self.intensity_clip:g}", self.intensities
        low, high, mean = (np.round(values, 3) for values in (found.low, found.high, found.rescaled_mean))
        cases = f"{len(self.training_cases)} training cases, clipped to {clip}"
        self.print_to_log_file(f"Intensity range of {cases}: {low} to {high}, mean in [0, 1] {mean}")
        if found.clipped_fraction > 0.01:
            advice = "raise 'intensity_clip' if the normalisation of this data set is not a z-score"
            fact = f"clipping to {clip} cuts {found.clipped_fraction:.1%} of the voxels"
            self.print_to_log_file(f"WARNING: {fact}; {advice}")
        margin = f"erase margin {self.erase_margin}, which erases {self.erased_share:.0%} of the training images"
        phases = f"Phase 1 (G with C): {self.inpainting_epochs} epochs, phase 2 (A): {self.distillation_epochs} epochs"
        self.print_to_log_file(f"{phases}, {margin}")
        if self.erased_share > MOST_ERASED:
            advice = "lower 'erase_margin_mm' (where it is set, 'erase_margin_voxels') in the section 'anomaly' of"
            self.print_to_log_file(f"WARNING: the erased region leaves little to inpaint from; {advice} plans.json")

    def start_from_data(self) -> None:
        """The intensity range of the training cases, and the mean as what untrained networks return."""
        module: networks.PreStageNetwork = self.module
        module.detector.set_intensity_range(*map(torch.tensor, (self.intensities.low, self.intensities.high)))
        if given_weights_file() is None:  # nnU-Net has copied these weights by now
            mean = torch.tensor(self.intensities.rescaled_mean)
            module.inpainter.start_at(mean)
            module.detector.reconstructor.start_at(mean)
        if self.inpainting_epochs == 0:
            self.take_inpainter()

    def take_inpainter(self) -> None:
        """G with C and the intensity range from fold 'all' of this pre-stage (method paper, stage 1).

        Raises: UserError if that fold is not finished, or its networks do not fit.
        """
        command = train_command(self, type(self).__name__, fold="all")
        path = find_checkpoint(Path(self.output_folder).parent, "all", command)
        checkpoint = load_file(path, f"train fold 'all' again: {command}")
        source = checkpoint["network_weights"]
        for name, value in checkpoint[_INPAINTER_KEY].items():
            if value != (own := getattr(self, name)):
                fault = f"the inpainter in {path} was trained with {name} {value}, and this fold has {own}"
                raise UserError(f"{fault}; expected one setting, so train fold 'all' again: {command}")
        fitted = "detector.reconstructor."  # A, which this fold trains itself
        here = {name: tensor for name, tensor in self.module.state_dict().items() if not name.startswith(fitted)}
        wanted = {name: tensor for name, tensor in source.items() if not name.startswith(fitted)}
        if difference := first_difference(wanted, here):
            fault = f"the inpainter in {path} does not fit: {difference}"
            raise UserError(f"{fault}; train fold 'all' again with these plans: {command}")
        self.module.load_state_dict(wanted, strict=False)
        detector = self.module.detector
        low, high = detector.intensity_low.tolist(), detector.intensity_high.tolist()
        seen = "they have seen all cases, this fold's validation cases included; A will not"
        self.print_to_log_file(f"G and C from {path}: {seen}. The intensity range is theirs, {low} to {high}")

    def enter_phase(self, phase: int) -> None:
        """As in the base; in phase 2 G and C are frozen, and A begins with G's weights if the settings say so."""
        super().enter_phase(phase)
        if phase == 1 and self.start_detector_from_inpainter:
            self.module.detector.reconstructor.load_state_dict(self.module.inpainter.state_dict())

    @staticmethod
    def _with_hole_mask(batch: dict) -> dict:
        """nnU-Net's batch with the hole mask moved from under the segmentation to behind the image channels."""
        target = batch["target"]
        hole_mask = (target[:, 1:2] > 0).to(batch["data"].dtype)
        return {**batch, "data": torch.cat((batch["data"], hole_mask), dim=1), "target": target[:, :1]}

    def train_step(self, batch: dict) -> dict:
        """The step on image and hole mask."""
        return super().train_step(self._with_hole_mask(batch))

    def validation_step(self, batch: dict) -> dict:
        """Loss, and the squared errors inside the erased region beside those of the two baselines."""
        return super().validation_step(self._with_hole_mask(batch))

    def measure_batch(self, output: networks.PreStageOutput, data: Tensor) -> ErasedRegionQuality:
        """Squared errors of the network that is trained at present."""
        latest = output.inpainted if output.reconstruction is None else output.reconstruction
        return erased_region_quality(output.image, latest, data[:, -1:], self.configuration_manager.patch_size)

    def summarise_batches(self, measured: Sequence[ErasedRegionQuality]) -> dict[str, float]:
        """Means of the squared errors over all batches."""
        return sum(measured, ErasedRegionQuality()).summary()

    # ----------------------------------------------------------- checkpoints

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """As in the base, with what an inpainter was trained with: it serves nothing else."""
        of_inpainter = {name: getattr(self, name) for name in ("erase_margin", "intensity_clip")}
        return {**super().extra_checkpoint_entries(), _INPAINTER_KEY: of_inpainter}

    # ------------------------------------------------------------ validation

    @classmethod
    def rivals(
        cls, network: networks.PreStageNetwork, case: CaseForValidation, labels: Sequence[int], windows: Windows
    ) -> Rivals:
        """G, which knows the mask; both are measured inside and outside the erased region."""
        image = torch.from_numpy(case.image)
        settings = cls.settings(windows.configuration_manager)
        region = preparation.erased_region(
            case.labels,
            labels,
            settings["erase_margin_voxels"],
            margin_mm=settings["erase_margin_mm"],
            spacing_mm=preprocessed_spacing(case.properties, windows.plans_manager, windows.configuration_manager),
        )
        hole = torch.from_numpy(region).to(image.dtype)[None]

        def measure(rescaled: Tensor, expected: Tensor) -> dict[str, float]:
            patch_size = windows.configuration_manager.patch_size
            return erased_region_quality(rescaled[None], expected[None], hole[None], patch_size).summary()

        return Rivals({"inpainter": (networks.InpainterWindow(network), torch.cat((image, hole)))}, measure)
