"""Simulated knees as files: images, labels and what is abnormal, from label maps, phantoms or both.

OUTPUT/images/<case>_0000.nii.gz   int16, 0 to 1000, where 1000 is the simulation's level 1.0
OUTPUT/labels/<case>.nii.gz        uint8, 0 to 9, the label map given or drawn; with dataset.json, their names
OUTPUT/anomalies/<case>.nii.gz     uint8, 0 or the lesion label 7, 8, 9, unlabelled extra lesions included
OUTPUT/manifest.json, OUTPUT/overview.png
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.errors import UserError, counted, listed, worded
from nnunetv2_anomaly.files import (
    label_source_sha256,
    read_json,
    take_output_folder,
    write_failures_as_user_errors,
    write_text,
)
from nnunetv2_anomaly.images.colours import write_colour_tables
from nnunetv2_anomaly.images.files import FILE_ENDINGS, check_whole, image_stem, only_files, write_image
from nnunetv2_anomaly.images.grids import Grid, oriented, posed, turned_back
from nnunetv2_anomaly.images.label_maps import note_of_floats, read_label_map
from nnunetv2_anomaly.images.label_meaning import check_label_meaning
from nnunetv2_anomaly.labels import BONE_OF_LESION, BONES, LABELS, LESIONS, NAMES
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.reporting.table import csv_text
from nnunetv2_anomaly.simulation.dess import dess_like_image
from nnunetv2_anomaly.simulation.overview import save_overview
from nnunetv2_anomaly.simulation.phantom import OAI_SIZE, OAI_SPACING_MM, draw_phantom, phantom_image
from nnunetv2_anomaly.simulation.resampling import check_size, resample_labels

#: the stored int16 value of the simulation's level 1.0
INTENSITY_SCALE = 1000

MANIFEST = "manifest.json"

_KINDS = ("images", "labels", "anomalies")
_OVERVIEW_CASES, _MOST_PHANTOMS, _MOST_LESIONS = 4, 100_000, 100

#: arguments that change what a case looks like; a folder holds cases of one setting only
_SETTINGS = ("version", "seed", "size", "spacing_mm", "extra_lesions", "stress")


@dataclasses.dataclass(frozen=True)
class _Job:
    case: str
    label_file: Path | None  # None: a phantom
    output_folder: Path
    arguments: dict[str, Any]  # as in the manifest


def simulate_folder(
    output_folder: str | os.PathLike,
    *,
    labels_folder: str | os.PathLike | None = None,
    num_phantoms: int = 0,
    size: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    seed: int = 0,
    extra_lesions: float = 0.0,
    stress: str | None = None,
    num_processes: int = 2,
) -> dict:
    """Simulate a DESS-like image for every label map of a folder, and for phantoms, and write all as files.

    A case depends on the seed and its own name alone, not on order, neighbours or processes. A case that is there
    whole, made with the same arguments from the same label map, is kept.

    Args:
        output_folder: made if missing; an own folder, its layout is at the top of this module.
        labels_folder: label maps, values 0 to 9 of ``nnunetv2_anomaly.labels``.
        num_phantoms: how many procedural knees to draw, named phantom_0000 and so on; raising it later adds some.
        size, spacing_mm: voxels and their distance in SimpleITK order (x, y, z). With one of them label maps are
            resampled over their own extent, and phantoms keep the OAI's field of view; both fix the field of view, to
            which label maps are cut or padded about their centre. With neither, label maps stay as they are, and
            phantoms get the OAI's 160 x 384 x 384 voxels of 0.7 x 0.3646 x 0.3646 mm.
        extra_lesions, stress: as ``dess_like_image`` takes them.
        num_processes: cases made at a time, one core each.
    Returns: the manifest as written: version, arguments, and per case its source or side, seed, lesion volumes in mm3
        and the AUC of raw intensity within the bones (None where a class is empty).
    Raises: UserError for input or arguments that cannot be, for an output folder that holds something else or cannot be
        written to, and once all others are done for label maps that cannot be read.
    """
    output_folder = Path(output_folder)
    if size is not None and (len(size) != 3 or any(n != int(n) or n < 8 for n in size)):
        raise UserError(f"size is {worded(size)}; expected three whole numbers x y z of at least 8 voxels")
    if spacing_mm is not None and (len(spacing_mm) != 3 or not all(0.05 <= s <= 20 for s in spacing_mm)):
        raise UserError(f"spacing is {worded(spacing_mm)}; expected three numbers x y z between 0.05 and 20 mm")
    size, spacing_mm = size and tuple(map(int, size)), spacing_mm and tuple(map(float, spacing_mm))
    if not 0 <= num_phantoms <= _MOST_PHANTOMS or num_processes < 1 or seed < 0:
        given = f"{num_phantoms} phantoms, {num_processes} processes and seed {seed} were given"
        raise UserError(f"{given}; expected 0 to {_MOST_PHANTOMS} phantoms, at least one process, a seed of 0 or more")
    if not 0 <= extra_lesions <= _MOST_LESIONS:
        bound = f"a mean number from 0 to {_MOST_LESIONS}, as the bones have no room for more"
        raise UserError(f"extra_lesions is {extra_lesions}; expected {bound}")
    if num_phantoms or size is not None:
        check_size(_phantom_grid(size, spacing_mm)[0])
    sources = _sources(labels_folder, num_phantoms)
    arguments = {
        "labels_folder": None if labels_folder is None else str(Path(labels_folder).resolve()),
        "num_phantoms": num_phantoms,
        "size": size and list(size),
        "spacing_mm": spacing_mm and list(spacing_mm),
        "seed": seed,
        "extra_lesions": float(extra_lesions),
        "stress": stress,
    }
    manifest: dict[str, Any] = {"version": __version__, "arguments": arguments, "cases": {}}
    with write_failures_as_user_errors(output_folder):
        take_output_folder(output_folder, MANIFEST, MANIFEST)
        finished = _finished_cases(output_folder, manifest, sources)
        manifest["cases"].update(finished)
        # First the manifest, by which a next run knows the folder, however early this one is stopped.
        _write_manifest(output_folder, manifest)
        for kind in _KINDS:
            (output_folder / kind).mkdir(exist_ok=True)
    jobs = [_Job(case, file, output_folder, arguments) for case, file in sources.items() if case not in finished]

    def keep(case: str, entry: dict) -> None:
        manifest["cases"][case] = entry
        with write_failures_as_user_errors(output_folder):
            _write_manifest(output_folder, manifest)

    _, failed = run_cases(_simulate_case, jobs, num_processes, "simulating knees", "simulated", keep)
    if failed:
        raise UserError(failed)
    for line in (*note_of_floats(file for file in sources.values() if file), _summary(manifest["cases"])):
        print(line)
    with write_failures_as_user_errors(output_folder):
        areas = {case: entry["intensity_auc"] for case, entry in sorted(manifest["cases"].items())}
        lesions = {case: any(manifest["cases"][case]["anomaly_volumes_mm3"].values()) for case in areas}
        # A few cases; those with lesions first, they have more to show.
        chosen = sorted(sorted(areas, key=lambda case: not lesions[case])[:_OVERVIEW_CASES])
        shown = {case: (_case_files(output_folder, case), areas[case]) for case in chosen}
        save_overview(output_folder / "overview.png", shown, brightest=0.8 * INTENSITY_SCALE)
        _write_names(output_folder, len(sources))
        holds = [(case, "no lesion" if area is None else "a lesion") for case, area in areas.items()]
        write_text(output_folder / "cases.csv", csv_text(pd.DataFrame(holds, columns=["case", "holds"])))
    return manifest


def _sources(labels_folder: str | os.PathLike | None, num_phantoms: int) -> dict[str, Path | None]:
    """Case -> its label map; None for a phantom."""
    sources: dict[str, Path | None] = {} if labels_folder is None else dict(label_files(Path(labels_folder)))
    width = max(4, len(str(num_phantoms - 1)))
    phantoms = [f"phantom_{index:0{width}d}" for index in range(num_phantoms)]
    taken = sorted(set(phantoms) & set(sources))
    if taken:
        raise UserError(f"{sources[taken[0]]} has the name of a phantom, {taken[0]}; rename the file")
    sources |= dict.fromkeys(phantoms)
    if not sources:
        raise UserError("There is nothing to simulate: give a folder of label maps, a number of phantoms, or both")
    return sources


def _summary(cases: dict[str, dict]) -> str:
    areas = [entry["intensity_auc"] for entry in cases.values() if entry["intensity_auc"] is not None]
    if not areas:
        return f"No lesion in {counted(len(cases), 'knee')}."
    area = f"{np.median(areas):.3f} in the median ({min(areas):.3f} to {max(areas):.3f})"
    found = f"Lesions in {len(areas)} of {counted(len(cases), 'knee')}"
    return f"{found}; raw intensity within the bones finds them with an AUC of {area}."


def case_names(files: Sequence[str | os.PathLike]) -> dict[str, Path]:
    """A name that nnU-Net can use for every label file: of letters, digits, underscore and hyphen only.

    The OAI's long names are cut after the visit ("9001104_WB01_Femur+Tibia..." is "9001104_WB01") where that is unique.

    Returns: case name -> file, sorted by name. Raises: UserError if two files end up with one name.
    """
    stems = {Path(file): image_stem(Path(file)) for file in files}
    short = {file: (re.match(r"[A-Za-z0-9_-]*?_WB\d+(?=_|$)", stem) or [""])[0] for file, stem in stems.items()}
    uses = Counter(short.values())
    named: dict[str, Path] = {}
    for file, stem in stems.items():
        sanitized = re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9_-]", "_", stem)).strip("_") or "case"
        name = short[file] if short[file] and uses[short[file]] == 1 else sanitized
        if name in named:
            raise UserError(f"{named[name].name} and {file.name} would both be the case {name}; rename one of them")
        named[name] = file
    return dict(sorted(named.items()))


def intensity_auc(image: NDArray, labels: NDArray, anomalies: NDArray) -> float:
    """How well brightness alone separates lesions from healthy bone: AUC over the voxels of the bones.

    Args: image: (Z, Y, X), any unit. labels: (Z, Y, X), 0 to 9. anomalies: (Z, Y, X), nonzero = lesion.
    Returns: area in [0, 1], unitless; NaN where the bones hold no lesion, or nothing else.
    """
    bones = np.isin(labels, BONES + LESIONS)
    lesion = anomalies[bones] > 0
    if lesion.all() or not lesion.any():
        return math.nan
    return float(roc_auc_score(lesion, image[bones]))


def label_files(folder: Path) -> dict[str, Path]:
    """Label maps of a folder by the names of their cases. Raises: UserError if there is none, and as ``case_names``."""
    entries = folder.iterdir() if folder.is_dir() else ()
    files = only_files(entry for entry in entries if entry.name.lower().endswith(FILE_ENDINGS))
    if not files:
        fault = "holds no label map" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder} {fault}; expected label maps ({', '.join(FILE_ENDINGS)})")
    return case_names(files)


def _case_files(output_folder: Path, case: str) -> tuple[Path, Path, Path]:
    images, labels, anomalies = (output_folder / kind for kind in _KINDS)
    return images / f"{case}_0000.nii.gz", labels / f"{case}.nii.gz", anomalies / f"{case}.nii.gz"


def _finished_cases(output_folder: Path, manifest: dict, sources: dict[str, Path | None]) -> dict[str, dict]:
    """Entries of cases that need not be made again. Raises: UserError if the folder is another's, or of others."""
    file = output_folder / MANIFEST
    if not file.exists():
        return {}
    earlier = read_manifest(file)
    cases = earlier["cases"]
    before, now = ({"version": made["version"], **made["arguments"]} for made in (earlier, manifest))
    changed = [name for name in _SETTINGS if before[name] != now[name]]
    differing = [f"{name} {worded(before[name])} there, {worded(now[name])} now" for name in changed]
    # A run that was killed leaves images of cases that are not in the manifest yet.
    images = (path.name.removesuffix("_0000.nii.gz") for path in (output_folder / "images").glob("*_0000.nii.gz"))
    foreign = sorted({*cases, *images} - set(sources))
    if differing or foreign:
        fault = f"holds {counted(len(foreign), 'case')} that these arguments do not make ({listed(foreign)})"
        if differing:
            fault = f"was made with other arguments ({'; '.join(differing)})"
        raise UserError(f"{output_folder} {fault}; give another output folder, or delete this one to start again")
    return {case: entry for case, entry in cases.items() if _is_whole(output_folder, case, entry, sources[case])}


