"""OAI ZIB -> nnU-Net raw data set: 507 baseline knees, segmented at the Zuse Institute Berlin.

<zib>/segmentation/doc/oai_mri_paths.txt                                    subject: path of its series
<zib>/segmentation/segmentation_masks/<subject>.segmentation_masks.mhd      no pose: axes are found by evidence
<oai>/00m/0.C.2, 0.E.1/<subject>/<date>/<barcode>/                          DICOM slices

docs/how-to/convert-oai-zib.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_anomaly.conversion.command import (
    collect_cases,
    given_series_paths,
    given_subjects,
    image_lookup,
    main_of,
    run_conversion,
)
from nnunetv2_anomaly.conversion.release import LICENCE, Release
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.labels import OAI_ZIB_LABELS

RELEASE = Release(
    key="oai_zib",
    converted_by="nnunetv2_anomaly.dataset_conversion.Dataset501_OAIZIB",
    description="OAI ZIB: sagittal DESS of 507 knees, bones and cartilages of femur and tibia.",
    licence=LICENCE,
    reference="Ambellan et al., Medical Image Analysis 52 (2019), doi:10.1016/j.media.2018.11.009",
    source_labels=OAI_ZIB_LABELS,
    labels=OAI_ZIB_LABELS,
    has_pose=False,
)


def masks_folder(given: Path) -> Path:
    """The folder of masks in the release's folder, in its folder of segmentations, or the given one itself."""
    for place in ("segmentation/segmentation_masks", "segmentation_masks"):
        if (given / place).is_dir():
            return given / place
    return given


def run(args: argparse.Namespace) -> int:
    """Convert as the options say; returns 0, or 1 if a case failed."""
    if args.zib is None and args.labels is None:
        raise UserError(
            "Give the segmentations: the release of OAI ZIB with --zib DIR, or its masks with --labels DIR."
        )
    for folder in (args.zib, args.labels):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder} is no folder; expected the release of OAI ZIB, or its masks.")
    subjects = given_subjects(args)
    series_paths = None
    if args.images is None:
        series_paths = given_series_paths(args, subjects)
        if series_paths is None:
            raise UserError(
                f"No oai_mri_paths.txt was found with {args.zib or args.labels}; give it with --paths FILE, or a "
                "subject table with a column Path with --subjects CSV."
            )
    images_of = image_lookup(args.oai, args.images, series_paths)
    cases = collect_cases(args.labels or masks_folder(args.zib), images_of, subjects, has_visits=False)
    return run_conversion(args, RELEASE, cases)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and convert; returns 0, or 1 if something failed."""
    return main_of("oai_zib", run, argv)


if __name__ == "__main__":
    sys.exit(main())
