"""The pre-stage as an nnU-Net trainer: G with C, then A, in one run."""

from __future__ import annotations

import os
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context, empty_cache
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2_anomaly.trainers.base import AnomalyTrainerBase
from torch import autocast, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_anomaly.detectors.artefact import (
    CHECKPOINT_KEY,
    ENTRIES,
    TRAIN_AGAIN,
    describe_quality,
    find_checkpoint,
    read_checkpoint,
)
from nnunetv2_anomaly.detectors.inpainting.construction import build_prestage_network
from nnunetv2_anomaly.detectors.inpainting.losses import PreStageLoss
from nnunetv2_anomaly.detectors.inpainting.preparation import cache_folder, intensity_statistics, prepare_cases
from nnunetv2_anomaly.detectors.inpainting.quality import ErasedRegionQuality, erased_region_quality
from nnunetv2_anomaly.detectors.inpainting.schedule import PhaseLRScheduler, learning_rate_of_phase
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.prediction.validation import CaseForValidation, labels_named, validate_case, write_summary
from nnunetv2_anomaly.reporting.drawing import save_prestage_progress
from nnunetv2_anomaly.training.augmentation import transforms_without_augmentation
from nnunetv2_anomaly.training.checkpoints import entry_of
from nnunetv2_anomaly.training.pretrained import given_weights_file

#: logged once an epoch, beside nnU-Net's train_losses, val_losses, lrs and timestamps
QUALITY_KEYS = ("mse_erased", "mse_constant", "mse_blurred")
PROGRESS_KEYS = ("train_losses", "val_losses", "lrs", "epoch_start_timestamps", "epoch_end_timestamps", *QUALITY_KEYS)


