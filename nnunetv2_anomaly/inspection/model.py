"""Looks into a model that somebody else has made, without running anything of it and without writing a file.

nnU-Net loads checkpoints with ``torch.load(weights_only=False)``: a pickle names functions, and loading calls them. So
a checkpoint is a program. Here its pickle is read as a text: every instruction is followed on a stack that holds no
objects but notes of what would lie there, and whatever is not known to be what torch and nnU-Net store is a fault. A
list of forbidden names would have to be complete; the list of allowed ones only has to be right. Weights are read with
torch's own restricted loader, and only where that text is clean.

Members of a zip file are read in memory; nothing is unpacked. What is in the file is trusted nowhere: names and values
are shortened and freed of control characters before they are shown.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import json
import os
import re
import stat
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import nnunetv2
import numpy as np
import torch
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_anomaly.detectors.quality import describe_quality
from nnunetv2_anomaly.environment import FOLDER_VARIABLES, TRAINER_VARIABLE
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.inspection.installation import SET_TRAINERS, Finding, State, memory
from nnunetv2_anomaly.inspection.pickle_scan import DAMAGE, PickleScan, scan_pickle, shown
from nnunetv2_anomaly.plans.settings import SECTION, section_of
from nnunetv2_anomaly.registry import TRAINERS
from nnunetv2_anomaly.training.checkpoints import DETECTOR_KEY as CHECKPOINT_KEY

#: the last line of the report, without and with a fault
VERDICTS = (
    "no fault found, which is no proof that its author means well",
    "this model should not, or could not, be used here",
)

DO_NOT_LOAD = "do not install or load it; ask its author what this is for"
FETCH_AGAIN = "fetch the file again, or ask its author for a whole one"
ASK_AUTHOR = "ask its author; do not install it before you know what this is"

# What a model may measure. Weights hardly shrink in a zip, and no network of nnU-Net's comes near these sizes.
MAX_UNPACKED_BYTES = 200e9
MAX_RATIO = 100.0
RATIO_COUNTS_FROM_BYTES = 10e6
MAX_MEMBERS = 200_000
MAX_PICKLE_BYTES = 64_000_000
MAX_JSON_BYTES = 10_000_000
MAX_MODELS = 20
#: a checkpoint is read into memory twice, packed members once more
MEMORY_FACTOR = 2.5
#: findings of one topic and state that are shown, the rest is counted
MAX_SHOWN = 12


def _size(count: float) -> str:
    """Bytes for a reader."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} bytes"


def _scan_findings(label: str, scan: PickleScan) -> Iterator[Finding]:
    for name in scan.foreign:
        text = f"{label} would run code when loaded: it names {shown(name)}, which no checkpoint of nnU-Net's does"
        yield Finding("checkpoint", "fault", text, DO_NOT_LOAD)
    for clause in scan.oddities:
        yield Finding("checkpoint", "fault", f"{label} could run code when loaded: {clause}", DO_NOT_LOAD)


# ---------------------------------------------------------------------------------------------------- a checkpoint

#: members of an archive that torch.save writes, below its one folder
_TORCH_MEMBER = re.compile(
    r"data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
)
#: nnU-Net's own entries of a checkpoint
_NNUNET_ENTRIES = {
    "network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch", "init_args",
    "trainer_name", "inference_allowed_mirroring_axes",
}  # fmt: skip
_PICKLE_SUFFIXES = {".pkl", ".pickle", ".pth", ".pt", ".ckpt", ".bin", ".joblib", ".model"}
_CHECKPOINT_SUFFIXES = {".pth", ".pt", ".ckpt"}


@dataclass(frozen=True)
class _Facts:
    """What a checkpoint's plain data and weights say; the weights themselves are let go."""

    trainer: str | None
    configuration: str | None
    fold: str | None
    plans: dict | None
    plans_digest: str | None
    has_detector: bool
    extra: Any


def _digest(plans: Any) -> str | None:
    """Equal for plans that are equal as JSON; None for plans that JSON cannot hold."""
    try:
        text = json.dumps(plans, sort_keys=True, default=lambda value: type(value).__name__)
    except (TypeError, ValueError, RecursionError):
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _torch_layout(archive: zipfile.ZipFile, size: int) -> Iterator[str]:
    """Clauses on what is not as torch.save writes it; then another reader could see another file than this one."""
    infos = archive.infolist()
    root = infos[0].orig_filename.partition("/")[0] if infos else ""
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename
        folder, _, rest = name.partition("/")
        if folder != root or not _TORCH_MEMBER.fullmatch(rest):
            yield f"it holds {shown(name)}, which torch.save does not write"
        # torch looks names up without regard to case.
        if name.casefold() in seen:
            yield f"it holds {shown(name)} twice"
        seen.add(name.casefold())
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
            yield f"its member {shown(name)} is compressed or encrypted, which torch.save does not do"
    if f"{root}/data.pkl".casefold() not in seen:
        yield "it holds no data.pkl where torch looks for it"
    if archive.comment:
        yield "it carries a comment, which torch.save does not write"
    if sum(info.file_size for info in infos) > size:
        yield "its members overlap"


def _as_torch_reads(file: IO[bytes], names: Iterable[str], pickled: bytes) -> bool:
    """Does torch's own zip reader, which is not Python's, see the same members and the same pickle?"""
    reader_class = getattr(torch._C, "PyTorchFileReader", None)  # what torch.load opens archives with
    if reader_class is None:
        return True
    file.seek(0)
    try:
        reader = reader_class(file)
        return sorted(reader.get_all_records()) == sorted(names) and reader.get_record("data.pkl") == pickled
    except DAMAGE:
        return False


def _numpy_globals() -> list[Any]:
    """What torch's restricted loader must know beyond torch's own for numpy's numbers and words in nnU-Net's log."""
    core = getattr(np, "_core", None) or np.core
    functions = [core.multiarray.scalar, core.multiarray._reconstruct]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    codes = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "U1")
    types = {type(np.dtype(code)) for code in codes}
    return [
        *((function, f"{module}.{function.__name__}") for function in functions for module in modules),
        np.dtype,
        np.ndarray,
        *types,
    ]


