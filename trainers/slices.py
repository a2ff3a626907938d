"""What detectors share that learn from whole slices without a lesion."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from numpy.typing import NDArray
from torch import nn

from nnunetv2_anomaly.detectors.intensity import RescalingDetector
from nnunetv2_anomaly.detectors.thresholds import OTSU
from nnunetv2_anomaly.errors import UnsupportedError, UserError, counted
from nnunetv2_anomaly.errors import listed as listed_names
from nnunetv2_anomaly.label_roles import ROLES_KEY
from nnunetv2_anomaly.plans.settings import default
from nnunetv2_anomaly.trainers.detector import DetectorTrainer
from nnunetv2_anomaly.training.augmentation import transforms_without_augmentation
from nnunetv2_anomaly.training.distributed import rank, world_size
from nnunetv2_anomaly.training.patches import training_patches
from nnunetv2_anomaly.training.phases import PhaseLRScheduler
from nnunetv2_anomaly.training.slices import (
    ChosenSlices,
    RandomBiasField,
    check_for_slices,
    divided_slices,
    read_slice_list,
)

#: training slices on which intensities are measured
_SLICES = 64
#: key of a checkpoint under which the discriminator's optimiser stands
_OPTIMIZER_KEY = "anomaly_discriminator_optimizer"


class SliceDetectorTrainer(DetectorTrainer):
    """Learns from slices that hold bone and no lesion, as labels or a list tell; each is seen whole."""

    num_epochs: int = default("num_epochs")
    lesion_free_slices: str | None = default("lesion_free_slices")
    bias_field: float = default("bias_field")
    prestage_learning_rate: float | None = default("prestage_learning_rate")
    learning_rate_setting = "prestage_learning_rate"
    mask_rule: str = OTSU
    #: case -> slices without a lesion, all others with bone, and those that the loader meets
    free_slices: dict[str, NDArray]
    other_slices: dict[str, NDArray]
    loaded_slices: dict[str, NDArray]
    #: whether it is of no use without
    needs_bones: ClassVar[bool] = True

    def set_up(self) -> None:
        """As in the base, for whole slices.

        Raises: UserError for volumes, without bones, and where nothing tells which slices are free of lesions;
            UnsupportedError for several GPUs.
        """
        super().set_up()
        name = type(self).__name__
        advice = "plan slices with nnUNetv2_anomaly plan_whole_image -c 2d, and train that"
        check_for_slices(name, self.configuration_name, self.configuration_manager.patch_size, advice)
        if world_size() > 1:
            raise UnsupportedError(f"{name} trains on one GPU and was given {world_size()}; leave out -num_gpus")
        labels = ", ".join(self.dataset_json["labels"])
        self.bones = self.bones_with_lesions()
        if self.needs_bones and not self.bones:
            advice = f"say which are as '{ROLES_KEY}' in dataset.json, or as the setting 'bone_labels'"
            raise UserError(f"no label is a bone ({labels}), and {name} learns what bone looks like; {advice}")
        if self.lesion_free_slices is None and not self.lesions():
            advice = "give a list of these as the setting 'lesion_free_slices', or label lesions"
            raise UserError(f"no label is a lesion ({labels}), so that nothing tells slices without one; {advice}")
        self.free_slices = {}
        self.oversample_foreground_percent = 1.0  # the loader draws from what ``ChosenSlices`` calls a class
        self.get_training_transforms = self._flips_and_bias_fields

    def _flips_and_bias_fields(self, *arguments: Any, **keywords: Any) -> ComposeTransforms:
        transforms = transforms_without_augmentation(*arguments, **keywords)
        assert isinstance(transforms, ComposeTransforms)
        mirror_axes = arguments[3]
        random = [MirrorTransform(mirror_axes)] if mirror_axes else []
        random += [RandomBiasField(self.bias_field)] if self.bias_field else []
        transforms.transforms[:0] = random
        return transforms

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """As in the base; slices are loaded as they are."""
        *_, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return (0.0, 0.0), False, self.configuration_manager.patch_size, mirror_axes

    def prepare_cases(self, training: Sequence[str], validation: Sequence[str]) -> None:
        """Find the slices. Raises: UserError if the list is at fault, or no training case has any."""
        cases = sorted({*training, *validation})
        if not set(cases) <= set(self.free_slices):
            listed = None
            if self.lesion_free_slices is not None:
                listed = read_slice_list(Path(self.lesion_free_slices))
                known = set(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
                if unknown := sorted(set(listed) - known):
                    fault = f"{self.lesion_free_slices} names {listed_names(unknown)}"
                    raise UserError(f"{fault}; expected cases of {self.plans_manager.dataset_name}, as {min(known)}")
            dataset = self.dataset_class(self.preprocessed_dataset_folder, cases)
            bones = [value for of in self.bones for value in of] or None
            divided = divided_slices(
                dataset, cases, bones, self.lesions(), listed, self.label_manager.ignore_label, rank() == 0
            )
            self.free_slices, self.other_slices = divided
            self.loaded_slices = self.free_slices
        self.training_cases = sorted(case for case in training if len(self.free_slices[case]))
        if not self.training_cases:
            told = "labels" if self.lesion_free_slices is None else f"the labels and {self.lesion_free_slices}"
            raise UserError(
                f"no training case of fold {self.fold} has a slice with bone and without a lesion, by {told}; expected "
                "some, so correct that"
            )
        number = sum(len(self.free_slices[case]) for case in self.training_cases)
        self.print_to_log_file(f"{counted(number, 'slice')} without a lesion in {len(self.training_cases)} cases")

    def get_tr_and_val_datasets(self) -> tuple:
        """nnU-Net's, of which its loader sees the chosen slices alone."""
        training, validation = (
            ChosenSlices(of, {case: self.loaded_slices[case] for case in of.identifiers})
            for of in super().get_tr_and_val_datasets()
        )
        if not validation.identifiers:
            fact = "no validation case has a slice without a lesion: the validation loss is that of training cases"
            self.print_to_log_file(f"WARNING: {fact}")
            validation = training
        return training, validation

    def start_from_data(self) -> None:
        """The range of intensities."""
        patches = [torch.from_numpy(image).to(self.device) for image, _ in training_patches(self, _SLICES)]
        detector = self.own_detector
        assert isinstance(detector, RescalingDetector)
        detector.take_intensity_range(patches)


