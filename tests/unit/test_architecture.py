"""The order of the rooms, read from the imports of the code: docs/explanation/architecture.md and its figure."""

import importlib.util
import re

import pytest
from PIL import Image
from places import ROOT

PAGE = ROOT / "docs" / "explanation" / "architecture.md"


def load_script():
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "figures" / "architecture.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


architecture = load_script()
IMPORTS = architecture.imports()


def families(kind: str) -> list[str]:
    return [name for name in architecture.edges() if name.startswith(f"{kind}/")]


def test_the_imports_are_seen():
    assert len(IMPORTS) > 100
    assert "nnunetv2_anomaly.errors" in IMPORTS["nnunetv2_anomaly.evaluation.run"]
    assert "nnunetv2_anomaly.trainers.base" in IMPORTS["nnunetv2_anomaly.trainers.segmentation"]
    # Inside a function, too: a verb's help appears without torch.
    assert "nnunetv2_anomaly.workflows.demo" in IMPORTS["nnunetv2_anomaly.command_line.demo"]


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_a_module_imports_nothing_from_a_later_room(module):
    own = architecture.place(architecture.room(module))
    later = {name for name in IMPORTS[module] if architecture.place(architecture.room(name)) > own}
    assert not later, f"{module} imports {sorted(later)} from a room above its own"


def test_no_modules_import_each_other_in_a_circle():
    graph = architecture.imports(with_types=False)
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join([*path[path.index(module) :], module])
        if module not in finished:
            for name in sorted(graph[module]):
                visit(name, (*path, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("kind", architecture.KINDS)
def test_families_do_not_import_each_other(kind):
    for family in families(kind):
        others = set(architecture.edges()[family]) & (set(families(kind)) - {family})
        assert not others, f"{family} imports {sorted(others)}"


@pytest.mark.parametrize("kind", architecture.KINDS)
def test_what_families_share_imports_no_family(kind):
    assert not set(architecture.edges()[kind]) & set(families(kind))


def test_segmenters_know_detectors_by_their_interface_alone():
    modules = [name for name in IMPORTS if architecture.room(name).partition("/")[0] == "segmenters"]
    for module in modules:
        assert not [name for name in IMPORTS[module] if architecture.room(name).startswith("detectors/")], module


def test_the_figure_is_the_one_of_this_code():
    with Image.open(architecture.FIGURE) as figure:
        drawn = figure.text["Description"]
    assert drawn == architecture.description(), "run: python docs/figures/architecture.py"


def test_the_page_names_every_room_in_order():
    rooms = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    expected = [name for name in architecture.ORDER if not name.endswith("/*")]
    assert rooms == expected
