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
    add("--no_thickness", action="store_true", help="leave out cartilage thickness and areas, which need vtk")
    add("--min_lesion_volume_mm3", type=float, default=0.0, metavar="MM3", help="smaller lesions count as bone")
    add("--kissing_mm", type=float, default=10.0, metavar="MM", help="lesions of two bones so near are kissing")
    depth = "bone deeper below the articular surface is shaft, not graded"
    add("--depth_mm", type=float, default=20.0, metavar="MM", help=f"{depth} (default: 20)")
    add("-np", type=int, metavar="N", help="cases at a time (default: the number of cores, at most 4)")


def run(args: argparse.Namespace) -> int:
    """Measure the segmentations. Returns: 0."""
    from nnunetv2_anomaly.errors import UserError, counted
    from nnunetv2_anomaly.images.dataset_description import find_dataset_description
    from nnunetv2_anomaly.label_roles import taken_as
    from nnunetv2_anomaly.measurements.meshes import load_vtk
    from nnunetv2_anomaly.measurements.regions import Conventions
    from nnunetv2_anomaly.measurements.run import Options, measure_folder, read_manifest
    from nnunetv2_anomaly.parallel import chosen_processes

    if not args.i.is_dir():
        raise UserError(f"{args.i} is no folder; expected one with segmentations")
    for name in ("min_lesion_volume_mm3", "kissing_mm", "depth_mm"):
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
    conventions = Conventions(depth_mm=args.depth_mm)
    thickness = bool(roles.cartilages) and not args.no_thickness
    if thickness:
        load_vtk()
    options = Options(args.side, args.min_lesion_volume_mm3, args.kissing_mm, thickness, conventions)
    manifest = read_manifest(args.manifest) if args.manifest else {}
    table = measure_folder(args.i, args.o, dataset, options, manifest=manifest, num_processes=chosen_processes(args.np))
    flagged = table[table["value"].isna()]["case"].nunique()
    of_all = f"{counted(table['case'].nunique(), 'case')} measured, {flagged} with values that could not be taken"
    print(f"{of_all}; see {args.o / 'measurements.csv'}, its column flag says why")
    return 0
