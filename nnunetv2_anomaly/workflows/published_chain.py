"""OAI ZIB in five folds -> all of OAI ZIB -> all of OAI ZIB-UQ -> OAI AKOA in five folds (method paper, 4.3)."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.registry import DEFAULT_DETECTOR, TRAINERS, WHOLE_IMAGE_PLANS
from nnunetv2_anomaly.workflows.configuration import Chain, detector_trainer, needs_detector
from nnunetv2_anomaly.workflows.steps import (
    PLANS,
    Dataset,
    Step,
    plan_step,
    preprocess_step,
    step,
    train_step,
    whole_image_step,
)

FOLDS = ("0", "1", "2", "3", "4")
#: the six networks: names of trainers without the word Trainer
NETWORKS = tuple(name.removesuffix("Trainer") for name, trainer in TRAINERS.items() if trainer.module == "published")


def chain_steps(settings: Chain) -> list[Step]:
    """All steps, each after those it needs.

    Raises: UserError if two data sets are the same, one is missing, nnU-Net's folders are not set, or the plans do not
        exist and are none that this chain makes.
    """
    numbers = (settings.zib, settings.uq, settings.akoa)
    if len(set(numbers)) != 3:
        given = f"the data sets are {settings.zib}, {settings.uq} and {settings.akoa}"
        raise UserError(f"{given}; expected three different ones: OAI ZIB, OAI ZIB-UQ and OAI AKOA")
    if unknown := sorted(set(settings.networks) - set(NETWORKS)):
        raise UserError(f"there is no network {unknown[0]}; expected some of {', '.join(NETWORKS)}")
    zib, uq, akoa = (_found(settings, number) for number in numbers)
    planned = {data.name: plan_step(data) for data in (zib, uq, akoa)}
    steps, of_zib = [*planned.values()], planned[zib.name]
    if settings.plans == WHOLE_IMAGE_PLANS:
        of_zib = whole_image_step(zib, of_zib, settings.plans)
        steps.append(of_zib)
    elif settings.plans != PLANS and not Path(zib.plans(settings.plans)).is_file():
        expected = f"expected plans that nnU-Net has made, {PLANS}, or {WHOLE_IMAGE_PLANS}"
        raise UserError(f"{zib.plans(settings.plans)} does not exist; {expected}")
    plans, of, np = _moved(settings), settings.configuration, settings.processes
    ready = {zib.name: preprocess_step(zib, settings.plans, of, np)}
    steps.append(ready[zib.name])
    for data in (uq, akoa):
        moved = _move_step(settings, zib, data, of_zib, planned[data.name])
        ready[data.name] = preprocess_step(data, plans, of, np)
        steps += [moved, ready[data.name]]
    return steps + _trainings(settings, (zib, uq, akoa), ready)


def _moved(settings: Chain) -> str:
    return f"{settings.plans}Of{settings.zib:03d}"


def _move_step(settings: Chain, zib: Dataset, data: Dataset, *needs: Step) -> Step:
    words = ["nnUNetv2_move_plans_between_datasets", "-s", zib.name, "-t", data.name]
    words += ["-sp", settings.plans, "-tp", _moved(settings)]
    more = {"needs": tuple(one.output for one in needs), "makes": data.plans(_moved(settings))}
    return step(f"move_plans_{data.number}", words, "plan", title="Moving plans", **more)


def _trainings(settings: Chain, data: tuple[Dataset, Dataset, Dataset], ready: dict[str, Step]) -> list[Step]:
    zib, uq, akoa = data
    networks, folds = list(dict.fromkeys(settings.networks or NETWORKS)), (*FOLDS, "all")

    def train(of: Dataset, trainer: str, fold: str, *follows: Step, weights: str = "") -> Step:
        model = (trainer, settings.plans if of is zib else _moved(settings), settings.configuration)
        return train_step(of, model, fold, settings.device, ready[of.name], *follows, weights=weights)

    def weights_of(of: Dataset, trainer: str) -> str:
        plans = settings.plans if of is zib else _moved(settings)
        return str(of.model(trainer, plans, settings.configuration) / "fold_all" / "checkpoint_final.pth")

    detectors = {}
    if any(needs_detector(f"{network}Trainer") for network in networks):
        detectors = {fold: train(zib, detector_trainer(DEFAULT_DETECTOR), fold) for fold in folds}
    steps = list(detectors.values())
    for network in networks:
        trainer, transfer = f"{network}Trainer", f"{network}TransferTrainer"
        for fold in folds:
            steps.append(train(zib, trainer, fold, *([detectors[fold]] if needs_detector(trainer) else [])))
        of_uq = train(uq, transfer, "all", steps[-1], weights=weights_of(zib, trainer))
        steps.append(of_uq)
        steps += [train(akoa, transfer, fold, of_uq, weights=weights_of(uq, transfer)) for fold in FOLDS]
    return steps


def _found(settings: Chain, number: int) -> Dataset:
    parent = settings.data_set("").raw_base
    found = sorted(path.parent.name for path in parent.glob(f"Dataset{number:03d}_*/dataset.json"))
    if len(found) != 1:
        fault = f"there {len(found)} times" if found else "missing"
        advice = "expected it once: convert it first with nnUNetv2_anomaly convert"
        raise UserError(f"data set {number} is {fault} in {parent}; {advice}")
    return settings.data_set(found[0])
