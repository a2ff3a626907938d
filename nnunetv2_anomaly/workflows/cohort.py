"""A cohort from images to one report: conversion, plans, trainings, predictions in parts, measures, evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.registry import WHOLE_IMAGE_PLANS, detector_families
from nnunetv2_anomaly.workflows.configuration import CONFIG, Cohort, check_trainers, detector_trainer, needs_detector
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


def cohort_steps(settings: Cohort) -> list[Step]:
    """All steps of a cohort, each after those it needs. Raises: UserError for settings that do not fit together."""
    if not settings.dataset.startswith("Dataset") or not settings.dataset[7:10].isdigit():
        raise UserError(
            f"{CONFIG}: dataset is {settings.dataset or 'missing'}; expected a name such as Dataset501_OAIZIB"
        )
    check_trainers(settings)
    if settings.anomaly_maps and settings.images is None:
        raise UserError(f"{CONFIG}: anomaly_maps is true, and there are no images to make them of; give images")
    if settings.anomalies is not None and len(settings.folds) > 1:
        folds = ", ".join(settings.folds)
        raise UserError(f"{CONFIG}: anomalies measure the detector of one fold, and folds are {folds}; give one fold")
    return _Steps(settings).all()


class _Steps:
    def __init__(self, settings: Cohort) -> None:
        self.of = settings
        self.data: Dataset = settings.data_set(settings.dataset)
        self.detector = detector_trainer(settings.detector)
        #: the conversion, if there is one: new images may come from it
        self.converted: list[Step] = []
        self.measures_detector = settings.anomalies is not None and settings.references is not None

    def all(self) -> list[Step]:
        of = self.of
        prepared = self._data_steps()
        ready = prepared[-1]
        aware = of.anomaly_maps or self.measures_detector or any(map(needs_detector, of.trainers.values()))
        detectors = {fold: self._train(self.detector, fold, ready) for fold in of.folds} if aware else {}
        trained: dict[str, list[Step]] = {}
        for trainer in dict.fromkeys(of.trainers.values()):
            follows = detectors if needs_detector(trainer) else {}
            trained[trainer] = [
                self._train(trainer, fold, ready, *([follows[fold]] if follows else [])) for fold in of.folds
            ]
        steps = [*detectors.values(), *(one for own in trained.values() for one in own)]
        steps += self._new_images(trained, list(detectors.values())) if of.images else self._validated(trained)
        return [*prepared, *steps, self._report(steps)]

    def _data_steps(self) -> list[Step]:
        """From files to preprocessed data; the last one needs all others."""
        of, data, steps = self.of, self.data, []
        if of.convert is not None:
            self.converted = [Step("convert", of.convert, "convert", "Conversion", makes=data.described)]
            steps += self.converted
        preprocessed = preprocess_step(data, of.plans, of.configuration, of.processes)
        whole_images = of.plans == WHOLE_IMAGE_PLANS and of.configuration.startswith("3d")
        if of.plans != PLANS and of.plan_changes is None and not whole_images:  # somebody has made them already
            if not Path(data.plans(of.plans)).is_file():
                expected = f"{PLANS}, {WHOLE_IMAGE_PLANS} in 3d, plan_changes that make them, or plans that are there"
                raise UserError(f"{CONFIG}: nothing makes the plans {of.plans}; expected {expected}")
            return [*steps, preprocessed]
        steps.append(plan_step(data))
        if of.plan_changes is not None:
            words = ["nnUNetv2_anomaly", "change_plans", "-d", data.number, "-o", of.plans, of.plan_changes]
            more = {"title": "Changing plans", "needs": (of.plan_changes,), "follows": (steps[-1].output,)}
            steps.append(step("change_plans", words, "plan", makes=data.plans(of.plans), **more))
        elif whole_images:
            steps.append(whole_image_step(data, steps[-1], of.plans))
        return [*steps, preprocessed]

    def _train(self, trainer: str, fold: str, *follows: Step) -> Step:
        model = (trainer, self.of.plans, self.of.configuration)
        return train_step(self.data, model, fold, self.of.device, *follows)

    def _model_words(self, trainer: str) -> list[str]:
        of = self.of
        words = ["-d", self.data.number, "-c", of.configuration, "-p", of.plans, "-f", *of.folds, "-tr", trainer]
        return [*words, "-device", of.device]

    def _in_parts(self, name: str, words: Sequence[object], kind: str, title: str, needs: Sequence[Step]) -> list[Step]:
        """A command once for each part of the cases."""
        outputs = tuple(one.output for one in needs)
        return [
            step(
                self._of_part(name, part),
                [*words, *self._part_words(part)],
                kind,
                title=f"{title}{self._part_title(part)}",
                needs=outputs,
            )
            for part in range(self.of.parts)
        ]

    def _of_part(self, name: str, part: int) -> str:
        return name if self.of.parts == 1 else f"{name}_{part}"

    def _part_title(self, part: int) -> str:
        return "" if self.of.parts == 1 else f", part {part + 1} of {self.of.parts}"

    def _part_words(self, part: int) -> list[object]:
        return [] if self.of.parts == 1 else ["-num_parts", self.of.parts, "-part_id", part]

    def _then_merged(
        self, name: str, words: Sequence[object], title: str, needs: Sequence[Step], makes: str
    ) -> list[Step]:
        """A verb in parts, then once more without, which writes tables from their records; one part is one step."""
        in_parts = self._in_parts(name, [*words, "-np", self.of.processes], "measure", title, needs)
        if self.of.parts == 1:
            return [replace(in_parts[0], makes=makes)]
        more = {"title": f"{title}: tables", "needs": tuple(one.output for one in in_parts), "makes": makes}
        return [*in_parts, step(name, [*words, "-np", self.of.processes], "report", **more)]

    def _new_images(self, trained: dict[str, list[Step]], detectors: Sequence[Step]) -> list[Step]:
        of, folders = self.of, {}
        steps: list[Step] = []
        done: list[Step] = []
        source = str(of.images)
        checks = self._check_images(source)
        steps += checks
        for name, trainer in of.trainers.items():
            output = f"predictions/{trainer}"
            predicted = [self._predict(part, name, output, checks[part], trained[trainer]) for part in range(of.parts)]
            steps += predicted
            # The evaluation cleans predictions itself, and compares both.
            folders[name], done = output, [*done, *predicted]
            if of.postprocess is not None:
                words = ["nnUNetv2_anomaly", "postprocess", "-i", output, "-o", f"cleaned/{trainer}"]
                words += shlex.split(of.postprocess)
                makes = f"cleaned/{trainer}/removed.csv"
                cleaned = self._then_merged(f"postprocess_{trainer}", words, f"Cleaning, {name}", predicted, makes)
                steps, predicted, output = [*steps, *cleaned], cleaned[-1:], f"cleaned/{trainer}"
            if of.measure is not None:
                words = ["nnUNetv2_anomaly", "measure", "-i", output, "-o", f"measures/{trainer}"]
                words += shlex.split(of.measure)
                makes = f"measures/{trainer}/measurements.csv"
                steps += self._then_merged(f"measure_{trainer}", words, f"Measuring, {name}", predicted, makes)
        first = next(iter(of.trainers.values()))
        bones = ["--bones", f"predictions/{first}"] if detector_families()[of.detector].needs_bones else []
        needs = [*detectors, *(done if bones else []), *self.converted]
        if of.anomaly_maps:
            words = ["nnUNetv2_anomaly", "anomaly_maps", "-i", source, "-o", "anomaly_maps"]
            words += [*self._model_words(self.detector), *bones]
            maps = self._in_parts("anomaly_maps", words, "predict", "Anomaly maps", needs)
            steps, done = [*steps, *maps], [*done, *maps]
        if self.measures_detector:
            steps.append(self._measured_detector(source, bones, needs))
        words = ["-ref", str(of.references), "-pred", *(f"{name}={folder}" for name, folder in folders.items())]
        words += ["--images", source, "--ignore_missing", "--ignore_extra"]
        words += ["--error_images", "anomaly_maps"] if of.anomaly_maps else []
        return steps + (self._evaluated(words, done) if of.references is not None else [])

    def _check_images(self, source: str) -> list[Step]:
        """nnUNetv2_predict ends at the first image that it cannot read, so each part gets a folder of those it can."""
        of = self.of
        words = ["nnUNetv2_anomaly", "check_images", "-i", source, "-d", self.data.number, "-p", of.plans]
        return [
            step(
                self._of_part("check_images", part),
                [*words, "-o", f"checked_images/part_{part}", "-np", of.processes, *self._part_words(part)],
                "measure",
                title=f"Checking the images{self._part_title(part)}",
                needs=(self.data.plans(of.plans), *(one.output for one in self.converted)),
            )
            for part in range(of.parts)
        ]

    def _predict(self, part: int, name: str, output: str, checked: Step, trained: Sequence[Step]) -> Step:
        trainer = self.of.trainers[name]
        words = ["nnUNetv2_predict", "-i", f"checked_images/part_{part}", "-o", output, *self._model_words(trainer)]
        return step(
            self._of_part(f"predict_{trainer}", part),
            [*words, "-npp", "1", "-nps", "1"],
            "predict",
            title=f"Predicting, {name}{self._part_title(part)}",
            needs=(checked.output, *(one.output for one in trained)),
        )

    def _measured_detector(self, source: str, bones: Sequence[str], needs: Sequence[Step]) -> Step:
        of = self.of
        words = ["nnUNetv2_anomaly", "anomaly_maps", "-i", source, "-o", "detector", *self._model_words(self.detector)]
        words += ["--references", str(of.references), "--anomalies", str(of.anomalies), *bones]
        more = {"needs": tuple(one.output for one in needs), "makes": "detector/summary.json"}
        return step("measure_detector", words, "predict", title="Measuring the anomaly maps", **more)

    def _evaluated(self, words: Sequence[object], needs: Sequence[Step]) -> list[Step]:
        """An evaluation, which cleans predictions by itself."""
        if self.of.evaluate is None:
            return []
        clean_up = [word for word in shlex.split(self.of.postprocess or "") if word != "--overwrite"]
        words = ["nnUNetv2_anomaly", "evaluate", "-o", "evaluation", *words, *clean_up, *shlex.split(self.of.evaluate)]
        return self._then_merged("evaluate", words, "Evaluating", needs, "evaluation/report.html")

    def _validated(self, trained: dict[str, list[Step]]) -> list[Step]:
        """Validation cases of all folds, as nnU-Net predicted them after each training."""
        of = self.of
        folders = [f"{name}={self.data.model(tr, of.plans, of.configuration)}" for name, tr in of.trainers.items()]
        needs = [one for own in trained.values() for one in own]
        return self._evaluated(["-pred", *folders, "--folds", *of.folds], needs)

    def _report(self, needs: Sequence[Step]) -> Step:
        files = tuple(one.output for one in needs)
        words = ["nnUNetv2_anomaly", "workflow", "report", "."]
        return step("report", words, "report", title="Report", needs=files, makes="report.html")
