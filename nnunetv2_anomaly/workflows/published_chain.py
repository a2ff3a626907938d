"""OAI ZIB in five folds -> all of OAI ZIB -> all of OAI ZIB-UQ -> OAI AKOA in five folds (method paper, 4.3).

The chain is a list of nnU-Net's own commands. What is done follows from their files, so that any machine that sees
nnU-Net's folders can continue it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_anomaly.environment import environment_folder
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import read_json
from nnunetv2_anomaly.plans.whole_image import WHOLE_IMAGE_PLANS
from nnunetv2_anomaly.registry import DEFAULT_DETECTOR, DETECTORS, TRAINERS
from nnunetv2_anomaly.workflows.runner import Step, training_step

FOLDS = ("0", "1", "2", "3", "4")
PRE_STAGE = DETECTORS[DEFAULT_DETECTOR].trainer
PLANS = "nnUNetPlans"


@dataclasses.dataclass(frozen=True)
class PublishedChain:
    """The chain for some of the six networks."""

    zib: int  # numbers of the data sets
    uq: int
    akoa: int
    networks: Sequence[str]  # names of trainers without the word Trainer
    plans: str  # of OAI ZIB, moved to the other two
    configuration: str  # both as nnUNetv2_train takes them
    device: str

    def steps(self) -> list[Step]:
        """All steps, each after those it needs.

        Raises: UserError if two data sets are the same, one is missing, nnU-Net's folders are not set, or the plans
            do not exist and are none that this chain makes.
        """
        if len({self.zib, self.uq, self.akoa}) != 3:
            given = f"the data sets are {self.zib}, {self.uq} and {self.akoa}"
            raise UserError(f"{given}; expected three different ones: OAI ZIB, OAI ZIB-UQ and OAI AKOA")
        planned = {dataset: self._plan(dataset) for dataset in (self.zib, self.uq, self.akoa)}
        steps = [*planned.values()]
        of_zib = planned[self.zib]
        if self.plans == WHOLE_IMAGE_PLANS:
            of_zib = self._plan_whole_image(of_zib)
            steps.append(of_zib)
        elif self.plans != PLANS and not (file := self._plans_file(self.zib, self.plans)).is_file():
            expected = f"expected plans that nnU-Net has made, {PLANS}, or {WHOLE_IMAGE_PLANS}"
            raise UserError(f"{file} does not exist; {expected}")
        ready = {self.zib: self._preprocess(self.zib, self.plans, of_zib)}
        steps.append(ready[self.zib])
        for dataset in (self.uq, self.akoa):
            moved = self._move_plans(dataset, of_zib, planned[dataset])
            ready[dataset] = self._preprocess(dataset, self._moved, moved)
            steps += [moved, ready[dataset]]
        return steps + self._trainings(ready)

    def ready_steps(self) -> list[Step]:
        """Steps that are not done and need none that is not: they do not depend on each other."""
        return [step for step in self.steps() if not step.is_done() and all(needed.is_done() for needed in step.after)]

    def _trainings(self, ready: dict[int, Step]) -> list[Step]:
        networks, folds, detectors = list(dict.fromkeys(self.networks)), (*FOLDS, "all"), {}
        aware = [network for network in networks if TRAINERS[f"{network}Trainer"].anomaly_aware]
        if aware:
            detectors = {fold: self._train(self.zib, fold, PRE_STAGE, ready[self.zib]) for fold in folds}
        steps = list(detectors.values())
        for network in networks:
            for fold in folds:
                needed = [ready[self.zib], *([detectors[fold]] if network in aware else [])]
                steps.append(self._train(self.zib, fold, f"{network}Trainer", *needed))
            of_zib = steps[-1]
            of_uq = self._train(self.uq, "all", f"{network}TransferTrainer", ready[self.uq], of_zib, weights=of_zib)
            steps.append(of_uq)
            for fold in FOLDS:
                needed = [ready[self.akoa], of_uq]
                steps.append(self._train(self.akoa, fold, f"{network}TransferTrainer", *needed, weights=of_uq))
        return steps

    def _train(self, dataset_id: int, fold: str, trainer: str, *after: Step, weights: Step | None = None) -> Step:
        return training_step(
            environment_folder("nnUNet_results") / self._dataset(dataset_id),
            (str(dataset_id), self.configuration, fold),
            trainer,
            self.plans if dataset_id == self.zib else self._moved,
            *(() if self.device == "cuda" else ("-device", self.device)),
            *(() if weights is None else ("-pretrained_weights", str(weights.makes[-1]))),
            after=after,
        )

    def _plan(self, dataset_id: int) -> Step:
        command = ("nnUNetv2_plan_and_preprocess", "-d", str(dataset_id), "--verify_dataset_integrity", "--no_pp")
        return Step(f"plan_{dataset_id}", (self._plans_file(dataset_id, PLANS),), command)

    def _plan_whole_image(self, after: Step) -> Step:
        command = ("nnUNetv2_anomaly", "plan_whole_image", "-d", str(self.zib))
        return Step("plan_whole_image", (self._plans_file(self.zib, WHOLE_IMAGE_PLANS),), command, after=(after,))

    def _preprocess(self, dataset_id: int, plans: str, after: Step) -> Step:
        folder = environment_folder("nnUNet_preprocessed") / self._dataset(dataset_id)
        described = environment_folder("nnUNet_raw") / self._dataset(dataset_id) / "dataset.json"
        number = read_json(described).get("numTraining")
        if not isinstance(number, int):
            raise UserError(f"{described} has no numTraining; expected a raw data set of nnU-Net's")
        command = ("nnUNetv2_preprocess", "-d", str(dataset_id), "-plans_name", plans, "-c", self.configuration)
        data = self._data_folder(self._plans_file(dataset_id, plans))
        # nnU-Net copies the references last.
        makes = (data / "*.pkl", folder / "gt_segmentations" / "*") if data else ()
        return Step(f"preprocess_{dataset_id}", makes, command, after=(after,), num_files=number)

    def _move_plans(self, dataset_id: int, *after: Step) -> Step:
        names = ("-s", self._dataset(self.zib), "-t", self._dataset(dataset_id), "-sp", self.plans, "-tp", self._moved)
        command = ("nnUNetv2_move_plans_between_datasets", *names)
        return Step(f"move_plans_{dataset_id}", (self._plans_file(dataset_id, self._moved),), command, after=after)

    @property
    def _moved(self) -> str:
        return f"{self.plans}Of{self.zib:03d}"

    @staticmethod
    def _dataset(dataset_id: int) -> str:
        parent = environment_folder("nnUNet_raw")
        found = sorted(path.parent.name for path in parent.glob(f"Dataset{dataset_id:03d}_*/dataset.json"))
        if len(found) != 1:
            fault = f"there {len(found)} times" if found else "missing"
            advice = "expected it once: convert it first with nnUNetv2_anomaly convert"
            raise UserError(f"data set {dataset_id} is {fault} in {parent}; {advice}")
        return found[0]

    def _plans_file(self, dataset_id: int, plans: str) -> Path:
        return environment_folder("nnUNet_preprocessed") / self._dataset(dataset_id) / f"{plans}.json"

    def _data_folder(self, plans_file: Path) -> Path | None:
        """Folder that nnU-Net's preprocessing writes to, by the plans; None until these exist.

        Raises: UserError if the plans have no such configuration.
        """
        if not plans_file.is_file():
            return None
        configurations = read_json(plans_file).get("configurations", {})
        name = self.configuration
        while name in configurations:
            if "data_identifier" in configurations[name]:
                return plans_file.parent / configurations[name]["data_identifier"]
            name = configurations[name].get("inherits_from")
        known = ", ".join(configurations)
        raise UserError(f"{plans_file} has no configuration {name}; expected one of {known}: give it with -c")
