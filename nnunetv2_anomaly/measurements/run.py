"""Measures every segmentation of a folder, case by case, and the change between visits, and writes tables and pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from nnunetv2_anomaly.errors import CasesFailedError, UserError, listed
from nnunetv2_anomaly.files import take_output_folder, write_failures_as_user_errors, write_marker, write_text
from nnunetv2_anomaly.images.beside import ERROR_IMAGE, IMAGE, check_beside
from nnunetv2_anomaly.images.dataset_description import DatasetDescription, segmentation_files
from nnunetv2_anomaly.images.segmentations import chosen_reader
from nnunetv2_anomaly.measurements.case import METHOD_VERSION, CaseTask, Extras, Options, measure_case, picture_of
from nnunetv2_anomaly.measurements.change import Pair, pairs_of
from nnunetv2_anomaly.measurements.change_run import ChangeOptions, measure_changes
from nnunetv2_anomaly.measurements.cohort_report import case_list, cohort_page, summary
from nnunetv2_anomaly.measurements.scene import write_script
from nnunetv2_anomaly.measurements.standardised import composite_rows, z_rows
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.parts import ALL, Part
from nnunetv2_anomaly.reporting.table import csv_text
from nnunetv2_anomaly.reporting.user_tables import read_table

MARKER = "measure.json"
COLUMNS = (
    "case", "subject", "visit", "side", "structure", "region", "quantity", "value", "unit", "flag", "method_version",
)  # fmt: skip


#: of lesions.csv, before the places of the bones that have any
LESION_COLUMNS = (
    "case", "subject", "visit", "side", "bone", "lesion", "label", "volume_mm3", "largest_area_mm2",
    "largest_diameter_mm", "lateral_mm", "anterior_mm", "superior_mm", "interface_distance_mm", "subchondral",
    "kissing",
)  # fmt: skip


@dataclass(frozen=True)
class Standards:
    """What values are compared with."""

    reference: pd.DataFrame | None = None  # structure, region, quantity, mean, sd
    cohort: pd.DataFrame | None = None  # measurements.csv of the knees that standardise composites; None: these ones
    reference_file: Path | None = None
    cohort_file: Path | None = None


def read_manifest(file: Path) -> dict[str, dict[str, str]]:
    """Subject, visit and side by case, where the table has them; that of a conversion is one.

    Raises: UserError if it cannot be read, has no column case or a case twice, or a side that is none.
    """
    table = read_table(file, {"case"}, "a table of case, and subject, visit or side")
    if len(twice := table["case"][table["case"].duplicated()]):
        raise UserError(f"{file} has {twice.iloc[0]} twice; expected each case once")
    columns = [name for name in ("subject", "visit", "side") if name in table]
    if "side" in columns and len(wrong := table["side"][~table["side"].isin(("right", "left", ""))]):
        raise UserError(f"{file} has the side {wrong.iloc[0]}; expected right, left or nothing")
    return {row["case"]: {name: row[name] for name in columns} for row in table.to_dict("records")}


def measure_folder(
    segmentations: Path,
    output: Path,
    dataset: DatasetDescription,
    options: Options,
    *,
    manifest: Mapping[str, Mapping[str, str]],
    num_processes: int,
    extras: Extras = Extras(),  # noqa: B008 (frozen)
    standards: Standards = Standards(),
    pairs: Sequence[Pair] | None = None,
    change: ChangeOptions = ChangeOptions(),  # noqa: B008
    arguments: Mapping[str, Any] = MappingProxyType({}),
    part: Part = ALL,
) -> pd.DataFrame:
    """Measure all segmentations of a folder.

    Writes measurements.csv, summary.csv, lesions.csv, cases/CASE.json, measure.json with the settings, and what
    ``extras`` asks for: reports/CASE.html, report.html, maps/CASE/; where there are visits to compare, change.csv and
    lesion_matches.csv. Run again, it measures what is missing or has changed since.

    Args:
        manifest: case -> subject, visit, side, as far as they are known.
        pairs: visits that are compared; None: each visit of the manifest with the next one of the same knee.
        arguments: of the verb, kept in measure.json.
        part: of the cases, while other jobs measure the others; tables follow when all are measured without it.
    Returns: measurements.csv.
    Raises: UserError for an output folder that holds something else; after the others are measured, for cases that
        cannot be read, or whose side is said in two ways.
    """
    files = segmentation_files(segmentations, dataset.file_ending)
    dataset = dataclasses.replace(dataset, reader=chosen_reader(dataset, files.values()))
    if manifest and not set(manifest) & set(files):
        fault = f"no case of the manifest ({listed(sorted(manifest))}) is in {segmentations}"
        raise UserError(f"{fault}; expected the names of its segmentations")
    named = {case for pair in pairs or () for case in (pair.before, pair.after)}
    if missing := sorted(named - set(files)):
        raise UserError(f"the pairs name {listed(missing)}, which have no segmentation in -i; expected its cases")
    check_beside("--images", extras.images, files, IMAGE, dataset.file_ending)
    check_beside("--anomaly_maps", extras.anomaly_maps, files, ERROR_IMAGE, dataset.file_ending)
    tasks = [
        CaseTask(case, file, output, dataset, options, extras, manifest.get(case, {}))
        for case, file in part.of(files.items())
    ]
    with write_failures_as_user_errors(output):
        take_output_folder(output, MARKER, "measurement", shared=not part.is_all)
        if extras.reports:
            (output / "reports").mkdir(exist_ok=True)
            write_script(output / "reports")
        settings = {"method_version": METHOD_VERSION, **dataclasses.asdict(options), **arguments}
        if part.is_all:
            write_marker(output / MARKER, settings, finished=False)
        found, failed = run_cases(measure_case, tasks, num_processes, "measuring", "measured")
        if not part.is_all:
            if failed:
                raise CasesFailedError(failed)
            return _rows(found)
        table = _tables(found, output, options, standards)
        # Knees of one side are compared, also where the anatomy alone tells it.
        sides = {case: {"side": rows["rows"][0]["side"]} for case, rows in found.items() if rows["rows"]}
        try:
            pairs = pairs or pairs_of({case: {**manifest.get(case, {}), **of} for case, of in sides.items()})
        except UserError as error:  # the knees are measured all the same
            pairs, failed = [], "\n".join(words for words in (failed, str(error)) if words)
        changes = None
        for name in ("change.csv", "lesion_matches.csv"):  # of an earlier run
            (output / name).unlink(missing_ok=True)
        if pairs:
            changes = measure_changes(
                pairs, files, output, dataset, options, change, manifest=manifest, num_processes=num_processes
            )
            failed = "\n".join(words for words in (failed, changes.failed) if words)
        if extras.reports:
            notes = [f"Composites are standardised to {standards.cohort_file or 'the knees at hand'}."]
            if standards.reference_file is not None:
                notes.append(f"z-scores are relative to {standards.reference_file}.")
            notes.append(_settings_note(options))
            worst = case_list(table)["case"].tolist()[:1]
            picture = next((picture_of(task) for task in tasks if task.case in worst), None)
            write_text(output / "report.html", cohort_page(table, sorted(found), notes, changes, picture))
        if failed:
            raise CasesFailedError(failed)
        write_marker(output / MARKER, settings, finished=True)
    return table


def _tables(
    found: Mapping[str, Mapping[str, list[dict[str, Any]]]], output: Path, options: Options, standards: Standards
) -> pd.DataFrame:
    """Write measurements.csv, summary.csv and lesions.csv. Returns: the first."""
    table = _rows(found)
    if standards.reference is not None:
        table = pd.concat([table, z_rows(table, standards.reference)], ignore_index=True)
    if len(table) and {"lesions", "thickness"} & set(options.quantities):
        cohort = table if standards.cohort is None else standards.cohort
        table = pd.concat([table, composite_rows(table, cohort)], ignore_index=True)
    write_text(output / "measurements.csv", csv_text(table))
    write_text(output / "summary.csv", csv_text(summary(table)))
    lesions = pd.DataFrame([row for case in sorted(found) for row in found[case]["lesions"]])
    columns = [*LESION_COLUMNS, *(str(name) for name in lesions if name not in LESION_COLUMNS)]
    write_text(output / "lesions.csv", csv_text(lesions.reindex(columns=columns)))
    return table


def _rows(found: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> pd.DataFrame:
    rows = [row for case in sorted(found) for row in found[case]["rows"]]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _settings_note(options: Options) -> str:
    of = options.conventions
    thirds = " and ".join(f"{share:.2f}" for share in of.tibial_thirds)
    return (
        f"Conventions: bone deeper than {of.depth_mm:g} mm is shaft; the femur's central part reaches "
        f"{100 * of.weight_bearing:.0f} % of the way from the notch to the rear; the tibia's thirds end at {thirds} of "
        f"the plateau; the central subregion is {100 * of.central_share:.0f} % of a tibial plate; lesions below "
        f"{options.min_lesion_mm3:g} mm3 are left out; lesions of two bones at most {options.kissing_mm:g} mm apart "
        "are kissing."
    )
