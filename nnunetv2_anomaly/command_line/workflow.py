"""``nnUNetv2_anomaly workflow``: a cohort from images to one report, on one machine or on a cluster."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

HELP = "A cohort from images to one report, on one machine or a cluster: init writes its settings, run runs it."
#: option -> setting of config.yaml, where their names differ
_SETTINGS = {"c": "configuration", "p": "plans", "d": "dataset", "tr": "trainers", "f": "folds", "i": "images"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each thing that is done with a workflow."""
    verbs = parser.add_subparsers(title="what is done", metavar="VERB", dest="done", required=True)
    what = "write config.yaml, profiles for one machine and for Slurm, and job arrays; what is there is kept"
    _add_init(verbs.add_parser("init", help=what, description=what))
    what = "run a workflow with Snakemake, or what is left of it; options after -- are Snakemake's"
    run = verbs.add_parser("run", help=what, description=what)
    run.add_argument("folder", type=Path, metavar="DIR", help="folder of the workflow")
    profile = "slurm, or a folder with a profile of Snakemake (default: local, this machine)"
    run.add_argument("--profile", default="local", help=profile)
    run.add_argument("--dry_run", action="store_true", help="print the commands that are left, as a user types them")
    run.add_argument("more", nargs="*", metavar="-- OPTION", help="further options of Snakemake")
    what = "write report.html of a cohort whose other steps are done; run does it"
    report = verbs.add_parser("report", help=what, description=what)
    report.add_argument("folder", type=Path, metavar="DIR", help="folder of the workflow")


def _add_init(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", type=Path, required=True, metavar="DIR", help="folder of the workflow")
    add("--demo", action="store_true", help="a small cohort of simulated knees, in minutes, to try it")
    add("-d", metavar="DATASET", help="name of the data set, DatasetXXX_Name")
    given = "in place of what config.yaml says by default"
    add("-tr", nargs="+", metavar="TRAINER", help=f"trainers, {given}")
    add("-f", nargs="+", metavar="FOLD", help=f"folds, {given}")
    add("-p", metavar="PLANS", help=f"plans, {given}")
    add("-c", metavar="CONFIGURATION", help=f"configuration, {given}")
    add("-i", metavar="FOLDER", help="new images to segment; without them validation cases are evaluated")
    add("--references", metavar="FOLDER", help="labels of the new images")
    add("--convert", metavar="COMMAND", help="command that makes the raw data set")
    add("--base", metavar="DIR", help="holds nnU-Net's three folders (default: their environment variables)")
    add("--parts", type=int, metavar="N", help="parts in which new images are predicted, measured and evaluated")
    add("-device", "--device", choices=("cuda", "cpu", "mps"), help="where to train and predict (default: cuda)")


def run(args: argparse.Namespace) -> int:
    """Do what the subcommand says; returns 0, or Snakemake takes the place of this process."""
    if args.done == "init":
        return _init(args)
    if args.done == "report":
        from nnunetv2_anomaly.workflows.report import write_cohort_report

        print(f"Report: {write_cohort_report(args.folder)}")
        return 0
    from nnunetv2_anomaly.workflows.engine import dry_run, run_snakemake

    if args.dry_run:
        return dry_run(args.folder, args.profile, args.more)
    run_snakemake(args.folder, args.profile, args.more)
    return 0


def _init(args: argparse.Namespace) -> int:
    from nnunetv2_anomaly.errors import UserError
    from nnunetv2_anomaly.workflows.create import init_workflow

    given: dict[str, Any] = {
        _SETTINGS.get(name, name): getattr(args, name)
        for name in ("d", "tr", "f", "p", "c", "i", "references", "convert", "base", "parts", "device")
        if getattr(args, name) is not None
    }
    if args.demo:
        from nnunetv2_anomaly.workflows.demo import QUICK, init_demo

        if other := sorted(set(given) - {"device", "parts"}):
            raise UserError(f"--demo has its own {other[0]}; leave that out, or leave out --demo")
        init_demo(args.o, size=QUICK, **given)
    elif "dataset" not in given and not (args.o / "config.yaml").is_file():
        raise UserError("there is no data set; give its name with -d, such as Dataset501_OAIZIB, or --demo")
    else:
        for name in ("images", "references", "base"):  # config.yaml's own are relative to its folder
            if name in given:
                given[name] = os.path.abspath(os.path.expanduser(given[name]))
        if "trainers" in given:
            given["trainers"] = {name: name for name in given["trainers"]}
        init_workflow(args.o, given)
    print(f"{args.o / 'config.yaml'} says what is done; run it with: nnUNetv2_anomaly workflow run {args.o}")
    return 0
