"""The paper's networks and training protocol: UNET and CAN, each plain, with additive supervision, anomaly-aware.

A trainer is composed of a protocol (how it is trained), a network (what is trained) and a kind of segmentation (with
or without the detector); a new one of either is one small class.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.plans.strides import planned_strides
from nnunetv2_anomaly.segmenters.published.loading import EveryCaseOnceLoader
from nnunetv2_anomaly.segmenters.published.loss import MultiClassDiceLoss
from nnunetv2_anomaly.segmenters.published.networks import CAN, UNET, NetworkShape, PublishedNetwork
from nnunetv2_anomaly.trainers.anomaly_aware import PUBLISHED_ALPHA, AnomalyAwareSegmentation
from nnunetv2_anomaly.trainers.segmentation import SegmentationTrainer
from nnunetv2_anomaly.training.augmentation import transforms_without_augmentation
from nnunetv2_anomaly.training.distributed import rank, world_size
from nnunetv2_anomaly.training.optimization import adam_at_constant_rate


class PublishedProtocol(SegmentationTrainer):
    """How the paper trains (Section 4.1): Adam, 5e-4, constant; 50 epochs of every training case once; batch 1.

    No augmentation, no mirroring. Adam has no weight decay; nnU-Net's gradient clipping stays. Where patches are
    smaller than the images, an epoch is one patch a case.
    """

    num_epochs: int = 50
    #: None: as many as there are training cases, and validation cases
    num_iterations_per_epoch: int | None = None
    num_val_iterations_per_epoch: int | None = None
    published_learning_rate: ClassVar[float] = 5e-4

    def set_up(self) -> None:
        """One output, one loss; the published learning rate."""
        super().set_up()
        self.enable_deep_supervision = False
        self.initial_lr = self.published_learning_rate
        self.save_every = 1  # an epoch of whole images is long, and the networks are small
        # With one sample a batch, nnU-Net's way of taking the last third of it for the foreground never takes any.
        self.probabilistic_oversampling = True

    def _set_batch_size_and_oversample(self) -> None:
        """One case, on each GPU where there are several; nnU-Net would share out the plans' batch."""
        self.batch_size = 1

    def build_dice(self) -> nn.Module:
        """Multi-class Dice, background included (Eq. 3)."""
        return MultiClassDiceLoss(self.label_manager.ignore_label)

    def over_scales(self, loss: nn.Module) -> nn.Module:
        """One output, one loss."""
        return loss

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """Adam with a constant learning rate, over what is trained."""
        return adam_at_constant_rate(self.network, self.initial_lr, self.num_epochs)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """Nothing is turned or mirrored, so that patches are loaded as large as they are trained on."""
        self.inference_allowed_mirroring_axes = None
        return (0.0, 0.0), False, self.configuration_manager.patch_size, None

    @staticmethod
    def get_training_transforms(*arguments: Any, **keywords: Any) -> BasicTransform:
        """No augmentation."""
        return transforms_without_augmentation(*arguments, **keywords)

    def get_dataloaders(self):
        """Every training case once an epoch, in an order that the epoch's number gives; validation cases likewise.

        nnU-Net 2.8.1 draws cases at random with replacement, and its loader's workers deliver in any order; here both
        are ordered, so that an interrupted run resumes with the cases that it would have had.
        """
        training, validation = self.get_tr_and_val_datasets()
        num_training, num_validation = len(training.identifiers), len(validation.identifiers)
        if not num_training or not num_validation:
            fault = f"{num_training} training and {num_validation} validation case(s); expected at least one of each"
            raise UserError(f"fold {self.fold} has {fault}, so correct splits_final.json or train fold 'all'")
        together = self.batch_size * world_size()
        if self.num_iterations_per_epoch is None:
            self.num_iterations_per_epoch = -(-num_training // together)
        if self.num_val_iterations_per_epoch is None:
            self.num_val_iterations_per_epoch = -(-num_validation // together)
        patch_size = self.configuration_manager.patch_size
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        scales = self._get_deep_supervision_scales()
        common = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": None,
            "ignore_label": self.label_manager.ignore_label,
        }
        masks = self.configuration_manager.use_mask_for_norm
        transforms = self.get_training_transforms(
            patch_size, rotation, scales, mirror_axes, dummy_2d, use_mask_for_norm=masks, **common
        )
        plain = self.get_validation_transforms(scales, **common)
        return (
            self._loader(training, initial_patch_size, transforms, self.num_iterations_per_epoch, 1.0),
            self._loader(validation, patch_size, plain, self.num_val_iterations_per_epoch, 0.5),
        )

    def _loader(self, dataset, loaded_patch_size, transforms: BasicTransform, iterations: int, share: float):
        """Workers over the data set, continuing where the current epoch begins; ``share`` of nnU-Net's processes."""
        processes = get_allowed_n_proc_DA()
        processes = max(1, int(processes * share)) if processes else 0
        loader = EveryCaseOnceLoader(
            dataset,
            self.batch_size,
            loaded_patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
            transforms=transforms,
            first_batch=self.current_epoch * iterations,
            num_workers=max(1, processes),
            rank=rank(),
            world_size=world_size(),
        )
        if processes == 0:
            return SingleThreadedAugmenter(loader, None)
        seeds = None
        if self.seed is not None:
            # Other numbers on every rank, too: what is drawn is the augmentation, and places where patches are cut out.
            seeds = [(self.seed + rank() * processes + number) % 2**32 for number in range(processes)]
        options = {"seeds": seeds, "pin_memory": self.device.type == "cuda", "wait_time": 0.002}
        return MultiThreadedAugmenter(loader, None, processes, num_cached_per_queue=2, **options)


class PublishedNetworkTrainer(PublishedProtocol):
    """A network of the paper's, named by its shape."""

    network_shape: ClassVar[NetworkShape]
    additive_supervision: ClassVar[bool] = False

    @classmethod
    def build_segmenter(
        cls, configuration_manager: ConfigurationManager, num_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        """The network, downsampling as nnU-Net planned for this patch size and spacing."""
        return PublishedNetwork(
            shape=cls.network_shape,
            in_channels=num_channels,
            num_classes=num_classes,
            strides=planned_strides(configuration_manager, cls.network_shape.downsamplings),
            additive_supervision=cls.additive_supervision,
        )

    def on_train_start(self) -> None:
        """As in nnU-Net; says where the plan leaves the network fewer levels than the paper's has."""
        if not self.was_initialized:
            self.initialize()
        if left_out := self.segmenter.levels_left_out:
            fact = f"{self.network_shape.name} has {left_out} level(s) fewer than published"
            patch = f"patches of {list(self.configuration_manager.patch_size)} voxels"
            self.print_to_log_file(f"WARNING: {fact}, because nnU-Net plans fewer downsamplings for {patch}")
        super().on_train_start()


class _Plain(PublishedNetworkTrainer):
    """Dice alone (Eq. 3)."""

    def _build_loss(self) -> nn.Module:
        return self.over_scales(self.build_dice())


class _AnomalyAware(PublishedNetworkTrainer, AnomalyAwareSegmentation):
    """With the detector inside, additive deep supervision and the paper's alpha."""

    additive_supervision = True
    alpha: float = PUBLISHED_ALPHA


class UNETTrainer(_Plain):
    """UNET: 5 levels, 16 feature maps at full resolution; Dice (Eq. 3)."""

    network_shape = UNET


class UNETPlusTrainer(UNETTrainer):
    """UNET+: additive deep supervision; Dice (Eq. 3)."""

    additive_supervision = True


class UNETSTrainer(_AnomalyAware):
    """UNET-S: UNET+ with the error image; Dice + alpha * focal cross-entropy (Eq. 5)."""

    network_shape = UNET


class CANTrainer(_Plain):
    """CAN: 3 levels, then dilated convolutions; Dice (Eq. 3)."""

    network_shape = CAN


class CANPlusTrainer(CANTrainer):
    """CAN+: additive deep supervision; Dice (Eq. 3)."""

    additive_supervision = True


class CANSTrainer(_AnomalyAware):
    """CAN-S: CAN+ with the error image; Dice + alpha * focal cross-entropy (Eq. 5)."""

    network_shape = CAN
