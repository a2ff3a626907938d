"""Transfer learning to more classes: start with ``-pretrained_weights``, keep what is known (method paper, 4.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.segmenters.published.loss import WeightedDiceLoss
from nnunetv2_anomaly.trainers import published
from nnunetv2_anomaly.trainers.anomaly_aware import AnomalyAwareTrainer
from nnunetv2_anomaly.trainers.segmentation import SegmentationTrainer
from nnunetv2_anomaly.training import augmentation, pretrained
from nnunetv2_anomaly.training.optimization import adam_at_constant_rate


class TransferProtocol(SegmentationTrainer):
    """Output layers grow by label name, the first two convolution blocks are frozen, Adam at 2.5e-4, 50 epochs.

    Weighted Dice (Eq. 6), 10 for classes that transfer learning has added, 1 for the others, 0 for a class that is
    absent from reference and prediction; with the detector inside, Eq. 7. Scaling, rotation and translation as
    published. The detector comes with the pretrained weights and is left as it is.
    """

    num_epochs: int = 50
    paste_anomalies: dict[str, Any] | str | None = None
    transfer_learning_rate: ClassVar[float] = 2.5e-4
    added_class_weight: ClassVar[float] = 10.0
    frozen_convolution_blocks: ClassVar[int] = 2

    def set_up(self) -> None:
        """The published learning rate; nothing added yet."""
        super().set_up()
        self.initial_lr = self.transfer_learning_rate
        self.save_every = 1
        #: the checkpoint to start from; None for the one after -pretrained_weights on the command line
        self.pretrained_weights: Path | None = None
        self.added_labels: tuple[str, ...] = ()
        self._source: pretrained.PretrainedModel | None = None

    def initialize(self) -> None:
        """As in nnU-Net, with the classes that the pretrained weights know.

        Raises: UserError if there are none on the command line, or they do not fit.
        """
        if not self.resumed:
            file = self.pretrained_weights or pretrained.given_weights_file()
            if file is None:
                advice = "starts from a trained model; give its checkpoint_final.pth to nnUNetv2_train with"
                given = "-pretrained_weights, and no --c while there is nothing to resume"
                raise UserError(f"{type(self).__name__} {advice} {given}")
            self._source = pretrained.read_pretrained(file)
            labels = pretrained.without_ignore(self.dataset_json["labels"])
            new = [name for name in labels if name not in self._source.labels]
            self.added_labels = tuple(n for n in labels if n in new or n in self._source.added_labels)
        super().initialize()

    def check_pretrained_weights(self) -> None:
        """Check that the output layers, too, fit but for their number of classes. Raises: UserError if one does not."""
        if self._source is not None:
            pretrained.check_fits(self._source, self.module, self._move_command(self._source))

    def install_detector(self) -> None:
        """Nothing to fetch: the detector comes along with the pretrained weights, and so does its description."""
        self.detector_description = self._source.detector if self._source else None

    def on_train_start(self) -> None:
        """Grow the output layers from the checkpoint that nnU-Net has copied all else from, and log what was kept."""
        if not self.was_initialized:
            self.initialize()
        if self._source is not None:
            labels = pretrained.without_ignore(self.dataset_json["labels"])
            kept, new = pretrained.grow_output_layers(self.module, self._source, labels)
            self.print_to_log_file(
                f"Transfer from {self._source.path} ({self._source.trainer_name}, {self._source.dataset_name})\n"
                f"classes kept: {', '.join(kept)}\nnew classes: {', '.join(new) or 'none'}\n"
                f"weighted {self.added_class_weight:g} in the Dice loss: {', '.join(self.added_labels) or 'none'}"
            )
            if differences := pretrained.differing_plans(self._source, self.configuration_manager.configuration):
                fact = f"the plans differ from those of the pretrained model: {'; '.join(differences)}"
                advice = f"{self._move_command(self._source)}, then preprocess with -plans_name, train with -p"
                self.print_to_log_file(f"WARNING: {fact}. To train with its plans: {advice}")
        super().on_train_start()

    def _move_command(self, source: pretrained.PretrainedModel) -> str:
        datasets = f"-s {source.dataset_name} -t {self.plans_manager.dataset_name}"
        plans = f"-sp {source.plans_name} -tp {source.plans_name}_of_{source.dataset_name.split('_')[0]}"
        return f"nnUNetv2_move_plans_between_datasets {datasets} {plans}"

    def build_dice(self) -> nn.Module:
        """Weighted Dice (Eq. 6)."""
        labels = self.dataset_json["labels"]
        weights = [1.0] * self.label_manager.num_segmentation_heads
        for name in self.added_labels:
            weights[labels[name]] = self.added_class_weight
        return WeightedDiceLoss(weights, self.label_manager.ignore_label)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """Freeze, then Adam with a constant learning rate over the rest; before nnU-Net wraps the network for DDP."""
        for block in pretrained.first_convolutions(self.segmenter.encoder, self.frozen_convolution_blocks):
            block.requires_grad_(False)
        return adam_at_constant_rate(self.network, self.initial_lr, self.num_epochs)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """Patches are loaded as large as the augmentation needs; nothing is mirrored."""
        self.inference_allowed_mirroring_axes = None
        return (0.0, 0.0), False, augmentation.loaded_patch_size(self.configuration_manager.patch_size), None

    @staticmethod
    def get_training_transforms(patch_size: Any, *arguments: Any, **keywords: Any) -> BasicTransform:
        """Scaling, rotation and translation as published, then nnU-Net's validation transforms."""
        rest = augmentation.transforms_without_augmentation(patch_size, *arguments, **keywords)
        return ComposeTransforms([augmentation.published_spatial_transform(patch_size), rest])

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """The classes that transfer learning has added: their weight, here and in a further transfer."""
        added = {"added_labels": list(self.added_labels)}
        return {**super().extra_checkpoint_entries(), pretrained.CHECKPOINT_KEY: added}

    def take_from_checkpoint(self, checkpoint: dict[str, Any], path: Path) -> None:
        """The loss gets the weights that training began with."""
        super().take_from_checkpoint(checkpoint, path)
        self.added_labels = tuple(checkpoint[pretrained.CHECKPOINT_KEY]["added_labels"])
        self._source = None
        self.loss = self._build_loss()


class UNETTransferTrainer(TransferProtocol, published.UNETTrainer):
    """UNET, transferred."""


class UNETPlusTransferTrainer(TransferProtocol, published.UNETPlusTrainer):
    """UNET+, transferred."""


class UNETSTransferTrainer(TransferProtocol, published.UNETSTrainer):
    """UNET-S, transferred."""


class CANTransferTrainer(TransferProtocol, published.CANTrainer):
    """CAN, transferred."""


class CANPlusTransferTrainer(TransferProtocol, published.CANPlusTrainer):
    """CAN+, transferred."""


class CANSTransferTrainer(TransferProtocol, published.CANSTrainer):
    """CAN-S, transferred."""


class AnomalyAwareTransferTrainer(TransferProtocol, AnomalyAwareTrainer):
    """nnU-Net's planned network with the detector inside, transferred; batches and iterations are nnU-Net's."""
