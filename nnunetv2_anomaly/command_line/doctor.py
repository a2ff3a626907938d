"""The verb ``doctor``: can nnU-Net train and predict with our trainers on this machine?"""

from __future__ import annotations

import argparse

from nnunetv2_anomaly.doctor import diagnose, report

HELP = "Check versions, paths, trainers, GPU, memory and workers; exit status 1 if training could not run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the report. Returns: 1 if there is a fault, that is, if training or prediction could not run, else 0."""
    findings = diagnose()
    print(report(findings))
    return int(any(finding.state == "fault" for finding in findings))
