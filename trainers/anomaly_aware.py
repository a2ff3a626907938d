"""The anomaly-aware segmentation as an nnU-Net trainer."""

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


class AnomalyAwareTrainer(AnomalyTrainerBase):
    """nnU-Net's planned network, fed with [image, error image], and Dice + alpha * focal cross-entropy (Eq. 4, 5).

    The detector comes from the same fold's pre-stage and travels, frozen, in the checkpoint: prediction needs
    nothing but the model folder. All else is nnU-Net's.
    """

    alpha: float = default("alpha")
    beta: float = default("beta")
    num_epochs: int = default("num_epochs")
    prestage_trainer: str = default("prestage_trainer")
    prestage_folder: str | None = default("prestage_folder")
    allow_detector_trained_on_validation_cases: bool = default("allow_detector_trained_on_validation_cases")

    def set_up(self) -> None:
        """Refuse region-based labels.

        Raises: UnsupportedError for region-based labels.
        """
        self.resumed = False
        if self.label_manager.has_regions:
            raise UnsupportedError(
                f"{type(self).__name__} does not support region-based labels: the focal cross-entropy needs one class "
                f"per voxel; give dataset.json plain labels"
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
        """Detector and planned network; a class method, so that a subclass's settings count at prediction."""
        segmenter = nnUNetTrainer.build_network_architecture(
            plans_manager,
            configuration_manager,
            2 * num_input_channels,  # the error image has as many channels as the image
            num_output_channels,
            enable_deep_supervision,
        )
        detector = build_detector(configuration_manager, num_input_channels, cls.settings(configuration_manager))
        return AnomalyAwareNetwork(detector, segmenter)

    def configure_optimizers(self):
        """nnU-Net's optimiser, without the frozen detector's parameters: weight decay must not reach them."""
        network, self.network = self.network, self.module.segmenter
        try:
            return super().configure_optimizers()
        finally:
            self.network = network

    def _build_loss(self) -> nn.Module:
        planned = super()._build_loss()
        deep = isinstance(planned, DeepSupervisionWrapper)
        loss: nn.Module = DiceAndFocalCrossEntropy(
            dice=(planned.loss if deep else planned).dc,
            alpha=self.alpha,
            ignore_label=self.label_manager.ignore_label,
        )
        if deep:
            loss = DeepSupervisionWrapper(loss, planned.weight_factors)
        return AnomalyAwareLoss(loss, self.beta, self._latest_error_image)

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

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As in nnU-Net; the checkpoint brings its detector, the pre-stage's folder may be gone by now."""
        self.resumed = True
        super().load_checkpoint(filename_or_checkpoint)

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
