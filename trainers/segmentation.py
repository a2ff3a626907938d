"""What every segmentation of ours is made of: a network, a Dice loss, and, where it is anomaly-aware, a detector."""

from __future__ import annotations

import os

from nnunetv2.paths import nnUNet_results
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2_anomaly.trainers.base import AnomalyTrainerBase
from torch import Tensor, nn

from nnunetv2_anomaly.errors import UnsupportedError
from nnunetv2_anomaly.losses.anomaly_aware import AnomalyAwareLoss, DiceAndFocalCrossEntropy
from nnunetv2_anomaly.prestage.construction import build_detector
from nnunetv2_anomaly.prestage.handover import (
    check_fold_rule,
    describe_quality,
    find_checkpoint,
    install_detector,
    read_detector,
)
from nnunetv2_anomaly.segmentation.network import AnomalyAwareNetwork
from nnunetv2_anomaly.settings import default


class SegmentationTrainer(AnomalyTrainerBase):
    """Base of the segmentations. ``build_segmenter`` and ``build_dice`` are what they differ in."""

    num_epochs: int = default("num_epochs")

    def set_up(self) -> None:
        """Refuse region-based labels.

        Raises: UnsupportedError for region-based labels.
        """
        super().set_up()
        self.resumed = False
        if self.label_manager.has_regions:
            raise UnsupportedError(
                f"{type(self).__name__} does not support region-based labels: its losses need one class per voxel; "
                f"give dataset.json plain labels"
            )

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
        """The Dice loss of one scale: here nnU-Net's own."""
        planned = nnUNetTrainer._build_loss(self)
        return (planned.loss if isinstance(planned, DeepSupervisionWrapper) else planned).dc

    def over_scales(self, loss: nn.Module) -> nn.Module:
        """A loss of one scale for all outputs, with nnU-Net's weights, where it supervises deeply."""
        planned = nnUNetTrainer._build_loss(self)
        return (
            DeepSupervisionWrapper(loss, planned.weight_factors)
            if isinstance(planned, DeepSupervisionWrapper)
            else loss
        )

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As in nnU-Net; whatever a fresh start would fetch from elsewhere is in the checkpoint."""
        self.resumed = True
        super().load_checkpoint(filename_or_checkpoint)


class AnomalyAwareSegmentation(SegmentationTrainer):
    """The segmenter sees [image, error image]; its loss is Dice + alpha * focal cross-entropy (Eq. 4, 5).

    The detector comes from the same fold's pre-stage and travels, frozen, in the checkpoint: prediction needs
    nothing but the model folder.
    """

    alpha: float = default("alpha")
    beta: float = default("beta")
    prestage_trainer: str = default("prestage_trainer")
    prestage_folder: str | None = default("prestage_folder")
    allow_detector_trained_on_validation_cases: bool = default("allow_detector_trained_on_validation_cases")

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
        segmenter = cls.build_segmenter(
            plans_manager,
            configuration_manager,
            2 * num_input_channels,  # the error image has as many channels as the image
            num_output_channels,
            enable_deep_supervision,
        )
        detector = build_detector(configuration_manager, num_input_channels, cls.settings(configuration_manager))
        return AnomalyAwareNetwork(detector, segmenter)

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
        """Check the fold rule and log how good the detector was on its validation patches."""
        if self.fold != "all":  # there, training and validation cases are the same by definition
            _, validation_cases = self.do_split()
            accepted = check_fold_rule(trained, validation_cases, self.allow_detector_trained_on_validation_cases)
            if accepted:
                self.print_to_log_file(f"WARNING: {accepted}")
        sentence, beats = describe_quality(trained.quality)
        self.print_to_log_file(f"Detector from {trained.path}: {sentence}")
        if not beats:
            self.print_to_log_file(
                "WARNING: this detector reconstructs the erased region no better than a constant or a blurred image "
                "does, and its error image may point away from anomalies; train the pre-stage for longer"
            )
