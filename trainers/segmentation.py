"""What every segmentation of ours is made of: a network, a Dice loss, and, where it is anomaly-aware, a detector."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2_anomaly.trainers.base import AnomalyTrainerBase
from torch import Tensor, nn
from torch import distributed as dist

from nnunetv2_anomaly.detectors.artefact import (
    check_fold_rule,
    describe_quality,
    find_checkpoint,
    install_detector,
    read_detector,
)
from nnunetv2_anomaly.detectors.inpainting.construction import build_detector, planned_strides
from nnunetv2_anomaly.errors import UnsupportedError, UserError
from nnunetv2_anomaly.images.files import check_whole
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.segmenters.base import AnomalyAwareNetwork
from nnunetv2_anomaly.segmenters.loss import AnomalyAwareLoss, DiceAndFocalCrossEntropy
from nnunetv2_anomaly.training.data_record import CHECKPOINT_KEY, case_record, check_data, data_record


class SegmentationTrainer(AnomalyTrainerBase):
    """Base of the segmentations. ``build_segmenter`` and ``build_dice`` are what they differ in."""

    num_epochs: int = default("num_epochs")
    segmentation_learning_rate: float | None = default("segmentation_learning_rate")

    def set_up(self) -> None:
        """Refuse region-based labels.

        Raises: UnsupportedError for region-based labels.
        """
        super().set_up()
        if self.label_manager.has_regions:
            raise UnsupportedError(
                f"{type(self).__name__} does not support region-based labels: its losses need one class per voxel; "
                f"give dataset.json plain labels"
            )

    def initialize(self) -> None:
        """As in nnU-Net, with the learning rate of the settings where one is set."""
        if self.segmentation_learning_rate is not None:
            self.initial_lr = self.segmentation_learning_rate
        super().initialize()

    @classmethod
    def build_segmenter(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool,
    ) -> nn.Module:
        """The network that segments: here the one that nnU-Net planned."""
        return nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The segmenter; a class method, so that a subclass's settings count at prediction."""
        return cls.build_segmenter(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )

    @property
    def segmenter(self) -> nn.Module:
        """The network that segments, without what is around it."""
        return self.module

    def build_dice(self) -> nn.Module:
        """The Dice loss of one scale: here nnU-Net's own.

        Raises: UserError where it takes the batch as one and several GPUs hold unequal parts: nnU-Net 2.8.1 then dies
            while it gathers them.
        """
        batch_size = self.configuration_manager.batch_size
        if self.is_ddp and self.configuration_manager.batch_dice and batch_size % dist.get_world_size():
            raise UserError(
                f"a batch of {batch_size} cannot be shared out equally among {dist.get_world_size()} GPUs, which "
                f"'batch_dice' in plans.json needs; give another number of GPUs with -num_gpus, or change 'batch_size'"
            )
        planned = nnUNetTrainer._build_loss(self)
        return (planned.loss if isinstance(planned, DeepSupervisionWrapper) else planned).dc

    def over_scales(self, loss: nn.Module) -> nn.Module:
        """A loss of one scale for all outputs, with nnU-Net's weights, where it supervises deeply."""
        with np.errstate(invalid="ignore"):
            planned = nnUNetTrainer._build_loss(self)
        if not isinstance(planned, DeepSupervisionWrapper):
            return loss
        if len(planned.weight_factors) == 1:
            # nnU-Net gives the lowest scale no weight. Where images are so small that it is the only one, it divides 0
            # by 0 there, and its own training gets nowhere.
            return DeepSupervisionWrapper(loss, (1.0,))
        return DeepSupervisionWrapper(loss, planned.weight_factors)

    def get_tr_and_val_datasets(self) -> tuple:
        """As in nnU-Net, with a note of what the training cases look like.

        Raises: UserError if a case is missing, or its files cannot be read.
        """
        training, validation = super().get_tr_and_val_datasets()
        self.see_that_cases_are_there([*training.identifiers, *validation.identifiers])
        self.note_data(training.identifiers)
        for case in validation.identifiers:  # a worker that met a damaged file would end in a traceback
            case_record(validation, case)
        return training, validation

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """What the training cases look like, and the best score with this epoch's: nnU-Net 2.8.1 settles that after
        checkpoint_latest.pth, and so resumes with an older one.
        """
        extra = super().extra_checkpoint_entries()
        if self.data:
            extra[CHECKPOINT_KEY] = self.data
        scores = self.logger.get_value("ema_fg_dice", step=None)
        if scores and self._best_ema is not None and scores[-1] > self._best_ema:
            extra["_best_ema"] = scores[-1]
        return extra

    def take_from_checkpoint(self, checkpoint: dict[str, Any], path: Path) -> None:
        """What the training cases looked like; older versions did not keep it."""
        super().take_from_checkpoint(checkpoint, path)
        self.data = checkpoint.get(CHECKPOINT_KEY)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As in nnU-Net.

        Raises: UserError if a segmentation came out cut short: ITK does not notice a full disk.
        """
        try:
            with self._failures_to_write_told():
                super().perform_actual_validation(save_probabilities)
        except RuntimeError:  # of ITK, which cannot read what it has not written whole
            self._see_that_all_is_written()
            raise
        self._see_that_all_is_written()

    def _see_that_all_is_written(self) -> None:
        folder = Path(self.output_folder) / "validation"
        ending = self.dataset_json["file_ending"]
        for path in sorted(folder.glob(f"*{ending}")) if self.rank == 0 else ():
            try:
                check_whole(path)
            except UserError as error:
                (folder / "summary.json").unlink(missing_ok=True)  # measured on what was not written
                raise UserError(
                    f"{path} came out cut short, so the disk is likely full; make room, and repeat the validation with "
                    f"--val"
                ) from error


class AnomalyAwareSegmentation(SegmentationTrainer):
    """The segmenter sees [image, error channel]; its loss is Dice + alpha * focal cross-entropy (Eq. 4, 5).

    The detector comes from the same fold's pre-stage and travels, frozen, in the checkpoint: prediction needs
    nothing but the model folder.
    """

    alpha: float = default("alpha")
    beta: float = default("beta")
    error_channel: str = default("error_channel")
    prestage_trainer: str = default("prestage_trainer")
    prestage_folder: str | None = default("prestage_folder")
    allow_detector_trained_on_validation_cases: bool = default("allow_detector_trained_on_validation_cases")
    allow_changed_data: bool = default("allow_changed_data")

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Detector and segmenter; a class method, so that a subclass's settings count at prediction."""
        settings = cls.settings(configuration_manager)
        # Plans from which nothing can be built are told in a sentence, before nnU-Net ends in a traceback.
        planned_strides(configuration_manager, settings["detector_downsamplings"])
        segmenter = cls.build_segmenter(
            plans_manager,
            configuration_manager,
            2 * num_input_channels,  # the error image has as many channels as the image
            num_output_channels,
            enable_deep_supervision,
        )
        detector = build_detector(configuration_manager, num_input_channels, settings)
        return AnomalyAwareNetwork(detector, segmenter, settings["error_channel"])

    @property
    def segmenter(self) -> nn.Module:
        """The network that segments, without the detector."""
        return self.module.segmenter

    def configure_optimizers(self):
        """The optimiser, without the frozen detector's parameters: weight decay must not reach them."""
        network, self.network = self.network, self.segmenter
        try:
            return super().configure_optimizers()
        finally:
            self.network = network

    def _build_loss(self) -> nn.Module:
        loss = DiceAndFocalCrossEntropy(self.build_dice(), self.alpha, self.label_manager.ignore_label)
        return AnomalyAwareLoss(self.over_scales(loss), self.beta, self._latest_error_image)

    def _latest_error_image(self) -> Tensor:
        return self.module.latest_error_image

    # ---------------------------------------------------- the detector's way here

    def initialize(self) -> None:
        """As in nnU-Net, then with the trained detector, unless a checkpoint is about to bring its own."""
        super().initialize()
        if not self.resumed:
            self.install_detector()

    def on_train_start(self) -> None:
        """Install the detector again, over what -pretrained_weights may have brought, and say how good it is."""
        if not self.was_initialized:
            self.initialize()
        if not self.resumed:
            self.report_detector(self.install_detector())
        self.report_channel()
        super().on_train_start()

    def prestage_command(self) -> str:
        """The command that trains the pre-stage which this training needs."""
        number = int(self.plans_manager.dataset_name[len("Dataset") :].split("_")[0])
        plans = self.plans_manager.plans_name
        return (
            f"nnUNetv2_train {number} {self.configuration_name} {self.fold} -tr {self.prestage_trainer}"
            + (f" -p {plans}" if plans != "nnUNetPlans" else "")
            + (f" -device {self.device.type}" if self.device.type != "cuda" else "")
        )

    def install_detector(self):
        """Take the detector from the pre-stage of this data set, plans, configuration and fold.

        Raises: UserError if there is none, if it does not fit, or if it saw the fold's validation cases.
        """
        folder = self.prestage_folder or os.path.join(
            str(nnUNet_results),
            self.plans_manager.dataset_name,
            f"{self.prestage_trainer}__{self.plans_manager.plans_name}__{self.configuration_name}",
        )
        trained = read_detector(find_checkpoint(folder, self.fold, self.prestage_command()))
        install_detector(self.module.detector, trained)
        return trained

    def report_detector(self, trained) -> None:
        """Check the fold rule and the data, and log how good the detector was on its validation patches."""
        if self.fold != "all":  # there, training and validation cases are the same by definition
            _, validation_cases = self.do_split()
            accepted = check_fold_rule(trained, validation_cases, self.allow_detector_trained_on_validation_cases)
            if accepted:
                self.print_to_log_file(f"WARNING: {accepted}")
        for sentence in self.check_data(trained):
            self.print_to_log_file(f"WARNING: {sentence}")
        sentence, beats = describe_quality(trained.quality)
        self.print_to_log_file(f"Detector from {trained.path}: {sentence}")
        if not beats:
            self.print_to_log_file(
                "WARNING: this detector reconstructs the erased region no better than a constant or a blurred image "
                "does, and its error image may point away from anomalies; train the pre-stage for longer"
            )

    def report_channel(self) -> None:
        """Log what the segmenter sees of the error: the weights decide, where they come from a file."""
        channel = self.module.error_channel_name
        self.print_to_log_file(f"Error channel: {channel}")
        if channel != self.error_channel:
            self.print_to_log_file(
                f"WARNING: the weights were trained with the error channel '{channel}', which stays, although the "
                f"setting 'error_channel' is '{self.error_channel}'"
            )

    def check_data(self, trained) -> list[str]:
        """See that the data set is still the one that the detector was trained on; sentences for the log.

        Raises: UserError if it has changed, unless the settings allow that.
        """
        seen = trained.data["cases"] if trained.data else {}
        known = set(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        if trained.data and trained.data["dataset"] != self.plans_manager.dataset_name:
            known = set()  # a detector from elsewhere: its cases are others by intention
        dataset = self.dataset_class(self.preprocessed_dataset_folder, sorted(known))
        now = data_record(
            self.plans_manager, self.configuration_manager, dataset, [case for case in seen if case in known]
        )
        return check_data(
            trained.data, now, f"the detector in {trained.path}", self.allow_changed_data, self.prestage_command()
        )
