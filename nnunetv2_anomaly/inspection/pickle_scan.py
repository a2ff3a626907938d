"""Reads a pickle as a text: what it would import and call when loaded, without importing or calling anything.

Every instruction is followed on a stack that holds no objects but notes of what would lie there. Whatever is not known
to be what torch and nnU-Net store is told: a list of forbidden names would have to be complete; the list of allowed
ones only has to be right.
"""

from __future__ import annotations

import _compat_pickle
import math
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: what reading a damaged or made-up file can raise
DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, OverflowError, RuntimeError,
    NotImplementedError, KeyError, IndexError, TypeError, AttributeError, MemoryError,
)  # fmt: skip


def shown(text: object, length: int = 120) -> str:
    """Text from the file, for a terminal: control characters as their codes, long ones cut."""
    text = str(text)
    cut = text[:length] + ("..." if len(text) > length else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


#: storage classes that torch writes into a persistent id -> bytes of one element
STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
_POSTPROCESSING = (
    "nnunetv2.postprocessing.remove_connected_components",
    "remove_all_but_largest_component_from_segmentation",
)
_ARRAY = ("numpy", "ndarray")


@dataclass(frozen=True)
class _Global:
    """A function or class that a pickle asks for by name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class _Made:
    """A note of something that loading would make.

    keys: of a dict. size: elements of a storage, length of bytes, bytes of one number of a dtype. state: what BUILD
    may set.
    """

    kind: str
    keys: set[str | None] = field(default_factory=set)
    size: int = 0
    state: tuple = ()


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_counts(value: object) -> bool:
    return isinstance(value, tuple) and all(map(_is_count, value))


def _is_made(value: object, *kinds: str) -> bool:
    return isinstance(value, _Made) and value.kind in kinds


def _length(value: object) -> int:
    """Of bytes; -1 for anything else."""
    if isinstance(value, bytes):
        return len(value)
    return value.size if isinstance(value, _Made) and value.kind == "bytes" else -1


def _ordered_dict(arguments: tuple) -> _Made | None:
    return _Made("OrderedDict") if arguments == () else None


def _tensor(arguments: tuple) -> _Made | None:
    """A tensor may be a part of its storage, never more: else a small file could ask for any amount of memory."""
    if len(arguments) != 6:
        return None
    storage, offset, shape, strides, requires_grad, hooks = arguments
    described = (
        _is_made(storage, "storage")
        and _is_count(offset)
        and _are_counts(shape)
        and _are_counts(strides)
        and len(shape) == len(strides)
        and isinstance(requires_grad, bool)
        and _is_made(hooks, "OrderedDict")
        and not hooks.keys
    )
    if not described:
        return None
    count = math.prod(shape)
    end = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    return _Made("tensor") if count == 0 or max(count, end) <= storage.size else None


def _parameter(arguments: tuple) -> _Made | None:
    fits = (
        len(arguments) == 3
        and _is_made(arguments[0], "tensor")
        and isinstance(arguments[1], bool)
        and _is_made(arguments[2], "OrderedDict")
    )
    return _Made("tensor") if fits else None


def _device(arguments: tuple) -> _Made | None:
    fits = 0 < len(arguments) <= 2 and isinstance(arguments[0], str) and all(map(_is_count, arguments[1:]))
    return _Made("device") if fits else None


def _torch_size(arguments: tuple) -> _Made | None:
    return _Made("size") if len(arguments) == 1 and _are_counts(arguments[0]) else None


def _encoded(arguments: tuple) -> _Made | None:
    """Bytes, as pickles of protocol 2 spell them. Another codec than latin1 would be a module of that name."""
    fits = len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1"
    return _Made("bytes", size=len(arguments[0])) if fits else None


def _dtype(arguments: tuple) -> _Made | None:
    """A type of numbers or of words, made anew and not shared.

    numpy takes what BUILD then sets for granted, sizes and flags included: a wrong one lets it read beside its
    memory. So the state is what numpy itself would write.
    """
    if len(arguments) != 3 or not isinstance(arguments[0], str) or arguments[1:] != (False, True):
        return None
    code = re.fullmatch(r"(b)(1)|([iu])([1248])|(f)([248])|(U)([1-9]\d{0,3})", arguments[0])
    if code is None:
        return None
    kind, count = filter(None, code.groups())
    size = int(count) * (4 if kind == "U" else 1)
    return _Made("dtype", size=size, state=(size, 4, 8) if kind == "U" else (-1, -1, 0))


def _scalar(arguments: tuple) -> _Made | None:
    fits = len(arguments) == 2 and _is_made(arguments[0], "dtype") and _length(arguments[1]) == arguments[0].size
    return _Made("scalar") if fits else None


def _empty_array(arguments: tuple) -> _Made | None:
    fits = len(arguments) == 3 and arguments[:2] == (_Global(*_ARRAY), (0,)) and _length(arguments[2]) == 1
    return _Made("array") if fits else None


def _set(arguments: tuple) -> _Made | None:
    return _Made("set") if len(arguments) == 1 and _is_made(arguments[0], "list") else None


#: what may be called: (module, name) -> what that makes of arguments, None for arguments that nobody stores.
#: Taken from checkpoints of nnU-Net's and our trainers; numpy's modules as numpy 1 and 2 name them, and beside them
#: what torch.save makes of a parameter, a shape and a set.
CALLED: dict[tuple[str, str], Callable[[tuple], _Made | None]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "device"): _device,
    ("torch", "Size"): _torch_size,
    ("_codecs", "encode"): _encoded,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("builtins", "set"): _set,
}
#: what may be named and not called
NAMED = {
    _ARRAY,
    _POSTPROCESSING,
    *(("torch", name) for name in STORAGES),
    *(("torch", name) for name in ("float16", "bfloat16", "float32", "float64", "uint8", "int32", "int64", "bool")),
}

_CONSTANTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8",
}  # fmt: skip
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": "set"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
#: how often they are shown at most, so that a file cannot fill the memory with them
_MAX_NOTES = 1000


@dataclass(frozen=True)
class PickleScan:
    """What a pickle would do.

    names: all that it imports, "module.name". foreign: those that are not known to be stored by torch and nnU-Net.
    oddities: clauses on what else torch and nnU-Net do not write. ended_at: where its last instruction is; -1 if it has
    none.
    """

    names: tuple[str, ...]
    foreign: tuple[str, ...]
    oddities: tuple[str, ...]
    ended_at: int = -1

    @property
    def clean(self) -> bool:
        """Nothing is imported, called or changed but what is known."""
        return not self.foreign and not self.oddities


class _Machine:
    """Follows a pickle's instructions on notes instead of objects, as pickle.Unpickler does with stack, marks, memo."""

    def __init__(self, data: bytes, storages: Mapping[str, int] | None) -> None:
        self.data = data
        self.storages = storages
        self.protocol: int | None = None
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.element_bytes: dict[str, int] = {}
        self.names: dict[str, None] = {}
        self.foreign: dict[str, None] = {}
        self.oddities: dict[str, None] = {}
        self.frame_end: int | None = None
        self.ended_at = -1
        self.lost = False

    def note(self, notes: dict[str, None], text: str) -> None:
        if len(notes) < _MAX_NOTES:
            notes.setdefault(text)

    def odd(self, clause: str) -> None:
        self.note(self.oddities, clause)

    def run(self) -> None:
        try:
            for opcode, argument, position in pickletools.genops(self.data):
                self.frame(opcode.name, argument, position or 0)
                self.step(opcode.name, argument, position or 0)
        except DAMAGE as error:
            self.odd(f"the pickle is damaged or breaks off ({type(error).__name__})")
        if 0 <= self.ended_at < len(self.data) - 1:
            self.odd("bytes follow the end of the pickle")

    def frame(self, name: str, argument: Any, position: int) -> None:
        """Frames are read at once, and no instruction may reach over the end of one.

        What pickle.Unpickler has of such an instruction is dropped there and read anew behind the frame: it then goes
        on in the middle of what looks like a text here.
        """
        if self.frame_end is not None and position >= self.frame_end:
            if position > self.frame_end:
                self.odd("an instruction reaches over the end of its frame")
            self.frame_end = None
        if name == "FRAME":
            end = position + 9 + argument  # one byte of code, eight of length
            if self.frame_end is not None or end > len(self.data):
                self.odd("a frame lies in another, or reaches over the end")
            self.frame_end = end

    def step(self, name: str, argument: Any, position: int) -> None:
        """One instruction. Where the stack cannot be followed any more, names are still collected."""
        if self.lost:
            if name in ("GLOBAL", "INST"):
                self.global_by_text(name, argument, position)
            return
        try:
            self.follow(name, argument, position)
        except (IndexError, KeyError, ValueError, TypeError):
            self.lost = True
            self.odd(f"the instruction {name} finds nothing to work on")

    def follow(self, name: str, argument: Any, position: int) -> None:
        if name in _CONSTANTS:
            self.stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif name in _LITERALS:
            self.stack.append(_LITERALS[name])
        elif name in _EMPTY:
            self.stack.append(_Made(_EMPTY[name]))
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(self.stack) < count:
                raise IndexError(name)
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name == "MARK":
            self.marks.append(self.stack)
            self.stack = []
        elif name == "TUPLE":
            items = self.pop_mark()
            self.stack.append(tuple(items))
        elif name in ("LIST", "DICT", "FROZENSET"):
            items = self.pop_mark()
            made = _Made("dict" if name == "DICT" else "list" if name == "LIST" else "set")
            if name == "DICT":
                self.set_keys(made, items)
            self.stack.append(made)
        elif name in ("APPEND", "SETITEM"):
            count = 1 if name == "APPEND" else 2
            items = [self.stack.pop() for _ in range(count)][::-1]
            self.fill(items, self.stack[-1], name)
        elif name in ("APPENDS", "SETITEMS", "ADDITEMS"):
            items = self.pop_mark()
            self.fill(items, self.stack[-1], name)
        elif name in ("GLOBAL", "INST"):
            self.stack.append(self.global_by_text(name, argument, position))
            if name == "INST":
                self.pop_instance()
        elif name == "STACK_GLOBAL":
            self.stack_global()
        elif name == "REDUCE":
            self.call()
        elif name == "BUILD":
            self.build()
        elif name == "BINPERSID":
            self.persistent()
        elif name == "PROTO":
            if position != 0 or not 0 <= argument <= 5:
                self.odd("the protocol is declared in the middle of the pickle, or is not known")
            self.protocol = argument
        elif name == "STOP":
            self.ended_at = position
            if len(self.stack) != 1 or self.marks:
                self.odd("the pickle leaves more or less than one object")
        elif name != "FRAME":
            self.unusual(name, argument)

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop_instance(self) -> None:
        """INST: class by text, arguments down to the mark; an instruction of protocol 0."""
        self.pop_mark()
        self.stack.append(_Made("unknown"))
        self.odd("it makes an object by an instruction that torch.save does not use (INST)")

    def unusual(self, name: str, argument: Any) -> None:
        """Instructions that neither torch.save nor nnU-Net's pickles hold, followed as far as names need it."""
        if name.startswith("EXT"):
            self.odd(f"it asks for an object by a registered number ({name} {argument}), which can be anything")
            self.stack.append(_Made("unknown"))
            return
        self.odd(f"it uses an instruction that torch.save does not use ({name})")
        if name == "DUP":
            self.stack.append(self.stack[-1])
        elif name == "POP":
            if self.stack:
                self.stack.pop()
            else:
                self.pop_mark()
        elif name == "POP_MARK":
            self.pop_mark()
        elif name in ("NEWOBJ", "NEWOBJ_EX", "OBJ"):
            if name == "OBJ":
                self.pop_mark()
            else:
                del self.stack[-2 if name == "NEWOBJ" else -3 :]
            self.stack.append(_Made("unknown"))
        elif name in ("PERSID", "BYTEARRAY8", "NEXT_BUFFER"):
            self.stack.append(_Made("unknown"))
        elif name != "READONLY_BUFFER":
            raise ValueError(name)

    # ------------------------------------------------------------------------------------------------------- names

    def named(self, module: str, name: str) -> _Global:
        """Take down a name. Up to protocol 2 pickle reads names of Python 2 as today's."""
        if (self.protocol or 0) < 3:
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[module, name]
            elif module in _compat_pickle.IMPORT_MAPPING:
                module = _compat_pickle.IMPORT_MAPPING[module]
        found = _Global(module, name)
        self.note(self.names, str(found))
        if (module, name) not in CALLED and (module, name) not in NAMED:
            self.note(self.foreign, str(found))
        return found

    def global_by_text(self, opcode: str, argument: str, position: int) -> _Global:
        """GLOBAL and INST: two lines, module and name."""
        module, _, name = argument.partition(" ")
        # pickletools resolves backslashes that pickle itself takes as they are: the very bytes are compared.
        code = b"c" if opcode == "GLOBAL" else b"i"
        if not self.data.startswith(code + f"{module}\n{name}\n".encode(), position):
            self.odd(f"the name {shown(argument)} is spelt in a way that Python does not write")
        return self.named(module, name)

    def stack_global(self) -> None:
        """Module and name from the stack: whatever lies there, wherever it was pushed or taken from the memo."""
        name, module = self.stack.pop(), self.stack.pop()
        if isinstance(name, str) and isinstance(module, str):
            self.stack.append(self.named(module, name))
            return
        self.odd("it works out while loading what it imports")
        self.stack.append(_Made("unknown"))

    # ----------------------------------------------------------------------------------------------------- actions

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        made = None
        if not isinstance(function, _Global):
            self.odd("it calls something that it has not named")
        elif (maker := CALLED.get((function.module, function.name))) is not None:
            made = maker(arguments) if isinstance(arguments, tuple) else None
            if made is None:
                self.odd(f"it calls {shown(function)} with arguments that nothing stored by torch or nnU-Net has")
        elif str(function) not in self.foreign:
            self.odd(f"it calls {shown(function)}, which torch and nnU-Net only name")
        self.stack.append(made or _Made("unknown"))

    def build(self) -> None:
        """BUILD sets attributes: only those of torch's state dicts and of numpy's types and arrays are known."""
        state, target = self.stack.pop(), self.stack[-1]
        known = False
        if _is_made(target, "OrderedDict"):
            known = _is_made(state, "dict") and state.keys <= {"_metadata"}
        elif _is_made(target, "dtype"):
            known = (
                isinstance(state, tuple)
                and len(state) == 8
                and state[0] == 3
                and state[1] in ("<", ">", "|")
                and state[2:] == (None, None, None, *target.state)
            )
        elif _is_made(target, "array"):
            known = (
                isinstance(state, tuple)
                and len(state) == 5
                and state[0] == 1
                and _are_counts(state[1])
                and _is_made(state[2], "dtype")
                and isinstance(state[3], bool)
                and _length(state[4]) == math.prod(state[1]) * state[2].size
            )
        if not known:
            self.odd("it sets attributes of an object in a way that torch and nnU-Net do not")

    def fill(self, items: list[Any], target: Any, opcode: str) -> None:
        """Put items into a container. On anything else these instructions call methods."""
        if opcode in ("APPEND", "APPENDS") and _is_made(target, "list"):
            return
        if opcode == "ADDITEMS" and _is_made(target, "set"):
            return
        if opcode in ("SETITEM", "SETITEMS") and _is_made(target, "dict", "OrderedDict"):
            self.set_keys(target, items)
            return
        self.odd(f"it fills something that is no plain list, dictionary or set ({opcode})")

    def set_keys(self, target: _Made, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("a key without a value")
        target.keys.update(key if isinstance(key, str) else None for key in items[::2])

    def persistent(self) -> None:
        """Torch's reference to a storage: ("storage", class, member below data/, device, number of elements)."""
        reference = self.stack.pop()
        storage = self.storage(reference) if self.storages is not None else None
        if storage is None:
            self.odd("it refers to data outside of the pickle in a way that torch.save does not")
        self.stack.append(storage or _Made("unknown"))

    def storage(self, reference: Any) -> _Made | None:
        if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
            return None
        _, kind, key, location, count = reference
        described = (
            isinstance(kind, _Global)
            and kind.module == "torch"
            and kind.name in STORAGES
            and isinstance(key, str)
            and isinstance(location, str)
            and _is_count(count)
        )
        if not described or self.storages is None or key not in self.storages:
            return None
        element = STORAGES[kind.name]
        # One member is one storage of one type: two readings of it could disagree on where it ends.
        if self.element_bytes.setdefault(key, element) != element or self.storages[key] != count * element:
            return None
        return _Made("storage", size=count)


def scan_pickle(data: bytes, storages: Mapping[str, int] | None = None) -> PickleScan:
    """What a pickle would import and do, found by reading its instructions; nothing is imported or executed.

    Args:
        data: the pickle, from its first instruction to STOP.
        storages: of a torch archive, the members below ``data/`` and their sizes in bytes; None for a pickle that
            may not refer to any.
    Returns: the scan; a pickle that cannot be read has an oddity. Nothing is raised.
    """
    machine = _Machine(data, storages)
    machine.run()
    return PickleScan(tuple(machine.names), tuple(machine.foreign), tuple(machine.oddities), machine.ended_at)
