"""Data, plans, trainings and predictions of the comparison, as resumable steps of nnU-Net's own commands."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_json
from sklearn.model_selection import GroupKFold

from benchmarks.ablation import SECTION as ABLATION_SECTION
from benchmarks.machine import machine, versions
from benchmarks.models import MARGIN_MM, Detector, Model
from benchmarks.stress import CLEAN, KINDS, link_images, write_healthy_maps
from nnunetv2_anomaly.dataset_conversion.Dataset500_SimulatedKnees import subject_of, write_split
from nnunetv2_anomaly.detectors.inpainting.preparation import erased_region
from nnunetv2_anomaly.environment import TRAINER_VARIABLE, create_nnunet_folders, nnunet_environment
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import read_json, write_text
from nnunetv2_anomaly.images.files import write_image
from nnunetv2_anomaly.plans.settings import SECTION
from nnunetv2_anomaly.plans.whole_image import WHOLE_IMAGE_PLANS, planned_for, whole_image_plans
from nnunetv2_anomaly.training.safe_loading import load_safely
from nnunetv2_anomaly.workflows.engine import run_steps
from nnunetv2_anomaly.workflows.report import read_record
from nnunetv2_anomaly.workflows.steps import Dataset, Step, plan_step, rule_name, step, train_step, whole_image_step

DATASET_ID, DATASET = "521", "Dataset521_Comparison"
#: the same images with the hole mask as a second channel, for models that know it
MASKED_ID, MASKED = "522", "Dataset522_ComparisonWithMask"
PLANS = "nnUNetComparisonPlans"
#: slices of the training knees without a lesion
SLICES = "lesion_free_slices.csv"
#: versions and machines of all runs
RUNS = "runs.json"


@dataclass(frozen=True)
class Arguments:
    """What the results depend on: the options of naive_vs_aware with these names."""

    data: str
    models: tuple[str, ...]
    folds: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: int
    detector_budget: tuple[int, int]
    size: tuple[int, int, int] | None
    spacing: tuple[float, float, float] | None
    num_phantoms: int
    num_test: int
    num_val: int | None
    extra_lesions: float
    keep_lesion_labels: bool
    whole_image: bool
    patch: tuple[int, int, int] | None
    batch: int | None
    features: int | None
    iterations_per_epoch: int
    device: str
    data_seed: int
    stress: bool


@dataclass(frozen=True)
class Repeat:
    """One training of a model."""

    model: Model
    seed: int
    fold: str

    @property
    def name(self) -> str:
        """In files."""
        return f"{self.model.name}-seed{self.seed}-fold{self.fold}"


class Experiment:
    """The comparison in one folder."""

    def __init__(self, folder: Path, arguments: Arguments, models: Sequence[Model]) -> None:
        """Describe the comparison of some models in a folder."""
        self.folder, self.arguments, self.models = folder, arguments, list(models)

    # --------------------------------------------------------------------- files

    @property
    def raw(self) -> Path:
        """The raw data set."""
        return self.folder / "nnUNet_raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        """The preprocessed data set."""
        return self.folder / "nnUNet_preprocessed" / DATASET

    @property
    def repeats(self) -> list[Repeat]:
        """All trainings, seed by seed, so that a run that is cut short leaves a comparison."""
        arguments = self.arguments
        models = [model for model in self.models if model.segments]
        return [Repeat(model, seed, fold) for seed in arguments.seeds for fold in arguments.folds for model in models]

    @property
    def detectors(self) -> list[Detector]:
        """All pre-stages, in the order of the models."""
        return list(dict.fromkeys(detector for model in self.models for detector in model.detectors))

    @property
    def of_slices(self) -> bool:
        """Whether a model or a detector takes slices."""
        return any(of.of_slices for of in (*self.models, *self.detectors))

    def detector_title(self, detector: Detector) -> str:
        """In tables."""
        return detector.title(self.arguments.detector_budget, self.arguments.iterations_per_epoch)

    def configuration(self, repeat: Repeat) -> str:
        """Name of its configuration in the plans."""
        return f"{'2d' if repeat.model.of_slices else '3d'}_{repeat.model.name}_seed{repeat.seed}"

    def training_folder(self, repeat: Repeat) -> Path:
        """Folder of its fold in nnUNet_results."""
        dataset = MASKED if repeat.model.mask_known else DATASET
        model = f"{repeat.model.trainer}__{PLANS}__{self.configuration(repeat)}"
        return self.folder / "nnUNet_results" / dataset / model / f"fold_{repeat.fold}"

    def detector_folder(self, detector: Detector) -> Path:
        """The pre-stage's model folder."""
        model = f"{detector.trainer}__{PLANS}__{detector.configuration}"
        return self.folder / "nnUNet_results" / DATASET / model

    def predictions(self, repeat: Repeat) -> Path:
        """Folder of its segmentations of held-out knees."""
        if self.arguments.num_test:
            return self.folder / "predictions" / repeat.model.name / f"seed{repeat.seed}_fold{repeat.fold}"
        return self.training_folder(repeat) / "validation"

    def images(self, repeat: Repeat) -> Path:
        """Folder of the held-out knees' images, as its model takes them."""
        part = "imagesTs" if self.arguments.num_test else "imagesTr"
        return self.folder / "nnUNet_raw" / (MASKED if repeat.model.mask_known else DATASET) / part

    def cases(self, repeat: Repeat) -> dict[str, list[Path]]:
        """Held-out knees -> image files, channel by channel."""
        files = sorted(self.images(repeat).glob("*.nii.gz"))
        held_out = sorted({_case_of(file) for file in files})
        cases = held_out if self.arguments.num_test else self.validation_cases(repeat.fold)
        return {case: [file for file in files if _case_of(file) == case] for case in cases}

    @property
    def references(self) -> Path:
        """Folder of the held-out knees' labels."""
        return self.raw / ("labelsTs" if self.arguments.num_test else "labelsTr")

    @property
    def anomalies(self) -> Path:
        """Folder of the held-out knees' lesions, unlabelled ones included."""
        return self.raw / ("anomaliesTs" if self.arguments.num_test else "anomaliesTr")

    @property
    def stress(self) -> Path:
        """Folder of the held-out knees without lesions and with stress lesions, a folder each."""
        return self.folder / "stress"

    def stress_predictions(self, repeat: Repeat) -> Path:
        """Folder of its segmentations of these, CASE_KIND.nii.gz."""
        return self.stress / "predictions" / repeat.model.name / f"seed{repeat.seed}_fold{repeat.fold}"

    def validation_cases(self, fold: str) -> list[str]:
        """Validation cases of a fold."""
        return load_json(str(self.preprocessed / "splits_final.json"))[int(fold)]["val"]

    # --------------------------------------------------------------- preparation

    def prepare(self, num_processes: int) -> None:
        """Make images, plans and preprocessed data where they are missing.

        Raises: UserError if a step fails or no knee can be held out.
        """
        arguments = self.arguments
        create_nnunet_folders(self.folder)
        processes = str(num_processes)
        self.run([self._simulation(processes)])
        if arguments.num_test and not any((self.raw / "labelsTs").iterdir()):
            raise UserError(
                f"--num_test is {arguments.num_test}, and every subject has more knees than that; expected as many, as "
                "a subject's knees stay together: give more, and another --folder"
            )
        data = self.data_set(DATASET)
        steps = [plan_step(data)]
        if arguments.whole_image:
            steps.append(whole_image_step(data, steps[0], WHOLE_IMAGE_PLANS))
        self.run(steps)
        self._write_plans()
        if not (self.preprocessed / "splits_final.json").is_file():
            if arguments.num_val:
                write_split(self.raw, arguments.num_val, self.preprocessed)
            elif arguments.folds != ("all",):
                self.write_folds()
        data_sets = {"preprocess": DATASET_ID}
        if any(model.mask_known for model in self.models):
            self._add_masks()
            data_sets["preprocess_with_mask"] = MASKED_ID
        steps = []
        for name, number in data_sets.items():
            words = ["nnUNetv2_preprocess", "-d", number, "-plans_name", PLANS, "-c", "3d_fullres"]
            words += ["2d"] if self.of_slices else []
            words += ["-np", *[processes] * (2 if "2d" in words else 1)]
            steps.append(step(name, words, "preprocess"))
        self.run(steps)
        if arguments.stress:
            self._add_stress(processes)

    def _simulation(self, processes: str) -> Step:
        arguments = self.arguments
        words = ["-o", str(self.folder / "simulated"), "--extra_lesions", str(arguments.extra_lesions)]
        if arguments.data == "phantoms":
            words += ["--phantoms", str(arguments.num_phantoms)]
        else:
            words += ["-i", arguments.data]
        for option in ("size", "spacing"):
            if getattr(arguments, option):
                words += [f"--{option}", *map(str, getattr(arguments, option))]
        words += ["-d", DATASET_ID, "--name", "Comparison", "--num_test", str(arguments.num_test)]
        words += ["--seed", str(arguments.data_seed), "-np", processes]
        words += ["--keep_lesion_labels"] if arguments.keep_lesion_labels else []
        words = ["nnUNetv2_anomaly", "simulate", *words]
        return step("simulate", words, "convert", makes=self.data_set(DATASET).described)

    def _add_stress(self, processes: str) -> None:
        healthy = self.stress / "healthy"
        if not healthy.is_dir():
            write_healthy_maps(self.references, healthy)
        for kind in KINDS:
            words = ["nnUNetv2_anomaly", "simulate", "-i", str(healthy), "-o", str(self.stress / kind)]
            words += ["--seed", str(self.arguments.data_seed), "-np", processes]
            words += ["--stress", kind] if kind != CLEAN else []
            self.run([step(f"simulate-{kind}", words, "convert")])
        for repeat in {repeat.fold: repeat for repeat in self.repeats}.values():
            link_images(self.stress, self.cases(repeat), self.stress / f"images_fold{repeat.fold}")

    def _write_plans(self) -> None:
        arguments = self.arguments
        source = WHOLE_IMAGE_PLANS if arguments.whole_image else "nnUNetPlans"
        plans = read_json(self.preprocessed / f"{source}.json")
        plans["plans_name"] = PLANS
        configurations = plans["configurations"]
        planned = configurations["3d_fullres"]
        plans["configurations"] = {"3d_fullres": planned}
        planned["data_identifier"] = f"{PLANS}_3d_fullres"
        of_plans = planned.pop(SECTION, {})  # the pre-stage's settings of whole-image plans
        architecture = copy.deepcopy(planned["architecture"])
        if arguments.features:
            widths = architecture["arch_kwargs"]["features_per_stage"]
            scale = arguments.features / widths[0]
            architecture["arch_kwargs"]["features_per_stage"] = [max(1, round(width * scale)) for width in widths]
        base: dict[str, Any] = {"inherits_from": "3d_fullres", "architecture": architecture}
        if arguments.patch:
            base["patch_size"], base["architecture"] = planned_for(architecture, planned["spacing"], arguments.patch)
        if arguments.batch:
            base["batch_size"] = arguments.batch
        plans["configurations"]["3d_base"] = base
        if self.of_slices:
            plans["configurations"] |= self._slices(arguments.batch)
        per_epoch = arguments.iterations_per_epoch
        common = {
            "num_iterations_per_epoch": per_epoch,
            "num_val_iterations_per_epoch": max(2, per_epoch // 25),
        }
        for detector in self.detectors:
            epochs = detector.epochs(arguments.detector_budget, per_epoch)
            section: dict[str, Any] = {**epochs, "seed": detector.seed}
            section["erase_margin_voxels"] = _margin_voxels(detector.margin_mm, planned["spacing"])
            if detector.augmentation:
                section["prestage_augmentation"] = detector.augmentation == "on"
            if detector.of_slices:
                section |= {"lesion_free_slices": str(self.folder / SLICES)}
            plans["configurations"][detector.configuration] = {
                "inherits_from": "2d_base" if detector.of_slices else "3d_base",
                SECTION: {**of_plans, **common, **section, **dict(detector.settings)},
            }
        for repeat in self.repeats:
            model = repeat.model
            section = {**common, "num_epochs": arguments.budget // per_epoch, "seed": repeat.seed, **model.settings}
            if model.detector:
                section["prestage_folder"] = str(self.detector_folder(model.detector))
            entry = {"inherits_from": "2d_base" if model.of_slices else "3d_base", SECTION: section}
            if model.ablation:
                entry[ABLATION_SECTION] = dict(model.ablation)
                for other in model.detectors[1:]:
                    entry[ABLATION_SECTION]["other_folder"] = str(self.detector_folder(other))
            plans["configurations"][self.configuration(repeat)] = entry
        write_text(self.preprocessed / f"{PLANS}.json", json.dumps(plans, indent=1))

    def _slices(self, batch: int | None) -> dict[str, Any]:
        """Configurations of whole slices; writes the list of those without a lesion, which no label tells."""
        files = (self.preprocessed / f"{name}.json" for name in ("nnUNetPlans", "dataset_fingerprint"))
        planned, fingerprint = (read_json(file) for file in files)
        ((_, whole),) = whole_image_plans(planned, fingerprint, PLANS, "2d")["configurations"].items()
        lines = ["case,slices"]
        for file in sorted((self.raw / "anomaliesTr").glob("*.nii.gz")):
            anomalies = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
            across = np.moveaxis(anomalies, planned["transpose_forward"][0], 0)
            free = np.flatnonzero(~across.any(axis=(1, 2)))
            lines += [f"{file.name.removesuffix('.nii.gz')},{index}" for index in free]
        write_text(self.folder / SLICES, "\n".join(lines) + "\n")
        own = {} if batch is None else {"batch_size": 4 * batch}  # a slice is a fraction of a patch
        return {"2d": {**whole, SECTION: {}}, "2d_base": {"inherits_from": "2d", **own}}

    def write_folds(self) -> None:
        """Five folds; visits and knees of one subject stay together, unlike in nnU-Net's own split."""
        cases = sorted(file.name.removesuffix(".nii.gz") for file in (self.raw / "labelsTr").glob("*.nii.gz"))
        subjects = [subject_of(case) for case in cases]
        if len(set(subjects)) < 5:
            raise UserError(f"{len(set(subjects))} subjects cannot be divided into five folds; give --num_val")
        splits = GroupKFold(5, shuffle=True, random_state=12345).split(cases, groups=subjects)
        folds = [{"train": [cases[i] for i in train], "val": [cases[i] for i in val]} for train, val in splits]
        write_text(self.preprocessed / "splits_final.json", json.dumps(folds, indent=1))

    def _add_masks(self) -> None:
        """Copy the data set, with the hole mask as a second channel that is not normalised."""
        target = self.folder / "nnUNet_raw" / MASKED
        if not (target / "dataset.json").is_file():
            shutil.rmtree(target, ignore_errors=True)
            for part in ("Tr", "Ts"):
                for kind in ("images", "labels"):
                    (target / f"{kind}{part}").mkdir(parents=True)
                for file in sorted((self.raw / f"labels{part}").glob("*.nii.gz")):
                    case = file.name.removesuffix(".nii.gz")
                    shutil.copy2(file, target / f"labels{part}")
                    shutil.copy2(self.raw / f"images{part}" / f"{case}_0000.nii.gz", target / f"images{part}")
                    labels = sitk.ReadImage(str(file))
                    voxels = sitk.GetArrayFromImage(labels)
                    foreground = sorted(set(np.unique(voxels).tolist()) - {0})
                    hole = erased_region(voxels, foreground, _margin_voxels(MARGIN_MM, labels.GetSpacing()))
                    image = sitk.GetImageFromArray(hole.astype(np.float32))
                    image.CopyInformation(labels)
                    write_image(image, target / f"images{part}" / f"{case}_0001.nii.gz")
            description = read_json(self.raw / "dataset.json")
            description["channel_names"] = {"0": "MRI", "1": "noNorm"}
            write_text(target / "dataset.json", json.dumps(description, indent=2))
        folder = self.folder / "nnUNet_preprocessed" / MASKED
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(target / "dataset.json", folder)
        for name in ("dataset_fingerprint.json", "splits_final.json"):
            if (self.preprocessed / name).is_file():
                shutil.copy2(self.preprocessed / name, folder)
        plans = read_json(self.preprocessed / f"{PLANS}.json")
        plans["dataset_name"] = MASKED
        planned = plans["configurations"]["3d_fullres"]
        planned["normalization_schemes"] = [*planned["normalization_schemes"][:1], "NoNormalization"]
        planned["use_mask_for_norm"] = [*planned["use_mask_for_norm"][:1], False]
        properties = plans["foreground_intensity_properties_per_channel"]
        properties["1"] = properties["0"]
        write_text(folder / f"{PLANS}.json", json.dumps(plans, indent=1))

    # --------------------------------------------------------------------- steps

    def steps(self) -> dict[str, Step]:
        """Trainings and predictions by name, each after those it needs."""
        arguments = self.arguments
        steps: dict[str, Step] = {}

        def train(name: str, dataset: str, configuration: str, fold: str, trainer: str, *follows: Step) -> Step:
            model = (trainer, PLANS, configuration)
            # Without worker processes a seed gives one result.
            before = "nnUNet_n_proc_DA=0 " if arguments.device == "cpu" else ""
            data = self.data_set(dataset)
            trained = train_step(data, model, fold, arguments.device, *follows)
            steps[name] = dataclasses.replace(trained, name=rule_name(name), command=f"{before}{trained.command}")
            return steps[name]

        for detector in self.detectors:
            for fold in arguments.folds:
                train(training_of(detector, fold), DATASET, detector.configuration, fold, detector.trainer)
        for repeat in self.repeats:
            model, configuration = repeat.model, self.configuration(repeat)
            dataset = MASKED if model.mask_known else DATASET
            needed = [steps[training_of(detector, repeat.fold)] for detector in model.detectors]
            training = train(f"train-{repeat.name}", dataset, configuration, repeat.fold, model.trainer, *needed)
            if arguments.num_test:
                name, output = f"predict-{repeat.name}", self.predictions(repeat)
                steps[name] = self._prediction(name, repeat, self.images(repeat), output, training)
            if arguments.stress and not model.mask_known:
                name, images = f"stress-{repeat.name}", self.stress / f"images_fold{repeat.fold}"
                steps[name] = self._prediction(name, repeat, images, self.stress_predictions(repeat), training)
        return steps

    def _prediction(self, name: str, repeat: Repeat, images: Path, output: Path, training: Step) -> Step:
        words = [
            "nnUNetv2_predict", "-i", str(images), "-o", str(unfinished(output)),
            "-d", MASKED_ID if repeat.model.mask_known else DATASET_ID, "-c", self.configuration(repeat),
            "-f", repeat.fold, "-tr", repeat.model.trainer, "-p", PLANS,
            "-npp", "1", "-nps", "1", "-device", self.arguments.device,
        ]  # fmt: skip
        return whole_folder(step(name, words, "predict", needs=(training.output,)), output)

    def data_set(self, name: str) -> Dataset:
        """A data set of the comparison."""
        return Dataset.below(self.folder, name)

    def run(self, steps: Sequence[Step] | None = None, jobs: int = 1) -> None:
        """Run steps that are not done, by default trainings and predictions, several side by side.

        Raises: UserError naming the log of a step that failed.
        """
        _note_machine(self.folder / RUNS, self.arguments.device)
        run_steps(self.folder, list(self.steps().values()) if steps is None else steps, self.environment(), jobs)

    def environment(self) -> dict[str, str]:
        """Environment variables of the commands, which find the trainers of the benchmarks, too."""
        # Steps run side by side, and each process that exports a segmentation imports torch again.
        few = {"OMP_WAIT_POLICY": "PASSIVE", "nnUNet_def_n_proc": "1"} if self.arguments.device == "cpu" else {}
        environment = nnunet_environment(self.folder, **few)
        environment.pop("nnUNet_n_proc_DA", None)  # with 0, which a training takes, nnU-Net's planning ends in an error
        shim = str(Path(__file__).resolve().parent / "trainer_shim")
        environment[TRAINER_VARIABLE] = os.pathsep.join((environment[TRAINER_VARIABLE], shim))
        return environment

    def enter(self) -> None:
        """Give this process the commands' environment, so that it can load the trained models."""
        os.environ.update(self.environment())

    # ------------------------------------------------------------------- results

    def record(self, name: str, key: str) -> float:
        """Seconds (s) or peak memory in MiB (max_rss) of a step's last run; NaN if not measured."""
        return (read_record(self.folder, rule_name(name)) or {}).get(key, float("nan"))

    def noted(self, key: str) -> list[str]:
        """All versions, or machines, of the runs of this folder; sorted, without repetition."""
        file = self.folder / RUNS
        return read_json(file)[key] if file.is_file() else []


def _note_machine(file: Path, device: str) -> None:
    noted = read_json(file) if file.is_file() else {"versions": [], "machine": []}
    now = {"versions": versions(), "machine": machine(device)}
    write_text(file, json.dumps({key: sorted({*noted[key], now[key]}) for key in now}))


def epoch_seconds(training_folder: Path) -> np.ndarray:
    """Seconds of each epoch of a finished training, from its checkpoint's log."""
    log = load_safely(training_folder / "checkpoint_final.pth")["logging"]
    return np.subtract(log["epoch_end_timestamps"], log["epoch_start_timestamps"])


def _margin_voxels(margin_mm: float, spacing_mm: Sequence[float]) -> int:
    return round(margin_mm / min(spacing_mm))


def whole_folder(one: Step, output: Path) -> Step:
    """The step, whose command fills ``unfinished(output)``, with that taking the place of an earlier ``output``.

    nnU-Net writes each case in place: a killed run would leave half a file.
    """
    half, whole = (shlex.quote(str(folder)) for folder in (unfinished(output), output))
    return dataclasses.replace(one, command=f"rm -rf {half} && {one.command} && rm -rf {whole} && mv {half} {whole}")


def unfinished(output: Path) -> Path:
    """Name under which a folder is filled."""
    return output.with_name(f"part_{output.name}")


def _case_of(image: Path) -> str:
    """CASE of an image called CASE_0000.nii.gz."""
    return image.name.rsplit("_", 1)[0]


def is_older(file: Path, checkpoint: Path) -> bool:
    """Whether a file is missing, or older than the checkpoint and so made by an earlier training."""
    return not file.exists() or file.stat().st_mtime < checkpoint.stat().st_mtime


def training_of(detector: Detector, fold: str) -> str:
    """The name of a pre-stage's step."""
    return f"train-{detector.name}-fold{fold}"
