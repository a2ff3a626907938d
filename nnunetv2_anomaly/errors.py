"""Errors that a user can fix, reported in one sentence."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: what a user can do about a name that the file system refuses
_NAME_ADVICE = {
    errno.ENAMETOOLONG: "expected a name of at most 255 bytes, its ending included, so shorten it",
    errno.ELOOP: "the link leads back to itself, so remove it",
}

#: at most this many names are listed in a sentence
_SHOWN = 8


class UserError(SystemExit, ValueError):
    """A mistake in the input; the sentence says what was given, what was expected and what to do.

    It is a ValueError for callers of the library. It is a SystemExit as well because nnU-Net's own commands call our
    trainers: the interpreter then prints the sentence without a traceback and exits with status 1.
    """

    def __init__(self, sentence: str) -> None:
        # File names may hold bytes that are no text, which could be printed nowhere.
        super().__init__(sentence.encode("utf-8", "backslashreplace").decode())


class CasesFailedError(UserError):
    """Some cases failed, and the sentence names them; what could be done without them is done."""

    #: exit status of a command that ends with it, by which a workflow goes on without these cases
    STATUS = 3


class UnsupportedError(UserError, NotImplementedError):
    """Something that nnU-Net offers and this package does not; raised at the start of a run, not at epoch 300."""


def exit_status(program: str, run: Callable[[], int]) -> int:
    """Run a command.

    Returns: its own status; 1 for a user's mistake or a name that the file system refuses, 3 for cases that failed
        while the rest is done, reported on standard error; 130 for Ctrl-C.
    """
    try:
        return run()
    except (UserError, OSError) as error:
        print(f"{program}: {sentence_of(error)}", file=sys.stderr)
        return CasesFailedError.STATUS if isinstance(error, CasesFailedError) else 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


def sentence_of(error: UserError | OSError) -> str:
    """The sentence on a user's mistake, or on a name that the file system refuses. Raises: any other error again."""
    if isinstance(error, UserError):
        return str(error)
    if error.errno not in _NAME_ADVICE:
        raise error
    return f"{error.filename2 or error.filename}: {error.strerror}; {_NAME_ADVICE[error.errno]}"


def check_name(name: object) -> None:
    """Check a file's name or path.

    Raises: UserError if it holds bytes that are no text (Linux allows any): ITK would end the whole process.
    """
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        fault = f"the name {name} holds bytes that are no text in the encoding of this system"
        raise UserError(f"{fault}; expected text, so rename it") from error


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, the first few of many."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """A number of things in a sentence, for example "1 case" or "2 cases"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def worded(value: Any) -> str:
    """A value of a JSON file in a sentence, without brackets and quotation marks."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {worded(part)}" for key, part in value.items()) or "nothing"
    if isinstance(value, list | tuple):
        return ", ".join(map(worded, value)) or "nothing"
    return "nothing" if value is None else str(value)
