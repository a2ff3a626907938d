"""What our trainers share: settings from plans.json, refusals at start, seeds, several GPUs, finite losses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_anomaly.device import check_device
from nnunetv2_anomaly.errors import UnsupportedError, UserError
from nnunetv2_anomaly.files import why_not_writable
from nnunetv2_anomaly.plans.settings import check_configuration, default, known_settings, section_of
from nnunetv2_anomaly.trainers.resumable import ResumableTrainer
from nnunetv2_anomaly.training.distributed import Queue, rank
from nnunetv2_anomaly.training.finite import where_it_began
from nnunetv2_anomaly.training.pretrained import check_copied_weights, given_weights_file


class AnomalyTrainerBase(ResumableTrainer):
    """Base of the pre-stages and of the segmentations. Every setting is a class attribute; plans.json overrides it."""

    mirror_axes: Sequence[int] | None = default("mirror_axes")
    seed: int | None = default("seed")
    num_iterations_per_epoch: int = default("num_iterations_per_epoch")
    num_val_iterations_per_epoch: int = default("num_val_iterations_per_epoch")
    #: the setting with which a user lowers the learning rate, None where there is none
    learning_rate_setting: ClassVar[str | None] = None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's own signature)
    ) -> None:
        check_device(device.type)
        check_configuration(PlansManager(plans).get_configuration(configuration).configuration)
        if nnUNet_results.is_set():
            # Before nnU-Net tries: it would wait for its log file, and then train without being able to save.
            model = f"{type(self).__name__}__{plans['plans_name']}__{configuration}"
            folder = Path(str(nnUNet_results), plans["dataset_name"], model, f"fold_{fold}")
            if reason := why_not_writable(folder):
                expected = "expected a results folder with write permission and free space, so provide that"
                other = "set nnUNet_results to another folder"
                raise UserError(f"nothing can be written into {folder} ({reason}); {expected}, or {other}")
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.queue = Queue()
        self._batches_seen = {"training": 0, "validation": 0}
        # The base's __init__ has just set attributes of the same names to its own defaults.
        for name, value in self.settings(self.configuration_manager).items():
            if hasattr(type(self), name):
                setattr(self, name, value)
        # Several ranks must not draw the same augmentation; their first weights become those of rank 0 all the same.
        self._seed_everything(0, rank())
        if self.is_cascaded:
            previous = self.configuration_manager.previous_stage_name
            wanted = f"the configuration '{configuration}' wants the segmentation of '{previous}' as input"
            advice = "use 2d, 3d_fullres or 3d_lowres"
            raise UnsupportedError(f"{type(self).__name__} does not support the cascade: {wanted}; {advice}")
        self.set_up()

    def set_up(self) -> None:
        """What a trainer adds to the constructor, once its settings are known.

        A hook, because nnU-Net wants the constructor's signature repeated to the letter wherever it is overridden.
        """

    @classmethod
    def settings(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """All settings: the section ``anomaly`` of the configuration, else class attributes, else defaults.

        Raises: UserError for unknown settings or unacceptable values.
        """
        known = {name: getattr(cls, name, setting.default) for name, setting in known_settings().items()}
        return {**known, **section_of(configuration_manager.configuration)}

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """nnU-Net's choice, with the mirroring of the settings in training and at prediction.

        Raises: UserError if the settings name an axis that the patch does not have.
        """
        *others, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.mirror_axes is not None:
            patch_size = self.configuration_manager.patch_size
            if any(axis >= len(patch_size) for axis in self.mirror_axes):
                expected = f"axes below {len(patch_size)}, the number of axes of the patch {patch_size}"
                raise UserError(f"the setting 'mirror_axes' is {list(self.mirror_axes)}; expected {expected}")
            mirror_axes = tuple(self.mirror_axes) or None  # None is nnU-Net's word for no mirroring
            self.inference_allowed_mirroring_axes = mirror_axes
        return *others, mirror_axes

    def _seed_everything(self, *place: int) -> None:
        """Random numbers that the seed and a place in the training decide, so that a resumed run draws them as well."""
        if self.seed is None:
            return
        number = int(np.random.SeedSequence([self.seed, *place]).generate_state(1)[0])
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)

    def do_split(self) -> tuple[list[str], list[str]]:
        """As in nnU-Net; names are plain text also where it has just made the split, which holds numpy's.

        Raises: UserError if splits_final.json is cut short, as by a kill while nnU-Net wrote it.
        """
        try:
            training, validation = super().do_split()
            return [str(case) for case in training], [str(case) for case in validation]
        except json.JSONDecodeError as error:
            fault = f"{self.preprocessed_dataset_folder_base}/splits_final.json cannot be read ({error})"
            advice = "delete it, and nnU-Net makes its split again, the same one, or put your own back"
            raise UserError(f"{fault}; {advice}") from error

    def initialize(self) -> None:
        """As in nnU-Net; every rank keeps its buffers.

        Raises: UserError if the cases are not preprocessed, or -pretrained_weights do not fit.
        """
        if not (cases := Path(self.preprocessed_dataset_folder)).is_dir():
            dataset, plans = self.plans_manager.dataset_name, self.plans_manager.plans_name
            command = f"nnUNetv2_preprocess -d {dataset[7:].split('_')[0]} -plans_name {plans}"
            expected = f"expected the preprocessed cases of {dataset}, so run: {command} -c {self.configuration_name}"
            raise UserError(f"{cases} does not exist; {expected}")
        super().initialize()
        self.keep_buffers()
        if not self.resumed:
            self.check_pretrained_weights()

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """As in nnU-Net, where there is any: a network with one output has nothing to switch."""
        if self.enable_deep_supervision:
            super().set_deep_supervision_enabled(enabled)

    def check_pretrained_weights(self) -> None:
        """Check that nnU-Net can copy the weights of the file after ``-pretrained_weights``, which it does next.

        Raises: UserError if it cannot be read, or does not fit the network.
        """
        if (file := given_weights_file()) is not None:
            check_copied_weights(file, self.module, type(self).__name__)

    def keep_buffers(self) -> None:
        """Send no buffers around in forward passes: detector and error channel have the only ones, which stay.

        A forward pass would be a collective call, and at validation not all ranks have as many of them, or any.
        """
        if self.is_ddp:
            self.network.broadcast_buffers = False

    def get_tr_and_val_datasets(self) -> tuple:
        """As in nnU-Net; one rank makes splits_final.json, and the others read all of it."""
        with self.queue.rank_0_first():
            return super().get_tr_and_val_datasets()

    def on_epoch_start(self) -> None:
        """As in nnU-Net; where a seed is set, the epoch's number and it decide all that is drawn in the epoch."""
        self._batches_seen = {"training": 0, "validation": 0}
        self._seed_everything(1, self.current_epoch, rank())
        super().on_epoch_start()

    def train_step(self, batch: dict) -> dict:
        """As in nnU-Net, and stops at a loss that is not finite."""
        return self.judged("training", super().train_step, batch)

    def validation_step(self, batch: dict) -> dict:
        """As in nnU-Net, and stops at a loss that is not finite, before such weights are saved."""
        return self.judged("validation", super().validation_step, batch)

    def judged(self, kind: str, step: Callable[[dict], dict], batch: dict) -> dict:
        """A step's result, if its loss is finite; gradients may overflow, the gradient scaler leaves such steps out.

        Raises: UserError naming epoch, iteration, cases, what was not finite, and the last good checkpoint.
        """
        self._batches_seen[kind] += 1
        result = step(batch)
        losses = [result["loss"], result.get("discriminator", 0.0)]
        if not all(np.isfinite(of).all() for of in losses):
            rate = getattr(self.lr_scheduler, "initial_lr", self.initial_lr)
            error_image = getattr(self.module, "latest_error_image", None)
            began = where_it_began(batch, error_image, self.learning_rate_setting, rate)
            place = f"epoch {self.current_epoch}, iteration {self._batches_seen[kind]}"
            loss = float(np.mean(losses[0] if not np.isfinite(losses[0]).all() else losses[1]))
            raise UserError(f"the {kind} loss became {loss} in {place}, on {began}{self.way_on()}")
        return result
