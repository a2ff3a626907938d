"""A new workflow's folder: config.yaml, profiles for one machine and for Slurm, job arrays."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nnunetv2_anomaly import files
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import write_failures_as_user_errors, write_text
from nnunetv2_anomaly.workflows.configuration import (
    CONFIG,
    HERE,
    PREFIX,
    Cohort,
    environment_lines,
    parsed,
    read_configuration,
    resources_of,
)
from nnunetv2_anomaly.workflows.engine import visible_gpus
from nnunetv2_anomaly.workflows.steps import DONE, FAILED, levels
from nnunetv2_anomaly.workflows.table import steps_of

#: what a new config.yaml says where nothing else was given; the data set and resources depend on more
DEFAULTS: dict[str, Any] = {
    **{name: value for name, value in vars(Cohort()).items() if name not in ("dataset", "resources")},
    "trainers": {"nnU-Net": "nnUNetTrainer", "anomaly-aware": "AnomalyAwareTrainer"},
}


def init_workflow(folder: Path, settings: Mapping[str, Any], *, template: str = CONFIG) -> None:
    """Write a workflow's folder; config.yaml and profiles that are there are kept, job arrays written again.

    Args: settings: of config.yaml, in place of ``DEFAULTS``. template: published_chain.yaml for that chain.
    Raises: UserError if the folder cannot be written to, or holds something else, or a config.yaml that says otherwise.
    """
    cores = os.cpu_count() or 1
    given = {**DEFAULTS, **settings}
    num_gpus = len(visible_gpus()) if given["device"] == "cuda" else 0
    values: dict[str, Any] = {name: json.dumps(value) for name, value in given.items()}
    values |= {
        "folder": shlex.quote(str(folder)),
        "texts": {name: json.dumps(given[name]) for name in ("compared", "worth", "notes") if given[name]},
        "processes": str(min(4, cores)),
        "resources": {kind: json.dumps(of) for kind, of in _resources(given, cores, num_gpus).items()},
        "cores": str(cores),
        "gpus": str(max(1, num_gpus)),
    }
    if template == CONFIG and not (folder / CONFIG).is_file():
        steps_of(given)  # what is wrong is said before anything is written
    templates = Environment(loader=FileSystemLoader(HERE / "templates"), undefined=StrictUndefined, autoescape=False)
    with write_failures_as_user_errors(folder):
        files.take_output_folder(folder, CONFIG, "workflow")
        if not (folder / CONFIG).is_file():
            write_text(folder / CONFIG, templates.get_template(template).render(values) + "\n")
        for name in ("local", "slurm"):
            target = folder / "profiles" / name / "config.yaml"
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_file():
                write_text(target, templates.get_template(f"{name}.yaml").render(values) + "\n")
    config = read_configuration(folder)
    said = json.loads(json.dumps(settings))
    if other := [name for name in said if config.get(name) != said[name]]:
        fault = f"{folder / CONFIG} says {other[0]}: {config.get(other[0])}, not {said[other[0]]}"
        raise UserError(f"{fault}; edit it, or give another folder with -o")
    parsed(config)
    if template == CONFIG:
        _write_arrays(folder, config, templates)


def _resources(given: Mapping[str, Any], cores: int, num_gpus: int) -> dict[str, dict[str, int]]:
    """Kind of step -> what it takes, for images of the OAI's size where nothing else was given."""
    if "resources" in given:
        return given["resources"]
    gpu = {"gpu": 1} if given["device"] == "cuda" else {}
    few, many = min(4, cores), min(12, max(1, cores // max(1, num_gpus)))  # one training for each GPU
    return {
        "default": {"threads": few, "mem_mb": 8000, "runtime": 240},
        "preprocess": {"threads": few, "mem_mb": 32000, "runtime": 720},
        "train": {"threads": many, "mem_mb": 32000, "runtime": 4320, **gpu},
        "predict": {"threads": few, "mem_mb": 24000, "runtime": 720, **gpu},
    }


def _write_arrays(folder: Path, config: Mapping[str, Any], templates: Environment) -> None:
    """array.sh and array/NUMBER_KIND.txt: Slurm's options in the first line, then a command a line."""
    (folder / "array").mkdir(exist_ok=True)
    for name in (DONE, "logs", ".snakemake"):
        (folder / name).mkdir(exist_ok=True)
    for earlier in (folder / "array").glob("[0-9][0-9]_*.txt"):
        earlier.unlink()
    for number, group in enumerate(levels(steps_of(config))):
        of = resources_of(config, group[0].kind)
        options = [f"--cpus-per-task={of.get('threads', 1)}"]
        options += [f"--mem={of['mem_mb']}"] if "mem_mb" in of else []
        options += [f"--time={of['runtime']}"] if "runtime" in of else []
        options += [f"--gpus={of['gpu']}"] if of.get("gpu") else []
        lines = [f"# {' '.join(options)}"]
        for one in group:
            mark = "" if one.makes else one.output
            words = [f"rm -f {FAILED}/{one.name}"]
            if needs := (*one.needs, *one.follows):
                words.append(f"ls {shlex.join(needs)} > /dev/null")
            words += ["set +e", f"( set -e; {one.command} ) >> logs/{one.name}.log 2>&1", f"finish {one.name} {mark}"]
            lines.append(f"[ -e {shlex.quote(one.output)} ] || {{ {'; '.join(words)}; }}")
        write_text(folder / "array" / f"{number:02d}_{group[0].kind}.txt", "\n".join(lines) + "\n")
    lines = environment_lines(folder, config)
    write_text(folder / "array.sh", templates.get_template("array.sh").render(environment=lines, prefix=PREFIX) + "\n")
