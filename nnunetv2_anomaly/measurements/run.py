"""Measures every segmentation of a folder, case by case, and writes one tidy table."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.conversion.side import side_from_labels
from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.files import take_output_folder, write_failures_as_user_errors, write_text
from nnunetv2_anomaly.images.beside import ERROR_IMAGE, IMAGE, check_beside, files_beside, image_beside
from nnunetv2_anomaly.images.dataset_description import DatasetDescription, segmentation_files
from nnunetv2_anomaly.images.segmentations import Segmentation, SegmentationFiles, chosen_reader, write_map
from nnunetv2_anomaly.measurements.bones import Earlier, Found, Structures
from nnunetv2_anomaly.measurements.case_report import case_page
from nnunetv2_anomaly.measurements.cohort_report import cohort_page, summary
from nnunetv2_anomaly.measurements.knee import measure_knee
from nnunetv2_anomaly.measurements.maps import flat_figure, flattened, thickness_volume, write_flat, write_surface
from nnunetv2_anomaly.measurements.regions import Conventions
from nnunetv2_anomaly.measurements.scene import write_script
from nnunetv2_anomaly.measurements.standardised import composite_rows, z_rows
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.records import fingerprint, load_record, save_record
from nnunetv2_anomaly.reporting.drawing import save_figure
from nnunetv2_anomaly.reporting.table import csv_text

MARKER = "measure.json"
#: raised when a number would come out otherwise than before
METHOD_VERSION = 1
COLUMNS = (
    "case", "subject", "visit", "side", "structure", "region", "quantity", "value", "unit", "flag", "method_version",
)  # fmt: skip
SIDES = ("right", "left")


#: what can be measured -> the quantities that belong to it
QUANTITIES: Mapping[str, tuple[str, ...]] = {
    "volumes": ("volume", "effusion_volume"),
    "lesions": ("lesion_count", "lesion_volume", "lesion_percent", "moaks_size_grade"),
    "cartilage": ("VC",),
    "thickness": ("tAB", "cAB", "dAB", "ThCtAB", "ThCcAB", "ThCSD", "moaks_area_grade"),
}


@dataclass(frozen=True)
class Options:
    """What the numbers depend on, beside the labels."""

    side: str | None = None  # of all cases; None: each one's own
    min_lesion_mm3: float = 0.0
    kissing_mm: float = 10.0
    quantities: tuple[str, ...] = ("volumes", "lesions", "cartilage")  # of QUANTITIES; thickness needs vtk
    conventions: Conventions = field(default_factory=Conventions)

    @property
    def thickness(self) -> bool:
        """Whether surfaces are made."""
        return "thickness" in self.quantities


@dataclass(frozen=True)
class Beside:
    """What goes with the labels: images and anomaly maps of the cases, and whether reports and maps are written."""

    images: Path | None = None
    anomaly_maps: Path | None = None
    reports: bool = False  # which need vtk and plotly
    maps: bool = False  # which need vtk


@dataclass(frozen=True)
class Standards:
    """What values are compared with."""

    reference: pd.DataFrame | None = None  # structure, region, quantity, mean, sd
    cohort: pd.DataFrame | None = None  # measurements.csv of the knees that standardise composites; None: these ones
    names: tuple[str, ...] = ()  # of the files, for the report


@dataclass(frozen=True)
class _Task:
    case: str
    source: Path
    output: Path
    dataset: DatasetDescription
    options: Options
    beside: Beside
    known: Mapping[str, str]  # of the manifest: subject, visit, side


def read_manifest(file: Path) -> dict[str, dict[str, str]]:
    """Subject, visit and side by case, where the table has them; that of a conversion is one.

    Raises: UserError if it cannot be read, has no column case or a case twice, or a side that is none.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a table ({error}); expected CSV with a column case") from error
    if "case" not in table:
        raise UserError(
            f"{file} has the columns {', '.join(map(str, table))}; expected case, and subject, visit or side"
        )
    if len(twice := table["case"][table["case"].duplicated()]):
        raise UserError(f"{file} has {twice.iloc[0]} twice; expected each case once")
    columns = [name for name in ("subject", "visit", "side") if name in table]
    if "side" in columns and len(wrong := table["side"][~table["side"].isin((*SIDES, ""))]):
        raise UserError(f"{file} has the side {wrong.iloc[0]}; expected right, left or nothing")
    return {str(row["case"]): {name: str(row[name]) for name in columns} for _, row in table.iterrows()}