def _read_weights(file: IO[bytes]) -> Any:
    """The checkpoint through torch's restricted loader, on the CPU."""
    file.seek(0)
    with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_globals()):
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _inspect_checkpoint(label: str, file: IO[bytes], size: int, *, read: bool) -> tuple[list[Finding], _Facts | None]:
    """Scan a checkpoint, and where it is clean, read its weights.

    Args:
        label: what to call it.
        file: open, seekable.
        size: in bytes.
        read: whether there is memory for the weights.
    """
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        return list(_inspect_old_format(label, file)), None
    try:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            clauses = list(_torch_layout(archive, size))
            scans = _scan_archive(archive)
            damaged = None if clauses else archive.testzip()
    except DAMAGE as error:
        text = f"{label} is a damaged torch archive, or one that is made to look so ({type(error).__name__})"
        return [Finding("checkpoint", "fault", text, DO_NOT_LOAD)], None
    findings = [finding for scan, _ in scans for finding in _scan_findings(label, scan)]
    findings += [
        Finding("checkpoint", "fault", f"{label} is not as torch.save writes it: {clause}", DO_NOT_LOAD)
        for clause in dict.fromkeys(clauses)
    ]
    if damaged is not None:
        text = f"{label} is damaged: the checksum of its member {shown(damaged)} is wrong"
        findings.append(Finding("checkpoint", "fault", text, FETCH_AGAIN))
    if findings:
        return findings, None
    ((scan, pickled),) = scans
    text = f"{label}: {_size(size)}, names nothing but what torch and nnU-Net store ({len(scan.names)} names)"
    if not read:
        text = f"{text}, but the memory is too small for its weights ({_size(size)}): they were not looked at"
        return [Finding("checkpoint", "warning", text, "inspect it where more memory is free")], None
    with zipfile.ZipFile(file) as archive:
        names = [info.filename.partition("/")[2] for info in archive.infolist()]
    if not _as_torch_reads(file, names, pickled):
        text = f"{label} is not as torch.save writes it: torch's reader sees another file in it than Python's does"
        return [Finding("checkpoint", "fault", text, DO_NOT_LOAD)], None
    findings.append(Finding("checkpoint", "ok", text))
    try:
        content = _read_weights(file)
    except Exception as error:  # the restricted loader refuses with many kinds, and any of them is an answer
        # Its own text is not shown: it advises to load without restriction.
        text = f"{label}: torch's restricted loader refuses it ({type(error).__name__}), so its weights were not read"
        mend = "ask its author to save it again with torch.save's defaults (pickle protocol 2)"
        return [*findings, Finding("weights", "warning", text, mend)], None
    described, facts = _describe(label, content)
    return [*findings, *described], facts


def _scan_archive(archive: zipfile.ZipFile) -> list[tuple[PickleScan, bytes]]:
    """Every pickle of a torch archive: where there is more than one, readers may differ in which they take."""
    infos = archive.infolist()
    storages = {info.filename.partition("/data/")[2]: info.file_size for info in infos if "/data/" in info.filename}
    scans = []
    for info in infos:
        is_main = info.filename.count("/") == 1 and info.filename.endswith("/data.pkl")
        if not is_main and PurePosixPath(info.filename).suffix.lower() not in _PICKLE_SUFFIXES:
            continue
        if info.file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"a pickle of {info.file_size} bytes")
        with archive.open(info) as member:
            pickled = member.read(MAX_PICKLE_BYTES + 1)
        scans.append((scan_pickle(pickled, storages), pickled))
    return scans


def _inspect_old_format(label: str, file: IO[bytes]) -> Iterator[Finding]:
    """What is no torch archive: torch.load would unpickle its first bytes, so they are scanned and it is refused."""
    file.seek(0)
    data = file.read(MAX_PICKLE_BYTES + 1)
    if not data:
        yield Finding("checkpoint", "fault", f"{label} is empty", FETCH_AGAIN)
        return
    foreign: dict[str, None] = {}
    # The old format is several pickles in a row; their names are told as far as they can be read.
    start = 0
    for _ in range(5):
        scan = scan_pickle(data[start:MAX_PICKLE_BYTES])
        foreign.update(dict.fromkeys(scan.foreign))
        if scan.ended_at < 0:
            break
        start += scan.ended_at + 1
    yield from _scan_findings(label, PickleScan((), tuple(foreign), ()))
    text = f"{label} is no archive as torch.save has written since version 1.6: its content cannot be judged here"
    yield Finding("checkpoint", "fault", text, DO_NOT_LOAD)


def _text_entry(mapping: Any, key: str) -> str | None:
    value = mapping.get(key) if isinstance(mapping, dict) else None
    return value if isinstance(value, str) else None


def _describe(label: str, content: Any) -> tuple[list[Finding], _Facts | None]:
    """Weights and plain data of a checkpoint that was read."""
    weights = content.get("network_weights") if isinstance(content, dict) else None
    is_nnunets = isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    )
    if not is_nnunets or not weights:
        text = f"{label} holds no 'network_weights': it is no checkpoint of nnU-Net's"
        return [Finding("weights", "fault", text, "use a checkpoint that nnU-Net has written")], None
    init_args = content.get("init_args")
    plans = init_args.get("plans") if isinstance(init_args, dict) else None
    fold = init_args.get("fold") if isinstance(init_args, dict) else None
    facts = _Facts(
        trainer=_text_entry(content, "trainer_name"),
        configuration=_text_entry(init_args, "configuration"),
        fold=str(fold) if isinstance(fold, (int, str)) else None,
        plans=plans if isinstance(plans, dict) else None,
        plans_digest=None if plans is None else _digest(plans),
        has_detector=any(name.startswith("detector.") for name in weights),
        extra=content.get(CHECKPOINT_KEY),
    )
    findings = [_weights_finding(label, weights, content, facts)]
    if facts.trainer is None or facts.configuration is None:
        text = f"{label} does not tell its trainer and configuration, which prediction asks for"
        findings.append(Finding("weights", "fault", text, "use a checkpoint that nnU-Net has written"))
    return findings, facts