class AdversarialTrainer(SliceDetectorTrainer):
    """Two networks against each other, each with an Adam of its own at a constant rate; in full precision."""

    #: of the network that becomes the detector, and of its adversary
    learning_rates: ClassVar[tuple[float, float]]
    discriminator_optimizer: torch.optim.Optimizer

    @property
    @abstractmethod
    def main_part(self) -> nn.Module:
        """What becomes the detector."""

    def _build_loss(self) -> nn.Module:
        return nn.Identity()  # the network has the losses of both parts

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """One for each network."""
        main, other = self.learning_rates
        if self.prestage_learning_rate is not None:
            main, other = self.prestage_learning_rate, self.prestage_learning_rate * other / main
        optimizer = torch.optim.Adam(self.main_part.parameters(), lr=main)
        self.discriminator_optimizer = torch.optim.Adam(self.module.discriminator.parameters(), lr=other)
        return optimizer, PhaseLRScheduler(optimizer, main, 0, self.num_epochs, exponent=0)

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """As in the base, with the discriminator's optimiser."""
        return {**super().extra_checkpoint_entries(), _OPTIMIZER_KEY: self.discriminator_optimizer.state_dict()}

    def take_from_checkpoint(self, checkpoint: dict[str, Any], path: Path) -> None:
        """As in the base, with the discriminator's optimiser."""
        super().take_from_checkpoint(checkpoint, path)
        self.discriminator_optimizer.load_state_dict(checkpoint[_OPTIMIZER_KEY])
