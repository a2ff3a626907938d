"""OAI AKOA -> nnU-Net raw data set: 24 patients at two visits, with bone marrow lesions.

<labels>/<subject>_<MM>m_WB01_....nii.gz                          with pose
<oai>/<MM>m/<package>/<subject>/<date>/<barcode>/                 DICOM slices: the DESS series on the mask's grid

docs/how-to/convert-oai-akoa.md
"""

from __future__ import annotations

import argparse
import sys

from nnunetv2_anomaly.conversion.options import add_output_options, add_source_options, main_of
from nnunetv2_anomaly.conversion.release import Release
from nnunetv2_anomaly.labels import LABELS

HELP = "OAI AKOA: 24 patients at two visits, bones, cartilages and bone marrow lesions."

RELEASE = Release(
    key="oai_akoa",
    converted_by="nnunetv2_anomaly.dataset_conversion.Dataset503_OAIAKOA",
    description="OAI AKOA: sagittal DESS of 24 patients at two visits, bones, cartilages and bone marrow lesions.",
    reference="Woo et al., arXiv:2211.16696",
    source_labels=LABELS,
    labels=LABELS,
    has_pose=True,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this conversion."""
    add_source_options(parser, zib=False, has_pose=True)
    add_output_options(parser, 503, "OAIAKOA")


def run(args: argparse.Namespace) -> int:
    """Convert as the options say; returns 0."""
    from nnunetv2_anomaly.conversion.command import convert_oai

    return convert_oai(args, RELEASE, args.labels, has_visits=True)


if __name__ == "__main__":
    sys.exit(main_of(sys.modules[__name__]))
