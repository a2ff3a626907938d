"""Lists and tables that users give, as text."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_anomaly.errors import UserError


def read_lines(file: Path, expected: str) -> list[str]:
    """Lines of a text file in UTF-8, with or without a byte order mark.

    Args: expected: what the file should be, for the sentence.

    Raises: UserError if it is missing, or in another encoding.
    """
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as error:
        fault = "is no text file in UTF-8" if file.is_file() else "is no file"
        raise UserError(f"{file} {fault}; expected {expected}") from error
