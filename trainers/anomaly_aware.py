"""Anomaly-aware segmentation: any segmenter with any trained detector in front of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunetv2_anomaly.detectors import artefact as artefacts
from nnunetv2_anomaly.detectors.base import Detector, check_fits_configuration, detector_class
from nnunetv2_anomaly.detectors.quality import describe_quality
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.registry import detector_families
from nnunetv2_anomaly.segmenters.loss import AnomalyAwareLoss, DiceAndFocalCrossEntropy
from nnunetv2_anomaly.segmenters.settings import NORMALISED
from nnunetv2_anomaly.trainers.segmentation import SegmentationTrainer
from nnunetv2_anomaly.training.checkpoints import DETECTOR_KEY
from nnunetv2_anomaly.training.commands import train_command
from nnunetv2_anomaly.training.data_record import check_data, data_record
from nnunetv2_anomaly.training.patches import training_patches

#: weight of the focal cross-entropy (method paper, Section 4)
PUBLISHED_ALPHA = 10.0
#: training patches over which the error's variance is measured
_NORMALISING_PATCHES = 32


class AnomalyAwareSegmentation(SegmentationTrainer):
    """The segmenter sees [image, error channel]; its loss is Dice + alpha * focal cross-entropy (Eq. 4, 5).

    The detector comes from the same fold's pre-stage and travels, frozen, in the checkpoint: prediction needs
    nothing but the model folder.
    """

    alpha: float = default("alpha")
    beta: float = default("beta")
    error_channel: str = default("error_channel")
    detector: str = default("detector")
    prestage_folder: str | None = default("prestage_folder")
    allow_detector_trained_on_validation_cases: bool = default("allow_detector_trained_on_validation_cases")
    allow_changed_data: bool = default("allow_changed_data")
    #: artefact.py's description of the detector in the network
    detector_description: dict[str, Any] | None = None

    @classmethod
    def build_detector(
        cls, configuration_manager: ConfigurationManager, num_channels: int, num_labels: int
    ) -> Detector:
        """The untrained detector of the family that the settings name."""
        settings = {**cls.settings(configuration_manager), "num_labels": num_labels}
        return detector_class(settings["detector"]).build(configuration_manager, num_channels, settings)

    def set_up(self) -> None:
        """As in the base, and checks that the detector can be applied to this configuration's patches."""
        super().set_up()
        check_fits_configuration(detector_class(self.detector).contract, self.configuration_manager)

    @property
    def segmenter(self) -> nn.Module:
        """The network that segments, without the detector."""
        return self.module.segmenter

    def configure_optimizers(self):
        """The optimiser, without the frozen detector's parameters: weight decay must not reach them."""
        network, self.network = self.network, self.segmenter  # type: ignore[has-type]
        try:
            return super().configure_optimizers()
        finally:
            self.network = network

    def _build_loss(self) -> nn.Module:
        loss = DiceAndFocalCrossEntropy(self.build_dice(), self.alpha, self.label_manager.ignore_label)
        return AnomalyAwareLoss(self.over_scales(loss), self.beta, lambda: self.module.latest_error_image)

    def initialize(self) -> None:
        """As in nnU-Net, then with the trained detector, unless a checkpoint is about to bring its own."""
        super().initialize()
        if not self.resumed:
            self.install_detector()

    def on_train_start(self) -> None:
        """Install the detector again, over what -pretrained_weights may have brought, and report how good it is."""
        if not self.was_initialized:
            self.initialize()
        if not self.resumed:
            self.report_detector(self.install_detector())
            if self.module.error_channel_name == NORMALISED:
                patches = training_patches(self, _NORMALISING_PATCHES, self.oversample_foreground_percent)
                images = (torch.from_numpy(image).to(self.device)[None] for image, _ in patches)
                self.module.normalise_error_channel(images)
        self.report_channel()
        super().on_train_start()

    def prestage_command(self) -> str:
        """The command that trains the pre-stage which this training needs."""
        return train_command(self, detector_families()[self.detector].trainer)

    def install_detector(self) -> artefacts.Artefact | None:
        """Take the detector from the pre-stage of this data set, plans, configuration and fold.

        Raises: UserError if there is none, if it does not fit, or cannot do without bones and holds no bone model.
        """
        plans, trainer = self.plans_manager, detector_families()[self.detector].trainer
        model = f"{trainer}__{plans.plans_name}__{self.configuration_name}"
        folder = self.prestage_folder or os.path.join(str(nnUNet_results), plans.dataset_name, model)
        artefact = artefacts.read_artefact(artefacts.find_checkpoint(folder, self.fold, self.prestage_command()))
        artefacts.install_detector(self.module.detector, artefact)
        if self.module.detector.needs_bones:
            fault = f"the detector in {artefact.path} needs bones, and no bone model is in it"
            advice = "set 'bone_model' to a model folder that segments them, and train the pre-stage again"
            raise UserError(f"{fault}; {advice}: {self.prestage_command()}")
        self.detector_description = artefact.description()
        return artefact

    def report_detector(self, artefact: artefacts.Artefact | None) -> None:
        """Check the fold rule and the data, and log how good the detector was in its validation."""
        if artefact is None:
            return
        warnings = [self.check_data(artefact)]
        if self.fold != "all":  # there, training and validation cases are the same by definition
            _, validation_cases = self.do_split()
            accept = self.allow_detector_trained_on_validation_cases
            warnings.insert(0, artefacts.check_fold_rule(artefact, validation_cases, accept))
        sentence, beats = describe_quality(artefact.quality)
        if not beats:
            fact = "this detector reconstructs the erased region no better than a constant or a blurred image does"
            advice = "its error image may point away from anomalies; train the pre-stage for longer"
            warnings.append(f"{fact}, and {advice}")
        if not artefact.comparable:
            warnings.append("a part of this detector is random or a stand-in: its results say nothing of its method")
        self.print_to_log_file(f"Detector from {artefact.path}: {sentence}")
        for warning in filter(None, warnings):
            self.print_to_log_file(f"WARNING: {warning}")

    def report_channel(self) -> None:
        """Log what the segmenter sees of the error: the weights decide, where they come from a file."""
        channel = self.module.error_channel_name
        factors = f", times {self.module.error_channel_coefficients[1].tolist()}" if channel == NORMALISED else ""
        self.print_to_log_file(f"Error channel: {channel}{factors}")
        if channel != self.error_channel:
            fact = f"the weights were trained with the error channel '{channel}', which stays"
            self.print_to_log_file(f"WARNING: {fact}, although the setting 'error_channel' is '{self.error_channel}'")

    def check_data(self, artefact: artefacts.Artefact) -> str | None:
        """Check that the data set is still the one that the detector was trained on; a sentence for the log.

        Raises: UserError if it has changed, unless the settings allow that.
        """
        if artefact.data is None:
            return None
        known = set(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        if artefact.data["dataset"] != self.plans_manager.dataset_name:
            known = set()  # a detector from elsewhere: its cases are others by intention
        dataset = self.dataset_class(self.preprocessed_dataset_folder, sorted(known))
        cases = [case for case in artefact.data["cases"] if case in known]
        now = data_record(self.plans_manager, self.configuration_manager, dataset, cases)
        what = f"the detector in {artefact.path}"
        return check_data(artefact.data, now, what, self.allow_changed_data, self.prestage_command())

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """As in the base, and what the detector inside is."""
        return {**super().extra_checkpoint_entries(), DETECTOR_KEY: self.detector_description}

    def take_from_checkpoint(self, checkpoint: dict[str, Any], path: Path) -> None:
        """As in the base, and what the detector inside is."""
        super().take_from_checkpoint(checkpoint, path)
        self.detector_description = checkpoint.get(DETECTOR_KEY)


class AnomalyAwareTrainer(AnomalyAwareSegmentation):
    """nnU-Net's planned network, fed with [image, error image], and Dice + alpha * focal cross-entropy (Eq. 4, 5).

    All that is not the method's is nnU-Net's: plans, optimiser, schedule, augmentation, Dice, deep supervision. So is
    alpha, with which nnU-Net balances Dice and cross-entropy: 1 (docs/benchmarks.md).
    """

    starts_as_planned = True
    paste_anomalies: dict[str, Any] | str | None = default("paste_anomalies")


class AnomalyAwarePublishedTrainer(AnomalyAwareTrainer):
    """The same as published: with the paper's alpha, 10, and without pasted anomalies."""

    alpha: float = PUBLISHED_ALPHA
    paste_anomalies: dict[str, Any] | str | None = None
