"""Data, plans, trainings and predictions of the comparison, as steps of nnU-Net's own commands that can be resumed."""

from __future__ import annotations

import copy
import functools
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2_anomaly.dataset_conversion.Dataset500_SimulatedKnees import subject_of
from sklearn.model_selection import GroupKFold
from tqdm import tqdm

from benchmarks.ablation import SECTION as ABLATION_SECTION
from benchmarks.models import MARGIN_MM, Detector, Model
from nnunetv2_anomaly.detectors.inpainting.preparation import erased_region
from nnunetv2_anomaly.environment import TRAINER_VARIABLE, create_nnunet_folders, nnunet_command, nnunet_environment
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import read_json, write_text
from nnunetv2_anomaly.images.files import write_image
from nnunetv2_anomaly.plans.settings import SECTION
from nnunetv2_anomaly.plans.whole_image import WHOLE_IMAGE_PLANS, planned_for
from nnunetv2_anomaly.workflows.demo import write_split
from nnunetv2_anomaly.workflows.published_chain import PRE_STAGE, Step

DATASET_ID, DATASET = "521", "Dataset521_Comparison"
#: the same images with the hole mask as a second channel, for models that know it
MASKED_ID, MASKED = "522", "Dataset522_ComparisonWithMask"
PLANS = "nnUNetComparisonPlans"