def measure_folder(
    segmentations: Path,
    output: Path,
    dataset: DatasetDescription,
    options: Options,
    *,
    manifest: Mapping[str, Mapping[str, str]],
    num_processes: int,
    beside: Beside = Beside(),
    standards: Standards = Standards(),
) -> pd.DataFrame:
    """Measure all segmentations of a folder.

    Writes measurements.csv, summary.csv, lesions.csv, cases/CASE.json, measure.json with the settings, and what
    ``beside`` asks for: reports/CASE.html, report.html, maps/CASE/. Run again, it measures what is missing or has
    changed since.

    Args:
        manifest: case -> subject, visit, side, as far as they are known.
    Returns: measurements.csv.
    Raises: UserError for an output folder that holds something else; after the others are measured, for cases that
        cannot be read, or whose side is said in two ways.
    """
    files = segmentation_files(segmentations, dataset.file_ending)
    dataset = dataclasses.replace(dataset, reader=chosen_reader(dataset, files.values()))
    unknown = sorted(set(manifest) - set(files))
    if manifest and not set(manifest) & set(files):
        raise UserError(f"the manifest has none of the cases of {segmentations}, but {listed(unknown)}")
    check_beside("--images", beside.images, files, IMAGE, dataset.file_ending)
    check_beside("--anomaly_maps", beside.anomaly_maps, files, ERROR_IMAGE, dataset.file_ending)
    tasks = [
        _Task(case, file, output, dataset, options, beside, manifest.get(case, {})) for case, file in files.items()
    ]
    with write_failures_as_user_errors(output):
        take_output_folder(output, MARKER, "measurement")
        if beside.reports:
            (output / "reports").mkdir(exist_ok=True)
            write_script(output / "reports")
        settings = {"segmentations": str(segmentations.resolve()), **dataclasses.asdict(options)}
        _write_marker(output, settings, finished=False)
        found, failed = run_cases(_measure_case, tasks, num_processes, "measuring", "measured")
        rows = [row for case in sorted(found) for row in found[case]["rows"]]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        if standards.reference is not None:
            table = pd.concat([table, z_rows(table, standards.reference)], ignore_index=True)
        if len(table) and {"lesions", "thickness"} & set(options.quantities):
            cohort = table if standards.cohort is None else standards.cohort
            table = pd.concat([table, composite_rows(table, cohort)], ignore_index=True)
        write_text(output / "measurements.csv", csv_text(table))
        write_text(output / "summary.csv", csv_text(summary(table)))
        lesions = pd.DataFrame([row for case in sorted(found) for row in found[case]["lesions"]])
        write_text(output / "lesions.csv", csv_text(lesions.reindex(columns=_lesion_columns(lesions))))
        if beside.reports:
            of = standards.names or ("the cohort at hand, for composites",)
            notes = [f"Standardised to {' and '.join(of)}.", _settings_note(options)]
            write_text(output / "report.html", cohort_page(table, sorted(found), notes))
        if failed:
            raise UserError(failed)
        _write_marker(output, settings, finished=True)
    return table


