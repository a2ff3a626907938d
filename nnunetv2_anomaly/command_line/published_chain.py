"""``nnUNetv2_anomaly published_chain``: the paper's whole chain, as stock commands."""

from __future__ import annotations

import argparse
import shlex
import sys

from nnunetv2_anomaly.environment import nnunet_environment
from nnunetv2_anomaly.registry import TRAINERS

NETWORKS = [name.removesuffix("Trainer") for name, trainer in TRAINERS.items() if trainer.module == "published"]
HELP = "The paper's chain of trainings: OAI ZIB, then OAI ZIB-UQ, then OAI AKOA, as nnU-Net's own commands."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options; the data sets have the numbers of nnUNetv2_anomaly convert."""
    add = parser.add_argument
    add("--zib", type=int, default=501, metavar="ID", help="data set of OAI ZIB (default: 501)")
    add("--uq", type=int, default=502, metavar="ID", help="data set of OAI ZIB-UQ (default: 502)")
    add("--akoa", type=int, default=503, metavar="ID", help="data set of OAI AKOA (default: 503)")
    add("--networks", nargs="+", default=NETWORKS, choices=NETWORKS, help="some of the six networks (default: all)")
    plans = "plans of OAI ZIB, moved to the other two (default: %(default)s)"
    add("-p", "--plans", default="nnUNetWholeImagePlans", metavar="PLANS", help=plans)
    add("-c", "--configuration", default="3d_fullres", help="configuration (default: %(default)s)")
    add("-device", "--device", default="cuda", choices=("cuda", "cpu", "mps"), help="where to train (default: cuda)")
    add("--dry_run", action="store_true", help="print the commands, one per line, finished ones as comments")
    jobs = "print the commands that can run now and do not depend on each other, one per line: for several GPUs or a "
    jobs += "job array; call it again when they have finished"
    add("--jobs", action="store_true", help=jobs)


def run(args: argparse.Namespace) -> int:
    """Print or run the chain. Returns: 0, or the exit status of the command that failed."""
    from nnunetv2_anomaly.device import check_device
    from nnunetv2_anomaly.workflows.published_chain import PublishedChain
    from nnunetv2_anomaly.workflows.runner import Runner, StepError

    chain = PublishedChain(args.zib, args.uq, args.akoa, args.networks, args.plans, args.configuration, args.device)
    if args.jobs:
        for step in chain.ready_steps():
            print(step.shown())
    elif args.dry_run:
        for step in chain.steps():
            print(f"# done: {shlex.join(step.command)}" if step.is_done() else step.shown())
    else:
        check_device(args.device)
        try:
            Runner(nnunet_environment()).run(chain.steps())
        except StepError as failure:
            print(f"nnUNetv2_anomaly: {failure}", file=sys.stderr)
            return failure.status
    return 0
