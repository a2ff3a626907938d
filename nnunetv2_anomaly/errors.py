"""Errors that a user can fix, reported in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

#: at most this many names are listed in a sentence
_SHOWN = 8


class UserError(SystemExit, ValueError):
    """A mistake in the input; the sentence says what was given, what was expected and what to do.

    It is a ValueError for callers of the library. It is a SystemExit as well because nnU-Net's own commands call our
    trainers: the interpreter then prints the sentence without a traceback and exits with status 1.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)


class UnsupportedError(UserError, NotImplementedError):
    """Something that nnU-Net offers and this package does not; raised at the start of a run, not at epoch 300."""


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, the first few of many."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