def _settings_note(options: Options) -> str:
    of = options.conventions
    thirds = " and ".join(f"{share:.2f}" for share in of.tibial_thirds)
    return (
        f"Conventions: bone deeper than {of.depth_mm:g} mm is shaft; the femur's central part reaches "
        f"{100 * of.weight_bearing:.0f} % of the way from the notch to the rear; the tibia's thirds end at {thirds} of "
        f"the plateau; the central {100 * of.central_share:.0f} % of a tibial plate are its central subregion; lesions "
        f"from {options.min_lesion_mm3:g} mm3; within {options.kissing_mm:g} mm of another bone's they are kissing."
    )


def _lesion_columns(lesions: pd.DataFrame) -> list[str]:
    """Those of every lesion, also where there is none, then the places of the bones that have any."""
    first = (
        "case", "subject", "visit", "side", "bone", "lesion", "label", "volume_mm3", "largest_area_mm2",
        "largest_diameter_mm", "lateral_mm", "anterior_mm", "superior_mm", "interface_distance_mm", "subchondral",
        "kissing",
    )  # fmt: skip
    return [*first, *(str(name) for name in lesions if name not in first)]


def _write_marker(output: Path, settings: Mapping[str, Any], *, finished: bool) -> None:
    state = {"version": __version__, "method_version": METHOD_VERSION, "finished": finished, **settings}
    write_text(output / MARKER, json.dumps(state, indent=2))


def _measure_case(task: _Task) -> dict[str, list[dict[str, Any]]]:
    options = {**dataclasses.asdict(task.options), "known": dict(task.known), "method": METHOD_VERSION}
    labels = {name: list(values) for name, values in task.dataset.labels.items()}
    wanted = {"reports": task.beside.reports, "maps": task.beside.maps}
    others = [
        file
        for folder, kind in ((task.beside.images, IMAGE), (task.beside.anomaly_maps, ERROR_IMAGE))
        if folder is not None
        for file in files_beside(folder, task.case, kind, task.dataset.file_ending)
    ]
    state = fingerprint(
        [task.source, *others], {**options, **wanted, "labels": labels, "roles": task.dataset.said_roles}
    )
    record = task.output / "cases" / f"{task.case}.json"
    kept = load_record(record, state)
    if kept is not None:
        return {"rows": kept["rows"], "lesions": kept["lesions"]}
    files = SegmentationFiles(task.dataset.file_ending, task.dataset.reader)
    segmentation = files.read(task.source)
    side, found = measured(segmentation, task.case, task.dataset, task.options, task.known)
    wanted_quantities = {name for group in task.options.quantities for name in QUANTITIES[group]}
    found.rows = [row for row in found.rows if row["quantity"] in wanted_quantities]
    image, anomaly = (
        image_beside(folder, task.case, kind, segmentation, files)
        for folder, kind in ((task.beside.images, IMAGE), (task.beside.anomaly_maps, ERROR_IMAGE))
    )
    _add_intensities(found, image, anomaly)
    _write_pictures(task, segmentation, side, found, image)
    head = {"case": task.case, "subject": task.known.get("subject", ""), "visit": task.known.get("visit", "")}
    head["side"] = side or ""
    rows = [{**head, **row, "method_version": METHOD_VERSION} for row in found.rows]
    lesions = [{**head, **row} for row in found.lesions] if "lesions" in task.options.quantities else []
    save_record(record, state, {"rows": rows, "lesions": lesions})
    return {"rows": rows, "lesions": lesions}


def measured(
    segmentation: Segmentation,
    case: str,
    dataset: DatasetDescription,
    options: Options,
    known: Mapping[str, str],
    earlier: Mapping[str, Earlier] = MappingProxyType({}),
) -> tuple[str | None, Found]:
    """Side and values of one segmentation. Raises: UserError as ``_pose`` and ``_side``."""
    side = _side(case, dataset, options, known, segmentation)
    return side, measure_knee(
        segmentation.voxels,
        *_pose(segmentation),
        Structures.of(dataset.labels, dataset.roles),
        side,
        conventions=options.conventions,
        min_lesion_mm3=options.min_lesion_mm3,
        kissing_mm=options.kissing_mm,
        thickness=options.thickness,
        earlier=earlier,
    )


