"""``nnUNetv2_anomaly change_plans``: plans of another name, with changes from a file."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Plans of another name with what a JSON file changes, such as settings of trainers; nnU-Net's own are kept."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="JSON in the form of plans.json, with what differs alone")
    add("-d", required=True, metavar="ID", help="number or name of the data set, planned by nnU-Net")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans to start from (default: nnUNetPlans)")
    add("-o", required=True, metavar="PLANS", help="name of the new plans")


def run(args: argparse.Namespace) -> int:
    """Write the plans; returns 0."""
    from nnunetv2_anomaly.files import read_json
    from nnunetv2_anomaly.plans.changes import change_plans

    print(f"Wrote {change_plans(args.d, read_json(args.file), args.o, args.p)}")
    return 0
