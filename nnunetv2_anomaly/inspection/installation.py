"""Can nnU-Net train and predict with our trainers here? One finding per fact, with the remedy for each fault.

The checks import what they check inside a guard: a broken import is just what a user calls the doctor for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import os
import platform
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nnunetv2_anomaly import __file__ as package_file
from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.environment import FOLDER_VARIABLES, TRAINER_VARIABLE, nnunet_command
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.inspection.findings import Finding, State, warning_if
from nnunetv2_anomaly.registry import TRAINERS

SET_TRAINERS = 'eval "$(nnUNetv2_anomaly env)"'
SET_PATHS = 'eval "$(nnUNetv2_anomaly env --base DIR)"'
REINSTALL = "pip install --force-reinstall --no-deps nnunetv2-anomaly"
COMPILE_VARIABLE = "nnUNet_compile"
COMMANDS = ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict")
#: what training and prediction cannot do without; a module is named like its distribution, with underscores
DISTRIBUTIONS = (
    *("nnunetv2", "torch", "batchgenerators", "batchgeneratorsv2", "dynamic-network-architectures", "acvl-utils"),
    *("SimpleITK", "numpy", "scipy", "blosc2"),
)

GB = 1e9  # bytes
LITTLE_DISK, LITTLE_MEMORY, LITTLE_SHARED_MEMORY = 10 * GB, 8 * GB, 1 * GB


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _requirements() -> dict[str, list]:
    """What this package and nnU-Net require: distribution in lower case -> [(who requires, specifier), ...]."""
    from packaging.requirements import Requirement  # comes with nnU-Net's dependencies

    required: dict[str, list] = {}
    for owner in ("nnunetv2-anomaly", "nnunetv2"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for line in importlib.metadata.requires(owner) or []:
                requirement = Requirement(line)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    required.setdefault(requirement.name.lower(), []).append((owner, requirement.specifier))
    return required


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "ok", f"python {platform.python_version()} on {platform.platform()}")
    folder, installed = Path(package_file).parent, _installed("nnunetv2-anomaly")
    kind = "editable" if _editable_source("nnunetv2-anomaly") else "wheel"
    text = f"nnunetv2-anomaly {__version__} in {folder}, installed is {installed} ({kind} install)"
    remedy = f"pip install -e {shlex.quote(str(folder.parent))}"
    yield warning_if(installed != __version__, "versions", text, remedy)
    required = _requirements()
    for distribution in DISTRIBUTIONS:
        yield _version(distribution, distribution.replace("-", "_"), required.get(distribution.lower(), []))


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _editable_source(distribution: str) -> str | None:
    """The folder of an editable install, None if the distribution is missing or installed otherwise."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        origin = json.loads(importlib.metadata.distribution(distribution).read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            return origin["url"].removeprefix("file://")
    return None


def _version(distribution: str, module_name: str, required: list) -> Finding:
    topic, version = "versions", _installed(distribution)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        text = f"{distribution} {version} cannot be imported ({_one_line(error)})"
        return Finding(topic, "fault", text, f"pip install --force-reinstall {distribution}")
    # Only nnU-Net is asked: batchgeneratorsv2, for one, comes without an __init__.py.
    if distribution == "nnunetv2" and getattr(module, "__file__", None) is None:
        return _hidden_package(distribution, list(getattr(module, "__path__", [])))
    for owner, specifier in required:
        if version[0].isdigit() and not specifier.contains(version, prereleases=True):
            text = f"{distribution} {version} is installed, but {owner} needs {distribution}{specifier}"
            return Finding(topic, "fault", text, f"pip install {shlex.quote(f'{distribution}{specifier}')}")
    return Finding(topic, "ok", f"{distribution} {version}")


def _hidden_package(distribution: str, folders: list[str]) -> Finding:
    """A folder without __init__.py stands where the package is expected, as after an editable install of nnU-Net.

    Python's own path search comes before setuptools' hook for editable packages, and meets our wheel's folder inside
    one named nnunetv2, or what an uninstall has left of it. With editable_mode=compat nnU-Net's checkout is on it.
    """
    source = _editable_source(distribution)
    text = f"the folder {', '.join(folders)} without the package in it hides {distribution}"
    remedy = f"pip install --force-reinstall --no-deps {distribution}"
    if source is not None:
        remedy = f"pip install --no-deps --config-settings editable_mode=compat -e {shlex.quote(source)}"
    return Finding("versions", "fault", text, remedy)


