"""``nnUNetv2_anomaly convert``: published segmentations and their images become nnU-Net raw data sets."""

from __future__ import annotations

import argparse
import importlib

from nnunetv2_anomaly.conversion.arguments import COMMANDS
from nnunetv2_anomaly.conversion.arguments import add_arguments as add_arguments_of

HELP = "Turn OAI ZIB, OAI ZIB-UQ, OAI AKOA or OAIZIB-CM into an nnU-Net raw data set."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A command a release."""
    releases = parser.add_subparsers(title="releases", metavar="RELEASE", dest="release", required=True)
    for name, command in COMMANDS.items():
        add_arguments_of(releases.add_parser(name, help=command.help, description=command.help), name)


def run(args: argparse.Namespace) -> int:
    """Convert; returns 0, or 1 if a case failed."""
    # Imported here: SimpleITK and matplotlib take a while, which --help need not wait for.
    module = importlib.import_module(f"nnunetv2_anomaly.dataset_conversion.{COMMANDS[args.release].module}")
    return module.run(args)
