"""Snakemake, which runs the steps of workflows and benchmarks: its start, its locks, its dry run."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_anomaly import files
from nnunetv2_anomaly.environment import FOLDER_VARIABLES
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import write_failures_as_user_errors, write_text
from nnunetv2_anomaly.workflows.configuration import (
    CONFIG,
    SNAKEFILE,
    Chain,
    Cohort,
    environment_lines,
    parsed,
    read_configuration,
)
from nnunetv2_anomaly.workflows.steps import PLANS, Step, failures, left_out
from nnunetv2_anomaly.workflows.table import steps_of

#: what Snakemake is given without a profile
_DEFAULTS = (
    "--keep-going", "--rerun-incomplete", "--rerun-triggers", "mtime", "params", "input", "--scheduler", "greedy",
)  # fmt: skip


def visible_gpus() -> list[str]:
    """Numbers of this machine's GPUs, as CUDA_VISIBLE_DEVICES has them: from 0, also where a container has the last."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [number for number in given.split(",") if number]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def run_snakemake(folder: Path, profile: str, more: Sequence[str] = ()) -> None:
    """Become Snakemake, which takes this process's place and holds the folder's lock for as long as it lives.

    Snakemake's own lock stays behind where it is killed; this one does not.

    Args: profile: folder below profiles/, or path of another. more: further options of Snakemake.
    Raises: UserError as ``snakemake_words``, or if another run, or a step that outlived one, is at work in the folder.
    """
    words = snakemake_words(folder, profile)
    with _alone(folder) as lock:
        os.set_inheritable(lock, True)
        gpus = visible_gpus()
        # The steps run in another folder than this process.
        absolute = {name: os.path.abspath(os.environ[name]) for name in FOLDER_VARIABLES if os.environ.get(name)}
        dealt = {"NNUNETV2_ANOMALY_GPUS": ",".join(gpus), "NNUNETV2_ANOMALY_JOB": os.environ.get("SLURM_JOB_ID", "")}
        environment = {**os.environ, **absolute, **(dealt if len(gpus) > 1 else {})}
        again = ["nnUNetv2_anomaly", "workflow", "run", "--profile", profile, str(folder.resolve())]
        environment["NNUNETV2_ANOMALY_RUN"] = shlex.join(again)
        sys.stdout.flush()
        os.execve(words[0], [*words, *more, "--nolock"], environment)


def _check_sources(folder: Path, settings: Cohort | Chain) -> None:
    """Raises: UserError if a cohort's data set, images, labels or lesions are missing, and no step makes them."""
    if isinstance(settings, Cohort) and settings.convert is None:
        for name in ("images", "references", "anomalies"):
            given = getattr(settings, name)
            if given is not None and not (folder / given).is_dir():
                expected = f"expected one, absolute or relative to {folder}"
                raise UserError(f"{folder / CONFIG}: {name} is {given}, which is no folder; {expected}")
        data = settings.data_set(settings.dataset)
        if not (described := folder / data.described).is_file() and not (folder / data.plans(PLANS)).is_file():
            advice = f"convert {settings.dataset} first, or name the command that does as convert in {folder / CONFIG}"
            raise UserError(f"there is no {described}; {advice}")


def dry_run(folder: Path, profile: str = "local", more: Sequence[str] = ()) -> int:
    """Print the commands that are left, one a line, after the lines that set their environment. Returns: 0.

    Raises: UserError as ``snakemake_words``, or with Snakemake's own words.
    """
    words = [*snakemake_words(folder, profile), "--dry-run", "--nolock", "--quiet", "progress", *more]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"Snakemake cannot plan {folder}: {(done.stdout + done.stderr).strip()}")
    config = read_configuration(folder)
    left = set(re.findall(r"^(?:local)?rule (\w+):$", done.stdout + done.stderr, re.MULTILINE))
    for line in environment_lines(folder, config):
        print(line)
    for one in steps_of(config):
        if one.name in left:
            print(one.command)
    return 0


def snakemake_words(folder: Path, profile: str) -> list[str]:
    """The command that runs a workflow.

    Raises: UserError if Snakemake is not installed, the folder holds no workflow, its settings are wrong, or what it
        starts from is missing.
    """
    check_snakemake()
    config = read_configuration(folder)
    steps_of(config)
    _check_sources(folder, parsed(config))
    chosen = folder / "profiles" / profile if (folder / "profiles" / profile).is_dir() else Path(profile)
    if not chosen.is_dir():
        raise UserError(f"there is no profile {profile} in {folder / 'profiles'}; expected local, slurm or a folder")
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(folder)),
        *("--configfile", str(folder / CONFIG), "--profile", str(chosen)),
    ]


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Lock the folder of a run. Yields: the lock's file descriptor."""
    state = folder / ".snakemake"
    with write_failures_as_user_errors(folder):
        state.mkdir(parents=True, exist_ok=True)
    busy = f"another run is at work in {folder}, or a step that outlived one; wait for it, or end it"
    with files.locked(state / "steps.lock", busy):
        pass
    with files.locked(state / "run.lock", busy) as lock:
        yield lock


def run_steps(folder: Path, steps: Sequence[Step], environment: Mapping[str, str], jobs: int = 1) -> None:
    """Run steps that no config.yaml describes, several side by side; those that are done are left alone.

    Args: folder: gets logs/NAME.log and records/NAME.tsv. environment: of the commands.
    Raises: UserError naming the log of each step that failed, or left out cases; KeyboardInterrupt once all steps have
        ended, too.
    """
    check_snakemake()
    with _alone(folder):
        table = folder / "steps.json"
        write_text(table, json.dumps({"steps": [dataclasses.asdict(one) for one in steps]}, indent=1))
        words = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--directory", str(folder)]
        words += ["--configfile", str(table), "--cores", str(jobs), "--nolock", "--quiet", "all", *_DEFAULTS]
        process = subprocess.Popen(words, env=dict(environment), start_new_session=True)
        try:
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C, which every step gets
            process.wait()
            raise
    if status:
        faults = [*failures(folder, steps), *left_out(folder, steps).values()]
        faults = faults or ["Snakemake failed; its words stand above"]
        raise UserError("; ".join(faults) + "; fix the cause and run the same command again to resume")


def check_snakemake() -> None:
    """Raises: UserError if Snakemake is not installed."""
    if importlib.util.find_spec("snakemake") is None:
        raise UserError(
            'workflows run on Snakemake, which is not installed; run pip install "nnunetv2-anomaly[cluster]"'
        )