def read_manifest(file: Path) -> dict[str, Any]:
    """Read the manifest of a simulated folder. Raises: UserError if it lacks what was written."""
    manifest = read_json(file)
    try:
        _ = manifest["version"], [manifest["arguments"][name] for name in _SETTINGS if name != "version"]
        for entry in manifest["cases"].values():
            _ = entry["source_sha256"], entry["intensity_auc"], sum(entry["anomaly_volumes_mm3"].values())
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); restore it, or delete its folder and simulate again") from error
    return manifest


def _is_whole(output_folder: Path, case: str, entry: dict, source: Path | None) -> bool:
    if entry["source_sha256"] != (source and label_source_sha256(source)):
        return False
    try:
        for file in _case_files(output_folder, case):
            check_whole(file)
    except UserError:
        return False
    return True


def _simulate_case(job: _Job) -> dict:
    """Make and write one case; returns its entry of the manifest."""
    size, spacing_mm = job.arguments["size"], job.arguments["spacing_mm"]
    entropy = [job.arguments["seed"], zlib.crc32(job.case.encode())]
    rng = np.random.default_rng(entropy)
    side = None
    if job.label_file is None:
        parameters = draw_phantom(rng)
        side = parameters.side
        size, spacing_mm = _phantom_grid(size, spacing_mm)
        label_image = phantom_image(parameters, size=size, spacing_mm=spacing_mm)
    else:
        label_image = read_label_map(job.label_file, LABELS)
        upright = oriented(label_image)
        spacing = upright.GetSpacing()[::-1]
        check_label_meaning(sitk.GetArrayViewFromImage(upright), spacing, LABELS, job.label_file)
        if size is not None or spacing_mm is not None:
            label_image = resample_labels(label_image, size, spacing_mm)
        check_size(label_image.GetSize())
    labels = sitk.GetArrayFromImage(label_image)
    # The simulation wants superior, anterior and right along the array's axes; the files stay in their own pose.
    turned = oriented(label_image)
    spacing = turned.GetSpacing()[::-1]
    voxels = sitk.GetArrayFromImage(turned)
    more = {name: job.arguments[name] for name in ("extra_lesions", "stress")}
    simulated = dess_like_image(voxels, spacing, rng, **more)
    image, anomalies = (turned_back(volume, Grid.of(label_image)) for volume in (simulated.image, simulated.anomalies))
    stored = np.rint(image * INTENSITY_SCALE).astype(np.int16)
    with write_failures_as_user_errors(job.output_folder):
        for volume, path in zip((stored, labels, anomalies), _case_files(job.output_folder, job.case), strict=True):
            write_image(posed(volume, Grid.of(label_image)), path)
    voxel_mm3 = float(np.prod(spacing))
    area = intensity_auc(stored, labels, anomalies)
    return {
        "source": job.label_file and job.label_file.name,
        "source_sha256": job.label_file and label_source_sha256(job.label_file),
        "seed": entropy,
        "side": side,
        "size": list(label_image.GetSize()),
        "spacing_mm": list(label_image.GetSpacing()),
        "lesion_volumes_mm3": _volumes_mm3(labels, voxel_mm3),
        "anomaly_volumes_mm3": _volumes_mm3(anomalies, voxel_mm3),
        "intensity_auc": None if math.isnan(area) else round(area, 4),
    }


