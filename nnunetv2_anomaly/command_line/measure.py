"""``nnUNetv2_anomaly measure``: volumes, lesions and cartilage of segmented knees, without references."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Volumes, lesions by place and cartilage by subregion of segmented knees, without references."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add("-i", type=Path, required=True, metavar="FOLDER", help="segmentations, with dataset.json")
    add("-o", type=Path, required=True, metavar="FOLDER", help="output; run again to resume")
    add("-djfile", type=Path, metavar="FILE", help="dataset.json (default: the one beside the segmentations)")
    add("--manifest", type=Path, metavar="CSV", help="case, and subject, visit, side: for example a conversion's")
    add("--side", choices=("right", "left"), help="of all cases (default: the manifest's, or what the anatomy shows)")
    kinds = ("volumes", "lesions", "cartilage", "thickness")
    chosen = "what is measured (default: all; thickness and areas of cartilage need vtk)"
    add("--quantities", nargs="+", choices=kinds, default=list(kinds), help=chosen)
    add("--images", type=Path, metavar="FOLDER", help="images, CASE_0000, for pictures and the intensity of lesions")
    maps = "CASE_error.nii.gz, as anomaly_maps writes them: their values in each lesion"
    add("--anomaly_maps", type=Path, metavar="FOLDER", help=maps)
    add("--no_reports", action="store_true", help="write no pages, which need vtk and plotly")
    add("--no_maps", action="store_true", help="write no maps of thickness")
    reference = "structure, region, quantity, mean, sd: z-scores against them"
    add("--reference", type=Path, metavar="CSV", help=reference)
    cohort = "measurements.csv of knees that standardise composite scores (default: those at hand)"
    add("--cohort", type=Path, metavar="CSV", help=cohort)
    add("--min_lesion_volume_mm3", type=float, default=0.0, metavar="MM3", help="smaller lesions count as bone")
    add("--kissing_mm", type=float, default=10.0, metavar="MM", help="lesions of two bones so near are kissing")
    pairs = "before, after: visits that are compared (default: the manifest's, each with the next of the same knee)"
    add("--pairs", type=Path, metavar="CSV", help=pairs)
    limits = "structure, region, quantity, limit: of agreement of repeated scans; changes are beyond or within them"
    add("--limits", type=Path, metavar="CSV", help=limits)
    residual = "bones of two visits that cannot be brought nearer together are not compared (default: 1)"
    add("--max_residual_mm", type=float, default=1.0, metavar="MM", help=residual)
    stable = "lesions that change by no more are stable, where no limit is given (default: 10)"
    add("--stable_percent", type=float, default=10.0, metavar="PERCENT", help=stable)
    depth = "bone deeper below the articular surface is shaft, not graded"
    add("--depth_mm", type=float, default=20.0, metavar="MM", help=f"{depth} (default: 20)")
    add("-np", type=int, metavar="N", help="cases at a time (default: the number of cores, at most 4)")


def run(args: argparse.Namespace) -> int:
    """Measure the segmentations. Returns: 0."""
    from nnunetv2_anomaly.errors import UserError, counted
    from nnunetv2_anomaly.images.dataset_description import find_dataset_description
    from nnunetv2_anomaly.label_roles import taken_as
    from nnunetv2_anomaly.measurements.case import Beside, Options
    from nnunetv2_anomaly.measurements.change import Limits, read_pairs
    from nnunetv2_anomaly.measurements.change_run import ChangeOptions
    from nnunetv2_anomaly.measurements.meshes import load_vtk
    from nnunetv2_anomaly.measurements.regions import Conventions
    from nnunetv2_anomaly.measurements.run import COLUMNS, Standards, Visits, measure_folder, read_manifest
    from nnunetv2_anomaly.measurements.scene import check_plotly
    from nnunetv2_anomaly.measurements.standardised import KNEE, read_reference, read_table
    from nnunetv2_anomaly.parallel import chosen_processes

    if not args.i.is_dir():
        raise UserError(f"{args.i} is no folder; expected one with segmentations")
    for name in ("min_lesion_volume_mm3", "kissing_mm", "depth_mm", "max_residual_mm", "stable_percent"):
        if not 0 <= getattr(args, name) < 1e6:
            raise UserError(f"--{name} is {getattr(args, name)}; expected a number from 0")
    dataset = find_dataset_description(args.djfile, [args.i])
    roles = dataset.roles
    print(
        taken_as(
            {
                "bones": roles.bones,
                "lesions": roles.lesions,
                "cartilages": roles.cartilages,
                "effusions": roles.effusions,
            }
        )
    )
    thickness = bool(roles.cartilages) and "thickness" in args.quantities
    beside = Beside(args.images, args.anomaly_maps, not args.no_reports, thickness and not args.no_maps)
    if thickness or beside.reports:
        load_vtk()
    if beside.reports:
        check_plotly()
    quantities = tuple(name for name in args.quantities if name != "thickness" or thickness)
    conventions = Conventions(depth_mm=args.depth_mm)
    options = Options(args.side, args.min_lesion_volume_mm3, args.kissing_mm, quantities, conventions)
    standards = Standards(
        None if args.reference is None else read_reference(args.reference),
        None if args.cohort is None else read_table(args.cohort, set(COLUMNS), "a measurements.csv"),
        tuple(str(file) for file in (args.reference, args.cohort) if file is not None),
    )
    limits = Limits() if args.limits is None else Limits.read(args.limits)
    change = ChangeOptions(limits, args.limits, args.max_residual_mm, args.stable_percent)
    visits = Visits(None if args.pairs is None else read_pairs(args.pairs), change)
    table = measure_folder(
        args.i,
        args.o,
        dataset,
        options,
        manifest=read_manifest(args.manifest) if args.manifest else {},
        num_processes=chosen_processes(args.np),
        beside=beside,
        standards=standards,
        visits=visits,
    )
    flagged = table[table["value"].isna() & (table["structure"] != KNEE)]["case"].nunique()
    of_all = f"{counted(table['case'].nunique(), 'case')} measured, {flagged} with values that could not be taken"
    shown = args.o / ("measurements.csv" if args.no_reports else "report.html")
    print(f"{of_all}; see {shown}; the column flag says why")
    return 0
