"""Options that the conversions share; argparse alone, so that --help does not wait for SimpleITK and matplotlib."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from nnunetv2_anomaly.errors import exit_status


def add_source_options(parser: argparse.ArgumentParser, *, zib: bool, has_pose: bool) -> None:
    """Add the options that give masks, images and what is known of the subjects.

    Args: zib: whether the subjects are in OAI ZIB's list of series: --zib and --paths. has_pose: whether the masks'
        headers give their place in space: --series.
    """
    sources = parser.add_argument_group("sources")
    sources.add_argument("--labels", type=Path, metavar="DIR", required=not zib, help="folder of the masks")
    if zib:
        release = "the release of OAI ZIB, with segmentation/doc and segmentation/segmentation_masks"
        sources.add_argument("--zib", type=Path, metavar="DIR", help=release)
        paths = "the subjects' series (default: oai_mri_paths.txt of the release, else column Path of --subjects)"
        sources.add_argument("--paths", type=Path, metavar="FILE", help=f"list of {paths}")
    images = sources.add_mutually_exclusive_group(required=True)
    packages = "OAI's image packages as downloaded, one or several roots"
    images.add_argument("--oai", type=Path, nargs="+", metavar="DIR", help=packages)
    converted = "instead of --oai: converted images (NIfTI, NRRD, MetaImage), named by subject and visit"
    images.add_argument("--images", type=Path, metavar="DIR", help=converted)
    table = "table of knee side, Kellgren-Lawrence grade, sex, age, BMI; the OAI's own text files, too"
    sources.add_argument("--subjects", type=Path, metavar="FILE", help=table)
    if has_pose:
        several = "series to take where several have the mask's grid"
        sources.add_argument("--series", nargs="+", default=(), metavar="UID", help=several)


def add_output_options(parser: argparse.ArgumentParser, dataset_id: int, name: str) -> None:
    """Add what every conversion has: number and name of the data set, splits, form of the files, and the run."""
    add = parser.add_argument_group("raw data set").add_argument
    add("-d", "--dataset_id", type=int, default=dataset_id, metavar="ID", help="its number (default: %(default)s)")
    add("--name", default=name, help="its name after the number (default: %(default)s)")
    add("--splits", type=Path, metavar="FILE", help="published test sets by subject (default: drawn by --seed)")
    add("--seed", type=int, default=0, metavar="S", help="of the draw of splits (default: 0)")
    add("--mirror_left", action="store_true", help="mirror left knees and record it in the manifest")
    add("--reference", action="store_true", help="refer to the images in place (.nii.gz) instead of copying them")
    add("--previews", action="store_true", help="write a picture per case, with the labels' outlines")
    run = parser.add_argument_group("run")
    run.add_argument("--dry_run", action="store_true", help="read and check everything, write nothing")
    run.add_argument("--overwrite", action="store_true", help="convert existing cases and splits that differ again")
    run.add_argument("-np", "--num_processes", type=int, default=2, metavar="N", help="cases at a time (default: 2)")


def main_of(module: ModuleType, argv: Sequence[str] | None = None) -> int:
    """A conversion's own command, from its module with HELP, ``add_arguments`` and ``run``.

    Returns: as ``exit_status``.
    """
    parser = argparse.ArgumentParser(description=module.HELP)
    module.add_arguments(parser)
    args = parser.parse_args(argv)
    return exit_status(parser.prog, lambda: module.run(args))
