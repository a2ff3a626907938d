"""Mask R-CNN on slices as nnU-Net trainers (Felfeliyan et al.): plain, improved, and with a detector's error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunetv2_anomaly.errors import UnsupportedError, UserError
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.segmenters.loss import focal_weight
from nnunetv2_anomaly.segmenters.mask_rcnn.instances import instances_of
from nnunetv2_anomaly.segmenters.mask_rcnn.loading import EmptySlicesAtRate, empty_slices
from nnunetv2_anomaly.segmenters.mask_rcnn.network import (
    MaskRCNNSegmenter,
    MaskRCNNShape,
    SumOfLosses,
    check_torchvision,
)
from nnunetv2_anomaly.segmenters.mask_rcnn.settings import IMAGENET
from nnunetv2_anomaly.segmenters.mask_rcnn.weights import start_from
from nnunetv2_anomaly.trainers.anomaly_aware import AnomalyAwareSegmentation
from nnunetv2_anomaly.trainers.segmentation import SegmentationTrainer
from nnunetv2_anomaly.training.optimization import adam_at_constant_rate
from nnunetv2_anomaly.training.pretrained import given_weights_file
from nnunetv2_anomaly.training.slices import check_for_slices

#: key of a checkpoint under which is recorded what the training began with
_KEY = "anomaly_mask_rcnn"
_LEARNING_RATE = 1e-3


class InstanceTrainer(SegmentationTrainer):
    """Learns instances from the label maps of slices: Adam, 1e-3, constant, 300 epochs (Felfeliyan et al.).

    Batch, augmentation and steps of an epoch are not published: two slices, nnU-Net's augmentation but for mirroring,
    and nnU-Net's 250.
    """

    improved: ClassVar[bool]
    num_epochs: int = 300
    mask_rcnn_backbone: str = default("mask_rcnn_backbone")
    mask_rcnn_weights: str = default("mask_rcnn_weights")
    mask_rcnn_features: int = default("mask_rcnn_features")
    mask_rcnn_size: int | None = default("mask_rcnn_size")
    mask_rcnn_skip_level: int | None = default("mask_rcnn_skip_level")
    mask_rcnn_score: float = default("mask_rcnn_score")
    mask_rcnn_boxes: int = default("mask_rcnn_boxes")
    mask_rcnn_batch_size: int | None = default("mask_rcnn_batch_size")
    min_instance_pixels: int = default("min_instance_pixels")
    empty_slice_rate: float = default("empty_slice_rate")
    #: weights.py's record of what the training began with
    started_from: dict[str, Any] | None = None

    def set_up(self) -> None:
        """As in the base, for slices.

        Raises: UserError for volumes, for ImageNet's weights of a backbone that is ours, or if torchvision does not
            work; UnsupportedError for an ignore label.
        """
        super().set_up()
        name = type(self).__name__
        check_torchvision()
        advice = "train the configuration 2d, or whole slices of plan_whole_image -c 2d"
        check_for_slices(name, self.configuration_name, self.configuration_manager.patch_size, advice)
        if self.label_manager.has_ignore_label:
            fault = f"{name} does not support the ignore label: what is no instance is background to it"
            raise UnsupportedError(f"{fault}; leave 'ignore' out of dataset.json")
        if self.mask_rcnn_backbone == "small" and self.mask_rcnn_weights == IMAGENET:
            fault = "the backbone 'small' is ours, and there are no weights of ImageNet for it"
            raise UserError(f"{fault}; set 'mask_rcnn_weights' to none, or choose another 'mask_rcnn_backbone'")
        self.enable_deep_supervision = False
        self.initial_lr = _LEARNING_RATE
        self.oversample_foreground_percent = 1.0  # but for what ``EmptySlicesAtRate`` changes

    def _do_i_compile(self) -> bool:
        return False  # the number of boxes is another one in every step

    def _set_batch_size_and_oversample(self) -> None:
        """As the setting says."""
        if self.mask_rcnn_batch_size is None:
            super()._set_batch_size_and_oversample()
            self.oversample_foreground_percent = 1.0
        else:
            self.batch_size = self.mask_rcnn_batch_size

    @classmethod
    def build_segmenter(
        cls, configuration_manager: ConfigurationManager, num_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        """The network, without weights from elsewhere: prediction brings its own."""
        settings = cls.settings(configuration_manager)
        shape = MaskRCNNShape.of(settings, cls.improved, tuple(configuration_manager.patch_size))
        return MaskRCNNSegmenter(shape, num_channels, num_classes)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """Adam with a constant learning rate."""
        return adam_at_constant_rate(self.network, self.initial_lr, self.num_epochs)

    def _build_loss(self) -> nn.Module:
        return SumOfLosses()

    def initialize(self) -> None:
        """As in the base, with the weights of the settings, and thin labels before those that they lie on."""
        super().initialize()
        if not self.resumed:
            before = {*self.roles.cartilages, *self.roles.lesions}
            first = [value for name, value in self.dataset_json["labels"].items() if name in before]
            self.segmenter.goes_first[first] = 1
            if given_weights_file() is None:
                self.started_from = start_from(self.segmenter, self.mask_rcnn_weights, self.mask_rcnn_backbone)

    def on_train_start(self) -> None:
        """As in the base; says what the training begins with, and warns where slices are not seen whole."""
        super().on_train_start()
        self.print_to_log_file(f"Weights at the start: {self.started_from or 'those of the command line'}")
        size, planned = self.configuration_manager.patch_size, self.configuration_manager.configuration
        median = planned.get("median_image_size_in_voxels") or size
        if any(voxels < round(whole) for voxels, whole in zip(size, median[-2:], strict=True)):
            fact = f"patches of {list(size)} are smaller than slices, and cut through what is one instance"
            self.print_to_log_file(f"WARNING: {fact}; nnUNetv2_anomaly plan_whole_image -c 2d plans whole slices")

    def get_tr_and_val_datasets(self) -> tuple:
        """As in the base, with empty slices at the set rate."""
        values, size = self.label_manager.foreground_labels, self.configuration_manager.patch_size
        training, validation = super().get_tr_and_val_datasets()
        return tuple(
            EmptySlicesAtRate(of, empty_slices(of, of.identifiers, values), self.empty_slice_rate, size)
            for of in (training, validation)
        )

    # -------------------------------------------------------------- training

    def train_step(self, batch: dict) -> dict:
        """As in the base, with each of the losses."""
        self._give_targets(batch)
        result = super().train_step(batch)
        return {**result, **{name: of.detach().cpu().numpy() for name, of in self.loss.latest.items()}}

    def validation_step(self, batch: dict) -> dict:
        """As in the base, with the losses of training on validation slices."""
        self._give_targets(batch)
        self.network.train()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            self.loss(self.network(batch["data"].to(self.device)), None)
        self.network.eval()
        return super().validation_step(batch)

    def _give_targets(self, batch: dict) -> None:
        """Make instances of the labels of a batch, for the network's next pass."""
        values, maps = self.label_manager.foreground_labels, batch["target"][:, 0].numpy()
        targets = [instances_of(labels, values, self.min_instance_pixels) for labels in maps]
        self.segmenter.targets = [{name: of.to(self.device) for name, of in target.items()} for target in targets]

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As in nnU-Net, with each loss in the log."""
        means = {name: float(np.mean(of)) for name, of in collate_outputs(train_outputs).items()}
        self.print_to_log_file(", ".join(f"{name} {mean:.4f}" for name, mean in means.items()))
        super().on_train_epoch_end(train_outputs)

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """As in the base, with what the training began with."""
        return {**super().extra_checkpoint_entries(), _KEY: self.started_from}

    def take_from_checkpoint(self, checkpoint: dict[str, Any], path: Path) -> None:
        """As in the base, with what the training began with."""
        super().take_from_checkpoint(checkpoint, path)
        self.started_from = checkpoint[_KEY]


class MaskRCNNTrainer(InstanceTrainer):
    """torchvision's Mask R-CNN, masks of 28 x 28."""

    improved = False


class IMaskRCNNTrainer(InstanceTrainer):
    """Improved Mask R-CNN: a second RoIAlign of 56 x 56, and masks of that size."""

    improved = True


class IMaskRCNNSTrainer(InstanceTrainer, AnomalyAwareSegmentation):
    """Improved Mask R-CNN that sees the detector's error as a further channel, which weights the mask loss as well.

    Of one image channel and one map the network sees image, image and error. The mask loss of each pixel is multiplied
    by alpha and the focal weight F = 1 + beta * E (Eq. 4 of the method paper).
    """

    improved = True

    def initialize(self) -> None:
        """As in the base; the mask loss is given the weight of the slices that the network has just seen."""
        super().initialize()
        self.segmenter.mask_weight = lambda: self.alpha * focal_weight(self.module.latest_error_image, self.beta)
