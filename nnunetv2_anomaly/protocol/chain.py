"""OAI ZIB in five folds -> all of OAI ZIB -> all of OAI ZIB-UQ -> OAI AKOA in five folds (method paper, 4.3).

The chain is a list of nnU-Net's own commands. What is done is seen from the files that a command leaves, so that the
chain goes on where it was interrupted, on whichever machine.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_anomaly.conversion.raw_dataset import environment_folder
from nnunetv2_anomaly.environment import nnunet_command, nnunet_environment
from nnunetv2_anomaly.errors import UserError

FOLDS = ("0", "1", "2", "3", "4")
PRE_STAGE = "AnomalyPreStageTrainer"
WHOLE_IMAGE_PLANS = "nnUNetWholeImagePlans"


@dataclasses.dataclass(frozen=True)
class Step:
    """One command, the files that tell that it is done, and those that it needs."""

    command: tuple[str, ...]
    makes: tuple[Path, ...]
    needs: tuple[Path, ...] = ()
    num_cases: int | None = None  # of a preprocessed folder, which is there from its first case on

    def is_done(self) -> bool:
        """Whether everything that it makes is there."""
        if self.num_cases is not None:
            return all(len(list(path.glob("*.pkl"))) >= self.num_cases for path in self.makes)
        return all(path.exists() for path in self.makes)

    def is_ready(self) -> bool:
        """Whether everything that it needs is there."""
        return all(path.exists() for path in self.needs)

    def to_run(self) -> tuple[str, ...]:
        """The command, continuing a training that was interrupted."""
        folder = self.makes[0].parent.parent if self.makes[0].name == "summary.json" else self.makes[0].parent
        begun = any((folder / f"checkpoint_{name}.pth").is_file() for name in ("latest", "best", "final"))
        if self.command[0] != "nnUNetv2_train" or not begun:
            return self.command
        # What was begun brings its weights along, and nnU-Net takes only one of the two.
        command = list(self.command)
        if "-pretrained_weights" in command:
            place = command.index("-pretrained_weights")
            del command[place : place + 2]
        return (*command, "--c")

    def shown(self) -> str:
        """The command as it would be typed."""
        return shlex.join(self.to_run())


@dataclasses.dataclass(frozen=True)
class Chain:
    """The chain for some of the six networks."""

    zib: int
    uq: int
    akoa: int
    networks: Sequence[str]
    plans: str
    configuration: str
    device: str

    def steps(self) -> list[Step]:
        """All steps, each after what it needs.

        Raises: UserError if a data set has not been preprocessed by nnU-Net, or nnU-Net's folders are not set.
        """
        steps: list[Step] = []
        aware = [network for network in self.networks if network.endswith("S")]
        own = self._dataset(self.zib)
        moved = f"{self.plans}Of{self.zib:03d}"
        steps += [self._plan(dataset) for dataset in (self.zib, self.uq, self.akoa)]
        if self.plans == WHOLE_IMAGE_PLANS:
            steps.append(self._plan_whole_image())
        steps.append(self._preprocess(self.zib, self.plans))
        for dataset in (self.uq, self.akoa):
            steps.append(self._move_plans(dataset, moved))
            steps.append(self._preprocess(dataset, moved))
        if aware:
            steps += [self._train(self.zib, fold, PRE_STAGE, self.plans) for fold in (*FOLDS, "all")]
        for network in self.networks:
            detector = PRE_STAGE if network in aware else None
            steps += [
                self._train(self.zib, fold, f"{network}Trainer", self.plans, detector_of=detector)
                for fold in (*FOLDS, "all")
            ]
            source = self._checkpoint(own, f"{network}Trainer", self.plans, "all")
            transfer = f"{network}TransferTrainer"
            steps.append(self._train(self.uq, "all", transfer, moved, source=source))
            source = self._checkpoint(self._dataset(self.uq), transfer, moved, "all")
            steps += [self._train(self.akoa, fold, transfer, moved, source=source) for fold in FOLDS]
        return steps

    def ready_steps(self) -> list[Step]:
        """Steps that are not done and need nothing that is missing: they do not depend on each other."""
        return [step for step in self.steps() if not step.is_done() and step.is_ready()]

    # --------------------------------------------------------------------- steps

    def _train(
        self,
        dataset_id: int,
        fold: str,
        trainer: str,
        plans: str,
        *,
        source: Path | None = None,
        detector_of: str | None = None,
    ) -> Step:
        dataset = self._dataset(dataset_id)
        checkpoint = self._checkpoint(dataset, trainer, plans, fold)
        needs = [self._preprocessed(dataset, plans)]
        command = ["nnUNetv2_train", str(dataset_id), self.configuration, fold, "-tr", trainer, "-p", plans]
        if self.device != "cuda":
            command += ["-device", self.device]
        if source is not None:
            command += ["-pretrained_weights", str(source)]
            needs.append(source)
        if detector_of is not None:
            needs.append(self._checkpoint(dataset, detector_of, plans, fold))
        # The summary comes last: a training whose validation was interrupted is not done.
        return Step(tuple(command), (checkpoint.parent / "validation" / "summary.json", checkpoint), tuple(needs))

    def _plan(self, dataset_id: int) -> Step:
        command = ("nnUNetv2_plan_and_preprocess", "-d", str(dataset_id), "--verify_dataset_integrity", "--no_pp")
        return Step(command, (self._plans_file(dataset_id, "nnUNetPlans"),))

    def _plan_whole_image(self) -> Step:
        command = ("nnUNetv2_anomaly", "plan_whole_image", "-d", str(self.zib))
        made, needed = (self._plans_file(self.zib, name) for name in (WHOLE_IMAGE_PLANS, "nnUNetPlans"))
        return Step(command, (made,), (needed,))

    def _preprocess(self, dataset_id: int, plans: str) -> Step:
        dataset = self._dataset(dataset_id)
        described = json.loads((environment_folder("nnUNet_raw") / dataset / "dataset.json").read_text())
        command = ("nnUNetv2_preprocess", "-d", str(dataset_id), "-plans_name", plans, "-c", self.configuration)
        return Step(
            command,
            (self._preprocessed(dataset, plans),),
            (self._plans_file(dataset_id, plans),),
            num_cases=described["numTraining"],
        )

    def _move_plans(self, dataset_id: int, moved: str) -> Step:
        source, target = self._dataset(self.zib), self._dataset(dataset_id)
        command = ("nnUNetv2_move_plans_between_datasets", "-s", source, "-t", target, "-sp", self.plans, "-tp", moved)
        needs = (self._plans_file(self.zib, self.plans), self._plans_file(dataset_id, "nnUNetPlans"))
        return Step(command, (self._plans_file(dataset_id, moved),), needs)

    # --------------------------------------------------------------------- files

    @staticmethod
    def _dataset(dataset_id: int) -> str:
        parent = environment_folder("nnUNet_raw")
        found = sorted(path.parent.name for path in parent.glob(f"Dataset{dataset_id:03d}_*/dataset.json"))
        if len(found) != 1:
            raise UserError(
                f"data set {dataset_id} is {'missing' if not found else 'there ' + str(len(found)) + ' times'} in "
                f"{parent}; expected it once: convert it first with nnUNetv2_anomaly convert"
            )
        return found[0]

    def _plans_file(self, dataset_id: int, plans: str) -> Path:
        return environment_folder("nnUNet_preprocessed") / self._dataset(dataset_id) / f"{plans}.json"

    def _checkpoint(self, dataset: str, trainer: str, plans: str, fold: str) -> Path:
        model = f"{trainer}__{plans}__{self.configuration}"
        return environment_folder("nnUNet_results") / dataset / model / f"fold_{fold}" / "checkpoint_final.pth"

    def _preprocessed(self, dataset: str, plans: str) -> Path:
        """What nnU-Net's preprocessing leaves: the folder that the plans name."""
        return environment_folder("nnUNet_preprocessed") / dataset / f"{plans}_{self.configuration}"


def run_chain(chain: Chain) -> int:
    """Run what is not done yet, one command after the other.

    Returns: 0, or the exit status of the first command that failed.
    """
    steps = chain.steps()
    for number, step in enumerate(steps, start=1):
        head = f"[{number}/{len(steps)}]"
        if step.is_done():
            print(f"{head} done: {shlex.join(step.command)}", flush=True)
            continue
        print(f"{head} {step.shown()}", flush=True)
        command = step.to_run()
        status = subprocess.run([nnunet_command(command[0]), *command[1:]], env=nnunet_environment()).returncode
        if status != 0:
            print(f"{head} failed with status {status}; run the chain again to go on from here", flush=True)
            return status
    return 0
