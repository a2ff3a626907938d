"""A part of the cases, so that several jobs share them; the options are those of nnUNetv2_predict."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from nnunetv2_anomaly.errors import UserError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """Every ``num_parts``-th case from the one numbered ``part_id`` on, as nnU-Net divides them."""

    num_parts: int = 1
    part_id: int = 0

    @property
    def is_all(self) -> bool:
        """Whether there is no other part."""
        return self.num_parts == 1

    def named(self, file: str) -> str:
        """The name of a file that is its own, NAME.part_K_of_N.json; all cases together keep NAME.json."""
        stem, dot, ending = file.rpartition(".")
        return file if self.is_all else f"{stem}.part_{self.part_id}_of_{self.num_parts}{dot}{ending}"

    def of(self, items: Iterable[Item]) -> list[Item]:
        """Its share of the items, in their order."""
        return list(items)[self.part_id :: self.num_parts]


ALL = Part()


def add_part_arguments(parser: argparse.ArgumentParser, merged: str) -> None:
    """Add the options. Args: merged: what the same command without them does afterwards."""
    parts = f"into so many parts the cases are divided, for jobs side by side; {merged}"
    parser.add_argument("-num_parts", type=int, default=1, metavar="N", help=f"{parts} (default: 1)")
    parser.add_argument("-part_id", type=int, default=0, metavar="K", help="which of them, from 0 (default: 0)")


def part_of(args: argparse.Namespace) -> Part:
    """The part that was asked for. Raises: UserError for one that does not exist."""
    if not 0 <= args.part_id < args.num_parts:
        given = f"-num_parts is {args.num_parts} and -part_id {args.part_id}"
        raise UserError(f"{given}; expected at least one part, and its number from 0 to {max(0, args.num_parts - 1)}")
    return Part(args.num_parts, args.part_id)
