"""What every segmentation of ours is made of: a network and a Dice loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_anomaly.detectors.base import Detector
from nnunetv2_anomaly.errors import UnsupportedError, UserError, worded
from nnunetv2_anomaly.images.files import check_whole
from nnunetv2_anomaly.label_roles import ROLES_KEY, LabelRoles, label_roles
from nnunetv2_anomaly.networks.planned import planned_network, see_more_channels
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.segmenters.base import AnomalyAwareNetwork
from nnunetv2_anomaly.trainers.base import AnomalyTrainerBase
from nnunetv2_anomaly.training.data_record import case_record, check_cases_exist
from nnunetv2_anomaly.training.distributed import rank, world_size
from nnunetv2_anomaly.training.pasting import (
    AUTO,
    PasteAnomalies,
    pasting_of,
    why_not_pasted,
    with_pasting,
)
from nnunetv2_anomaly.training.patches import save_pasted_examples


class SegmentationTrainer(AnomalyTrainerBase):
    """Base of the segmentations. ``build_segmenter`` and ``build_dice`` are what they differ in.

    By itself it is nnU-Net's training with the settings of the others, to compare them with: length, seed, mirroring.
    """

    num_epochs: int = default("num_epochs")
    segmentation_learning_rate: float | None = default("segmentation_learning_rate")
    learning_rate_setting = "segmentation_learning_rate"
    paste_anomalies: dict[str, Any] | str | None = None
    #: whether the segmenter is built for the image, and sees a detector's error by further weights that start at 0
    starts_as_planned: bool = False
    #: the transform that pastes them, None where none are
    pasting: PasteAnomalies | None = None

    def set_up(self) -> None:
        """As in the base. Raises: UnsupportedError for region-based labels."""
        super().set_up()
        if self.label_manager.has_regions:
            fault = f"{type(self).__name__} does not support region-based labels: its losses need one class per voxel"
            raise UnsupportedError(f"{fault}; give dataset.json plain labels")

        options = self.paste_anomalies
        if options == AUTO:
            options = None if why_not_pasted(self.roles) else {}
        if isinstance(options, Mapping):
            spacing = self.configuration_manager.spacing
            pasting = pasting_of(options, self.dataset_json["labels"], self.roles, spacing)
            transforms: Callable[..., ComposeTransforms] = self.get_training_transforms  # type: ignore[has-type]
            self.pasting = pasting
            self.get_training_transforms = lambda *args, **kwargs: with_pasting(transforms(*args, **kwargs), pasting)

    def on_train_start(self) -> None:
        """As in the base, and a picture of pasted training patches."""
        super().on_train_start()
        self.report_pasting()
        if self.pasting is not None and rank() == 0:
            with self.write_failures_as_user_errors():
                save_pasted_examples(self, self.pasting, Path(self.output_folder))

    @property
    def roles(self) -> LabelRoles:
        """Which labels are bones and lesions."""
        return label_roles(self.dataset_json["labels"], self.dataset_json.get(ROLES_KEY))

    def report_pasting(self) -> None:
        """Log whether anomalies are pasted, and how, or why not."""
        if self.pasting is not None:
            options = worded(self.paste_anomalies) if isinstance(self.paste_anomalies, Mapping) else None
            self.print_to_log_file(f"Anomalies are pasted while training: {options or 'as by default'}")
        elif self.paste_anomalies == AUTO:
            reason = why_not_pasted(self.roles)
            self.print_to_log_file(f"No anomalies are pasted, as {reason}; the setting 'paste_anomalies' changes that")

    def on_train_epoch_start(self) -> None:
        """As in nnU-Net; anomalies are pasted until the share of the epochs that the setting gives."""
        if self.pasting is not None:
            self.pasting.set_progress(self.current_epoch / self.num_epochs)
        super().on_train_epoch_start()

    def initialize(self) -> None:
        """As in nnU-Net, with the learning rate of the settings where one is set."""
        if self.segmentation_learning_rate is not None:
            self.initial_lr = self.segmentation_learning_rate
        super().initialize()

    @classmethod
    def build_segmenter(
        cls, configuration_manager: ConfigurationManager, num_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        """The network that segments what it sees in ``num_channels``: here the one that nnU-Net planned."""
        return planned_network(configuration_manager, num_channels, num_classes, deep_supervision)

    @classmethod
    def build_detector(
        cls, configuration_manager: ConfigurationManager, num_channels: int, num_labels: int
    ) -> Detector | None:
        """The detector in front of the segmenter; here none."""
        return None

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Detector, if any, and segmenter; a class method, so that a subclass's settings count at prediction."""
        with torch.random.fork_rng(devices=[]):  # the segmenter's first weights do not hang on the detector
            detector = cls.build_detector(configuration_manager, num_input_channels, num_output_channels)
        num_maps = 0 if detector is None else detector.contract.num_error_channels(num_input_channels)
        num_seen = num_input_channels + (0 if cls.starts_as_planned else num_maps)
        segmenter = cls.build_segmenter(configuration_manager, num_seen, num_output_channels, enable_deep_supervision)
        if detector is None:
            return segmenter
        if cls.starts_as_planned:
            see_more_channels(segmenter, num_maps)
        return AnomalyAwareNetwork(detector, segmenter, cls.settings(configuration_manager)["error_channel"], num_maps)

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
        if self.configuration_manager.batch_dice and batch_size % world_size():
            fault = f"a batch of {batch_size} cannot be shared out equally among {world_size()} GPUs"
            advice = "give another number of GPUs with -num_gpus, or change 'batch_size'"
            raise UserError(f"{fault}, which 'batch_dice' in plans.json needs; {advice}")
        planned = nnUNetTrainer._build_loss(self)
        return (planned.loss if isinstance(planned, DeepSupervisionWrapper) else planned).dc

    def over_scales(self, loss: nn.Module) -> nn.Module:
        """A loss of one scale for all outputs, with nnU-Net's weights, where it supervises deeply."""
        with np.errstate(invalid="ignore"):
            planned = nnUNetTrainer._build_loss(self)
        if not isinstance(planned, DeepSupervisionWrapper):
            return loss
        # nnU-Net gives the lowest scale no weight. Where images are so small that it is the only one, it divides 0 by 0
        # there, and its own training gets nowhere.
        weights = planned.weight_factors if len(planned.weight_factors) > 1 else (1.0,)
        return DeepSupervisionWrapper(loss, weights)

    def get_tr_and_val_datasets(self) -> tuple:
        """As in nnU-Net, with a record of what the training cases look like.

        Raises: UserError if a case is missing, or its files cannot be read.
        """
        training, validation = super().get_tr_and_val_datasets()
        known = set(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        check_cases_exist([*training.identifiers, *validation.identifiers], known, self.preprocessed_dataset_folder)
        self.record_data(training.identifiers)
        for case in validation.identifiers:  # a worker that met a damaged file would end in a traceback
            case_record(validation, case)
        return training, validation

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """As in the base, and the best score with this epoch's: nnU-Net 2.8.1 settles that after
        checkpoint_latest.pth, and so resumes with an older one.
        """
        extra = super().extra_checkpoint_entries()
        scores = self.logger.get_value("ema_fg_dice", step=None)
        if scores and self._best_ema is not None and scores[-1] > self._best_ema:
            extra["_best_ema"] = scores[-1]
        return extra

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As in nnU-Net. Raises: UserError if a segmentation came out cut short: ITK does not notice a full disk."""
        try:
            with self.write_failures_as_user_errors():
                super().perform_actual_validation(save_probabilities)
        except RuntimeError:  # of ITK, which cannot read what it has not written whole
            self._check_all_is_written()
            raise
        self._check_all_is_written()

    def _check_all_is_written(self) -> None:
        folder = Path(self.output_folder) / "validation"
        ending = self.dataset_json["file_ending"]
        for path in sorted(folder.glob(f"*{ending}")) if rank() == 0 else ():
            try:
                check_whole(path)
            except UserError as error:
                (folder / "summary.json").unlink(missing_ok=True)  # measured on what was not written
                fault = f"{path} came out cut short, so the disk is likely full"
                raise UserError(f"{fault}; make room, and repeat the validation with --val") from error


class PastingTrainer(SegmentationTrainer):
    """nnU-Net's planned network and loss, with anomalies pasted into the bones of the training images."""

    paste_anomalies: dict[str, Any] | str | None = {}  # noqa: RUF012 (never changed; the options are the defaults)