def _weights_finding(label: str, weights: dict[str, Tensor], content: dict, facts: _Facts) -> Finding:
    # The same tensor may stand under several names, as nnU-Net's decoder holds the encoder once more.
    distinct = {
        (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape)): (name, value)
        for name, value in weights.items()
    }
    count = sum(value.numel() for _, value in distinct.values())
    broken = [
        name
        for name, value in distinct.values()
        if (value.is_floating_point() or value.is_complex()) and not bool(torch.isfinite(value).all())
    ]
    axes = content.get("inference_allowed_mirroring_axes")
    mirrored = f"mirrors axes {shown(list(axes))}" if isinstance(axes, (tuple, list)) and axes else "mirrors no axis"
    epoch = content.get("current_epoch")
    parts = [f"{count:,} numbers in {len(distinct)} tensors"]
    if broken:
        names = ", ".join(shown(name, 60) for name in broken[:3]) + (" and more" if len(broken) > 3 else "")
        text = f"{label}: {parts[0]}, of which {len(broken)} hold NaN or infinity ({names})"
        return Finding("weights", "fault", text, "the training has failed; ask for another checkpoint")
    parts.append("all finite")
    parts.append(f"trained by {shown(facts.trainer)} on {shown(facts.configuration)}, fold {shown(facts.fold)}")
    if isinstance(epoch, int):
        parts.append(f"epoch {epoch}")
    parts.append(mirrored)
    extra = sorted(shown(key, 40) for key in content if key not in _NNUNET_ENTRIES)
    if extra:
        parts.append(f"stores besides: {', '.join(extra[:8])}")
    return Finding("weights", "ok", f"{label}: {', '.join(parts)}")


# --------------------------------------------------------------------------------------------------------- trainers


def _overlapping_trainer_folder(root: Path | None) -> str | None:
    """A folder of nnUNet_extTrainer that holds the model or lies in it: a search there would import what came along."""
    if root is None:
        return None
    ours = os.path.realpath(root)
    for folder in filter(str.strip, os.environ.get(TRAINER_VARIABLE, "").split(os.pathsep)):
        theirs = os.path.realpath(folder)
        with contextlib.suppress(ValueError):  # another drive
            if os.path.commonpath((ours, theirs)) in (ours, theirs):
                return folder
    return None


def _find_trainer(name: str, root: Path | None) -> tuple[Finding, type | None]:
    """Look a trainer up by name as nnU-Net does, in this installation alone.

    Args: root: the inspected folder; None for a single file, out of which nothing can be imported.
    """
    topic = "trainer"
    if not name.isidentifier() or not name.isascii():
        text = f"the checkpoint's trainer is called {shown(name)!r}, which is no name of a class"
        return Finding(topic, "fault", text, DO_NOT_LOAD), None
    overlapping = _overlapping_trainer_folder(root)
    if overlapping is not None:
        text = f"{name} was not looked up: {TRAINER_VARIABLE} names {overlapping}, where the inspected files lie"
        return Finding(topic, "warning", text, f"take {overlapping} out of {TRAINER_VARIABLE}"), None
    try:
        # The search tells its steps on standard output, which is the report's place.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = recursive_find_trainer_class_by_name(name)
        place = inspect.getfile(found)
    except Exception as error:  # a search imports everybody's trainers, and they fail in many ways
        text = f"{name} is not found in this installation ({type(error).__name__})"
        mend = SET_TRAINERS if name in TRAINERS else "install what brings that trainer; read code that came along first"
        return Finding(topic, "fault", text, mend), None
    return Finding(topic, "ok", f"{name} in {place}"), found


def _detector_finding(label: str, trainer: type | None, facts: _Facts) -> Finding | None:
    """Whether the detector travels along. What a trainer needs is told by the settings that it has."""
    topic = "detector"
    if hasattr(trainer, "inpainting_epochs"):
        extra = facts.extra if isinstance(facts.extra, dict) else {}
        if not facts.has_detector or not extra:
            text = f"{label} holds no detector, although {facts.trainer} trains one"
            return Finding(topic, "fault", text, "use a checkpoint that the pre-stage has written")
        if extra.get("distilling") is not True:
            text = f"{label}: the detector is not distilled yet, the pre-stage was not finished"
            return Finding(topic, "warning", text, "use the checkpoint_final.pth of a finished pre-stage")
        cases = extra.get("training_cases")
        text = f"{label}: a finished detector"
        if isinstance(cases, (list, tuple)):
            text += f"; the checkpoint names the {len(cases)} cases that it was trained on"
        try:
            sentence, beats = describe_quality(extra["quality"])
        except (KeyError, TypeError, ValueError):
            return Finding(topic, "ok", text)
        if not beats:
            mend = "train the pre-stage for longer before you use it"
            return Finding(topic, "warning", f"{text}; {sentence}: no better than those", mend)
        return Finding(topic, "ok", f"{text}; {sentence}")
    if hasattr(trainer, "prestage_trainer"):
        if facts.has_detector:
            return Finding(topic, "ok", f"{label}: the detector is inside, prediction needs no pre-stage")
        text = f"{label} holds no detector, although {facts.trainer} needs one: nnU-Net could not load it"
        return Finding(topic, "fault", text, "ask for a checkpoint as the trainer has written it")
    return None


# ------------------------------------------------------------------------------------------------------------ plans

#: network classes and layers that nnU-Net plans and ours; exact depth, since a longer path could lead out of a module
_KNOWN_NETWORK = re.compile(
    r"dynamic_network_architectures\.architectures\.[a-z_0-9]+\.[A-Z]\w*|nnunetv2_anomaly\.networks\.[a-z_]+\.[A-Z]\w*"
)
_KNOWN_LAYER = re.compile(
    r"torch\.nn\.(modules\.(conv|instancenorm|batchnorm|normalization|dropout|activation)\.)?[A-Z]\w*"
    r"|dynamic_network_architectures\.building_blocks\.[a-z_0-9]+\.[A-Z]\w*"
)