@dataclass(frozen=True)
class Arguments:
    """What the results depend on; as naive_vs_aware's options of these names."""

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

    def __init__(
        self, folder: Path, arguments: Arguments, models: Sequence[Model], *, held_by_steps: int | None = None
    ) -> None:
        """Describe it.

        Args:
            folder, arguments, models: of the comparison.
            held_by_steps: a file descriptor that every step inherits.
        """
        self._inherited = () if held_by_steps is None else (held_by_steps,)
        self.folder, self.arguments, self.models = folder, arguments, list(models)
        self._processes: set[subprocess.Popen] = set()

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
        """All trainings, seed by seed: what is there when a run is cut short is a comparison already."""
        arguments = self.arguments
        models = [model for model in self.models if model.segments]
        return [Repeat(model, seed, fold) for seed in arguments.seeds for fold in arguments.folds for model in models]

    @property
    def detectors(self) -> list[Detector]:
        """All pre-stages, in the order of the models."""
        return list(dict.fromkeys(model.detector for model in self.models if model.detector))

    def detector_title(self, detector: Detector) -> str:
        """In tables."""
        return detector.title(self.arguments.detector_budget, self.arguments.iterations_per_epoch)

    def configuration(self, repeat: Repeat) -> str:
        """Its name in the plans."""
        return f"3d_{repeat.model.name}_seed{repeat.seed}"

    def training_folder(self, repeat: Repeat) -> Path:
        """Where nnU-Net trains it."""
        dataset = MASKED if repeat.model.mask_known else DATASET
        model = f"{repeat.model.trainer}__{PLANS}__{self.configuration(repeat)}"
        return self.folder / "nnUNet_results" / dataset / model / f"fold_{repeat.fold}"

    def detector_folder(self, detector: Detector) -> Path:
        """The pre-stage's model folder."""
        model = f"{PRE_STAGE}__{PLANS}__3d_{detector.name}"
        return self.folder / "nnUNet_results" / DATASET / model

    def predictions(self, repeat: Repeat) -> Path:
        """The repeat's segmentations of held-out knees."""
        if self.arguments.num_test:
            return self.folder / "predictions" / repeat.model.name / f"seed{repeat.seed}_fold{repeat.fold}"
        return self.training_folder(repeat) / "validation"

    def images(self, repeat: Repeat) -> Path:
        """The held-out knees' images, as its model takes them."""
        part = "imagesTs" if self.arguments.num_test else "imagesTr"
        return self.folder / "nnUNet_raw" / (MASKED if repeat.model.mask_known else DATASET) / part

    def cases(self, repeat: Repeat) -> dict[str, list[Path]]:
        """The knees that its model is measured on, with their images' files, channel by channel."""
        files = sorted(self.images(repeat).glob("*.nii.gz"))
        held_out = sorted({_case_of(file) for file in files})
        cases = held_out if self.arguments.num_test else self.validation_cases(repeat.fold)
        return {case: [file for file in files if _case_of(file) == case] for case in cases}

    @property
    def references(self) -> Path:
        """The held-out knees' labels."""
        return self.raw / ("labelsTs" if self.arguments.num_test else "labelsTr")

    @property
    def anomalies(self) -> Path:
        """Where the held-out knees' lesions are, unlabelled ones included."""
        return self.raw / ("anomaliesTs" if self.arguments.num_test else "anomaliesTr")

    def validation_cases(self, fold: str) -> list[str]:
        """Of a fold, by the split."""
        return load_json(str(self.preprocessed / "splits_final.json"))[int(fold)]["val"]

    # --------------------------------------------------------------- preparation

    def prepare(self, num_processes: int) -> None:
        """Images, plans and preprocessed data, as far as they are not there."""
        arguments = self.arguments
        create_nnunet_folders(self.folder)
        if not self.raw.is_dir():
            words = ["-o", str(self.folder / "simulated"), "--extra_lesions", str(arguments.extra_lesions)]
            if arguments.data == "phantoms":
                words += ["--phantoms", str(arguments.num_phantoms)]
            else:
                words += ["-i", arguments.data]
            for option in ("size", "spacing"):
                if getattr(arguments, option):
                    words += [f"--{option}", *map(str, getattr(arguments, option))]
            words += ["-d", DATASET_ID, "--name", "Comparison", "--num_test", str(arguments.num_test)]
            words += ["--seed", str(arguments.data_seed), "-np", str(num_processes)]
            words += ["--keep_lesion_labels"] if arguments.keep_lesion_labels else []
            self.command("simulate", ["nnUNetv2_anomaly", "simulate", *words])
        if arguments.num_test and not any((self.raw / "labelsTs").iterdir()):
            raise UserError(
                f"--num_test is {arguments.num_test}, and every subject has more knees than that; expected as many, as "
                "a subject's knees stay together. Give more, and another --folder."
            )
        processes = str(num_processes)
        if not (self.preprocessed / "nnUNetPlans.json").is_file():
            words = ["-d", DATASET_ID, "--verify_dataset_integrity", "--no_pp", "-npfp", processes]
            self.command("plan", ["nnUNetv2_plan_and_preprocess", *words])
        if arguments.whole_image and not (self.preprocessed / f"{WHOLE_IMAGE_PLANS}.json").is_file():
            self.command("plan_whole_image", ["nnUNetv2_anomaly", "plan_whole_image", "-d", DATASET_ID])
        self._write_plans()
        if not (self.preprocessed / "splits_final.json").is_file():
            if arguments.num_val:
                write_split(self.raw, self.preprocessed, arguments.num_val)
            elif arguments.folds != ("all",):
                self.write_folds()
        words = ["-plans_name", PLANS, "-c", "3d_fullres", "-np", processes]
        cases = len(list((self.raw / "labelsTr").iterdir()))
        if len(list((self.preprocessed / "gt_segmentations").glob("*"))) < cases:
            self.command("preprocess", ["nnUNetv2_preprocess", "-d", DATASET_ID, *words])
        if any(model.mask_known for model in self.models):
            self._add_masks()
            folder = self.folder / "nnUNet_preprocessed" / MASKED
            if len(list((folder / "gt_segmentations").glob("*"))) < cases:
                self.command("preprocess_with_mask", ["nnUNetv2_preprocess", "-d", MASKED_ID, *words])

    def _write_plans(self) -> None:
        arguments = self.arguments
        source = WHOLE_IMAGE_PLANS if arguments.whole_image else "nnUNetPlans"
        plans = read_json(self.preprocessed / f"{source}.json")
        plans["plans_name"] = PLANS
        configurations = plans["configurations"]
        planned = configurations["3d_fullres"]
        plans["configurations"] = {"3d_fullres": planned}
        planned["data_identifier"] = f"{PLANS}_3d_fullres"
        of_plans = planned.pop(SECTION, {})  # what whole-image plans want of the pre-stage
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
        per_epoch = arguments.iterations_per_epoch
        common = {
            "num_iterations_per_epoch": per_epoch,
            "num_val_iterations_per_epoch": max(2, per_epoch // 25),
        }
        for detector in self.detectors:
            epochs = detector.epochs(arguments.detector_budget, per_epoch)
            section: dict[str, Any] = {"inpainting_epochs": epochs[0], "distillation_epochs": epochs[1], "seed": 0}
            section["erase_margin_voxels"] = _margin_voxels(detector.margin_mm, planned["spacing"])
            if detector.augmentation:
                section["prestage_augmentation"] = detector.augmentation == "on"
            plans["configurations"][f"3d_{detector.name}"] = {
                "inherits_from": "3d_base",
                SECTION: {**of_plans, **common, **section},
            }
        for repeat in self.repeats:
            model = repeat.model
            section = {**common, "num_epochs": arguments.budget // per_epoch, "seed": repeat.seed, **model.settings}
            if model.detector:
                section["prestage_folder"] = str(self.detector_folder(model.detector))
            entry = {"inherits_from": "3d_base", SECTION: section}
            if model.ablation:
                entry[ABLATION_SECTION] = model.ablation
            plans["configurations"][self.configuration(repeat)] = entry
        write_text(self.preprocessed / f"{PLANS}.json", json.dumps(plans, indent=1))

    def write_folds(self) -> None:
        """Five folds; visits and knees of one subject stay together, which nnU-Net's own split does not see to."""
        cases = sorted(file.name.removesuffix(".nii.gz") for file in (self.raw / "labelsTr").glob("*.nii.gz"))
        subjects = [subject_of(case) for case in cases]
        if len(set(subjects)) < 5:
            raise UserError(f"{len(set(subjects))} subjects cannot be shared out to five folds; give --num_val.")
        splits = GroupKFold(5, shuffle=True, random_state=12345).split(cases, groups=subjects)
        folds = [{"train": [cases[i] for i in train], "val": [cases[i] for i in val]} for train, val in splits]
        write_text(self.preprocessed / "splits_final.json", json.dumps(folds, indent=1))

    def _add_masks(self) -> None:
        """The data set once more, with the hole mask as a second channel that is not normalised."""
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
        """Trainings and predictions by name, each after what it needs."""
        steps: dict[str, Step] = {}
        device = ("-device", self.arguments.device)
        for detector in self.detectors:
            for fold in self.arguments.folds:
                made = self.detector_folder(detector) / f"fold_{fold}"
                configuration = f"3d_{detector.name}"
                command = ("nnUNetv2_train", DATASET_ID, configuration, fold, "-tr", PRE_STAGE, "-p", PLANS, *device)
                steps[training_of(detector, fold)] = Step(
                    command, (made / "validation" / "summary.json", made / "checkpoint_final.pth")
                )
        for repeat in self.repeats:
            model = repeat.model
            dataset = MASKED_ID if model.mask_known else DATASET_ID
            made = self.training_folder(repeat)
            before = (steps[training_of(model.detector, repeat.fold)],) if model.detector else ()
            configuration = self.configuration(repeat)
            command = (
                "nnUNetv2_train", dataset, configuration, repeat.fold, "-tr", model.trainer, "-p", PLANS, *device,
            )  # fmt: skip
            training = Step(command, (made / "validation" / "summary.json", made / "checkpoint_final.pth"), before)
            steps[f"train-{repeat.name}"] = training
            if self.arguments.num_test:
                output = self.predictions(repeat)
                command = (
                    "nnUNetv2_predict", "-i", str(self.images(repeat)), "-o", str(unfinished(output)), "-d", dataset,
                    "-c", configuration, "-f", repeat.fold, "-tr", model.trainer, "-p", PLANS,
                    "-npp", "1", "-nps", "1", *device,
                )  # fmt: skip
                cases = [file.name for file in sorted((self.raw / "labelsTs").glob("*.nii.gz"))]
                steps[f"predict-{repeat.name}"] = Step(command, tuple(output / case for case in cases), (training,))
        return steps

    def run(self, jobs: int) -> None:
        """Do what is not done, several steps side by side.

        Raises: UserError naming the log of a step that failed; the steps that ran beside it are finished first.
        """
        steps = self.steps()
        waiting = {name: step for name, step in steps.items() if not _is_done(step)}
        failed = None
        with (
            tqdm(total=len(steps), initial=len(steps) - len(waiting), desc="comparison", unit="step") as bar,
            ThreadPoolExecutor(jobs) as pool,
            ExitStack() as stack,
        ):
            running: dict[Future, str] = {}
            stack.callback(self._end_all)
            while running or (waiting and failed is None):
                for name in [name for name, step in waiting.items() if step.is_ready()] if failed is None else ():
                    if len(running) < jobs:
                        running[pool.submit(self._do, name, waiting.pop(name))] = name
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    name = running.pop(future)
                    failed = failed or future.exception()
                    if future.exception() is None and not steps[name].is_done():
                        failed = UserError(f"the step {name} ended well, and not all of its files are there.")
                    bar.update()
        if failed:
            raise failed

    def _end_all(self) -> None:
        for process in list(self._processes):
            _end(process)

    def _do(self, name: str, step: Step) -> None:
        """A step; predictions get their name when all of them are there, as nnU-Net writes them in place."""
        self.command(name, step.to_run())
        if step.command[0] == "nnUNetv2_predict":
            output = step.makes[0].parent
            shutil.rmtree(output, ignore_errors=True)
            os.replace(unfinished(output), output)

    def environment(self, **variables: object) -> dict[str, str]:
        """Of a command on this folder, which finds the trainers of the benchmarks, too."""
        environment = nnunet_environment(self.folder, **variables)
        shim = str(Path(__file__).resolve().parent / "trainer_shim")
        environment[TRAINER_VARIABLE] = os.pathsep.join((environment[TRAINER_VARIABLE], shim))
        return environment

    def enter(self) -> None:
        """Give this process that environment, so that it can load the trained models."""
        os.environ.update(self.environment())

    def command(self, name: str, words: Sequence[str]) -> None:
        """One command; its seconds and memory are kept in records/NAME.json, its output in logs/NAME.log.

        Raises: UserError if it fails.
        """
        log, record = (
            self.folder / kind / f"{name}.{ending}" for kind, ending in (("logs", "log"), ("records", "json"))
        )
        log.parent.mkdir(parents=True, exist_ok=True)
        record.parent.mkdir(parents=True, exist_ok=True)
        tqdm.write(f"+ {shlex.join(words)}")
        variables: dict[str, object] = {}
        if self.arguments.device == "cpu":
            # Steps run side by side, and each process that exports a segmentation imports torch anew.
            variables |= {"OMP_NUM_THREADS": 1, "OMP_WAIT_POLICY": "PASSIVE", "nnUNet_def_n_proc": 1}
            if words[0] == "nnUNetv2_train":
                variables["nnUNet_n_proc_DA"] = 0  # without worker processes a seed gives one result
        environment = self.environment(**variables)
        before = read_json(record) if record.is_file() and "--c" in words else {}
        began = time.monotonic()
        with log.open("a") as output:
            process = subprocess.Popen(
                [nnunet_command(words[0]), *words[1:]], env=environment, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, pass_fds=self._inherited,
            )  # fmt: skip
            self._processes.add(process)
            try:
                with PeakMemory(process.pid, self.arguments.device) as memory:
                    process.wait()
            finally:
                _end(process)
                self._processes.discard(process)
        kept = {
            "command": shlex.join(words),
            "seconds": before.get("seconds", 0.0) + time.monotonic() - began,
            "memory_mib": max(before.get("memory_mib") or 0.0, memory.peak_mib) or None,
            "versions": _versions(),
            "machine": _machine(self.arguments.device),
            "gpu_memory_mib": max(before.get("gpu_memory_mib") or 0.0, memory.peak_gpu_mib) or None,
        }
        write_text(record, json.dumps(kept, indent=1))
        if process.returncode:
            raise UserError(f"the step {name} ended with status {process.returncode}; its output is in {log}.")

    # ------------------------------------------------------------------- results

    def record(self, name: str, key: str) -> float:
        """Seconds or memory of a step; NaN where it was not measured."""
        file = self.folder / "records" / f"{name}.json"
        value = read_json(file).get(key) if file.is_file() else None
        return float("nan") if value is None else float(value)

    def noted(self, key: str) -> list[str]:
        """All versions, or machines, that trainings and predictions were done with; sorted, without repetition."""
        files = [self.folder / "records" / f"{name}.json" for name in self.steps()]
        return sorted({read_json(file).get(key, "") for file in files if file.is_file()} - {""})


@functools.cache
def _gpu_name() -> str:
    # Asked by another process: this one would begin CUDA, and hold memory of the GPU beside the trainings.
    words = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def _machine(device: str) -> str:
    if device == "cuda":
        try:
            name = _gpu_name()
        except subprocess.CalledProcessError:  # not kept: it may be taken for a moment
            name = "a GPU that does not tell its name"
        return f"{platform.machine()}, {name}"
    return f"{platform.machine()}, {device}, {os.cpu_count()} cores"


def _versions() -> str:
    names = ("nnunetv2_anomaly", "nnunetv2", "torch")
    told = ", ".join(f"{name} {version(name)}" for name in names)
    command = ["git", "describe", "--always", "--dirty"]
    with suppress(OSError):  # no git here
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        if described.returncode == 0:
            told += f", the comparison at revision {described.stdout.strip()}"
    return told


class PeakMemory:
    """Peak memory of a process while it runs: its own from Linux's /proc, its GPU's from nvidia-smi.

    0 where these do not tell. Worker processes are not counted.
    """

    def __init__(self, pid: int, device: str) -> None:
        self.pid, self.peak_mib, self.peak_gpu_mib = pid, 0.0, 0.0
        self._on_gpu = device == "cuda"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            with suppress(OSError, ValueError, IndexError):  # a process that has ended has no such line
                status = Path(f"/proc/{self.pid}/status").read_text()
                self.peak_mib = max(self.peak_mib, float(status.split("VmHWM:")[1].split()[0]) / 1024)
            with suppress(OSError, ValueError):
                self.peak_gpu_mib = max(self.peak_gpu_mib, self._gpu_mib() if self._on_gpu else 0.0)

    def _gpu_mib(self) -> float:
        query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        rows = (line.split(",") for line in subprocess.run(query, capture_output=True, text=True).stdout.splitlines())
        return max((float(memory) for pid, memory in rows if int(pid) == self.pid), default=0.0)


def epoch_seconds(training_folder: Path) -> np.ndarray:
    """Seconds of each epoch of a finished training, from its checkpoint's log."""
    log = torch.load(training_folder / "checkpoint_final.pth", map_location="cpu", weights_only=False)["logging"]
    return np.subtract(log["epoch_end_timestamps"], log["epoch_start_timestamps"])


def _end(process: subprocess.Popen) -> None:
    """End a command that still runs, as after Ctrl-C: nothing trains on with nobody to wait for it."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def _margin_voxels(margin_mm: float, spacing_mm: Sequence[float]) -> int:
    return round(margin_mm / min(spacing_mm))


def _is_done(step: Step) -> bool:
    """Whether all is there; and for predictions, whether by the training that is there now."""
    if not step.is_done():
        return False
    checkpoints = [before.makes[-1] for before in step.after] if step.command[0] == "nnUNetv2_predict" else []
    return not any(
        not checkpoint.exists() or is_older(made, checkpoint) for checkpoint in checkpoints for made in step.makes
    )


def unfinished(output: Path) -> Path:
    """Where a folder is filled before it gets its name."""
    return output.with_name(f"part_{output.name}")


def _case_of(image: Path) -> str:
    """CASE of an image called CASE_0000.nii.gz."""
    return image.name.rsplit("_", 1)[0]


def is_older(file: Path, checkpoint: Path) -> bool:
    """Whether something is not there, or was made before the checkpoint was: by an earlier training."""
    return not file.exists() or file.stat().st_mtime < checkpoint.stat().st_mtime


def training_of(detector: Detector, fold: str) -> str:
    """The name of a pre-stage's step."""
    return f"train-{detector.name}-fold{fold}"
