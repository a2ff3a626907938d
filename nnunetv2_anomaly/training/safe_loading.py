"""Reads checkpoints and pickles of others without running anything of them.

Loading a pickle calls whatever it names, and nnU-Net 2.8.1 loads checkpoints with ``weights_only=False``. Our code
reads them here first, and refuses what would run code.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from nnunetv2_anomaly.errors import UserError, listed

#: what reading a file ends in that is no checkpoint: cut short, another kind of file, of missing classes
UNREADABLE = (
    *(OSError, EOFError, ImportError, pickle.UnpicklingError, zipfile.BadZipFile),
    *(RuntimeError, LookupError, AttributeError, TypeError, ValueError),
)
_CORE = getattr(np, "_core", None) or np.core
#: numpy's scalars and arrays of numbers, which nnU-Net's log holds; numpy 1 and 2 call their module differently
_SAFE: list[Any] = [
    np.dtype,
    np.ndarray,
    *(
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for function in (_CORE.multiarray.scalar, _CORE.multiarray._reconstruct)
        for core in ("core", "_core")
    ),
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]
_NUMPY = r"numpy\.(?:core|_core)\.multiarray\.(?:scalar|_reconstruct)|numpy\.(?:dtype|ndarray)"
#: what torch.save and nnU-Net name in a checkpoint
IN_CHECKPOINTS = re.compile(
    rf"{_NUMPY}|collections\.OrderedDict|_codecs\.encode|(?:builtins|__builtin__)\.(?:set|complex|bytearray)"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2|torch\.\w+Storage|torch\.storage\.\w+Storage"
    r"|torch\.(?:device|Size|Tensor|b?float\d+\w*|u?int\d+|bool|complex\d+)|torch\.nn\.parameter\.Parameter"
)
#: what nnU-Net's postprocessing.pkl names
IN_POSTPROCESSING = re.compile(
    r"nnunetv2\.postprocessing\.remove_connected_components\.remove_all_but_largest_component_from_segmentation"
    rf"|{_NUMPY}"
)


def shown(text: Any, length: int = 120) -> str:
    """A value out of somebody's file for a sentence: short, and without characters that a terminal would act on."""
    plain = "".join(character if character.isprintable() else "?" for character in str(text)[: length + 1])
    return plain if len(plain) <= length else f"{plain[:length]}..."


class UnsafeFileError(Exception):
    """A file that would run code when it is loaded. names: what it names for that, "module.name"."""

    def __init__(self, names: Sequence[str]) -> None:
        listing = listed([shown(name, 80) for name in names])
        super().__init__(f"would run code when loaded: it names {listing}, which no checkpoint of nnU-Net's does")


def load_safely(source: str | Path | IO[bytes], map_location: Any = "cpu") -> Any:
    """What torch reads from a file with its restricted loader, which calls nothing but what rebuilds plain data.

    Args: source: a path or an open file. map_location: as for torch.load.
    Raises: UnsafeFileError if it would call anything else; another exception if it cannot be read.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE):
            warnings.simplefilter("ignore")  # of pickle protocols, which the error names as well
            return torch.load(source, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged or hostile file fails in many ways
        if foreign := foreign_names(source):
            raise UnsafeFileError(foreign) from error
        raise


def load_file(path: str | Path, advice: str, *, kind: str = "the checkpoint", map_location: Any = "cpu") -> Any:
    """What torch reads from a file without running anything of it.

    Args: advice: what to do where it cannot be read; ends the sentence, in which the file is called ``kind``.
        map_location: as for torch.load.
    Raises: UserError if it cannot be read, or would run code when nnU-Net loads it.
    """
    try:
        return load_safely(path, map_location)
    except UnsafeFileError as error:
        raise UserError(f"{kind} {path} {error}; do not use it before its author has said what this is for") from error
    except Exception as error:  # as above
        fault = f"{kind} {path} cannot be read ({type(error).__name__}: {first_line(error)})"
        raise UserError(f"{fault}; it is cut short or no checkpoint, so {advice}") from error


def first_line(error: BaseException) -> str:
    """What an error says, short and plain enough for a sentence."""
    text = str(error).rpartition("WeightsUnpickler error:")[2]  # before it stands torch's advice to load all the same
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shown(lines[0], 160) if lines else "no reason given"


class _StandIn:
    """Stands for whatever a pickle names, and for all that it makes of that: a call or an item changes nothing."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self

    __setstate__ = __setitem__ = append = extend = add = __call__


class _NameReader(pickle.Unpickler):
    """Python's own unpickler, so that no instruction is understood otherwise than when the file is loaded."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.names: dict[str, None] = {}

    def find_class(self, module: str, name: str) -> Any:
        self.names[f"{module}.{name}"] = None
        return _StandIn

    def persistent_load(self, reference: Any) -> Any:
        return _StandIn()


def names_in_pickle(file: IO[bytes]) -> tuple[list[str], Exception | None]:
    """What a pickle names, in its order, up to its end or to where it cannot be read.

    Args: file: open, at the pickle's first byte; afterwards behind its last one.
    Returns: the names as "module.name", and what kept them from being read to the end.
    """
    reader, fault = _NameReader(file), None
    try:
        reader.load()
    except Exception as error:  # a damaged or hostile pickle fails in many ways, and each is an answer
        fault = error
    return list(reader.names), fault


def foreign_names(source: str | Path | IO[bytes]) -> list[str]:
    """What a file for torch.load names that no checkpoint of nnU-Net's does; empty if it cannot be read.

    For messages: what may be loaded is for torch's restricted loader to say, and it says so of protocol 2 alone.
    """
    with suppress(OSError), Path(source).open("rb") if isinstance(source, (str, Path)) else nullcontext(source) as file:
        names: dict[str, None] = {}
        for pickled in _pickles(file):
            fault = None
            while fault is None:  # torch's format before 1.6 is several pickles in a row
                found, fault = names_in_pickle(pickled)
                names.update(dict.fromkeys(found))
        return [name for name in names if not IN_CHECKPOINTS.fullmatch(name)]
    return []


def _pickles(file: IO[bytes]) -> list[IO[bytes]]:
    try:
        with zipfile.ZipFile(file) as archive:
            return [io.BytesIO(archive.read(name)) for name in archive.namelist() if name.lower().endswith(".pkl")]
    except Exception:  # no archive, or a damaged or hostile one, which fails in many ways
        file.seek(0)
        return [file]
