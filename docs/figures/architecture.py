"""Draws docs/figures/architecture.png from the imports of the code:  python docs/figures/architecture.py"""

import ast
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import fill

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parents[2]
FIGURE = Path(__file__).with_name("architecture.png")
PACKAGE = "nnunetv2_anomaly"
#: Folders of the checkout that hold code, and the package they are installed as
FOLDERS = {
    PACKAGE: PACKAGE,
    "trainers": f"{PACKAGE}.trainers",
    "dataset_conversion": f"{PACKAGE}.dataset_conversion",
}
#: Rooms whose folders are families of one kind
KINDS = ("detectors", "segmenters")
#: All modules directly in the package: errors, labels, files and others
GROUND = "ground"
#: The rooms in rows from the ground up. A room imports rooms of lower rows, and of its own row those further left
ROWS = (
    (GROUND,),
    ("images", "reporting"),
    ("plans", "networks", "training", "simulation", "conversion"),
    ("detectors", "detectors/*"),
    ("segmenters", "segmenters/*"),
    ("prediction", "postprocessing", "measurements"),
    ("evaluation", "trainers", "dataset_conversion"),
    ("trainer_shim", "inspection", "workflows"),
    ("command_line",),
)
#: Every room's place in this order; a family has that of its kind's families
ORDER = {name: number for number, name in enumerate(name for row in ROWS for name in row)}
COLOURS = ("#eeeeee", "#dbe9f6", "#dbe9f6", "#fde3cf", "#dcefdc", "#f3e6f5", "#f3e6f5", "#eeeeee", "#eeeeee")


def modules() -> dict[str, Path]:
    """Every module of the package by its full name."""
    found = {}
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = file
    return found


def _nodes(tree: ast.AST, with_types: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if with_types or not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from _nodes(node, with_types)


@cache
def imports(with_types: bool = True) -> dict[str, set[str]]:
    """For every module, the modules of the package that it imports, inside functions too.

    Args: with_types: whether those under ``if TYPE_CHECKING`` count, which no run imports.
    """
    files = modules()
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        found = set()
        for node in _nodes(ast.parse(file.read_text()), with_types):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parent = node.module or ""
                found |= {
                    f"{parent}.{alias.name}" if f"{parent}.{alias.name}" in files else parent for alias in node.names
                }
        graph[name] = (found & files.keys()) - {name}
    return graph


def room(module: str) -> str:
    """The room of a module; a family is a room of its own, such as detectors/inpainting."""
    folder, _, rest = module.removeprefix(PACKAGE).lstrip(".").partition(".")
    if folder not in ORDER:
        return GROUND
    family = rest.partition(".")[0] if folder in KINDS else ""
    is_folder = family and (ROOT / PACKAGE / folder / family).is_dir()
    return f"{folder}/{family}" if is_folder else folder


def place(name: str) -> int:
    """Where a room stands in the order; it imports nothing with a higher number.

    Raises: KeyError if the order does not have the room.
    """
    return ORDER[name] if name in ORDER else ORDER[f"{name.partition('/')[0]}/*"]


def contents() -> dict[str, list[str]]:
    """For every room, its modules."""
    found: dict[str, list[str]] = {}
    for module, file in modules().items():
        names = found.setdefault(room(module), [])
        if file.name != "__init__.py":
            names.append(file.stem)
    return found


@cache
def edges() -> dict[str, list[str]]:
    """For every room, the other rooms that its modules import."""
    graph: dict[str, set[str]] = {}
    for module, imported in imports().items():
        graph.setdefault(room(module), set()).update(map(room, imported))
    return {name: sorted(others - {name}) for name, others in sorted(graph.items())}


def description() -> str:
    """What the figure shows, as text; it stands in the file, so that a test can compare it with the code."""
    return json.dumps({"imports": edges(), "modules": contents()}, sort_keys=True)


def main() -> None:
    """Draw and save: a line per room with its modules, and a dot for every room that it imports."""
    names, graph = contents(), edges()
    rooms = sorted(names, key=lambda name: (place(name), name))
    count = len(rooms)
    figure = Figure(figsize=(13, 0.34 * count + 1.6))
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0.005, 0.005, 0.99, 0.99))
    text, matrix = 26.0, 8.0  # where names end and modules begin, and where the matrix begins
    axis.set_xlim(0, text + 22)
    axis.set_ylim(-0.3, count + 5)
    axis.axis("off")
    for line, name in enumerate(rooms):
        colour = COLOURS[next(row for row, kinds in enumerate(ROWS) if place(name) in map(ORDER.get, kinds))]
        box = {"width": text + 22, "height": 0.92, "facecolor": colour, "edgecolor": "none", "zorder": 0}
        axis.add_patch(Rectangle((0, line + 0.04), **box))
        column = matrix + line * (text - matrix) / count
        step = (text - matrix) / count
        axis.add_patch(Rectangle((column, line + 0.04), step, 0.92, facecolor="#888"))
        axis.text(0.2, line + 0.5, name, va="center", fontsize=9.5, weight="bold")
        axis.text(column + step / 2, count + 0.2, name, rotation=60, rotation_mode="anchor", va="center", fontsize=8)
        for other in graph[name]:
            axis.plot(matrix + (rooms.index(other) + 0.5) * step, line + 0.5, "o", color="#333", markersize=5)
        axis.text(text + 0.3, line + 0.5, fill("  ".join(names[name]), 95), va="center", fontsize=6.8, linespacing=1.0)
    figure.savefig(FIGURE, dpi=110, metadata={"Description": description()})


if __name__ == "__main__":
    main()