def _paths() -> Iterator[Finding]:
    return (_folder(variable, os.environ.get(variable)) for variable in FOLDER_VARIABLES)


def _folder(variable: str, value: str | None) -> Finding:
    topic = "paths"
    if not value:
        return Finding(topic, "fault", f"{variable} is not set", SET_PATHS)
    folder = Path(value)
    if not folder.is_dir():
        return Finding(topic, "fault", f"{variable}={value} is no folder", f"mkdir -p {shlex.quote(value)}")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        # Images may well lie on a read-only share: nnU-Net only reads them.
        state: State = "warning" if variable == "nnUNet_raw" else "fault"
        text = f"{variable}={value} is not writable ({error.strerror})"
        return Finding(topic, state, text, f"chmod u+rwx {shlex.quote(value)}")
    free = shutil.disk_usage(folder).free
    text = f"{variable}={value}, {free / GB:.1f} GB free"
    remedy = "free some disk space, or point the variable at a larger disk"
    return warning_if(free < LITTLE_DISK and variable != "nnUNet_raw", topic, text, remedy)


def _trainers() -> Iterator[Finding]:
    for folder in filter(str.strip, os.environ.get(TRAINER_VARIABLE, "").split(os.pathsep)):
        if not os.path.isdir(folder):
            text = f"{TRAINER_VARIABLE} names {folder}, which is not a folder"
            yield Finding("trainers", "warning", text, f"take {folder} out of {TRAINER_VARIABLE}")
    for name in TRAINERS:
        yield _trainer(name)


