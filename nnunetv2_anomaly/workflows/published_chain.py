"""OAI ZIB in five folds -> all of OAI ZIB -> all of OAI ZIB-UQ -> OAI AKOA in five folds (method paper, 4.3).

The chain is a list of nnU-Net's own commands. What is done is seen from the files that a command leaves, so that the
chain goes on where it was interrupted, on whichever machine.
"""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_anomaly.environment import environment_folder, nnunet_command, nnunet_environment
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import read_json

FOLDS = ("0", "1", "2", "3", "4")
PRE_STAGE = "AnomalyPreStageTrainer"
PLANS = "nnUNetPlans"
WHOLE_IMAGE_PLANS = "nnUNetWholeImagePlans"


@dataclasses.dataclass(frozen=True)
class Step:
    """One command, the files that tell that it is done, and the steps that come before it."""

    command: tuple[str, ...]
    makes: tuple[Path, ...]
    after: tuple[Step, ...] = ()
    num_cases: int | None = None  # of folders, which are there from their first case on

    def is_done(self) -> bool:
        """Whether everything that it makes is there."""
        if self.num_cases is not None:
            return bool(self.makes) and all(_number_of_cases(path) >= self.num_cases for path in self.makes)
        return all(path.exists() for path in self.makes)

    def is_ready(self) -> bool:
        """Whether all that comes before it is done."""
        return all(step.is_done() for step in self.after)

    def to_run(self) -> tuple[str, ...]:
        """The command, continuing a training that was interrupted."""
        if self.command[0] != "nnUNetv2_train":
            return self.command
        folder = self.makes[-1].parent  # of the checkpoint
        if not any((folder / f"checkpoint_{name}.pth").is_file() for name in ("latest", "best", "final")):
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

    def __post_init__(self) -> None:
        if len({self.zib, self.uq, self.akoa}) != 3:
            raise UserError(
                f"the data sets are {self.zib}, {self.uq} and {self.akoa}; expected three different ones: OAI ZIB, "
                "OAI ZIB-UQ and OAI AKOA"
            )

    def steps(self) -> list[Step]:
        """All steps, each after those it needs.

        Raises: UserError if a data set is missing, nnU-Net's folders are not set, or the plans do not exist and are
            none that this chain makes.
        """
        steps: list[Step] = []

        def add(step: Step) -> Step:
            steps.append(step)
            return step

        networks = list(dict.fromkeys(self.networks))
        aware = [network for network in networks if network.endswith("S")]
        own = self._dataset(self.zib)
        moved = f"{self.plans}Of{self.zib:03d}"
        planned = {dataset: add(self._plan(dataset)) for dataset in (self.zib, self.uq, self.akoa)}
        whole = planned[self.zib]
        if self.plans == WHOLE_IMAGE_PLANS:
            whole = add(self._plan_whole_image(whole))
        elif self.plans != PLANS and not self._plans_file(self.zib, self.plans).is_file():
            raise UserError(
                f"{self._plans_file(self.zib, self.plans)} does not exist; expected plans that nnU-Net has made, "
                f"{PLANS}, or {WHOLE_IMAGE_PLANS}"
            )
        ready = {self.zib: add(self._preprocess(self.zib, self.plans, whole))}
        for dataset in (self.uq, self.akoa):
            plans = add(self._move_plans(dataset, moved, whole, planned[dataset]))
            ready[dataset] = add(self._preprocess(dataset, moved, plans))
        detectors = {}
        if aware:
            for fold in (*FOLDS, "all"):
                detectors[fold] = add(self._train(self.zib, fold, PRE_STAGE, self.plans, (ready[self.zib],)))
        for network in networks:
            for fold in (*FOLDS, "all"):
                before = (ready[self.zib], *([detectors[fold]] if network in aware else []))
                last = add(self._train(self.zib, fold, f"{network}Trainer", self.plans, before))
            source = self._checkpoint(own, f"{network}Trainer", self.plans, "all")
            transfer = f"{network}TransferTrainer"
            on_uq = add(self._train(self.uq, "all", transfer, moved, (ready[self.uq], last), source=source))
            source = self._checkpoint(self._dataset(self.uq), transfer, moved, "all")
            for fold in FOLDS:
                add(self._train(self.akoa, fold, transfer, moved, (ready[self.akoa], on_uq), source=source))
        return steps

    def ready_steps(self) -> list[Step]:
        """Steps that are not done and wait for none that is not: they do not depend on each other."""
        return [step for step in self.steps() if not step.is_done() and step.is_ready()]

    # --------------------------------------------------------------------- steps

    def _train(
        self,
        dataset_id: int,
        fold: str,
        trainer: str,
        plans: str,
        after: tuple[Step, ...],
        *,
        source: Path | None = None,
    ) -> Step:
        checkpoint = self._checkpoint(self._dataset(dataset_id), trainer, plans, fold)
        command = ["nnUNetv2_train", str(dataset_id), self.configuration, fold, "-tr", trainer, "-p", plans]
        if self.device != "cuda":
            command += ["-device", self.device]
        if source is not None:
            command += ["-pretrained_weights", str(source)]
        # The summary comes last: a training whose validation was interrupted is not done.
        return Step(tuple(command), (checkpoint.parent / "validation" / "summary.json", checkpoint), after)

    def _plan(self, dataset_id: int) -> Step:
        command = ("nnUNetv2_plan_and_preprocess", "-d", str(dataset_id), "--verify_dataset_integrity", "--no_pp")
        return Step(command, (self._plans_file(dataset_id, PLANS),))

    def _plan_whole_image(self, after: Step) -> Step:
        command = ("nnUNetv2_anomaly", "plan_whole_image", "-d", str(self.zib))
        return Step(command, (self._plans_file(self.zib, WHOLE_IMAGE_PLANS),), (after,))

    def _preprocess(self, dataset_id: int, plans: str, after: Step) -> Step:
        folder = environment_folder("nnUNet_preprocessed") / self._dataset(dataset_id)
        described = environment_folder("nnUNet_raw") / self._dataset(dataset_id) / "dataset.json"
        number = read_json(described).get("numTraining")
        if not isinstance(number, int):
            raise UserError(f"{described} has no numTraining; expected a raw data set of nnU-Net's")
        command = ("nnUNetv2_preprocess", "-d", str(dataset_id), "-plans_name", plans, "-c", self.configuration)
        data = self._data_folder(self._plans_file(dataset_id, plans))
        # nnU-Net copies the references last.
        makes = (data, folder / "gt_segmentations") if data else ()
        return Step(command, makes, (after,), num_cases=number)

    def _move_plans(self, dataset_id: int, moved: str, *after: Step) -> Step:
        source, target = self._dataset(self.zib), self._dataset(dataset_id)
        command = ("nnUNetv2_move_plans_between_datasets", "-s", source, "-t", target, "-sp", self.plans, "-tp", moved)
        return Step(command, (self._plans_file(dataset_id, moved),), after)

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

    def _data_folder(self, plans_file: Path) -> Path | None:
        """Where nnU-Net's preprocessing writes to, by the plans; None until these are there.

        Raises: UserError if the plans have no such configuration.
        """
        if not plans_file.is_file():
            return None
        configurations = read_json(plans_file).get("configurations", {})
        name: str | None = self.configuration
        while name is not None:
            if name not in configurations:
                raise UserError(
                    f"{plans_file} has no configuration {name}; expected one of {', '.join(configurations)}: give it "
                    "with -c"
                )
            if "data_identifier" in configurations[name]:
                return plans_file.parent / configurations[name]["data_identifier"]
            name = configurations[name].get("inherits_from")
        raise UserError(f"{plans_file}: the configuration {self.configuration} names no preprocessed data")


def _number_of_cases(folder: Path) -> int:
    """Cases in a preprocessed folder, or in that of the references."""
    ending = "" if folder.name == "gt_segmentations" else ".pkl"
    return len(list(folder.glob(f"*{ending}")))


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