def _volumes_mm3(labels: NDArray, voxel_mm3: float) -> dict[str, float]:
    return {NAMES[value]: round(float((labels == value).sum()) * voxel_mm3, 2) for value in BONE_OF_LESION}


def _phantom_grid(
    size: Sequence[int] | None, spacing_mm: Sequence[float] | None
) -> tuple[Sequence[int], Sequence[float]]:
    """The grid asked for; what is not given follows from the OAI's field of view."""
    extent = np.multiply(OAI_SIZE, OAI_SPACING_MM)
    if size is not None:
        return size, spacing_mm or tuple((extent / size).tolist())
    spacing_mm = spacing_mm or OAI_SPACING_MM
    return tuple(np.maximum(8, np.rint(extent / spacing_mm)).astype(int).tolist()), spacing_mm


def _write_manifest(output_folder: Path, manifest: dict) -> None:
    ordered = {**manifest, "cases": dict(sorted(manifest["cases"].items()))}
    write_text(output_folder / MANIFEST, json.dumps(ordered, indent=2) + "\n")


def _write_names(output_folder: Path, num_cases: int) -> None:
    """What labels mean: for ``measure`` and ``evaluate``, and as colours."""
    write_colour_tables(output_folder, LABELS)
    description = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": num_cases, "file_ending": ".nii.gz"}
    write_text(output_folder / "labels" / "dataset.json", json.dumps(description, indent=2) + "\n")