@dataclass(frozen=True)
class _Wanted:
    """Something of nnU-Net's that plans name: where nnU-Net searches it, and what it must be."""

    what: str
    folder: tuple[str, ...]
    base: str | None


_READER = _Wanted("image reader", ("imageio",), "BaseReaderWriter")
_LABELS = _Wanted("label manager", ("utilities", "label_handling"), "LabelManager")
_PREPROCESSOR = _Wanted("preprocessor", ("preprocessing",), "DefaultPreprocessor")
_NORMALISER = _Wanted("normalisation", ("preprocessing", "normalization"), "ImageNormalization")
_RESAMPLING = _Wanted("resampling", ("preprocessing", "resampling"), None)


def _is_theirs(wanted: _Wanted, found: Any) -> bool:
    """Is it of the right kind and defined in that folder, not merely imported there?"""
    module = ".".join(("nnunetv2", *wanted.folder))
    if not getattr(found, "__module__", "").startswith(module):
        return False
    if wanted.base is None:
        return inspect.isfunction(found)
    return inspect.isclass(found) and any(cls.__name__ == wanted.base for cls in found.__mro__)


def _lookup_fault(wanted: _Wanted, name: Any) -> Finding | None:
    """What is wrong with a name that nnU-Net searches among its own modules; None where it is found there."""
    topic = "plans"
    if not isinstance(name, str) or not name.isidentifier():
        text = f"plans.json names the {wanted.what} {shown(name)!r}, which is no name of a class or function"
        return Finding(topic, "fault", text, ASK_AUTHOR)
    root = nnunetv2.__path__[0]
    module = ".".join(("nnunetv2", *wanted.folder))
    try:
        found = recursive_find_python_class(os.path.join(root, *wanted.folder), name, module)
    except Exception as error:  # importing nnU-Net's own modules
        text = f"nnU-Net's search for the {wanted.what} {name} fails ({type(error).__name__})"
        return Finding(topic, "fault", text, "run nnUNetv2_anomaly doctor without --model")
    if found is None:
        text = f"plans.json names the {wanted.what} {name}, which is not nnU-Net's and not in this installation"
        return Finding(topic, "fault", text, "ask its author for that code, and read it before you install it")
    if not _is_theirs(wanted, found):
        text = f"plans.json names {name} as the {wanted.what}, which is no such thing"
        return Finding(topic, "fault", text, DO_NOT_LOAD)
    return None


def _class_findings(architecture: Any) -> Iterator[Finding]:
    """Classes that are imported by their dotted path and called with arguments from plans.json."""
    mend = "ask its author what it is and where its code comes from, before you predict"
    network = architecture["network_class_name"]
    if not isinstance(network, str) or not _KNOWN_NETWORK.fullmatch(network):
        text = (
            f"plans.json names the network class {shown(network)!r}, neither nnU-Net's nor ours: prediction would "
            f"import and call it"
        )
        yield Finding("plans", "warning", text, mend)
    arguments = architecture["arch_kwargs"]
    for key in architecture["_kw_requires_import"]:
        layer = arguments[key]
        if layer is not None and (not isinstance(layer, str) or not _KNOWN_LAYER.fullmatch(layer)):
            text = (
                f"plans.json names {shown(layer)!r} as the network's {shown(key)}, which is no layer of torch's: "
                f"prediction would import it"
            )
            yield Finding("plans", "warning", text, mend)


