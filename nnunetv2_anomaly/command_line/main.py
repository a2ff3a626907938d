"""The command ``nnUNetv2_anomaly``: parses, calls one library function, reports a user's mistake in one sentence.

Each verb of the registry is a module of this package with HELP, add_arguments(parser) and run(arguments) -> int.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

from nnunetv2_anomaly import __version__
from nnunetv2_anomaly.errors import check_name, exit_status
from nnunetv2_anomaly.registry import VERB_ALIASES, VERBS


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs. A verb imports its library function only when it runs, as torch takes seconds."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_anomaly",
        description="Anomaly-aware segmentation of knee MR images with nnU-Net v2: everything around nnU-Net's own "
        "nnUNetv2_plan_and_preprocess, nnUNetv2_train and nnUNetv2_predict.",
    )
    parser.add_argument("--version", action="version", version=f"nnunetv2-anomaly {__version__}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        module = importlib.import_module(f"nnunetv2_anomaly.command_line.{verb}")
        aliases = VERB_ALIASES.get(verb, ())
        subparser = subparsers.add_parser(verb, help=module.HELP, description=module.HELP, aliases=aliases)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns: as ``exit_status``; argparse exits with 2."""

    def parse_and_run() -> int:  # importing the verbs takes a second, in which Ctrl-C may come, too
        parser, words = build_parser(), sys.argv[1:] if argv is None else argv
        for word in words:
            check_name(word)
        known = {*VERBS, *(alias for aliases in VERB_ALIASES.values() for alias in aliases)}
        if near := difflib.get_close_matches(words[0], VERBS, n=1) if words and words[0] not in known else []:
            parser.error(f"there is no verb {words[0]}; the nearest is {near[0]}")
        arguments = parser.parse_args(words)
        return arguments.run(arguments)

    return exit_status("nnUNetv2_anomaly", parse_and_run)


if __name__ == "__main__":
    sys.exit(main())
