"""``nnUNetv2_anomaly convert``: published segmentations and their images become nnU-Net raw data sets."""

from __future__ import annotations

import argparse

from nnunetv2_anomaly.dataset_conversion import (
    Dataset501_OAIZIB,
    Dataset502_OAIZIBUQ,
    Dataset503_OAIAKOA,
    Dataset504_OAIZIBCM,
)

HELP = "Turn OAI ZIB, OAI ZIB-UQ, OAI AKOA or OAIZIB-CM into an nnU-Net raw data set."

#: These modules import SimpleITK, matplotlib and nnU-Net only when they run.
_MODULES = (Dataset501_OAIZIB, Dataset502_OAIZIBUQ, Dataset503_OAIAKOA, Dataset504_OAIZIBCM)
RELEASES = {module.RELEASE.key: module for module in _MODULES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one subcommand per release."""
    releases = parser.add_subparsers(title="releases", metavar="RELEASE", dest="release", required=True)
    for key, module in RELEASES.items():
        module.add_arguments(releases.add_parser(key, help=module.HELP, description=module.HELP))


def run(args: argparse.Namespace) -> int:
    """Convert; returns 0."""
    return RELEASES[args.release].run(args)
