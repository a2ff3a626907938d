"""OAI ZIB -> nnU-Net raw data set: 507 baseline knees, segmented at the Zuse Institute Berlin.

<zib>/segmentation/doc/oai_mri_paths.txt                                    subject: path of its series
<zib>/segmentation/segmentation_masks/<subject>.segmentation_masks.mhd      no pose: axes are found by evidence
<oai>/00m/0.C.2, 0.E.1/<subject>/<date>/<barcode>/                          DICOM slices

docs/how-to/convert-oai-zib.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunetv2_anomaly.conversion.options import add_output_options, add_source_options, main_of
from nnunetv2_anomaly.conversion.release import Release
from nnunetv2_anomaly.labels import OAI_ZIB_LABELS

HELP = "OAI ZIB: 507 baseline knees, bones and cartilages of femur and tibia; masks without pose."

RELEASE = Release(
    key="oai_zib",
    converted_by="nnunetv2_anomaly.dataset_conversion.Dataset501_OAIZIB",
    description="OAI ZIB: sagittal DESS of 507 knees, bones and cartilages of femur and tibia.",
    reference="Ambellan et al., Medical Image Analysis 52 (2019), doi:10.1016/j.media.2018.11.009",
    source_labels=OAI_ZIB_LABELS,
    labels=OAI_ZIB_LABELS,
    has_pose=False,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this conversion."""
    add_source_options(parser, zib=True, has_pose=False)
    differing = "take masks whose axes run differently from those of the others"
    parser.add_argument("--differing_mappings", action="store_true", help=differing)
    add_output_options(parser, 501, "OAIZIB")


def masks_folder(given: Path) -> Path:
    """The folder of masks in the release's folder, in its folder of segmentations, or the given one itself."""
    places = [given / place for place in ("segmentation/segmentation_masks", "segmentation_masks")]
    return next((place for place in places if place.is_dir()), given)


def run(args: argparse.Namespace) -> int:
    """Convert as the options say; returns 0."""
    from nnunetv2_anomaly.conversion.command import convert_oai

    return convert_oai(args, RELEASE, args.labels or (args.zib and masks_folder(args.zib)))


if __name__ == "__main__":
    sys.exit(main_of(sys.modules[__name__]))
