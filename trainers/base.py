"""What our trainers share: settings from plans.json, refusals at start, checkpoints written whole, faults told."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import distributed as dist
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_anomaly.device import check_device
from nnunetv2_anomaly.errors import UnsupportedError, UserError, listed
from nnunetv2_anomaly.files import is_write_failure, why_not_writable
from nnunetv2_anomaly.plans.settings import SETTINGS, default, section_of
from nnunetv2_anomaly.training.checkpoints import (
    NAMES,
    differing_plans,
    first_difference,
    others_beside,
    read_own_checkpoint,
)
from nnunetv2_anomaly.training.data_record import continued, data_record
from nnunetv2_anomaly.training.finite import LossWatch
from nnunetv2_anomaly.training.pretrained import check_copied_weights, given_weights_file
from nnunetv2_anomaly.training.safe_loading import first_line, load_safely


class AnomalyTrainerBase(nnUNetTrainer):
    """Base of the pre-stage and of the segmentation. Every setting is a class attribute; plans.json overrides it."""

    detector_features: int = default("detector_features")
    detector_downsamplings: int = default("detector_downsamplings")
    compressor_code_length: int = default("compressor_code_length")
    mirror_axes: Sequence[int] | None = default("mirror_axes")
    seed: int | None = default("seed")
    num_iterations_per_epoch: int = default("num_iterations_per_epoch")
    num_val_iterations_per_epoch: int = default("num_val_iterations_per_epoch")
    #: the setting with which a user lowers the learning rate
    learning_rate_setting: ClassVar[str] = "segmentation_learning_rate"

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's own signature)
    ) -> None:
        check_device(device.type)
        if plans.get("continue_training") and given_weights_file() is not None:
            raise UserError(
                "--c and -pretrained_weights were both given; give --c alone to go on with an interrupted training, or "
                "-pretrained_weights alone to begin one"
            )
        if nnUNet_results.is_set():
            # Before nnU-Net tries: it would wait for its log file, and then train without being able to save.
            model = f"{type(self).__name__}__{plans['plans_name']}__{configuration}"
            folder = Path(str(nnUNet_results), plans["dataset_name"], model, f"fold_{fold}")
            reason = why_not_writable(folder)
            if reason:
                raise UserError(
                    f"nothing can be written into {folder} ({reason}); expected a results folder with write permission "
                    f"and free space, so mend that, or set nnUNet_results to another folder"
                )
        super().__init__(plans, configuration, fold, dataset_json, device)
        #: checkpoints that this run has written or continued from
        self._own_checkpoints: set[Path] = set()
        self._batches_seen = {"training": 0, "validation": 0}
        self._patient_group: dist.ProcessGroup | None = None
        #: whether this run goes on from a checkpoint, or is about to
        self.resumed = False
        #: data_record.py's record of what this training has seen, in earlier runs too
        self.data: dict[str, Any] | None = None
        # The base's __init__ has just set attributes of the same names to its own defaults.
        for name, value in self.settings(self.configuration_manager).items():
            setattr(self, name, value)
        # Several ranks must not draw the same augmentation; their first weights become those of rank 0 all the same.
        self._seed_everything(0, self.rank)
        if self.is_cascaded:
            raise UnsupportedError(
                f"{type(self).__name__} does not support the cascade: the configuration '{configuration}' wants the "
                f"segmentation of '{self.configuration_manager.previous_stage_name}' as input; use 2d, 3d_fullres or "
                f"3d_lowres"
            )
        self.set_up()

    def set_up(self) -> None:
        """What a trainer adds to the constructor, once its settings are known.

        A hook, because nnU-Net wants the constructor's signature repeated to the letter wherever it is overridden.
        """

    @classmethod
    def settings(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """This trainer's settings: its class attributes, overridden by the section ``anomaly`` of the configuration.

        Raises: UserError for unknown settings or unacceptable values.
        """
        section = section_of(configuration_manager.configuration)
        return {name: section.get(name, getattr(cls, name)) for name in SETTINGS if hasattr(cls, name)}

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """nnU-Net's choice, with the mirroring of the settings in training and at prediction.

        Raises: UserError if the settings name an axis that the patch does not have.
        """
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self.mirror_axes is not None:
            dimensions = len(self.configuration_manager.patch_size)
            if any(axis >= dimensions for axis in self.mirror_axes):
                raise UserError(
                    f"the setting 'mirror_axes' is {list(self.mirror_axes)}; expected axes below {dimensions}, the "
                    f"number of axes of the patch {self.configuration_manager.patch_size}"
                )
            mirror_axes = tuple(self.mirror_axes) or None  # None is nnU-Net's word for no mirroring
            self.inference_allowed_mirroring_axes = mirror_axes
        return rotation, dummy_2d, initial_patch_size, mirror_axes

    def _seed_everything(self, *place: int) -> None:
        """Random numbers that the seed and a place in the training decide, so that a resumed run draws them as well."""
        if self.seed is None:
            return
        number = int(np.random.SeedSequence([self.seed, *place]).generate_state(1)[0])
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)

    def do_split(self) -> tuple[list[str], list[str]]:
        """As in nnU-Net, in plain strings: a split that nnU-Net 2.8.1 has just made holds numpy's.

        Raises: UserError if splits_final.json is cut short, as by a kill while nnU-Net wrote it.
        """
        try:
            training, validation = super().do_split()
            return [str(case) for case in training], [str(case) for case in validation]
        except json.JSONDecodeError as error:
            raise UserError(
                f"{self.preprocessed_dataset_folder_base}/splits_final.json cannot be read ({error}); delete it, and "
                f"nnU-Net makes its split again, the same one, or put your own back"
            ) from error

    def see_that_cases_are_there(self, cases: Sequence[str]) -> None:
        """See that the cases of the split are preprocessed.

        Raises: UserError naming those that are not.
        """
        known = set(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        missing = [case for case in cases if case not in known]
        if missing:
            raise UserError(
                f"splits_final.json names {len(missing)} case(s) that are not in {self.preprocessed_dataset_folder} "
                f"({', '.join(missing[:5])}); expected every case of the fold, so run nnUNetv2_preprocess again or "
                f"mend the split"
            )

    def note_data(self, cases: Sequence[str]) -> None:
        """Keep for the checkpoints what the training cases look like; warn where an interrupted run had others.

        Raises: UserError if a case cannot be read.
        """
        folder = self.preprocessed_dataset_folder
        known = set(self.dataset_class.get_identifiers(folder))
        seen = {case for case in self.data["cases"] if case in known} if self.data else set()
        looked_at = sorted({*cases, *seen})
        dataset = self.dataset_class(folder, looked_at)
        now = data_record(self.plans_manager, self.configuration_manager, dataset, looked_at)
        told = None
        if self.data:
            now, told = continued(self.data, now)
        elif self.resumed:
            told = (
                "this run began with an older version, which did not note its data; whether the data set has changed "
                "since cannot be told"
            )
        if told:
            self.print_to_log_file(f"WARNING: {told}")
        self.data = now

    def initialize(self) -> None:
        """As in nnU-Net; on several GPUs every rank keeps its buffers.

        Raises: UserError if the pretrained weights on the command line do not fit.
        """
        super().initialize()
        self._keep_buffers()
        if not self.resumed:
            self.check_pretrained_weights()

    def check_pretrained_weights(self) -> None:
        """See that nnU-Net can copy the weights of the file after ``-pretrained_weights``, which it does next.

        Raises: UserError if it cannot be read, or does not fit the network.
        """
        file = given_weights_file()
        if file is not None:
            check_copied_weights(file, self.module, type(self).__name__)

    # -------------------------------------------------------------- several GPUs

    def _keep_buffers(self) -> None:
        """Send no buffers around in forward passes: detector and error channel have the only ones, which stay.

        A forward pass would be a collective call, and at validation not all ranks have as many of them, or any.
        """
        if self.is_ddp:
            self.network.broadcast_buffers = False

    def _set_batch_size_and_oversample(self) -> None:
        """As in nnU-Net.

        Raises: UserError if there are more GPUs than cases in a batch.
        """
        if self.is_ddp and self.configuration_manager.batch_size < dist.get_world_size():
            raise UserError(
                f"{type(self).__name__} shares out the batch of the plans, {self.configuration_manager.batch_size} "
                f"case(s), and was given {dist.get_world_size()} GPUs; expected at least one case for each, so give "
                f"fewer GPUs with -num_gpus, or a larger 'batch_size' in plans.json"
            )
        super()._set_batch_size_and_oversample()

    @contextmanager
    def rank_0_first(self) -> Iterator[None]:
        """Where there are several ranks, the first does what follows before the others do it, however long it takes.

        For what is read where it exists and made where it does not. All ranks must come here.
        """
        if self.is_ddp and self._patient_group is None:
            # A wait in nnU-Net's own group would be given up, and training with it, after NCCL's ten minutes.
            self._patient_group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        if self.is_ddp and self.rank != 0:
            dist.barrier(self._patient_group)
        yield
        if self.is_ddp and self.rank == 0:
            dist.barrier(self._patient_group)

    def get_tr_and_val_datasets(self) -> tuple:
        """As in nnU-Net; one rank makes splits_final.json, and the others read all of it."""
        with self.rank_0_first():
            return super().get_tr_and_val_datasets()

    @property
    def rank(self) -> int:
        """This process' rank among all of the training's; nnU-Net's local_rank may be the one on its machine."""
        return dist.get_rank() if self.is_ddp else 0

    @property
    def module(self) -> nn.Module:
        """The network without the wrappers of torch.compile and of distributed training."""
        module = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return module._orig_mod if isinstance(module, OptimizedModule) else module

    # -------------------------------------------------------------------- faults

    @contextmanager
    def _failures_to_write_told(self) -> Iterator[None]:
        """Turn a full disk, a read-only folder and missing permission into a UserError, wherever it was met."""
        try:
            yield
        except OSError as error:
            if not is_write_failure(error):
                raise
            place = error.filename or f"something in {self.output_folder}"
            raise UserError(
                f"{place} cannot be written ({error.strerror or error}); make room or give permission, and "
                f"{self._way_on()}"
            ) from error

    def _last_checkpoint(self) -> Path | None:
        """The checkpoint of this run with which --c would continue."""
        files = [Path(self.output_folder) / name for name in NAMES]
        return next((path for path in files if path in self._own_checkpoints and path.is_file()), None)

    def _way_on(self) -> str:
        last = self._last_checkpoint()
        return f"go on from {last} with --c" if last else "start again, as this run has no checkpoint yet"

    def run_training(self) -> None:
        """As in nnU-Net, with a sentence where nothing can be written."""
        with self._failures_to_write_told():
            super().run_training()

    def on_train_start(self) -> None:
        """As in nnU-Net; warns of checkpoints with which --c would not continue this training."""
        if self.rank == 0:
            for half in Path(self.output_folder).glob("checkpoint_*.pth.part"):  # a killed run was writing it
                half.unlink(missing_ok=True)
        older = [name for name in NAMES if (Path(self.output_folder) / name).is_file()]
        if older and not self._own_checkpoints:
            self.print_to_log_file(
                f"WARNING: {self.output_folder} holds {', '.join(older)} of an earlier training; this one begins anew, "
                f"and until it has replaced them --c may continue the earlier one, so move them away to be safe"
            )
        super().on_train_start()

    def on_epoch_start(self) -> None:
        """As in nnU-Net; where a seed is set, the epoch's number and it decide all that is drawn in the epoch."""
        self._batches_seen = {"training": 0, "validation": 0}
        self._seed_everything(1, self.current_epoch, self.rank)
        super().on_epoch_start()

    def train_step(self, batch: dict) -> dict:
        """As in nnU-Net, and stops at a loss that is not finite."""
        return self._judged("training", super().train_step, batch)

    def validation_step(self, batch: dict) -> dict:
        """As in nnU-Net, and stops at a loss that is not finite, before such weights are saved."""
        return self._judged("validation", super().validation_step, batch)

    def _judged(self, kind: str, step: Callable[[dict], dict], batch: dict) -> dict:
        """A step's result, if its loss is finite; gradients may overflow, the gradient scaler leaves such steps out.

        Raises: UserError naming epoch, iteration, cases, what was not finite, and the last good checkpoint.
        """
        self._batches_seen[kind] += 1
        with LossWatch(self.loss) as watch:
            result = step(batch)
            if not np.isfinite(result["loss"]).all():
                raise UserError(self._not_finite(kind, float(np.mean(result["loss"])), batch, watch))
        return result

    def _not_finite(self, kind: str, loss: float, batch: dict, watch: LossWatch) -> str:
        cases = [str(case) for case in batch.get("keys", ())]
        error_image = getattr(self.module, "latest_error_image", None)
        what, is_image = watch.culprit(batch["data"], cases, error_image)
        if is_image:
            mend = "mend that image, run nnUNetv2_preprocess again, and "
        else:
            rate = getattr(self.lr_scheduler, "initial_lr", self.initial_lr)
            mend = (
                f"set '{self.learning_rate_setting}' in the section 'anomaly' of plans.json to less than the present "
                f"{rate:g} if it happens again, and "
            )
        return (
            f"the {kind} loss became {loss} in epoch {self.current_epoch}, iteration {self._batches_seen[kind]}, on "
            f"{', '.join(dict.fromkeys(cases)) or 'a batch without names'}: {what}; training stopped and wrote nothing "
            f"since, so {mend}{self._way_on()}"
        )

    # --------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """As in nnU-Net, but beside and renamed: a kill while writing leaves the last good file.

        Raises: UserError if the file cannot be written; the one that was there stays.
        """
        if self.rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            if not self.disable_checkpointing:
                self._own_checkpoints.add(Path(filename))  # rank 0 writes it
            return
        temporary = Path(f"{filename}.part")
        try:
            super().save_checkpoint(str(temporary))
            extra = self.extra_checkpoint_entries()
            if extra:
                checkpoint = load_safely(temporary)
                torch.save({**checkpoint, **extra}, temporary)
            os.replace(temporary, filename)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its file writer.
            if isinstance(error, RuntimeError) and why_not_writable(temporary.parent) is None and not _of_writer(error):
                raise
            reason = getattr(error, "strerror", None) or why_not_writable(temporary.parent)
            reason = reason or f"the disk is likely full: {first_line(error)}"
            raise UserError(
                f"the checkpoint {filename} could not be written ({reason}), and nothing else was changed; make room "
                f"or give permission, and {self._way_on()}"
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._own_checkpoints.add(Path(filename))

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """What a checkpoint holds beyond nnU-Net's own entries."""
        return {}

    def load_checkpoint(
        self, checkpoint: dict | str | None = None, filename_or_checkpoint: dict | str | None = None
    ) -> None:
        """As in nnU-Net, once the file is known to be a checkpoint of this training.

        The file's path has two names: nnU-Net 2.8.1 says filename_or_checkpoint, releases after it checkpoint.

        Raises: UserError if it cannot be read, is another trainer's, or of other plans, data, fold or networks.
        """
        self.resumed = True
        path = Path(str(checkpoint or filename_or_checkpoint))  # nnU-Net announces dictionaries, and cannot take them
        checkpoint = read_own_checkpoint(path, type(self).__name__)
        others = others_beside(path)
        decisive, harmless = differing_plans(
            checkpoint["init_args"], self.plans_manager.plans, self.configuration_name, self.fold, self.dataset_json
        )
        anew = "start the training again without --c"
        if decisive:
            raise UserError(
                f"the checkpoint {path} is of another training: {listed(decisive)}; put back the plans and the data "
                f"set that it began with, or {anew}"
            )
        if harmless:
            self.print_to_log_file(
                f"WARNING: continued with other settings than {path} was written with: {'; '.join(harmless)}"
            )
        if not self.was_initialized:
            self.initialize()
        difference = first_difference(checkpoint["network_weights"], self.module.state_dict())
        if difference:
            raise UserError(
                f"the checkpoint {path} does not fit the network: {difference}; put back the settings that it began "
                f"with (or the version of this package that wrote it), or {anew}"
            )
        self.take_from_checkpoint(checkpoint, path)
        del checkpoint
        try:
            super().load_checkpoint(str(path))
        except (KeyError, ValueError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"the checkpoint {path} does not fit the optimiser or the log of this version ({first_line(error)}); "
                + (f"move it away, and --c goes on with {others[0]}" if others else anew)
            ) from error
        self._own_checkpoints.add(path)

    def take_from_checkpoint(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take over what a checkpoint holds beyond nnU-Net's own entries, once the network is there.

        Raises: UserError if an older version wrote it, without such an entry.
        """


def _of_writer(error: RuntimeError) -> bool:
    """Whether an error is that of torch's writer of files."""
    return any(word in str(error) for word in ("inline_container", "PytorchStreamWriter"))
