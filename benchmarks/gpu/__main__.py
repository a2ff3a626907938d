"""What the families cost and whether they are right on a GPU, with one command that fits into ten minutes.

    python -m benchmarks.gpu --folder GPU            # on a machine with an NVIDIA card
    python -m benchmarks.gpu --folder GPU --small --device cpu     # that it runs

Every family of the registry takes part: detectors and segmenters on simulated knees of 160 x 384 x 384 voxels, on
nnU-Net's patches and on whole images, or on whole slices. Each measurement is a step that keeps its own file, so that
the command resumes; what --seconds leave out is done by the next run. results.md holds the tables.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.comparison import report
from benchmarks.experiment import DATASET_ID, PLANS, Arguments, Experiment, training_of
from benchmarks.machine import machine, versions
from benchmarks.models import parse_models
from benchmarks.naive_vs_aware import ended_well
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import read_json, write_text
from nnunetv2_anomaly.registry import DETECTORS, SEGMENTERS, TRAINERS
from nnunetv2_anomaly.reporting.table import Cell, Table, number
from nnunetv2_anomaly.workflows.steps import Step, step

#: whole images, and nnU-Net's own patches
SIZES = {"patch": False, "whole_image": True}
MEASURED = {"step_s": "training step [s]", "step_gib": "its memory [GiB]", "estimate_gib": "estimated [GiB]",
            "window_s": "prediction of a window [s]", "window_gib": "its memory [GiB]"}  # fmt: skip
#: of each comparison: what is relative to the CPU's, in float32
CORRECT = {"float32": "float32", "autocast": "autocast", "compiled": "compiled"}


def segmenter_trainers() -> list[str]:
    """nnU-Net's own trainer, and one of each family of segmenters: its first that is anomaly-aware; of slices, its last
    that is not, as there it would need a detector of slices."""
    chosen = ["nnUNetTrainer"]
    for name, family in SEGMENTERS.items():
        own = {of: row for of, row in TRAINERS.items() if row.family == name and row.module != "transfer"}
        kept = [of for of, row in own.items() if row.anomaly_aware != family.of_slices]
        chosen.append(kept[-1 if family.of_slices else 0])
    return chosen


def trainers() -> list[str]:
    """All trainers that are measured, detectors last; those of the registry, so that a new family joins."""
    return [*segmenter_trainers(), *(family.trainer for family in DETECTORS.values())]


def words_of(names: Sequence[str], small: bool) -> list[str]:
    """The trainers as models of the comparison, without weights from elsewhere."""
    own = {
        "IMaskRCNNTrainer": "mask_rcnn_weights=none",
        "MKDTrainer": "teacher_weights=random:0,allow_random_teacher=true",
    }
    if small:
        own["IMaskRCNNTrainer"] += ",mask_rcnn_backbone=small,mask_rcnn_features=8,mask_rcnn_size=null"
        own |= {"LaMaBMLTrainer": "lama_features=4,lama_blocks=1", "ASCNetTrainer": "asc_features=2"}
    return [f"{name}:{own[name]}" if name in own else name for name in names]


def experiment_of(options: argparse.Namespace, whole: bool) -> Experiment:
    """The comparison that makes data, plans and trainings, a few iterations each; slices are no whole images."""
    size = (16, 32, 32) if options.small else (160, 384, 384)
    models = parse_models(words_of(options.trainers, options.small))
    models = [of for of in models if not (whole and (of.of_slices or (of.detector and of.detector.of_slices)))]
    arguments = Arguments(
        data="phantoms", models=tuple(options.trainers), folds=("0",), seeds=(0,), budget=options.budget,
        detector_budget=(options.budget, options.budget), size=size, spacing=None, num_phantoms=4,
        num_test=1, num_val=1,
        extra_lesions=1.5, keep_lesion_labels=False, whole_image=whole,
        patch=(16, 32, 32) if options.small and not whole else None, batch=None, features=4 if options.small else None,
        iterations_per_epoch=max(1, options.budget // 2), device=options.device, data_seed=0, stress=False,
    )  # fmt: skip
    folder = options.folder.resolve() / ("whole_image" if whole else "patch")
    folder.mkdir(parents=True, exist_ok=True)
    return Experiment(folder, arguments, models)


def measuring_steps(experiment: Experiment, repeats: int) -> list[Step]:
    """For each trainer a step that measures it, after the training of the detector that it starts from."""
    steps, made = experiment.steps(), []
    for model in experiment.models:
        repeat = next((one for one in experiment.repeats if one.model == model), None)
        detector = model.detector
        trainer = model.trainer if repeat or detector is None else detector.trainer
        configuration = experiment.configuration(repeat) if repeat else detector.configuration  # type: ignore[union-attr]
        follows = () if detector is None or repeat is None else (steps[training_of(detector, "0")].output,)
        rows = f"rows/{model.name}.json"
        words = [
            sys.executable,
            Path(__file__).with_name("measure.py"),
            trainer,
            DATASET_ID,
            configuration,
            PLANS,
            "-o",
            rows,
        ]
        words += ["-device", experiment.arguments.device, "--repeats", repeats]
        one = step(f"measure-{model.name}", words, "train", makes=rows, follows=follows, title=model.name)
        # Loading is not measured, and its workers would outlive what is.
        made.append(replace(one, command=f"nnUNet_n_proc_DA=0 {one.command}"))
    return made


def run_until(seconds: float, experiments: Iterable[Experiment], options: argparse.Namespace) -> str:
    """Run what is left. Returns: what came in between: time, or steps that failed; empty if all is done."""

    def out_of_time(*_: object) -> None:
        raise TimeoutError(f"{seconds:g} s were over; run the same command again for the rest")

    signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    said = []
    try:
        for experiment in experiments:
            try:
                experiment.prepare(options.num_processes)
                steps = measuring_steps(experiment, options.repeats)
                needed = {file for one in steps for file in one.follows}
                before = [one for one in experiment.steps().values() if one.output in needed]
                # Alone on the device: side by side they would measure each other.
                experiment.run([*before, *steps])
            except UserError as error:
                said.append(str(error))
        if not said and not options.no_compare:
            patches = next(iter(experiments))
            patches.run()
            report(patches, options.num_processes, shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]))
    except TimeoutError as error:
        said.append(str(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "; ".join(said)


def tables(folder: Path, names: Sequence[str]) -> list[Table]:
    """Costs at each size and correctness, of what has been measured."""
    found = []
    for size in SIZES:
        files = {name: folder / size / "rows" / f"{name}.json" for name in names}
        rows = {name: read_json(file) for name, file in files.items() if file.is_file()}
        if not rows:
            continue
        title = f"{'Whole images' if SIZES[size] else 'Patches'}"
        cells = [
            [Cell(name), Cell(row["shape"]), *(Cell(_shown(row, key)) for key in (*MEASURED, *CORRECT))]
            for name, row in rows.items()
        ]
        header = ["trainer", "batch, channels, voxels", *MEASURED.values(), *(f"off: {of}" for of in CORRECT.values())]
        note = (
            "Medians. Memory is the peak of torch's tensors on the card; the estimate is of batch 1. Off: largest "
            "difference of the network's output from the CPU's in float32, relative to the largest output; of windows "
            "above two million voxels in a part of at most 96 voxels along each axis."
        )
        found.append(Table(title, header, cells, [note], words=2))
    return found


def _shown(row: dict, key: str) -> str:
    value = row.get(key)
    if value is None or math.isnan(value):
        return ""
    return f"{value:.1e}" if key in CORRECT else number(value, 3)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of all results; run again to resume")
    parser.add_argument("-device", "--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--trainers", nargs="+", default=trainers(), choices=trainers(), metavar="NAME")
    parser.add_argument("--small", action="store_true", help="tiny images and networks, which show only that it runs")
    parser.add_argument("--seconds", type=float, default=570, help="after which the rest is left to the next run")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement")
    parser.add_argument("--budget", type=int, default=20, help="iterations of each training of the comparison")
    more = "leave out the comparison, for which all are trained for --budget iterations on patches"
    parser.add_argument("--no_compare", action="store_true", help=more)
    parser.add_argument("-np", "--num_processes", type=int, default=8, help="for simulation and preprocessing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or what is left of it. Returns: 0; 1 if something is left, which is said."""
    options = build_parser().parse_args(argv)

    def work() -> None:
        experiments = [experiment_of(options, whole) for whole in SIZES.values()]
        left = run_until(options.seconds, experiments, options)
        text = f"{machine(options.device)}; {versions()}.\n\n"
        text += "\n\n".join(table.markdown() for table in tables(options.folder, trainers()))
        write_text(options.folder / "results.md", f"{text}\n")
        write_text(options.folder / "left.json", json.dumps({"left": left}))
        print(text)
        if left:
            raise UserError(left)

    return ended_well(work)


if __name__ == "__main__":
    sys.exit(main())