def _plans_findings(label: str, plans: dict, configuration: str | None) -> list[Finding]:
    """What the plans of one model name and set."""
    try:
        if not isinstance(configuration, str):
            configuration = next(iter(plans["configurations"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # plans of older versions are read all the same
            resolved = PlansManager(plans).get_configuration(configuration).configuration
        findings = list(_class_findings(resolved["architecture"]))
        wanted = [(_READER, plans["image_reader_writer"]), (_PREPROCESSOR, resolved["preprocessor_name"])]
        if "label_manager" in plans:
            wanted.append((_LABELS, plans["label_manager"]))
        wanted += [(_NORMALISER, name) for name in dict.fromkeys(resolved["normalization_schemes"])]
        keys = ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities")
        wanted += [(_RESAMPLING, name) for name in dict.fromkeys(resolved[key] for key in keys)]
        patch_size, spacing = list(resolved["patch_size"]), list(resolved["spacing"])
        network = shown(resolved["architecture"]["network_class_name"])
        scheme = ", ".join(shown(name, 60) for name in resolved["normalization_schemes"])
        findings += [fault for item, name in wanted if (fault := _lookup_fault(item, name)) is not None]
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, StopIteration, IndexError) as error:
        text = (
            f"{label} has no configuration {shown(configuration)} that nnU-Net could read ({type(error).__name__}: "
            f"{shown(error)})"
        )
        return [Finding("plans", "fault", text, FETCH_AGAIN)]
    if not findings:
        text = (
            f"{label}: {shown(plans.get('plans_name'))}, {shown(configuration)}: {network.rpartition('.')[2]}, patch "
            f"{shown(patch_size)}, spacing {shown(spacing)} mm, {scheme}, {shown(plans['image_reader_writer'])}"
        )
        findings.append(Finding("plans", "ok", text))
    return [*findings, *_settings_findings(label, resolved)]


def _settings_findings(label: str, configuration: dict) -> Iterator[Finding]:
    if SECTION not in configuration:
        return
    try:
        section = section_of(configuration)
    except UserError as error:
        yield Finding("settings", "fault", f"{label}: {shown(error, 400)}", "correct the section, or ask its author")
        return
    told = ", ".join(f"{name}={shown(json.dumps(value), 60)}" for name, value in section.items())
    yield Finding("settings", "ok", f"{label}, section '{SECTION}': {told or 'empty'}")


# ---------------------------------------------------------------------------------------------------------- members

_IDENTIFIER = r"(?:(?!__)[^/])+"
_MODEL_FOLDER = re.compile(rf"(?P<trainer>{_IDENTIFIER})__(?P<plans>{_IDENTIFIER})__(?P<configuration>{_IDENTIFIER})")
_IN_RESULTS = re.compile(rf"(?P<dataset>Dataset\d{{3}}_[^/]+)/{_MODEL_FOLDER.pattern}/")
_CHECKPOINT_PLACE = re.compile(r"(?P<model>(?:.*/)?)fold_(?P<fold>\d+|all)/(?P<name>[^/]+\.pth)")
_TABLES_AND_IMAGES = r"[^/]+\.(?:json|png|nii\.gz|nii|mha|nrrd|tif|tiff|bmp|csv|txt|pkl|npz)"
#: what nnU-Net and our trainers leave in a model folder, and export
_KNOWN_IN_MODEL = re.compile(
    r"(?:plans|dataset|dataset_fingerprint)\.json"
    r"|fold_(?:\d+|all)/(?:debug\.json|checkpoint_\w+\.pth|progress\.png|network_architecture\.pdf"
    r"|training_log_\w+\.txt)"
    rf"|fold_(?:\d+|all)/validation/{_TABLES_AND_IMAGES}"
    rf"|crossval_results_folds_\w+/(?:postprocessed/)?{_TABLES_AND_IMAGES}"
)
_KNOWN_IN_DATASET = re.compile(
    rf"Dataset\d{{3}}_[^/]+/(?:inference_information\.(?:json|txt)|ensembles/[^/]+/(?:postprocessed/)?{_TABLES_AND_IMAGES})"
)
_PROGRAM_SUFFIXES = {
    ".py", ".pyc", ".pyd", ".pyw", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".cmd", ".ps1", ".com", ".jar",
    ".whl", ".js", ".msi", ".ipynb",
}  # fmt: skip


@dataclass(frozen=True)
class _Member:
    """A file of the model. in_zip: reading it to its end compares its checksum."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]
    in_zip: bool


@dataclass
class _Model:
    """A model folder: its place among the members, and what its name says."""

    prefix: str
    dataset: str | None = None
    trainer: str | None = None
    plans: str | None = None
    configuration: str | None = None
    checkpoints: dict[str, _Member] = field(default_factory=dict)
    facts: dict[str, _Facts] = field(default_factory=dict)

    @property
    def folds(self) -> dict[str, list[str]]:
        """Fold -> its checkpoints."""
        folds: dict[str, list[str]] = {}
        for name in self.checkpoints:
            place = _CHECKPOINT_PLACE.fullmatch(name)
            if place is not None:
                folds.setdefault(place["fold"], []).append(place["name"])
        return dict(sorted(folds.items()))


def _name_clauses(info: zipfile.ZipInfo) -> Iterator[str]:
    """What is wrong with a member's name or kind: unpacked by some program, it could land anywhere."""
    name = info.orig_filename
    if ".." in re.split(r"[/\\]", name):
        yield "points out of the folder that it is unpacked to ('..')"
    if name.startswith(("/", "\\")):
        yield "is an absolute path"
    if re.match(r"[A-Za-z]:", name):
        yield "names a drive"
    if "\\" in name:
        yield "holds a backslash, which is a folder's mark on Windows"
    if not name or not name.isprintable():
        yield "has control characters in its name, or none"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        yield "is a link to another place"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        yield "is no plain file"


def _size_clauses(info: zipfile.ZipInfo) -> Iterator[str]:
    if info.flag_bits & 0x1:
        yield "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield "is packed in a way that nnU-Net's export does not use"
    ratio = info.file_size / max(info.compress_size, 1)
    if info.file_size > RATIO_COUNTS_FROM_BYTES and ratio > MAX_RATIO:
        yield f"would unpack to {ratio:.0f} times its size, {_size(info.file_size)}"


def _zip_members(path: Path, archive: zipfile.ZipFile) -> tuple[list[Finding], list[_Member]]:
    """Look at the list of members. Returns: findings, and the members that may be read."""
    infos = archive.infolist()
    packed, unpacked = path.stat().st_size, sum(info.file_size for info in infos)
    files = [info for info in infos if not info.is_dir()]
    findings = []
    text = f"{shown(path.name)}: a zip file of {_size(packed)}, {len(files)} files, {_size(unpacked)} unpacked"
    excess = unpacked > MAX_UNPACKED_BYTES or len(infos) > MAX_MEMBERS
    overlap = sum(info.compress_size for info in infos) > packed
    if excess or overlap:
        reason = "its members overlap" if overlap else "no model is that large"
        findings.append(Finding("archive", "fault", f"{text}: {reason}", "do not unpack it; it would fill the disk"))
    else:
        findings.append(Finding("archive", "ok", text))
    if infos and min(info.header_offset for info in infos) > 0:
        text = f"{shown(path.name)} does not begin with its first member: something else stands before it"
        findings.append(Finding("archive", "warning", text, ASK_AUTHOR))
    readable, seen = [], set()
    for info in infos:
        clauses = [*_name_clauses(info), *_size_clauses(info)]
        # Names that differ in case or spelling alone are one file on other systems.
        key = unicodedata.normalize("NFC", info.filename).casefold()
        if key in seen:
            clauses.append("is there twice")
        seen.add(key)
        findings += [
            Finding("members", "fault", f"{shown(info.orig_filename)} {clause}", "do not unpack it with any program")
            for clause in clauses
        ]
        if not clauses and not info.is_dir() and not excess and not overlap:
            readable.append(_Member(info.filename, info.file_size, functools.partial(archive.open, info), in_zip=True))
    return findings, readable


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def _folder_members(folder: Path) -> tuple[list[Finding], list[_Member]]:
    """The files below a folder. Links are not followed: what nnU-Net would load through one is not judged here."""
    findings, members = [], []

    def cannot_be_listed(error: OSError) -> None:
        text = f"{shown(error.filename)} cannot be looked into ({error.strerror})"
        findings.append(Finding("members", "fault", text, "get the right to read it, or leave it out"))

    for parent, folders, files in os.walk(folder, onerror=cannot_be_listed):
        for name in sorted([*folders, *files]):
            path = Path(parent, name)
            place = path.relative_to(folder).as_posix()
            if path.is_symlink():
                text = f"{shown(place)} is a link and was not followed: what it leads to is not judged"
                findings.append(
                    Finding("members", "fault", text, "replace it by the file, and inspect the model again")
                )
            elif name in files and path.is_file():
                members.append(_Member(place, path.stat().st_size, functools.partial(_opened, path), in_zip=False))
            elif name in files:
                text = f"{shown(place)} is no plain file"
                findings.append(Finding("members", "fault", text, ASK_AUTHOR))
        folders.sort()
    return findings, members


def _models(members: Iterable[_Member], of_folder: Path | None) -> dict[str, _Model]:
    """The model folders among the members, by their place: where a plans.json or a fold with a checkpoint lies."""
    models: dict[str, _Model] = {}

    def model_at(prefix: str) -> _Model | None:
        if prefix not in models:
            model = _model_named(prefix, of_folder)
            if model is None:
                return None
            models[prefix] = model
        return models[prefix]

    for member in members:
        place = _CHECKPOINT_PLACE.fullmatch(member.name)
        if place is not None:
            model = model_at(place["model"])
            if model is not None:
                model.checkpoints[member.name] = member
        elif PurePosixPath(member.name).name == "plans.json":
            model_at(member.name.removesuffix("plans.json"))
    return models


def _model_named(prefix: str, of_folder: Path | None) -> _Model | None:
    """The model that would lie at a place, None where nnU-Net has none."""
    if of_folder is None:
        place = _IN_RESULTS.fullmatch(prefix)
        if place is None:
            return None
        return _Model(prefix, place["dataset"], place["trainer"], place["plans"], place["configuration"])
    if prefix.count("/") > 1:
        return None
    folder = Path(os.path.realpath(of_folder), prefix)
    names = _MODEL_FOLDER.fullmatch(folder.name)
    if names is None:
        # nnU-Net predicts from a folder of any name; one below it is a model only by its name.
        return _Model(prefix) if not prefix else None
    return _Model(prefix, folder.parent.name, names["trainer"], names["plans"], names["configuration"])


def _is_known(name: str, models: Mapping[str, _Model], of_folder: Path | None) -> bool:
    folders = [f"{part}/" for part in name.split("/")[:2]]
    for prefix in ("", folders[0], "".join(folders)):
        if prefix in models and _KNOWN_IN_MODEL.fullmatch(name, len(prefix)):
            return True
    inside = f"{of_folder.resolve().name}/{name}" if of_folder is not None else name
    return _KNOWN_IN_DATASET.fullmatch(inside) is not None


class _Contents:
    """Reads the members, each once, and keeps what the models need of them."""

    def __init__(self, models: dict[str, _Model], of_folder: Path | None) -> None:
        self.models = models
        self.of_folder = of_folder
        self.findings: list[Finding] = []
        self.wanted = {f"{prefix}{name}" for prefix in models for name in ("plans.json", "dataset.json")}
        self.texts: dict[str, bytes] = {}

    def label(self, name: str) -> str:
        """Below the model's folder where there is but one."""
        if len(self.models) == 1:
            name = name.removeprefix(next(iter(self.models)))
        return shown(name)

    def read(self, member: _Member) -> None:
        """Read one member; whatever fails is a finding."""
        try:
            self.read_as(member)
        except DAMAGE as error:
            text = f"{self.label(member.name)} cannot be read: damaged or cut short ({type(error).__name__})"
            self.findings.append(Finding("members", "fault", text, FETCH_AGAIN))

    def read_as(self, member: _Member) -> None:
        label = self.label(member.name)
        known = _is_known(member.name, self.models, self.of_folder)
        with member.open() as file:
            head = file.read(8)
        suffix = PurePosixPath(member.name).suffix.lower()
        is_zip, is_pickle = head.startswith(b"PK\x03\x04"), suffix in _PICKLE_SUFFIXES or head[:1] == b"\x80"
        is_checkpoint = suffix in _CHECKPOINT_SUFFIXES or (is_zip and self.is_torch(member))
        if is_checkpoint:
            self.read_checkpoint(member, label)
        elif is_pickle and not is_zip:
            self.read_pickle(member, label)
        elif member.name in self.wanted:
            if member.size > MAX_JSON_BYTES:
                raise ValueError("a text of that size")
            with member.open() as file:
                self.texts[member.name] = file.read()
        elif member.in_zip:
            with member.open() as file:
                while file.read(1 << 20):
                    pass
        if known:
            return
        what = "is program code" if suffix in _PROGRAM_SUFFIXES else "is nothing that nnU-Net exports"
        if is_zip and not is_checkpoint:
            what = "is an archive inside the model, and was not looked into"
        self.findings.append(
            Finding("members", "warning", f"{label} {what}", "read it before you use it, or leave it out")
        )

    def is_torch(self, member: _Member) -> bool:
        with member.open() as file, zipfile.ZipFile(file) as archive:
            return _has_torch_pickle(archive)

    def read_checkpoint(self, member: _Member, label: str) -> None:
        _, available = memory()
        fits = available is None or member.size * MEMORY_FACTOR < available
        with member.open() as file:
            whole = io.BytesIO(file.read()) if member.in_zip and fits else file
            findings, facts = _inspect_checkpoint(label, whole, member.size, read=fits)
        self.findings += findings
        place = _CHECKPOINT_PLACE.fullmatch(member.name)
        if facts is not None and place is not None and place["model"] in self.models:
            self.models[place["model"]].facts[member.name] = facts

    def read_pickle(self, member: _Member, label: str) -> None:
        if member.size > MAX_PICKLE_BYTES:
            raise ValueError("a pickle of that size")
        with member.open() as file:
            scan = scan_pickle(file.read())
        self.findings += _scan_findings(label, scan)
        if scan.clean:
            text = f"{label}: a pickle that names nothing but what nnU-Net stores"
            self.findings.append(Finding("members", "ok", text))


def _has_torch_pickle(archive: zipfile.ZipFile) -> bool:
    return any(name.count("/") == 1 and name.casefold().endswith("/data.pkl") for name in archive.namelist())


# ----------------------------------------------------------------------------------------------------- whole models


def _json_of(contents: _Contents, name: str) -> tuple[dict | None, Finding | None]:
    """A dictionary of a JSON file, or the fault that there is none."""
    label = contents.label(name)
    if name not in contents.texts:
        return None, Finding("plans", "fault", f"{label} is missing or cannot be read", FETCH_AGAIN)
    try:
        content = json.loads(contents.texts[name].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        text = f"{label} is no text that nnU-Net could read ({type(error).__name__})"
        return None, Finding("plans", "fault", text, FETCH_AGAIN)
    if not isinstance(content, dict):
        return None, Finding("plans", "fault", f"{label} holds no dictionary", FETCH_AGAIN)
    return content, None


def _summary(model: _Model) -> Finding:
    """What the model is, as its folder's name says."""
    folds = model.folds
    names = ", ".join(shown(name) for name in dict.fromkeys(name for names in folds.values() for name in names))
    size = _size(sum(member.size for member in model.checkpoints.values()))
    said = (
        f"trainer {shown(model.trainer)}, plans {shown(model.plans)}, configuration {shown(model.configuration)}"
        if model.trainer is not None
        else "a folder whose name does not tell trainer, plans and configuration"
    )
    if not folds:
        return Finding("model", "fault", f"{shown(model.dataset)}: {said}, without a checkpoint", FETCH_AGAIN)
    text = f"{shown(model.dataset)}: {said}, folds {', '.join(folds)}; {names}, {size}"
    without = [fold for fold, names in folds.items() if "checkpoint_final.pth" not in names]
    if without:
        text = f"{text}; folds {', '.join(without)} have no checkpoint_final.pth"
        return Finding("model", "warning", text, "name the checkpoint to nnUNetv2_predict with -chk")
    return Finding("model", "ok", text)


def _dataset_finding(label: str, dataset: dict) -> Finding:
    channels, labels = dataset.get("channel_names", dataset.get("modality")), dataset.get("labels")
    if (
        not isinstance(channels, dict)
        or not isinstance(labels, dict)
        or not isinstance(dataset.get("file_ending"), str)
    ):
        text = f"{label} lacks channel_names, labels or file_ending, which prediction reads"
        return Finding("plans", "fault", text, FETCH_AGAIN)
    text = (
        f"{label}: channels {shown(', '.join(map(str, channels.values())))}; labels "
        f"{shown(', '.join(map(str, labels)), 300)}; files {shown(dataset['file_ending'])}"
    )
    return Finding("plans", "ok", text)


def _agreement(model: _Model, plans: dict | None) -> Iterator[Finding]:
    """Do the folds agree with each other, with plans.json and with the folder's name?"""
    topic = "agreement"
    first: dict[str, tuple[Any, str]] = {}
    agreed = True
    for name, facts in model.facts.items():
        place = name.removeprefix(model.prefix)
        values = {"trainer": facts.trainer, "configuration": facts.configuration, "plans": facts.plans_digest}
        for what, value in values.items():
            other, where = first.setdefault(what, (value, place))
            if value != other:
                agreed = False
                text = f"{shown(place)} was trained with another {what} than {shown(where)}"
                yield Finding(topic, "warning", text, "predict with folds that belong together (-f)")
        for what in ("trainer", "configuration"):
            told, expected = values[what], getattr(model, what)
            if expected is not None and told != expected:
                agreed = False
                text = f"{shown(place)} says {what} {shown(told)}, its folder says {shown(expected)}"
                yield Finding(topic, "warning", text, "prediction follows the checkpoint; ask its author which holds")
        fold = _CHECKPOINT_PLACE.fullmatch(name)
        if fold is not None and facts.fold not in (None, fold["fold"]):
            agreed = False
            text = f"{shown(place)} was trained as fold {shown(facts.fold)}"
            yield Finding(topic, "warning", text, "ask its author whether folds were mixed up")
    stored = first.get("plans", (None, ""))[0]
    if plans is not None and stored is not None and stored != _digest(plans):
        agreed = False
        text = "plans.json is not the one that the checkpoints were trained with; prediction follows plans.json"
        yield Finding(topic, "warning", text, "ask its author what was changed, and why")
    if agreed and len(model.facts) > 0:
        text = f"{len(model.facts)} checkpoints, plans.json and the folder's name say the same"
        yield Finding(topic, "ok", text if len(model.facts) > 1 else text.replace("checkpoints", "checkpoint"))


def _installation(model: _Model) -> Iterator[Finding]:
    """What nnUNetv2_install_pretrained_model_from_zip would overwrite or confuse in nnU-Net's folders."""
    topic = "installation"
    results = os.environ.get(FOLDER_VARIABLES[-1])
    if not results or model.dataset is None:
        return
    there = Path(results, model.prefix)
    if there.is_dir():
        text = f"{there} exists; installing would write over its files without asking"
        yield Finding(topic, "warning", text, "move that folder away first, or set nnUNet_results to another one")
    number = model.dataset[: len("Dataset000_")]
    for variable in FOLDER_VARIABLES:
        folder = Path(os.environ.get(variable) or os.devnull)
        others = (
            [path.name for path in folder.glob(f"{number}*") if path.name != model.dataset] if folder.is_dir() else []
        )
        if others:
            text = f"{variable} holds {shown(others[0])}, of the same number as {shown(model.dataset)}"
            yield Finding(topic, "warning", text, "set nnU-Net's folders to other ones before you install it")
            return


def _model_findings(model: _Model, contents: _Contents, root: Path | None) -> Iterator[Finding]:
    plans, fault = _json_of(contents, f"{model.prefix}plans.json")
    if fault is not None:
        yield fault
    told = [facts.configuration for facts in model.facts.values() if facts.configuration is not None]
    if plans is not None:
        # Prediction takes the configuration from the first checkpoint.
        yield from _plans_findings(contents.label(f"{model.prefix}plans.json"), plans, (*told, model.configuration)[0])
    dataset, fault = _json_of(contents, f"{model.prefix}dataset.json")
    if fault is not None:
        yield fault
    if dataset is not None:
        yield _dataset_finding(contents.label(f"{model.prefix}dataset.json"), dataset)
    yield from _agreement(model, plans)
    classes: dict[str, type | None] = {}
    names = [facts.trainer for facts in model.facts.values() if facts.trainer is not None]
    for name in dict.fromkeys(names or ([model.trainer] if model.trainer is not None else [])):
        finding, classes[name] = _find_trainer(name, root)
        yield finding
    for name, facts in model.facts.items():
        detector = _detector_finding(contents.label(name), classes.get(facts.trainer or ""), facts)
        if detector is not None:
            yield detector


def _inspect_members(members: list[_Member], of_folder: Path | None) -> list[Finding]:
    models = _models(members, of_folder)
    if len(models) > MAX_MODELS:
        text = f"{len(models)} models, more than anybody hands on at once; none was looked into"
        return [Finding("model", "fault", text, "inspect the models one by one")]
    contents = _Contents(models, of_folder)
    for member in members:
        contents.read(member)
    findings = [*map(_summary, models.values()), *contents.findings]
    if not models:
        (where, *_) = [member.name for member in members if PurePosixPath(member.name).name == "plans.json"] or ["none"]
        text = f"plans.json lies at {shown(where)}; expected DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION/plans.json"
        findings.append(Finding("model", "fault", text, "ask for a zip file of nnUNetv2_export_model_to_zip"))
    for model in models.values():
        findings += _model_findings(model, contents, of_folder)
        if of_folder is None:
            findings += _installation(model)
    diaries = [member.name for member in members if PurePosixPath(member.name).name == "debug.json"]
    if diaries:
        text = f"{contents.label(diaries[0])} tells the computer and the folders that the model was trained with"
        findings.append(Finding("members", "ok", text))
    return findings


def _inspect_zip(path: Path, file: IO[bytes]) -> list[Finding]:
    expected = "expected a zip file of nnUNetv2_export_model_to_zip"
    try:
        archive = zipfile.ZipFile(file)
        names = archive.namelist()
    except DAMAGE as error:
        raise UserError(
            f"{path} is no zip file, or not a whole one ({shown(error)}); {expected}, so fetch it again"
        ) from error
    with archive:
        has_plans = any(re.split(r"[/\\]", name)[-1] == "plans.json" for name in names)
        if path.suffix.lower() in _CHECKPOINT_SUFFIXES or (not has_plans and _has_torch_pickle(archive)):
            return _inspect_single(path, file)
        if not has_plans:
            raise UserError(f"{path} holds no plans.json, so no model of nnU-Net's; {expected}, so do not install it")
        findings, members = _zip_members(path, archive)
        return [*findings, *_inspect_members(members, None)]


def _inspect_single(path: Path, file: IO[bytes]) -> list[Finding]:
    """One checkpoint alone; its plans are those that it was trained with."""
    size = path.stat().st_size
    _, available = memory()
    fits = available is None or size * MEMORY_FACTOR < available
    findings, facts = _inspect_checkpoint(shown(path.name), file, size, read=fits)
    if facts is None:
        return findings
    if facts.plans is not None:
        findings += _plans_findings("the plans in the checkpoint", facts.plans, facts.configuration)
    if facts.trainer is not None:
        finding, trainer = _find_trainer(facts.trainer, None)
        findings.append(finding)
        detector = _detector_finding(shown(path.name), trainer, facts)
        findings += [] if detector is None else [detector]
    return findings


def _inspect_folder(folder: Path) -> list[Finding]:
    places = [folder, *(path for path in sorted(folder.iterdir()) if _MODEL_FOLDER.fullmatch(path.name))]
    if not any((place / "plans.json").is_file() for place in places):
        raise UserError(
            f"{folder} holds no plans.json; expected a model folder of nnU-Net (TRAINER__PLANS__CONFIGURATION, with "
            f"plans.json and fold_0 in it) or the data set's folder above it"
        )
    findings, members = _folder_members(folder)
    size = _size(sum(member.size for member in members))
    text = f"{shown(folder.name)}: a folder with {len(members)} files, {size}"
    return [Finding("archive", "ok", text), *findings, *_inspect_members(members, folder)]


def _capped(findings: list[Finding]) -> list[Finding]:
    """The first findings of each topic and state, and one line for the rest: a file may hold any number of faults."""
    counts: dict[tuple[str, State], int] = {}
    kept = []
    for finding in dict.fromkeys(findings):
        key = (finding.topic, finding.state)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= MAX_SHOWN:
            kept.append(finding)
    more = [
        Finding(topic, state, f"{count - MAX_SHOWN} more of this kind", "" if state == "ok" else ASK_AUTHOR)
        for (topic, state), count in counts.items()
        if count > MAX_SHOWN
    ]
    return [*kept, *more]


def inspect_model(path: Path) -> list[Finding]:
    """Look into a model: is it whole, would it run code, does it fit this installation?

    Nothing of the model is executed or imported and nothing is written. Classes that it names are looked up in this
    installation alone.

    Args: path: a zip file as nnUNetv2_export_model_to_zip writes it, a model folder, or a checkpoint (.pth).
    Returns: the findings; a fault means that the model must not or cannot be used.
    Raises: UserError if there is nothing at the path that could be a model.
    """
    path = Path(path).expanduser()
    expected = "expected the zip file of an exported model, a model folder, or a checkpoint (.pth)"
    try:
        if path.is_dir():
            return _capped(_inspect_folder(path))
        if not path.exists():
            raise UserError(f"{path} does not exist; {expected}")
        if not path.is_file():
            raise UserError(f"{path} is no plain file; {expected}")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; {expected}, so fetch it again")
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            # torch.load goes by the first bytes: whatever else lies behind them, they would be unpickled.
            is_pickle = path.suffix.lower() in _PICKLE_SUFFIXES or head[:1] == b"\x80"
            if is_pickle and head != b"PK\x03\x04":
                return _capped(_inspect_single(path, file))
            return _capped(_inspect_zip(path, file))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or type(error).__name__}); {expected}") from error