def find_trainer(name: str) -> Any:
    """A trainer class as nnUNetv2_train -tr and nnUNetv2_predict find it. Raises: RuntimeError if there is none."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    # The search prints its steps on standard output, which is the report's place.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return recursive_find_trainer_class_by_name(name)


def _trainer(name: str) -> Finding:
    topic = "trainers"
    try:
        expected = getattr(importlib.import_module("nnunetv2_anomaly.trainers"), name)
    except (Exception, SystemExit) as error:
        return Finding(topic, "fault", f"{name} cannot be imported ({_one_line(error)})", REINSTALL)
    try:
        found = find_trainer(name)
    except RuntimeError:  # what nnU-Net raises when no folder holds the class
        return Finding(topic, "fault", f"nnU-Net does not find {name}", SET_TRAINERS)
    except (Exception, SystemExit) as error:
        text = f"nnU-Net's search for {name} stops at a trainer that cannot be imported ({_one_line(error)})"
        return Finding(topic, "fault", text, f"repair or remove that trainer's folder (see {TRAINER_VARIABLE})")
    inside = importlib.util.find_spec("nnunetv2.training.nnUNetTrainer.anomaly") is not None
    route = "nnunetv2's own folder nnUNetTrainer/anomaly" if inside else TRAINER_VARIABLE
    if found is not expected:
        text = f"nnU-Net finds another {name} in {inspect.getfile(found)}, through {route}"
        return Finding(topic, "fault", text, f"remove that one, or its folder from {TRAINER_VARIABLE}")
    return Finding(topic, "ok", f"{name} in {inspect.getfile(found)}, found through {route}")


def _commands() -> Iterator[Finding]:
    topic = "commands"
    for name in COMMANDS:
        try:
            ours = nnunet_command(name)
        except UserError as error:
            yield Finding(topic, "fault", str(error), "pip install --force-reinstall --no-deps nnunetv2")
            continue
        first = shutil.which(name)
        elsewhere = first is None or not os.path.samefile(first, ours)
        text = f"{name} lies in {os.path.dirname(ours)}, and typing its name runs {first or 'nothing'}"
        yield warning_if(elsewhere, topic, text, f"export PATH={shlex.quote(os.path.dirname(ours))}:$PATH")


def _gpu() -> Iterator[Finding]:
    torch = importlib.import_module("torch")
    topic = "GPU"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(topic, "ok", f"cuda:{index} {properties.name}, {properties.total_memory / GB:.1f} GB")
        yield _compilation()
        return
    remedy = "add -device cpu to nnUNetv2_train and nnUNetv2_predict"
    if torch.backends.mps.is_available():
        yield Finding(topic, "ok", "mps (Apple GPU, shares the main memory): add -device mps to nnU-Net's commands")
    elif torch.version.cuda is not None:
        text = f"no GPU: torch is built for CUDA {torch.version.cuda} and sees no device; the CPU works, slowly"
        yield Finding(topic, "warning", text, f"check the driver with nvidia-smi, or {remedy}")
    else:
        yield Finding(topic, "warning", "no GPU that this torch could use; the CPU works, slowly", remedy)
    yield Finding("torch.compile", "ok", "off: nnU-Net compiles on CUDA only")


def _compilation() -> Finding:
    """Whether nnU-Net compiles the network on CUDA (it does unless told otherwise), and whether it can."""
    topic = "torch.compile"
    wish = os.environ.get(COMPILE_VARIABLE)
    if os.name == "nt" or (wish is not None and wish.lower() not in ("true", "1", "t")):
        return Finding(topic, "ok", "off, by nnUNet_compile or on Windows")
    said = "by default" if wish is None else f"by nnUNet_compile={wish}"
    remedy = "export nnUNet_compile=0"
    if importlib.util.find_spec("triton") is None:
        return Finding(topic, "fault", f"on {said}, but triton is not installed", f"pip install triton, or {remedy}")
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CC", ""), "gcc", "clang", "cc")):
        return Finding(topic, "fault", f"on {said}, but triton finds no C compiler", f"install gcc, or {remedy}")
    return Finding(topic, "ok", f"on {said}")


def _memory() -> Iterator[Finding]:
    """Main memory that this process may use: a container's limit where it is smaller than the machine's memory."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (float(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except OSError:
        yield Finding("memory", "ok", "this system does not say how much memory it has")
        return
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max" in it
        limit, used = (float(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        if limit < total:
            total, available = limit, min(limit - used, available)
    text = f"{total / GB:.1f} GB, of which {available / GB:.1f} GB are available"
    yield warning_if(available < LITTLE_MEMORY, "memory", text, "export nnUNet_n_proc_DA=2 nnUNet_def_n_proc=2")


def _shared_memory() -> Iterator[Finding]:
    folder = "/dev/shm"
    if os.path.isdir(folder):  # elsewhere it has no limit of its own
        usage = shutil.disk_usage(folder)
        text = f"{folder} has {usage.total / GB:.1f} GB, of which {usage.free / GB:.1f} GB are free"
        text += "; workers that load data die without a message when it is full"
        remedy = "export nnUNet_n_proc_DA=2, or start docker with --shm-size=8g"
        yield warning_if(usage.free < LITTLE_SHARED_MEMORY, "shared memory", text, remedy)


def _workers() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("workers", "ok", f"{cores} CPU cores")
    yield _worker_count("nnUNet_def_n_proc", "preprocessing and export", cores, default=8, least=1)
    # nnU-Net takes at most one worker per core here, whatever was asked for; 0 = in the training process itself.
    yield _worker_count("nnUNet_n_proc_DA", "data augmentation", cores, default=min(12, os.cpu_count() or 1), least=0)


def _worker_count(variable: str, purpose: str, cores: int, *, default: int, least: int) -> Finding:
    value = os.environ.get(variable)
    remedy = f"export {variable}={cores}"
    if value is not None and (not value.isdecimal() or int(value) < least):
        return Finding("workers", "fault", f"{variable}={value}; expected a whole number from {least}", remedy)
    count = default if value is None else int(value)
    if count == 0:
        text = f"{variable}=0 is for exact runs of nnUNetv2_train alone: planning ends in a RuntimeError of torch"
        return Finding("workers", "warning", text, f"unset {variable}, and write {variable}=0 before nnUNetv2_train")
    said = f"{variable} is not set, nnU-Net takes {count}" if value is None else f"{variable}={value}"
    text = f"{said} ({purpose}) on {cores} cores; each worker takes memory"
    return warning_if(count > 2 * cores, "workers", text, remedy)


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": _versions,
    "paths": _paths,
    "trainers": _trainers,
    "commands": _commands,
    "GPU": _gpu,
    "memory": _memory,
    "shared memory": _shared_memory,
    "workers": _workers,
}


def diagnose() -> list[Finding]:
    """Look at everything that training and prediction need, in the environment as it is; takes seconds.

    Nothing is raised: a check that fails is a finding itself.
    """
    findings: list[Finding] = []
    for topic, check in CHECKS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other packages' deprecations are no finding
            try:
                findings.extend(check())
            except (Exception, SystemExit) as error:
                # torch's faults are reported under versions; what else fails here is for us to repair.
                remedy = "fix the faults above first; if none is left, report this line as an issue"
                findings.append(Finding(topic, "warning", f"the check itself failed ({_one_line(error)})", remedy))
    return findings
