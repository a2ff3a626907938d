"""The verb ``doctor``: can nnU-Net train and predict with our trainers on this machine? Or: what is in this model?"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.inspection.findings import report
from nnunetv2_anomaly.inspection.installation import diagnose

HELP = (
    "Check versions, paths, trainers, GPU, memory and workers, or with --model somebody else's model; exit status 1 if "
    "training could not run, or the model should not be used"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    model = "look into a model instead, without running or writing anything: a zip file of "
    model += "nnUNetv2_export_model_to_zip, a model folder, or a checkpoint (.pth)"
    parser.add_argument("--model", type=Path, metavar="PATH", help=model)


def run(args: argparse.Namespace) -> int:
    """Print the report. Returns: 1 if there is a fault, else 0."""
    if args.model is None:
        findings = diagnose()
        print(report(findings))
    else:
        # nnU-Net and torch may be broken, which is just what the verb without --model is for.
        try:
            from nnunetv2_anomaly.inspection.model import VERDICTS, inspect_model
        except ImportError as error:
            fault = f"a model cannot be inspected without nnU-Net and torch ({error})"
            raise UserError(f"{fault}; run nnUNetv2_anomaly doctor") from error
        findings = inspect_model(args.model)
        print(report(findings, VERDICTS))
    return int(any(finding.state == "fault" for finding in findings))
