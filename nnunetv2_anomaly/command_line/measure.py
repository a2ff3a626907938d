"""``nnUNetv2_anomaly measure``: volumes, lesions and cartilage of segmented knees, without references."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_anomaly.parts import add_part_arguments, part_of

if TYPE_CHECKING:
    from nnunetv2_anomaly.measurements.run import Standards

HELP = "Volumes, lesions by place and cartilage by subregion of segmented knees, without references."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add("-i", type=Path, required=True, metavar="FOLDER", help="segmentations, with dataset.json")
    add("-o", type=Path, required=True, metavar="FOLDER", help="output; run again to resume")
    add("-djfile", type=Path, metavar="FILE", help="dataset.json (default: the one beside the segmentations)")
    manifest = "table with case and, where known, subject, visit, side, such as a conversion's manifest.csv"
    add("--manifest", type=Path, metavar="CSV", help=manifest)
    side = "side of all cases (default: from the manifest, or from the anatomy)"
    add("--side", choices=("right", "left"), help=side)
    kinds = ("volumes", "lesions", "cartilage", "thickness")
    chosen = "what is measured (default: all; thickness and areas of cartilage need vtk)"
    add("--quantities", nargs="+", choices=kinds, default=list(kinds), help=chosen)
    images = "images, CASE_0000, for pictures and the intensity of lesions"
    add("--images", "-images", type=Path, metavar="FOLDER", help=images)
    maps = "maps written by anomaly_maps (CASE_error.nii.gz): adds their values in each lesion"
    add("--anomaly_maps", type=Path, metavar="FOLDER", help=maps)
    add("--no_reports", action="store_true", help="write no pages, which need vtk and plotly")
    add("--no_maps", action="store_true", help="write no maps of thickness")
    reference = "table of structure, region, quantity, mean, sd: adds z-scores"
    add("--reference", type=Path, metavar="CSV", help=reference)
    cohort = "measurements.csv of the knees to which composite scores are standardised (default: the knees measured)"
    add("--cohort", type=Path, metavar="CSV", help=cohort)
    pairs = "table of before, after: visits to compare (default: each visit of the manifest with the next of that knee)"
    add("--pairs", type=Path, metavar="CSV", help=pairs)
    limits = "table of quantity, limit and, where they differ, structure, region: limits of agreement for changes"
    add("--limits", type=Path, metavar="CSV", help=limits)
    residual = "largest residual of a bone's registration at which its visits are compared (default: 1)"
    add("--max_residual_mm", type=float, default=1.0, metavar="MM", help=residual)
    stable = "lesions that change by no more are stable, where no limit is given (default: 10)"
    add("--stable_percent", type=float, default=10.0, metavar="PERCENT", help=stable)
    smallest = "smaller lesions are not counted (default: 0)"
    add("--min_lesion_volume_mm3", type=float, default=0.0, metavar="MM3", help=smallest)
    kissing = "largest distance between lesions of two bones that count as kissing (default: 10)"
    add("--kissing_mm", type=float, default=10.0, metavar="MM", help=kissing)
    depth = "bone deeper below the articular surface is shaft, not graded (default: 20)"
    add("--depth_mm", type=float, default=20.0, metavar="MM", help=depth)
    add("-np", type=int, metavar="N", help="cases at a time (default: the number of cores, at most 4)")
    add_part_arguments(parser, "run again without parts, it writes tables and report")


def run(args: argparse.Namespace) -> int:
    """Measure the segmentations. Returns: 0."""
    from nnunetv2_anomaly.errors import UserError, counted
    from nnunetv2_anomaly.images.dataset_description import find_dataset_description
    from nnunetv2_anomaly.label_roles import taken_as
    from nnunetv2_anomaly.measurements.case import Extras, Options
    from nnunetv2_anomaly.measurements.change import Limits, read_pairs
    from nnunetv2_anomaly.measurements.change_run import ChangeOptions
    from nnunetv2_anomaly.measurements.meshes import load_vtk
    from nnunetv2_anomaly.measurements.regions import Conventions
    from nnunetv2_anomaly.measurements.run import measure_folder, read_manifest
    from nnunetv2_anomaly.measurements.scene import check_plotly
    from nnunetv2_anomaly.measurements.standardised import KNEE
    from nnunetv2_anomaly.parallel import chosen_processes

    if not args.i.is_dir():
        raise UserError(f"{args.i} is not a folder; expected one with segmentations")
    for name in ("min_lesion_volume_mm3", "kissing_mm", "depth_mm", "max_residual_mm", "stable_percent"):
        if not 0 <= getattr(args, name) < 1e6:
            raise UserError(f"--{name} is {getattr(args, name)}; expected a number from 0 to 1000000")
    dataset = find_dataset_description(args.djfile, [args.i])
    print(taken_as({role: getattr(dataset.roles, role) for role in ("bones", "lesions", "cartilages", "effusions")}))
    thickness = bool(dataset.roles.cartilages) and "thickness" in args.quantities
    extras = Extras(args.images, args.anomaly_maps, not args.no_reports, thickness and not args.no_maps)
    if thickness or extras.reports:
        load_vtk()
    if extras.reports:
        check_plotly()
    quantities = tuple(name for name in args.quantities if name != "thickness" or thickness)
    conventions = Conventions(depth_mm=args.depth_mm)
    limits = Limits() if args.limits is None else Limits.read(args.limits)
    table = measure_folder(
        args.i,
        args.o,
        dataset,
        Options(args.side, args.min_lesion_volume_mm3, args.kissing_mm, quantities, conventions),
        manifest=read_manifest(args.manifest) if args.manifest else {},
        num_processes=chosen_processes(args.np),
        extras=extras,
        standards=_standards(args),
        pairs=None if args.pairs is None else read_pairs(args.pairs),
        change=ChangeOptions(limits, args.limits, args.max_residual_mm, args.stable_percent),
        arguments={name: value for name, value in vars(args).items() if name != "run"},
        part=part_of(args),
    )
    flagged = table[table["value"].isna() & (table["structure"] != KNEE)]["case"].nunique()
    of_all = f"{counted(table['case'].nunique(), 'case')} measured, {flagged} with values that could not be taken"
    shown = args.o / ("measurements.csv" if args.no_reports else "report.html")
    after = "run again without -num_parts when all parts are done"
    print(f"{of_all} (why: column flag of measurements.csv); {f'see {shown}' if args.num_parts == 1 else after}")
    return 0


def _standards(args: argparse.Namespace) -> Standards:
    """What values are compared with, read from the files that are given."""
    from nnunetv2_anomaly.measurements.run import COLUMNS, Standards
    from nnunetv2_anomaly.measurements.standardised import read_reference
    from nnunetv2_anomaly.reporting.user_tables import read_table

    return Standards(
        None if args.reference is None else read_reference(args.reference),
        None if args.cohort is None else read_table(args.cohort, set(COLUMNS), "a measurements.csv"),
        args.reference,
        args.cohort,
    )
