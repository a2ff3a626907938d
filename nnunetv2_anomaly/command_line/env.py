"""``nnUNetv2_anomaly env``: shell lines by which nnU-Net finds our trainers and its folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_anomaly.environment import create_nnunet_folders, environment_lines

HELP = 'Print export lines for nnU-Net\'s variables; use as: eval "$(nnUNetv2_anomaly env --base DIR)"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    base = "also set nnUNet_raw, nnUNet_preprocessed and nnUNet_results to folders of that name in DIR; create them"
    parser.add_argument("--base", type=Path, metavar="DIR", help=base)


def run(args: argparse.Namespace) -> int:
    """Print the lines, and nothing else, on standard output. Returns: 0."""
    if args.base is not None:
        create_nnunet_folders(args.base)
    print("\n".join(environment_lines(args.base)))
    return 0
