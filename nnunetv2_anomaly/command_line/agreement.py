"""``nnUNetv2_anomaly agreement``: how two readings of the same knees agree, value by value."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Compare two measured readings of the same knees: variation, Bland-Altman, ICC, rank correlation."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    table = "measurements.csv of one reading, or the folder that measure wrote"
    add("-a", type=Path, required=True, metavar="FILE", help=table)
    add(
        "-b", type=Path, required=True, metavar="FILE", help="the same of the other reading; differences are -b less -a"
    )
    add("-o", type=Path, required=True, metavar="FOLDER", help="output")
    add("--names", nargs=2, default=["first", "second"], metavar="NAME", help="names of the two readings on the page")


def run(args: argparse.Namespace) -> int:
    """Write agreement.csv and the page. Returns: 0."""
    from nnunetv2_anomaly.measurements.agreement import write_agreement
    from nnunetv2_anomaly.reporting.user_tables import read_table

    columns = {"case", "structure", "region", "quantity", "unit", "value"}
    files = (of / "measurements.csv" if of.is_dir() else of for of in (args.a, args.b))
    first, second = (read_table(file, columns, "a measurements.csv") for file in files)
    print(f"see {write_agreement(first, second, args.o, tuple(args.names))}")
    return 0
