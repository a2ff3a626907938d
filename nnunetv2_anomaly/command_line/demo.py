"""``nnUNetv2_anomaly demo``: the whole chain on phantoms with nnU-Net's own commands, and a report."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = (
    "The whole chain on simulated knees with nnU-Net's own commands: naive nnU-Net against the anomaly-aware one, "
    "with a report. Run again to resume."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Folder, device and size."""
    folder = "output folder (default: nnunetv2_anomaly_demo, with --quick nnunetv2_anomaly_demo_quick)"
    parser.add_argument("-o", type=Path, metavar="DIR", help=folder)
    parser.add_argument("-device", "--device", choices=("cuda", "cpu", "mps"), help="default: the best available")
    quick = "minutes instead of a quarter of an hour; shows only that the chain works"
    parser.add_argument("--quick", action="store_true", help=quick)


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration."""
    from nnunetv2_anomaly.workflows.demo import run_demo

    name = "nnunetv2_anomaly_demo_quick" if arguments.quick else "nnunetv2_anomaly_demo"
    run_demo(arguments.o or Path(name), device=arguments.device, quick=arguments.quick)
    return 0
