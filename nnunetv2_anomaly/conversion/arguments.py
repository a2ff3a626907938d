"""Options of the conversion commands; argparse alone, so that --help is there at once."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Command:
    """One release as a command."""

    module: str  # in nnunetv2_anomaly.dataset_conversion
    dataset_id: int
    name: str
    help: str


#: word after nnUNetv2_anomaly convert -> the release
COMMANDS = {
    "oai_zib": Command(
        "Dataset501_OAIZIB",
        501,
        "OAIZIB",
        "OAI ZIB: 507 baseline knees, bones and cartilages of femur and tibia; masks without pose.",
    ),
    "oai_zib_uq": Command(
        "Dataset502_OAIZIBUQ",
        502,
        "OAIZIBUQ",
        "OAI ZIB-UQ: 20 knees of OAI ZIB with patella and bone marrow lesions.",
    ),
    "oai_akoa": Command(
        "Dataset503_OAIAKOA",
        503,
        "OAIAKOA",
        "OAI AKOA: 24 patients at two visits, bones, cartilages and bone marrow lesions.",
    ),
    "oaizib_cm": Command(
        "Dataset504_OAIZIBCM",
        504,
        "OAIZIBCM",
        "OAIZIB-CM: OAI ZIB as NIfTI, tibial cartilage in two compartments.",
    ),
}


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Options of one release's conversion."""
    sources = parser.add_argument_group("sources")
    if command == "oaizib_cm":
        sources.add_argument(
            "-i",
            "--input",
            "--zib",
            dest="input",
            type=Path,
            metavar="DIR",
            help="the release: imagesTr, labelsTr, and imagesTs, labelsTs where they are there",
        )
        sources.add_argument("--images", type=Path, metavar="DIR", help="instead of -i: training images alone")
        sources.add_argument("--labels", type=Path, metavar="DIR", help="and their label maps")
        parser.add_argument(
            "--keep_compartments",
            action="store_true",
            help="keep medial and lateral tibial cartilage apart; merged into one label if not",
        )
    else:
        masks = "the masks" if command != "oai_zib" else "the masks alone, instead of --zib"
        sources.add_argument("--labels", type=Path, metavar="DIR", help=f"folder of {masks}")
        if command != "oai_akoa":
            told = "the release of OAI ZIB, with segmentation/doc and segmentation/segmentation_masks"
            sources.add_argument("--zib", type=Path, metavar="DIR", help=told)
            sources.add_argument(
                "--paths",
                type=Path,
                metavar="FILE",
                help="list of the subjects' series (default: oai_mri_paths.txt of the release, else column Path of "
                "--subjects)",
            )
        images = sources.add_mutually_exclusive_group()
        images.add_argument(
            "--oai",
            type=Path,
            nargs="+",
            metavar="DIR",
            help="OAI's image packages as downloaded, one or several roots",
        )
        images.add_argument(
            "--images",
            type=Path,
            metavar="DIR",
            help="instead of --oai: converted images (NIfTI, NRRD, MetaImage), named by subject and visit",
        )
        sources.add_argument(
            "--subjects", type=Path, metavar="CSV", help="table of knee side, Kellgren-Lawrence grade, sex, age, BMI"
        )
        if command != "oai_zib":
            sources.add_argument(
                "--series",
                nargs="+",
                default=(),
                metavar="UID",
                help="series to take where several have the mask's grid",
            )
        else:
            parser.add_argument(
                "--differing_mappings",
                action="store_true",
                help="take masks whose axes run differently from those of the others",
            )
    name = COMMANDS[command].name
    output = parser.add_argument_group("raw data set")
    output.add_argument(
        "-d",
        "--dataset_id",
        type=int,
        default=COMMANDS[command].dataset_id,
        metavar="ID",
        help="its number (default: %(default)s)",
    )
    output.add_argument("--name", default=name, help="its name after the number (default: %(default)s)")
    output.add_argument(
        "--splits", type=Path, metavar="FILE", help="published test sets by subject (default: drawn by --seed)"
    )
    output.add_argument("--seed", type=int, default=0, metavar="S", help="of the draw of splits (default: 0)")
    output.add_argument(
        "--mirror_left", action="store_true", help="turn left knees into right ones, and say so in the manifest"
    )
    output.add_argument(
        "--reference", action="store_true", help="point to the images where they are (.nii.gz) instead of copying them"
    )
    output.add_argument("--previews", action="store_true", help="a picture a case, with the labels' outlines")
    run = parser.add_argument_group("run")
    run.add_argument("--dry_run", action="store_true", help="read and check everything, write nothing")
    run.add_argument("--overwrite", action="store_true", help="make cases and splits anew that are there and differ")
    run.add_argument("-np", "--num_processes", type=int, default=2, metavar="N", help="cases at a time (default: 2)")
