"""Checkpoints of our trainers: written whole, checked before a training resumes, failures reported in a sentence."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.files import write_failures_as_user_errors
from nnunetv2_anomaly.training import checkpoints
from nnunetv2_anomaly.training.data_record import CHECKPOINT_KEY, continued, data_record
from nnunetv2_anomaly.training.distributed import rank
from nnunetv2_anomaly.training.safe_loading import first_line
from nnunetv2_anomaly.training.saving import save_whole


class ResumableTrainer(nnUNetTrainer):
    """nnU-Net's trainer with checkpoints that a kill or a full disk cannot spoil."""

    network: Any
    dataset_class: Any
    _best_ema: float | None
    #: whether this run continues from a checkpoint, or is about to
    resumed: bool = False
    #: data_record.py's record of what this training has seen, in earlier runs too
    data: dict[str, Any] | None = None

    @property
    def own_checkpoints(self) -> set[Path]:
        """Checkpoints that this run has written or continued from."""
        return self.__dict__.setdefault("_own_checkpoints", set())

    @property
    def module(self) -> nn.Module:
        """The network without the wrappers of torch.compile and of distributed training."""
        module = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return module._orig_mod if isinstance(module, OptimizedModule) else module

    def way_on(self) -> str:
        """What to do after a failure, in words: resume from the checkpoint that --c would take, or start again."""
        files = [Path(self.output_folder) / name for name in checkpoints.NAMES]
        last = next((path for path in files if path in self.own_checkpoints and path.is_file()), None)
        return f"resume from {last} with --c" if last else "start again, as this run has no checkpoint yet"

    def write_failures_as_user_errors(self) -> AbstractContextManager[None]:
        """Turn a full disk, a read-only folder and missing permission into a UserError, wherever it was met."""
        return write_failures_as_user_errors(
            f"something in {self.output_folder}", lambda: f"make room or give permission, and {self.way_on()}"
        )

    def run_training(self) -> None:
        """As in nnU-Net, with a sentence where nothing can be written."""
        with self.write_failures_as_user_errors():
            super().run_training()

    def on_train_start(self) -> None:
        """As in nnU-Net; warns of checkpoints with which --c would not continue this training."""
        if rank() == 0:
            for half in Path(self.output_folder).glob("checkpoint_*.pth.part"):  # a killed run was writing it
                half.unlink(missing_ok=True)
        older = [name for name in checkpoints.NAMES if (Path(self.output_folder) / name).is_file()]
        if older and not self.own_checkpoints:
            earlier = f"{', '.join(older)} of an earlier training; this one starts from the beginning"
            advice = "until it has replaced them --c may continue the earlier one, so move them away to be safe"
            self.print_to_log_file(f"WARNING: {self.output_folder} holds {earlier}, and {advice}")
        super().on_train_start()

    def record_data(self, cases: list[str]) -> None:
        """Record for the checkpoints what the training cases look like; warn where an interrupted run had others.

        Raises: UserError if a case cannot be read.
        """
        folder = self.preprocessed_dataset_folder
        known = set(self.dataset_class.get_identifiers(folder))
        seen = {case for case in self.data["cases"] if case in known} if self.data else set()
        looked_at = sorted({*cases, *seen})
        dataset = self.dataset_class(folder, looked_at)
        now = data_record(self.plans_manager, self.configuration_manager, dataset, looked_at)
        if self.data:
            now, warning = continued(self.data, now)
            if warning:
                self.print_to_log_file(f"WARNING: {warning}")
        self.data = now

    def save_checkpoint(self, filename: str) -> None:
        """As in nnU-Net, but beside and renamed: a kill while writing leaves the last good file.

        Raises: UserError if the file cannot be written; the one that was there stays.
        """
        save = super().save_checkpoint
        if self.disable_checkpointing:
            save(filename)
            return
        if rank() == 0:
            save_whole(save, Path(filename), self.extra_checkpoint_entries(), self.way_on)
        self.own_checkpoints.add(Path(filename))

    def extra_checkpoint_entries(self) -> dict[str, Any]:
        """What a checkpoint holds beyond nnU-Net's own entries."""
        return {CHECKPOINT_KEY: self.data} if self.data else {}

    def load_checkpoint(
        self, checkpoint: dict | str | None = None, filename_or_checkpoint: dict | str | None = None
    ) -> None:
        """As in nnU-Net, once the file is known to be a checkpoint of this training.

        The file's path has two names: nnU-Net 2.8.1 says filename_or_checkpoint, releases after it checkpoint.

        Raises: UserError if it cannot be read, is another trainer's, or of other plans, data, fold or networks.
        """
        self.resumed = True
        path = Path(str(checkpoint or filename_or_checkpoint))  # nnU-Net announces dictionaries, and cannot take them
        content = checkpoints.read_own_checkpoint(path, type(self).__name__)
        decisive, harmless = checkpoints.differing_plans(
            content["init_args"], self.plans_manager.plans, self.configuration_name, self.fold, self.dataset_json
        )
        restart = "start the training again without --c"
        if decisive:
            advice = f"put back the plans and the data set that it began with, or {restart}"
            raise UserError(f"the checkpoint {path} is of another training: {listed(decisive)}; {advice}")
        if harmless:
            changed = f"continued with other settings than {path} was written with: {'; '.join(harmless)}"
            self.print_to_log_file(f"WARNING: {changed}")
        if not self.was_initialized:
            self.initialize()
        if difference := checkpoints.first_difference(content["network_weights"], self.module.state_dict()):
            advice = "put back the settings that it began with (or the version of this package that wrote it), or"
            raise UserError(f"the checkpoint {path} does not fit the network: {difference}; {advice} {restart}")
        try:
            self.take_from_checkpoint(content, path)
            del content
            super().load_checkpoint(str(path))
        except UserError:
            raise
        except (KeyError, ValueError, TypeError) as error:
            fault = f"does not fit the optimiser or the log of this version ({first_line(error)})"
            raise UserError(f"the checkpoint {path} {fault}; {checkpoints.way_on_without(path)}") from error
        self.own_checkpoints.add(path)

    def take_from_checkpoint(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take over what a checkpoint holds beyond nnU-Net's own entries, once the network is there."""
        self.data = checkpoint.get(CHECKPOINT_KEY)
