"""Compare nnU-Net with anomaly-aware models on knees with known lesions: same plans, budget, folds and seeds.

python -m benchmarks.naive_vs_aware --data SEGMENTATIONS --folder WORK --models nnUNetTrainer AnomalyAwareTrainer
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.comparison import report
from benchmarks.experiment import Arguments, Experiment
from benchmarks.models import ABLATIONS, DEFAULTS, Model, parse_models
from nnunetv2_anomaly.device import chosen_device
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import label_source_sha256, locked, read_json, why_not_writable, write_text
from nnunetv2_anomaly.simulation.simulate import label_files

STATE = "comparison.json"
#: file that a run keeps locked in its folder
LOCK = "lock"
#: arguments that may differ when a comparison is resumed: more of the same
_MAY_GROW = ("models", "seeds", "folds", "stress")

#: smallest value of each option
_LEAST = {
    "budget": 1, "iterations_per_epoch": 1, "jobs": 1, "num_processes": 1, "num_phantoms": 1, "num_test": 0,
    "num_val": 1, "batch": 1, "features": 1, "patch": 8, "seeds": 0, "detector_budget": 1,
    "extra_lesions": 0, "data_seed": 0,
}  # fmt: skip


def build_parser(description: str, models: str) -> argparse.ArgumentParser:
    """The options. Args: models: the help of --models."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of all results; run again to resume")
    parser.add_argument("--data", default="phantoms", help="folder of label maps with labels 0 to 9, or 'phantoms'")
    parser.add_argument("--num_phantoms", type=int, default=40, help="with --data phantoms")
    parser.add_argument("--models", nargs="+", metavar="[NAME=]TRAINER[:KEY=VALUE,]", help=models)
    parser.add_argument("--folds", nargs="+", default=["all"], help="of nnU-Net's cross-validation, or all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="each model is trained once per seed")
    parser.add_argument("--budget", type=int, default=250_000, help="iterations of each training")
    parser.add_argument(
        "--detector_budget", nargs=2, type=int, default=[25_000, 20_000], metavar=("G", "A"),
        help="iterations of the pre-stage's two phases",
    )  # fmt: skip
    parser.add_argument("--iterations_per_epoch", type=int, default=250, help="nnU-Net's epoch")
    parser.add_argument(
        "--size", nargs=3, type=int, metavar=("X", "Y", "Z"), help="of the images, as simulate takes it"
    )
    parser.add_argument("--spacing", nargs=3, type=float, metavar=("X", "Y", "Z"), help="mm, as simulate takes it")
    parser.add_argument("--num_test", type=int, default=6, help="held-out knees; 0: each fold's validation cases")
    parser.add_argument(
        "--num_val", type=int, help="number of validation cases of a single split; by default nnU-Net's five folds"
    )
    parser.add_argument("--extra_lesions", type=float, default=1.5, help="mean number of unlabelled lesions per knee")
    parser.add_argument("--keep_lesion_labels", action="store_true", help="segment lesions, too, not as bone")
    parser.add_argument("--data_seed", type=int, default=0, help="of the simulated images")
    parser.add_argument("--whole_image", action="store_true", help="the whole image as patch, as in the paper")
    parser.add_argument("--patch", nargs=3, type=int, help="voxels, nnU-Net's axis order; by default as planned")
    parser.add_argument("--batch", type=int, help="cases; by default as planned")
    parser.add_argument("--features", type=int, help="feature maps at full resolution; by default as planned")
    parser.add_argument(
        "-device", "--device", default="cuda", choices=("cuda", "cpu", "mps"), help="of trainings and predictions"
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("-np", "--num_processes", type=int, default=2, help="for simulation, preprocessing, evaluation")
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    models = f"trainers, with settings; the first is the baseline; by default {' '.join(DEFAULTS)}"
    parser = build_parser(__doc__.splitlines()[0], models)
    parser.add_argument("--ablations", action="store_true", help="compare the method in parts and variants")
    parser.add_argument(
        "--stress", action="store_true",
        help="held-out knees without lesions, and with large, bright and dark ones that training never showed, too",
    )  # fmt: skip
    return parser.parse_args(argv)


def checked(options: argparse.Namespace) -> Arguments:
    """Check the options.

    Returns: the arguments that the results depend on.
    Raises: UserError for options that are out of range or contradict each other.
    """
    if options.ablations and options.models:
        raise UserError("--ablations and --models were both given; expected one of them")
    words = list(ABLATIONS) if options.ablations else options.models or list(DEFAULTS)
    for name, least in _LEAST.items():
        value = getattr(options, name)
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if any(number < least for number in numbers):
            raise UserError(f"--{name} is {value}; expected {least} or more")
    for name in ("seeds", "folds"):
        if len(set(getattr(options, name))) < len(getattr(options, name)):
            raise UserError(f"--{name} names one twice: {getattr(options, name)}; expected each once")
    if set(options.folds) - {"all", *"01234"}:
        raise UserError(f"--folds are {' '.join(options.folds)}; expected 0 to 4, or all")
    if options.folder.exists() and not options.folder.is_dir():
        raise UserError(f"--folder {options.folder} is a file; give a folder")
    chosen_device(options.device)
    for name, budget in (("budget", options.budget), *(("detector_budget", n) for n in options.detector_budget)):
        if budget % options.iterations_per_epoch:
            raise UserError(
                f"--{name} is {budget} and --iterations_per_epoch {options.iterations_per_epoch}; expected whole "
                "epochs, a multiple of it"
            )
    if not options.num_test and options.num_val:
        raise UserError(
            "--num_test 0 and --num_val were both given; expected held-out knees, or nnU-Net's folds, which keep the "
            "visits of a subject together: leave out --num_val"
        )
    if not options.num_test and "all" in options.folds:
        raise UserError("fold all has no validation cases; give --num_test, or the folds 0 to 4")
    if options.num_val and options.folds != ["0"]:
        raise UserError(f"--num_val makes one split, and --folds are {' '.join(options.folds)}; expected --folds 0")
    if options.data != "phantoms" and not Path(options.data).is_dir():
        raise UserError(f"--data {options.data} is no folder; give one with label maps, or phantoms")
    if options.whole_image and options.patch:
        raise UserError("--whole_image and --patch were both given; expected one of them")
    number = options.num_phantoms if options.data == "phantoms" else len(label_files(Path(options.data)))
    if options.num_test + (options.num_val or 0) >= number:
        raise UserError(
            f"--num_test {options.num_test} and --num_val {options.num_val or 0} leave none of {number} knees for "
            "training; expected fewer"
        )
    values = {**vars(options), "models": words}
    if options.data != "phantoms":
        values["data"] = str(Path(options.data).resolve())
    names = [field.name for field in fields(Arguments)]
    return Arguments(**{name: _frozen(values[name]) for name in names})


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def take_folder(folder: Path, arguments: Arguments, models: list[Model]) -> None:
    """Record the comparison in its folder; raises as ``checked_state`` and ``checked_label_maps``."""
    state = checked_state(folder, arguments, models)
    state["label_maps"] = checked_label_maps(folder, arguments.data)
    write_text(folder / STATE, json.dumps(state, indent=1))


def checked_state(folder: Path, arguments: Arguments, models: list[Model]) -> dict[str, Any]:
    """Compare the arguments with those that the folder was begun with.

    Returns: what its state file shall hold.
    Raises: UserError if it holds a comparison with other arguments or other models of these names, or something else,
        or cannot be written to.
    """
    state = folder / STATE
    now = {"arguments": asdict(arguments), "models": {model.name: asdict(model) for model in models}}
    now = json.loads(json.dumps(now))
    if state.is_file():
        before = read_json(state)
        if not {"arguments", "models"} <= set(before):
            raise UserError(f"{state} was not written by the comparison; give another --folder")
        differing = [
            f"--{name} {before['arguments'].get(name)} there, {value} now"
            for name, value in now["arguments"].items()
            if name not in _MAY_GROW and before["arguments"].get(name) != value
        ]
        differing += [
            f"the model {name} was defined otherwise"
            for name, model in now["models"].items()
            if before["models"].get(name, model) != model
        ]
        if differing:
            raise UserError(
                f"{folder} holds a comparison with other arguments ({'; '.join(differing)}); give another --folder, or "
                "the model another name"
            )
        now["models"] = {**before["models"], **now["models"]}
    elif folder.exists() and {file.name for file in folder.iterdir()} - {LOCK}:
        raise UserError(f"{folder} is not empty and holds no comparison; give another --folder")
    reason = why_not_writable(folder)
    if reason:
        raise UserError(f"{folder} cannot be written to ({reason}); give another --folder")
    return now


def checked_label_maps(folder: Path, data: str) -> dict[str, str]:
    """Checksum of each label map by case; none for phantoms.

    Raises: UserError if the comparison in the folder was begun with other label maps.
    """
    files = {} if data == "phantoms" else label_files(Path(data))
    now = {case: label_source_sha256(file) for case, file in files.items()}
    state = folder / STATE
    then = read_json(state).get("label_maps", now) if state.is_file() else now
    changed = sorted(case for case in {*then, *now} if then.get(case) != now.get(case))
    if changed:
        raise UserError(
            f"the label maps in {data} are not those that {folder} was begun with (added, changed or gone: "
            f"{', '.join(changed[:5])}{', ...' if changed[5:] else ''}); restore them, or give another --folder"
        )
    return now


@contextmanager
def signals_as_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal as Ctrl-C, so that the steps that run are ended.

    Not around the results: processes that are forked there would inherit the handlers, and one that is terminated just
    as it begins to wait for work may wait forever.
    """
    numbers = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_in_folder(
    options: argparse.Namespace,
    arguments: Arguments,
    models: list[Model],
    after: Callable[[Experiment], None],
) -> None:
    """Make data and trainings, or what is left of them, in the folder, then what comes ``after`` them.

    Raises: UserError for a folder of something else, or a failed step.
    """
    folder = options.folder.resolve()
    checked_state(folder, arguments, models)
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"another run is at work in {folder}; wait for it or end it, or give another --folder"
    with locked(folder / LOCK, busy):
        take_folder(folder, arguments, models)
        experiment = Experiment(folder, arguments, models)
        with signals_as_ctrl_c():
            experiment.prepare(options.num_processes)
            experiment.run(jobs=options.jobs)
        after(experiment)


def ended_well(work: Callable[[], None]) -> int:
    """Do a script's work: 0 for success, 1 for a user's mistake or a failed step, 130 for Ctrl-C."""
    try:
        work()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the comparison, or what is left of it. Returns: as ``ended_well``."""
    options = parse(argv)
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "benchmarks.naive_vs_aware", *words])

    def work() -> None:
        arguments = checked(options)
        models = parse_models(arguments.models)
        run_in_folder(options, arguments, models, lambda done: report(done, options.num_processes, command) and None)

    return ended_well(work)


if __name__ == "__main__":
    sys.exit(main())
