"""``nnUNetv2_anomaly check_images``: read new images, and link those that nnUNetv2_predict can take."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_anomaly.parts import add_part_arguments, part_of

HELP = "Read new images, link those that nnUNetv2_predict can take into a folder, and name the others."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add("-i", type=Path, required=True, metavar="FOLDER", help="images, named case_0000.nii.gz and so on")
    add("-o", type=Path, required=True, metavar="FOLDER", help="gets links to the images that can be read")
    add("-d", required=True, metavar="ID", help="number or name of the data set of the model")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans of the model (default: nnUNetPlans)")
    add("-np", type=int, metavar="N", help="cases at a time (default: the number of cores, at most 4)")
    add_part_arguments(parser, "give each a folder of its own")


def run(args: argparse.Namespace) -> int:
    """Check the images. Returns: 0."""
    from nnunetv2_anomaly.errors import counted
    from nnunetv2_anomaly.parallel import chosen_processes
    from nnunetv2_anomaly.prediction.image_check import link_readable_images

    how = {"plans": args.p, "num_processes": chosen_processes(args.np), "part": part_of(args)}
    print(f"{counted(len(link_readable_images(args.i, args.o, args.d, **how)), 'case')} linked in {args.o}")
    return 0
