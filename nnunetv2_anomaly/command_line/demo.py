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
    quick = "a few minutes instead of twenty; shows only that the chain works"
    parser.add_argument("--quick", action="store_true", help=quick)


def run(arguments: argparse.Namespace) -> int:
    """Make the demonstration's workflow, and run it."""
    from nnunetv2_anomaly.workflows.demo import FULL, QUICK, init_demo
    from nnunetv2_anomaly.workflows.engine import check_snakemake, run_snakemake

    check_snakemake()
    name = "nnunetv2_anomaly_demo_quick" if arguments.quick else "nnunetv2_anomaly_demo"
    folder = (arguments.o or Path(name)).absolute()
    init_demo(folder, device=arguments.device, size=QUICK if arguments.quick else FULL)
    run_snakemake(folder, "local")
    return 0
