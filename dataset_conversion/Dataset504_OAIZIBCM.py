"""OAIZIB-CM -> nnU-Net raw data set: OAI ZIB as NIfTI, tibial cartilage in two compartments.

<input>/imagesTr/oaizib_001_0000.nii.gz, labelsTr/oaizib_001.nii.gz
<input>/imagesTs/oaizib_405_0000.nii.gz, labelsTs/oaizib_405.nii.gz

docs/how-to/convert-oaizib-cm.md
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from nnunetv2_anomaly.conversion.options import add_output_options, main_of
from nnunetv2_anomaly.conversion.release import Release
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.labels import OAI_ZIB_LABELS, OAIZIB_CM_LABELS

HELP = "OAIZIB-CM: OAI ZIB as NIfTI, tibial cartilage in two compartments."

RELEASE = Release(
    key="oaizib_cm",
    converted_by="nnunetv2_anomaly.dataset_conversion.Dataset504_OAIZIBCM",
    description="OAIZIB-CM: sagittal DESS of 507 knees, bones and cartilages of femur and tibia.",
    reference="Ambellan et al., Medical Image Analysis 52 (2019), doi:10.1016/j.media.2018.11.009; OAIZIB-CM",
    source_labels=OAIZIB_CM_LABELS,
    labels=OAI_ZIB_LABELS,
    has_pose=True,
)

#: the same with medial and lateral tibial cartilage apart
RELEASE_WITH_COMPARTMENTS = dataclasses.replace(RELEASE, labels=OAIZIB_CM_LABELS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this conversion."""
    add = parser.add_argument_group("sources").add_argument
    release = "the release: imagesTr, labelsTr, and imagesTs, labelsTs where they exist"
    add("-i", "--input", "--zib", dest="input", type=Path, metavar="DIR", help=release)
    add("--images", type=Path, metavar="DIR", help="instead of -i: training images alone")
    add("--labels", type=Path, metavar="DIR", help="and their label maps")
    apart = "keep medial and lateral tibial cartilage apart (default: merged into one label)"
    parser.add_argument("--keep_compartments", action="store_true", help=apart)
    add_output_options(parser, 504, "OAIZIBCM")


def run(args: argparse.Namespace) -> int:
    """Convert as the options say; returns 0."""
    from nnunetv2_anomaly.conversion.command import collect_pairs, run_conversion

    if (args.input is None) == (args.images is None) or (args.images is None) != (args.labels is None):
        raise UserError("Give the release with -i DIR, or training images and label maps: --images DIR --labels DIR")
    if args.input is None:
        cases = collect_pairs(args.images, args.labels, is_test=False)
    else:
        cases = collect_pairs(args.input / "imagesTr", args.input / "labelsTr", is_test=False, root=args.input)
        if (args.input / "labelsTs").is_dir():
            cases += collect_pairs(args.input / "imagesTs", args.input / "labelsTs", is_test=True, root=args.input)
    return run_conversion(args, RELEASE_WITH_COMPARTMENTS if args.keep_compartments else RELEASE, cases)


if __name__ == "__main__":
    sys.exit(main_of(sys.modules[__name__]))
