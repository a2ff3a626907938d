"""The command ``nnUNetv2_anomaly``: parses, calls one library function, turns a user's mistake into one sentence."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.errors import UserError

#: verb -> module of this package with HELP, add_arguments(parser) and run(args) -> int
VERBS = (
    "demo", "convert", "simulate", "plan_whole_image", "published_chain", "error_images", "postprocess", "evaluate",
    "doctor", "env",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; a verb's module imports its library function only when it runs, torch takes seconds."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_anomaly",
        description="Anomaly-aware segmentation of knee MR images with nnU-Net v2: everything around nnU-Net's own "
        "nnUNetv2_plan_and_preprocess, nnUNetv2_train and nnUNetv2_predict.",
    )
    parser.add_argument("--version", action="version", version=f"nnunetv2-anomaly {__version__}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        module = importlib.import_module(f"nnunetv2_anomaly.command_line.{verb}")
        subparser = subparsers.add_parser(verb, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns: 0 = success, 1 = a user's mistake, told in one sentence on standard error; argparse exits with 2.
    """
    try:
        # Within: the parser's modules take a second to import, and Ctrl-C may come then, too.
        arguments = build_parser().parse_args(argv)
        return arguments.run(arguments)
    except UserError as error:
        print(f"nnUNetv2_anomaly: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nnUNetv2_anomaly: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
