"""OAI ZIB-UQ -> nnU-Net raw data set: 20 knees of OAI ZIB with patella and bone marrow lesions.

<labels>/<subject>_WB01_Femur+Tibia+Patella(Bone)_Femur+Tibia+Patella(Cartilage).nii.gz      with pose
<oai>/00m/0.C.2, 0.E.1/<subject>/<date>/<barcode>/                                           DICOM slices

docs/how-to/convert-oai-zib-uq.md
"""

from __future__ import annotations

import argparse
import sys

from nnunetv2_anomaly.conversion.options import add_output_options, add_source_options, main_of
from nnunetv2_anomaly.conversion.release import Release
from nnunetv2_anomaly.labels import LABELS

HELP = "OAI ZIB-UQ: 20 knees of OAI ZIB with patella and bone marrow lesions."

RELEASE = Release(
    key="oai_zib_uq",
    converted_by="nnunetv2_anomaly.dataset_conversion.Dataset502_OAIZIBUQ",
    description="OAI ZIB-UQ: sagittal DESS of 20 knees, bones, cartilages and bone marrow lesions.",
    reference="Woo et al., arXiv:2211.16696",
    source_labels=LABELS,
    labels=LABELS,
    has_pose=True,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this conversion."""
    add_source_options(parser, zib=True, has_pose=True)
    add_output_options(parser, 502, "OAIZIBUQ")


def run(args: argparse.Namespace) -> int:
    """Convert as the options say; returns 0."""
    from nnunetv2_anomaly.conversion.command import convert_oai

    return convert_oai(args, RELEASE, args.labels or args.zib)


if __name__ == "__main__":
    sys.exit(main_of(sys.modules[__name__]))
