"""nnUNetv2_anomaly simulate: knees with a known truth, from label maps or from nothing."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunetv2_anomaly.errors import UserError

HELP = "Simulate DESS-like knee images with known lesions, from label maps, from phantoms, or both."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write; an earlier run is resumed")
    parser.add_argument(
        "-i", "--labels", type=Path, help="folder of label maps (NIfTI, MetaImage, NRRD), values 0 to 9"
    )
    parser.add_argument("--phantoms", type=int, default=0, metavar="N", help="number of procedural knees (default: 0)")
    parser.add_argument(
        "--size",
        type=int,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="voxels, SimpleITK order x y z: x across the sagittal slices, y to anterior, z to superior (default: as "
        "the label map; phantoms 160 384 384)",
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="mm, same order x y z; size or spacing alone keeps the field of view, both together cut or pad label maps "
        "about their centre (default: as the label map; phantoms 0.7 0.3646 0.3646)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all randomness (default: 0)")
    parser.add_argument(
        "--extra_lesions",
        type=float,
        default=0.0,
        metavar="K",
        help="mean number per knee of lesions that are in the image and the truth, not in the labels (default: 0)",
    )
    parser.add_argument("-np", "--num_processes", type=int, default=2, metavar="N", help="cases at a time (default: 2)")
    dataset = parser.add_argument_group("nnU-Net raw data set, written on top of it with -d")
    dataset.add_argument("-d", "--dataset_id", type=int, metavar="ID", help="write it into $nnUNet_raw as number ID")
    dataset.add_argument("--name", default="SimulatedKnees", help="its name after the number (default: %(default)s)")
    dataset.add_argument("--num_test", type=int, metavar="N", help="test cases (default: a fifth of the cases)")
    dataset.add_argument(
        "--keep_lesion_labels", action="store_true", help="training labels 0 to 9; without it lesions count as bone"
    )


def run(args: argparse.Namespace) -> int:
    """Simulate, and with -d write the data set as well; returns 0."""
    # SimpleITK, SciPy and matplotlib, and with -d nnU-Net's torch, take seconds to import: not for a mere --help.
    if args.dataset_id is None:
        if args.num_test is not None or args.keep_lesion_labels:
            raise UserError("--num_test and --keep_lesion_labels shape the nnU-Net data set; give its number with -d")
        target = None
    else:
        from nnunetv2_anomaly.conversion.raw_dataset import checked_dataset_dir

        # Before the work begins, so that a taken number is reported at once.
        target = checked_dataset_dir(args.dataset_id, args.name)
    from nnunetv2_anomaly.simulation.simulate import simulate_folder

    manifest = simulate_folder(
        args.output,
        labels_folder=args.labels,
        num_phantoms=args.phantoms,
        size=args.size,
        spacing_mm=args.spacing,
        seed=args.seed,
        extra_lesions=args.extra_lesions,
        num_processes=args.num_processes,
    )
    print(f"Wrote {len(manifest['cases'])} knees to {os.fspath(args.output)}; overview.png shows some of them.")
    if target is not None:
        from nnunetv2_anomaly.dataset_conversion.Dataset500_SimulatedKnees import convert

        summary = convert(
            args.output,
            target,
            num_test=args.num_test,
            seed=args.seed,
            keep_lesion_labels=args.keep_lesion_labels,
        )
        print(f"Wrote {target}: {len(summary['training'])} training and {len(summary['test'])} test cases.")
    return 0
