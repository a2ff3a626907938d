"""``nnUNetv2_anomaly published_chain``: the paper's whole chain, as a workflow of stock commands."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_anomaly.workflows.published_chain import NETWORKS

HELP = "The paper's chain of trainings: OAI ZIB, then OAI ZIB-UQ, then OAI AKOA, as nnU-Net's own commands."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options; the data sets have the numbers of nnUNetv2_anomaly convert."""
    add = parser.add_argument
    folder = "folder of the workflow: its config.yaml, logs and records (default: published_chain)"
    add("-o", type=Path, default=Path("published_chain"), metavar="DIR", help=folder)
    add("--zib", type=int, default=501, metavar="ID", help="data set of OAI ZIB (default: 501)")
    add("--uq", type=int, default=502, metavar="ID", help="data set of OAI ZIB-UQ (default: 502)")
    add("--akoa", type=int, default=503, metavar="ID", help="data set of OAI AKOA (default: 503)")
    add("--networks", nargs="+", default=NETWORKS, choices=NETWORKS, help="some of the six networks (default: all)")
    plans = "plans of OAI ZIB, moved to the other two (default: %(default)s)"
    add("-p", "--plans", default="nnUNetWholeImagePlans", metavar="PLANS", help=plans)
    add("-c", "--configuration", default="3d_fullres", help="configuration (default: %(default)s)")
    add("-device", "--device", default="cuda", choices=("cuda", "cpu", "mps"), help="where to train (default: cuda)")
    profile = "slurm, or a folder with a profile of Snakemake (default: local, this machine)"
    add("--profile", default="local", help=profile)
    add("--dry_run", action="store_true", help="print the commands that are left")


def run(args: argparse.Namespace) -> int:
    """Make the chain's workflow, and run it or print its commands."""
    from nnunetv2_anomaly.device import check_device
    from nnunetv2_anomaly.workflows.create import init_workflow
    from nnunetv2_anomaly.workflows.engine import check_snakemake, dry_run, run_snakemake

    check_snakemake()
    names = ("zib", "uq", "akoa", "networks", "plans", "configuration", "device")
    init_workflow(args.o, {name: getattr(args, name) for name in names}, template="published_chain.yaml")
    if args.dry_run:
        return dry_run(args.o)
    if args.profile == "local":
        check_device(args.device)
    run_snakemake(args.o, args.profile)
    return 0
