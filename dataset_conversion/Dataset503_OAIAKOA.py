"""OAI AKOA -> nnU-Net raw data set: 24 patients at two visits, with bone marrow lesions.

<labels>/<subject>_<MM>m_WB01_....nii.gz                          with pose
<oai>/<MM>m/<package>/<subject>/<date>/<barcode>/                 DICOM slices: the DESS series on the mask's grid

docs/how-to/convert-oai-akoa.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_anomaly.conversion.options import add_image_options, add_output_options, add_series_option, main_of
from nnunetv2_anomaly.conversion.release import LICENCE, Release
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.labels import LABELS

HELP = "OAI AKOA: 24 patients at two visits, bones, cartilages and bone marrow lesions."

RELEASE = Release(
    key="oai_akoa",
    converted_by="nnunetv2_anomaly.dataset_conversion.Dataset503_OAIAKOA",
    description="OAI AKOA: sagittal DESS of 24 patients at two visits, bones, cartilages and bone marrow lesions.",
    licence=LICENCE,
    reference="Woo et al., arXiv:2211.16696",
    source_labels=LABELS,
    labels=LABELS,
    has_pose=True,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this conversion."""
    sources = parser.add_argument_group("sources")
    sources.add_argument("--labels", type=Path, metavar="DIR", help="folder of the masks")
    add_image_options(sources)
    add_series_option(sources)
    add_output_options(parser, 503, "OAIAKOA")


def run(args: argparse.Namespace) -> int:
    """Convert as the options say; returns 0, or 1 if a case failed."""
    # Imported here: SimpleITK and matplotlib take a while, which --help need not wait for.
    from nnunetv2_anomaly.conversion.command import collect_cases, given_subjects, image_lookup, run_conversion

    if args.labels is None:
        raise UserError("Give the segmentations of OAI AKOA with --labels DIR")
    images_of = image_lookup(args.oai, args.images, None)
    return run_conversion(args, RELEASE, collect_cases(args.labels, images_of, given_subjects(args), has_visits=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and convert; returns 0, or 1 if something failed."""
    return main_of(sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