def _add_intensities(found: Found, image: NDArray | None, anomaly: NDArray | None) -> None:
    """Means in each lesion: of the image and of the bone around it, and of the anomaly map."""
    for row, indices in zip(found.lesions, found.lesion_indices, strict=True):
        own = tuple(indices.T)
        if image is not None:
            bone = found.bones[row["bone"]]
            healthy = image[tuple(bone.indices[~bone.is_lesion].T)]
            row["image_mean"] = float(image[own].mean())
            row["image_mean_of_bone"] = float(healthy.mean()) if len(healthy) else math.nan
        if anomaly is not None:
            row |= {"anomaly_mean": float(anomaly[own].mean()), "anomaly_max": float(anomaly[own].max())}


def _write_pictures(
    task: _Task, segmentation: Segmentation, side: str | None, found: Found, image: NDArray | None
) -> None:
    measured_maps = {bone: of for bone, of in found.cartilages.items() if len(of.measured)}
    if not (task.beside.maps or task.beside.reports):
        return
    flat = {bone: flattened([of])[0] for bone, of in measured_maps.items()}
    if task.beside.maps and measured_maps:
        folder = task.output / "maps" / task.case
        folder.mkdir(parents=True, exist_ok=True)
        volume = thickness_volume(list(measured_maps.values()), segmentation.voxels.shape)
        write_map(volume, segmentation, folder / "thickness_mm.nii.gz")
        for bone, of in measured_maps.items():
            stem = re.sub(r"[^\w.-]", "_", bone)
            write_surface(of, folder / f"{stem}_cartilage.vtp")
            write_flat(flat[bone], folder / f"{stem}_thickness_flat.nii.gz")
            save_figure(flat_figure([(bone.replace("_", " "), flat[bone])]), folder / f"{stem}_thickness_flat.png")
    if task.beside.reports:
        html = case_page(
            task.case,
            side,
            found,
            flat,
            segmentation.voxels,
            image,
            segmentation.spacing_mm,
            task.dataset.single_values,
        )
        write_text(task.output / "reports" / f"{task.case}.html", html)


def _pose(segmentation: Segmentation) -> tuple[tuple[float, ...], np.ndarray]:
    """Origin and steps of the voxels' axes in ITK's world, to the patient's left, posterior, superior.

    Raises: UserError for a picture, or a file without a pose.
    """
    if segmentation.voxels.ndim != 3:
        raise UserError(f"{segmentation.path} has {segmentation.voxels.ndim} axes; expected a volume")
    if segmentation.grid is not None:
        grid = segmentation.grid.oriented()
        return grid.origin_mm, grid.steps_mm()[:, ::-1]
    if segmentation.affine is not None:  # nibabel's world is to the right and anterior
        turned = np.diag([-1.0, -1.0, 1.0, 1.0]) @ segmentation.affine
        return tuple(turned[:3, 3].tolist()), turned[:3, :3][:, ::-1]
    raise UserError(f"{segmentation.path} says nothing of how its axes lie; expected NIfTI, NRRD or MetaImage")


def _side(
    case: str, dataset: DatasetDescription, options: Options, known: Mapping[str, str], segmentation: Segmentation
) -> str | None:
    """The side of a case: as given, and by its anatomy. Raises: UserError if two of them conflict."""
    names = {name: values[0] for name, values in dataset.labels.items() if len(values) == 1}
    evidence = side_from_labels(segmentation.voxels, segmentation.spacing_mm, names)
    said = {"--side": options.side, "the manifest": known.get("side") or None}
    said["the shape of bones and cartilages"] = evidence.side
    given = {by: side for by, side in said.items() if side}
    if len(set(given.values())) > 1:
        words = ", ".join(f"{side} by {by}" for by, side in given.items())
        raise UserError(f"the side of {case} is {words}; expected one, so correct the one that is wrong")
    return next(iter(given.values()), None)
