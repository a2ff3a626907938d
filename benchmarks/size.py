"""How large the source is, and what it is made of: ``python -m benchmarks.size`` prints the table.

Counted are nnunetv2_anomaly/, trainers/ and dataset_conversion/, without tests and benchmarks. Lines are non-blank. A
function's length is that of its body without the docstring. Guards and handlers are ``if`` statements that end in a
``raise``, every other ``raise``, and of a ``try`` all but what is tried. Public is what has no leading underscore in
its name or in that of its class.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("nnunetv2_anomaly", "trainers", "dataset_conversion")
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Size:
    """What was counted."""

    lines: int = 0
    guard_lines: int = 0
    functions: list[tuple[int, str]] = field(default_factory=list)
    files: list[tuple[int, str]] = field(default_factory=list)
    methods: list[tuple[int, str]] = field(default_factory=list)
    public: int = 0
    undocumented: list[str] = field(default_factory=list)
    #: room -> lines, lines of guards and handlers
    rooms: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def guard_share(self) -> float:
        """Share of the lines that are guards and handlers."""
        return self.guard_lines / self.lines


def measure(root: Path = ROOT) -> Size:
    """Count the source below a checkout."""
    size = Size()
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        text = path.read_text()
        lines = text.splitlines()
        filled = {number for number, line in enumerate(lines, 1) if line.strip()}
        tree = ast.parse(text)
        size.lines += len(filled)
        guards = len(set(_guard_lines(tree)) & filled)
        size.guard_lines += guards
        size.files.append((len(lines), name))
        parts = Path(name).parts
        room = parts[1] if parts[0] == "nnunetv2_anomaly" else parts[0]
        before = size.rooms.get(room, (0, 0))
        size.rooms[room] = (before[0] + len(filled), before[1] + guards)
        for node in ast.walk(tree):
            if isinstance(node, Function):
                size.functions.append((_body_length(node), f"{name}:{node.lineno} {node.name}"))
            if isinstance(node, ast.ClassDef):
                count = sum(isinstance(item, Function) for item in node.body)
                size.methods.append((count, f"{name}:{node.lineno} {node.name}"))
        for owner in _public(tree):
            size.public += 1
            if ast.get_docstring(owner) is None:
                size.undocumented.append(f"{name} {getattr(owner, 'name', 'module')}")
    return size


def _guard_lines(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise):
            yield from range(node.lineno, (node.body[-1].end_lineno or node.lineno) + 1)
        elif isinstance(node, (ast.ExceptHandler, ast.Raise)):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)
        elif isinstance(node, ast.Try):
            yield node.lineno
            if node.finalbody:
                yield from range(node.finalbody[0].lineno - 1, (node.finalbody[-1].end_lineno or 0) + 1)


def _body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def _public(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    yield tree
    owners: list[ast.Module | ast.ClassDef] = [tree]
    while owners:
        for node in owners.pop().body:
            if isinstance(node, (ast.ClassDef, *Function)) and not node.name.startswith("_"):
                yield node
                if isinstance(node, ast.ClassDef):
                    owners.append(node)


def main() -> None:
    """Print the table."""
    size = measure()
    print(f"source lines, non-blank:        {size.lines:6d}   (bar: 16000)")
    longest = max(size.functions)
    print(f"longest function, lines:        {longest[0]:6d}   (bar: 60)   {longest[1]}")
    print(f"guards and handlers:            {size.guard_share:6.1%}   (bar: 7%)")
    documented = 1 - len(size.undocumented) / size.public
    print(f"public docstrings:              {documented:6.1%}   (bar: 100%)   of {size.public}")
    most = max(size.methods)
    print(f"most methods of a class:        {most[0]:6d}   (bar: 15)   {most[1]}")
    print(f"files over 400 lines:           {sum(length > 400 for length, _ in size.files):6d}")
    for length, name in sorted(size.files, reverse=True):
        if length > 400:
            print(f"    {length:5d} {name}")
    for length, name in sorted(size.functions, reverse=True):
        if length > 60:
            print(f"    function of {length} lines: {name}")
    for count, name in sorted(size.methods, reverse=True):
        if count > 15:
            print(f"    class of {count} methods: {name}")
    for name in size.undocumented:
        print(f"    no docstring: {name}")
    print("lines by room, and of them guards and handlers:")
    for room, (lines, guards) in sorted(size.rooms.items()):
        print(f"    {lines:5d} {guards / lines:6.1%}  {room}")


if __name__ == "__main__":
    main()