class AnomalyPreStageTrainer(AnomalyTrainerBase):
    """Learns to inpaint the erased anatomy (G with C, Eq. 1), then distils that into the detector A (Eq. 2).

    Both phases see the fold's training cases only, through nnU-Net's own patches and augmentation, so that A meets
    in the segmenter's training the kind of patches it was trained on. The published amount of training is 50 times
    every image with batch 1: 25,350 steps for G (507 images), 20,280 for A (4/5 of them); 100 and 80 epochs of 250
    iterations are 25,000 and 20,000.
    """

    intensity_clip: float = default("intensity_clip")
    erase_margin_voxels: int = default("erase_margin_voxels")
    inpainting_epochs: int = default("inpainting_epochs")
    distillation_epochs: int = default("distillation_epochs")
    prestage_learning_rate: float | None = default("prestage_learning_rate")
    start_detector_from_inpainter: bool = default("start_detector_from_inpainter")
    inpainter_from_fold_all: bool = default("inpainter_from_fold_all")
    prestage_augmentation: bool = default("prestage_augmentation")
    skip_cases_without_foreground: bool = default("skip_cases_without_foreground")
    lesion_labels: list[str] | None = default("lesion_labels")
    bone_labels: list[str] | None = default("bone_labels")
    learning_rate_setting = "prestage_learning_rate"

    def set_up(self) -> None:
        """Two phases, or the second alone, no deep supervision, a checkpoint after every epoch."""
        if self.inpainter_from_fold_all and self.fold != "all":
            self.inpainting_epochs = 0
        if not self.prestage_augmentation:
            self.get_training_transforms = self._transforms_without_augmentation
        self.num_epochs = self.inpainting_epochs + self.distillation_epochs
        self.enable_deep_supervision = False
        self.save_every = 1  # the networks are small, and so nothing is lost when a run is killed
        self.training_cases: list[str] = []
        self.quality: dict[str, float] = {}
        self._iteration = 0
        self._log_our_keys()

    # ---------------------------------------------------------------- set-up

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """G, C and A for the planned patch size; a class method, so that a subclass's settings count at prediction."""
        return build_prestage_network(configuration_manager, num_input_channels, cls.settings(configuration_manager))

    def _build_loss(self) -> nn.Module:
        return PreStageLoss()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """Adam over what the current phase trains, with the phase's own schedule (method paper, Section 4.1)."""
        distilling = self.module.distilling
        start = self.inpainting_epochs if distilling else 0
        # Without a phase 1 its optimiser is made all the same, and replaced before the first step.
        epochs = self.distillation_epochs if distilling else max(self.inpainting_epochs, 1)
        learning_rate, exponent = learning_rate_of_phase(
            epochs * self.num_iterations_per_epoch, distilling=distilling, chosen=self.prestage_learning_rate
        )
        optimizer = torch.optim.Adam(
            [parameter for parameter in self.module.parameters() if parameter.requires_grad], lr=learning_rate
        )
        return optimizer, PhaseLRScheduler(optimizer, learning_rate, start, epochs, exponent)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing to switch: the pre-stage's networks have one output."""

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's augmentation; labels stay labels, because the hole mask rides along under the segmentation."""
        return nnUNetTrainer.get_training_transforms(*args, **{**kwargs, "regions": None})

    @staticmethod
    def _transforms_without_augmentation(*args: Any, **kwargs: Any) -> BasicTransform:
        """Labels stay labels here, too."""
        return transforms_without_augmentation(*args, **{**kwargs, "regions": None})

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """As in the base; without augmentation patches are loaded as large as they are trained on."""
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if not self.prestage_augmentation:
            return (0.0, 0.0), False, self.configuration_manager.patch_size, mirror_axes
        return rotation, dummy_2d, initial_patch_size, mirror_axes

    @staticmethod
    def get_validation_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's validation transforms, labels staying labels."""
        return nnUNetTrainer.get_validation_transforms(*args, **{**kwargs, "regions": None})

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, without the cases that hold no foreground if the settings say so."""
        training, validation = super().do_split()
        return self._with_foreground(training), self._with_foreground(validation)

    def _with_foreground(self, cases: list[str]) -> list[str]:
        empty = getattr(self, "_cases_without_foreground", set())
        return [case for case in cases if case not in empty]

    def prepare(self) -> None:
        """Erased regions and intensities of the fold's cases, from the cache where it holds.

        Raises: UserError for a case without foreground (unless such cases are skipped), NaN, or mismatched sizes.
        """
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        with self.rank_0_first():
            training, validation = super().do_split()
        cases = sorted(set(training) | set(validation))
        self.see_that_cases_are_there(cases)
        cache = cache_folder(
            self.preprocessed_dataset_folder_base,
            self.configuration_manager.data_identifier,
            self.erase_margin_voxels,
        )
        with self.rank_0_first():  # it fills the cache
            statistics = prepare_cases(
                self.dataset_class(self.preprocessed_dataset_folder, list(cases)),
                cache,
                foreground_labels=self._foreground_labels(),
                margin_voxels=self.erase_margin_voxels,
                clip=self.intensity_clip,
                patch_size=self.configuration_manager.patch_size,
                show_progress=self.rank == 0,
            )
        empty = sorted(case for case, entry in statistics.items() if entry.foreground_voxels == 0)
        if empty and not self.skip_cases_without_foreground:
            raise UserError(
                f"{len(empty)} case(s) have no foreground in their segmentation, so that there is nothing to erase: "
                f"{', '.join(empty[:5])}; mend the segmentation, take them out of splits_final.json, or set "
                f"'skip_cases_without_foreground' to true in the section 'anomaly' of plans.json"
            )
        if empty:
            self.print_to_log_file(f"Left out, without foreground: {', '.join(empty)}")
        self._cases_without_foreground = set(empty)
        self.training_cases = sorted(self._with_foreground(training))
        if not self.training_cases:
            raise UserError(f"fold {self.fold} has no training case with foreground; expected at least one")
        # nnU-Net's own way to bring along a second label map that all spatial augmentation treats alike.
        self.folder_with_segs_from_previous_stage = str(cache)
        self.intensities = intensity_statistics([statistics[case] for case in self.training_cases])
        self.note_data(self.training_cases)

    def _foreground_labels(self) -> list[int]:
        if not self.label_manager.has_regions:
            return list(self.label_manager.foreground_labels)
        return [label for label in self.label_manager.all_labels if label != 0]

    # -------------------------------------------------------------- training

    def on_train_start(self) -> None:
        """Prepare the cases, set the intensity range and the outputs' start, then as in nnU-Net."""
        seen = self.training_cases  # of the checkpoint, if one was loaded: the split may have changed since
        self.prepare()
        self.training_cases = sorted({*seen, *self.training_cases})
        if not self.was_initialized:
            self.initialize()
        if not self.resumed:
            detector = self.module.detector
            detector.set_intensity_range(self.intensities.low, self.intensities.high, self.intensity_clip)
            if given_weights_file() is None:  # nnU-Net has copied these weights by now
                mean = torch.tensor(self.intensities.rescaled_mean)
                self.module.inpainter.start_at(mean)
                detector.reconstructor.start_at(mean)
            if self.inpainting_epochs == 0:
                self.take_inpainter()
        self.print_to_log_file(
            f"Intensity range of {len(self.training_cases)} training cases, clipped to +-{self.intensity_clip:g}: "
            f"{np.round(self.intensities.low, 3)} to {np.round(self.intensities.high, 3)}, mean in [0, 1] "
            f"{np.round(self.intensities.rescaled_mean, 3)}"
        )
        if self.intensities.clipped_fraction > 0.01:
            self.print_to_log_file(
                f"WARNING: clipping to +-{self.intensity_clip:g} cuts {self.intensities.clipped_fraction:.1%} of the "
                f"voxels; raise 'intensity_clip' if the normalisation of this data set is not a z-score"
            )
        self.print_to_log_file(
            f"Phase 1 (G with C): {self.inpainting_epochs} epochs, phase 2 (A): {self.distillation_epochs} epochs, "
            f"erase margin {self.erase_margin_voxels} voxels"
        )
        super().on_train_start()

    def take_inpainter(self) -> None:
        """G with C and the intensity range from fold 'all' of this pre-stage (method paper, stage 1).

        Raises: UserError if that fold is not finished, or its networks do not fit.
        """
        folder = Path(self.output_folder).parent
        number = int(self.plans_manager.dataset_name[len("Dataset") :].split("_")[0])
        command = (
            f"nnUNetv2_train {number} {self.configuration_name} all -tr {type(self).__name__} "
            f"-p {self.plans_manager.plans_name}"
        )
        path = find_checkpoint(folder, "all", command)
        checkpoint = read_checkpoint(path)
        source = checkpoint["network_weights"]
        theirs = {
            "erase_margin_voxels": checkpoint[CHECKPOINT_KEY].get("erase_margin_voxels"),
            "intensity_clip": float(source.get("detector.intensity_clip", self.intensity_clip)),
        }
        for name, value in theirs.items():
            if value != getattr(self, name):
                raise UserError(
                    f"the inpainter in {path} was trained with {name} {value}, and this fold has "
                    f"{getattr(self, name)}; expected one setting, so train fold 'all' again: {command}"
                )
        wanted = {
            name: source.get(name)
            for name in self.module.state_dict()
            if not name.startswith("detector.reconstructor.")
        }
        here = self.module.state_dict()
        for name, tensor in wanted.items():
            if tensor is None or tensor.shape != here[name].shape:
                raise UserError(
                    f"the inpainter in {path} does not fit: '{name}' is "
                    f"{'missing' if tensor is None else tuple(tensor.shape)} there and {tuple(here[name].shape)} here; "
                    f"train fold 'all' again with these plans: {command}"
                )
        self.module.load_state_dict(wanted, strict=False)
        detector = self.module.detector
        self.print_to_log_file(
            f"G and C from {path}: they have seen all cases, this fold's validation cases included; A will not. The "
            f"intensity range is theirs, {detector.intensity_low.tolist()} to {detector.intensity_high.tolist()}"
        )

    def enter_distillation(self) -> None:
        """Phase 2: G and C frozen, A trained from here on, with an optimiser and a best score of its own."""
        module = self.module
        module.set_distilling(True)
        if self.start_detector_from_inpainter:
            module.detector.reconstructor.load_state_dict(module.inpainter.state_dict())
        self._restart_optimizer()
        self.print_to_log_file("Phase 2 begins: distilling A, with G and C frozen")

    def _restart_optimizer(self) -> None:
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self._best_ema = None
        if self.is_ddp:  # DDP looks at which parameters want gradients only when it wraps
            self.network = DistributedDataParallel(self.network.module, device_ids=[self.local_rank])
            self._keep_buffers()

    def on_train_epoch_start(self) -> None:
        """Change the phase when its epoch has come, then as in nnU-Net."""
        if self.current_epoch >= self.inpainting_epochs and not self.module.distilling:
            self.enter_distillation()
        super().on_train_epoch_start()
        self._iteration = 0

    @staticmethod
    def _with_hole_mask(batch: dict) -> dict:
        """nnU-Net's batch with the hole mask moved from under the segmentation to behind the image channels."""
        target = batch["target"]
        hole_mask = (target[:, 1:2] > 0).to(batch["data"].dtype)
        return {**batch, "data": torch.cat((batch["data"], hole_mask), dim=1), "target": target[:, :1]}

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step on image and hole mask; the learning rate moves with every iteration, short runs need it."""
        self.lr_scheduler.step(self.current_epoch + self._iteration / self.num_iterations_per_epoch)
        self._iteration += 1
        return super().train_step(self._with_hole_mask(batch))

    def validation_step(self, batch: dict) -> dict:
        """Loss, and the squared errors inside the erased region beside those of the two baselines."""
        return self._judged("validation", self._validate_batch, batch)

    def _validate_batch(self, batch: dict) -> dict:
        data = self._with_hole_mask(batch)["data"].to(self.device, non_blocking=True)
        with autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context():
            output = self.network(data)
            loss = self.loss(output, None)
        latest = output.inpainted if output.reconstruction is None else output.reconstruction
        quality = erased_region_quality(output.image, latest, data[:, -1:], self.configuration_manager.patch_size)
        return {"loss": loss.detach().cpu().numpy(), "quality": quality}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the epoch's loss and quality, over all ranks."""
        losses = [output["loss"] for output in val_outputs]
        quality = sum((output["quality"] for output in val_outputs), ErasedRegionQuality())
        if self.is_ddp:
            gathered: list = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, (losses, quality))
            losses = [loss for of_rank, _ in gathered for loss in of_rank]
            quality = sum((of_rank for _, of_rank in gathered), ErasedRegionQuality())
        self.quality = quality.summary()
        self.logger.log("val_losses", float(np.mean(losses)), self.current_epoch)
        for key in QUALITY_KEYS:
            self.logger.log(key, self.quality[key], self.current_epoch)

    def on_epoch_end(self) -> None:
        """Log, checkpoint, draw; nnU-Net's best score and figure are made of Dice, of which there is none."""
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        value = {key: self.logger.get_value(key, step=-1) for key in PROGRESS_KEYS}
        phase = "phase 2, A" if self.module.distilling else "phase 1, G"
        self.print_to_log_file(f"{phase}: train_loss {value['train_losses']:.6f}, val_loss {value['val_losses']:.6f}")
        self.print_to_log_file(describe_quality(self.quality)[0])
        duration = value["epoch_end_timestamps"] - value["epoch_start_timestamps"]
        self.print_to_log_file(f"Epoch time: {duration:.2f} s")
        # nnU-Net stores _best_ema with the checkpoint; here it is the phase's best validation loss, negative. It is
        # settled before anything is written, so that a resumed run knows it.
        is_best = self._best_ema is None or -value["val_losses"] > self._best_ema
        if is_best:
            self._best_ema = -value["val_losses"]
        if (self.current_epoch + 1) % self.save_every == 0 and self.current_epoch != self.num_epochs - 1:
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))
        if is_best:
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_best.pth"))
        if self.rank == 0:
            logged = {key: self.logger.get_value(key, step=None) for key in PROGRESS_KEYS}
            save_prestage_progress(Path(self.output_folder) / "progress.png", logged, self.inpainting_epochs)
        self.current_epoch += 1

    # ----------------------------------------------------------- checkpoints

    def _log_our_keys(self) -> None:
        for key in QUALITY_KEYS:
            self.logger.local_logger.my_fantastic_logging.setdefault(key, [])

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """The phase, which a resumed run continues, and what the segmentation asks of its detector."""
        return {
            CHECKPOINT_KEY: {
                "distilling": self.module.distilling,
                "training_cases": self.training_cases,
                "quality": self.quality,
                "erase_margin_voxels": self.erase_margin_voxels,
                "inpainting_epochs": self.inpainting_epochs,
                "data": self.data,
            }
        }

    def load_checkpoint(self, *arguments: Any, **keywords: Any) -> None:
        """Resume in the phase in which the checkpoint was written.

        Raises: UserError if the file is no readable checkpoint of this training.
        """
        super().load_checkpoint(*arguments, **keywords)
        self._log_our_keys()

    def take_from_checkpoint(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Phase, cases and quality; the optimiser of the phase is made before its state is loaded.

        Raises: UserError if an older version wrote it, or phase 1 was of another length.
        """
        super().take_from_checkpoint(checkpoint, path)
        extra = entry_of(checkpoint, CHECKPOINT_KEY, ENTRIES, path, TRAIN_AGAIN)
        length = extra.get("inpainting_epochs", self.inpainting_epochs)
        if extra["distilling"] and length != self.inpainting_epochs:
            raise UserError(
                f"in the checkpoint {path} phase 1 took {length} epochs, and 'inpainting_epochs' is now "
                f"{self.inpainting_epochs}; expected the same number, because phase 2 has begun, so put it back in the "
                f"section 'anomaly' of plans.json"
            )
        if extra["distilling"] != self.module.distilling:
            self.module.set_distilling(extra["distilling"])
            self._restart_optimizer()
        self.training_cases, self.quality = extra["training_cases"], extra["quality"]
        self.data = extra.get("data")

    # ------------------------------------------------------------ validation

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Per validation case: reconstruction and error image in the original geometry, a picture, and the numbers."""
        with self._failures_to_write_told():
            self._validate_cases()

    def _validate_cases(self) -> None:
        self.prepare()
        self.network.eval()
        folder = Path(self.output_folder) / "validation"
        folder.mkdir(parents=True, exist_ok=True)
        labels = self.dataset_json["labels"]
        lesion_labels = labels_named(labels, self.lesion_labels, "lesion")
        bone_labels = labels_named(labels, self.bone_labels, "bone")
        _, cases = self.do_split()
        if self.is_ddp:
            cases = cases[self.rank :: dist.get_world_size()]
        dataset = self.dataset_class(
            self.preprocessed_dataset_folder, list(cases), self.folder_with_segs_from_previous_stage
        )
        results = []
        for name in dataset.identifiers:
            self.print_to_log_file(f"predicting {name}")
            data, segmentation, hole_mask, properties = dataset.load_case(name)
            case = CaseForValidation(
                name, np.asarray(data[:]), np.asarray(segmentation[:])[0], np.asarray(hole_mask[:]), properties
            )
            with torch.no_grad():
                results.append(
                    validate_case(
                        self.module,
                        case,
                        folder,
                        plans_manager=self.plans_manager,
                        configuration_manager=self.configuration_manager,
                        dataset_json=self.dataset_json,
                        device=self.device,
                        lesion_labels=lesion_labels,
                        bone_labels=bone_labels,
                    )
                )
        if self.is_ddp:
            gathered: list = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, results)
            results = sorted((result for of_rank in gathered for result in of_rank), key=lambda result: result["case"])
        if self.rank == 0:
            mean = write_summary(folder / "summary.json", results)["mean"]
            self.print_to_log_file("Validation complete")
            for network, letter in (("inpainter", "G"), ("detector", "A")):
                numbers = ", ".join(f"{key} {_shown(value)}" for key, value in mean[network].items())
                self.print_to_log_file(f"{letter}: {numbers}")
            auc = _shown(mean["intensity"]["lesion_auc"])
            self.print_to_log_file(f"AUC of the image's own intensity for lesions: {auc}")
        empty_cache(self.device)


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.5f}"
