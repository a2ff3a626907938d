"""What the docs claim, compared with the code."""

import json
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from places import ROOT

from nnunetv2_anomaly.command_line.main import build_parser
from nnunetv2_anomaly.detectors.artefact import Artefact
from nnunetv2_anomaly.detectors.base import detector_class
from nnunetv2_anomaly.plans.settings import section_of
from nnunetv2_anomaly.registry import DEFAULT_DETECTOR, DETECTORS, ENTRY_POINTS, TRAINERS, VERBS, setting_tables

DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "benchmarks" / "README.md", *DOCS.rglob("*.md")])
SETTING_TABLES = setting_tables(DETECTORS)


def reference(name: str) -> str:
    """Text of a reference page."""
    return (DOCS / "reference" / f"{name}.md").read_text()


def sections(text: str) -> dict[str, str]:
    """Heading of second level -> what stands below it."""
    parts = (part.partition("\n") for part in text.split("\n## ")[1:])
    return {heading: below for heading, _, below in parts}


def table_rows(text: str) -> list[str]:
    """Rows of all tables of a page or section, without their heads."""
    return [line for line in text.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("owner", SETTING_TABLES)
def test_settings_page_has_the_table_of_every_owner_as_it_is(owner):
    heading = f"Detector family {owner}" if owner in DETECTORS else owner.capitalize()
    page = "detector-settings" if owner in (*DETECTORS, "detectors") else "settings"
    expected = [
        f"| `{name}` | `{json.dumps(setting.default)}` | {setting.accepts} | {setting.meaning} |"
        for name, setting in SETTING_TABLES[owner].items()
    ]
    assert table_rows(sections(reference(page))[heading]) == expected


def test_settings_pages_have_no_table_that_does_not_exist():
    headings = [*sections(reference("settings")), *sections(reference("detector-settings"))]
    assert len(headings) == len(SETTING_TABLES)


def test_trainers_page_has_every_trainer():
    first_cells = [row.split("|")[1] for row in table_rows(reference("trainers"))]
    assert sorted(name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)) == sorted(TRAINERS)


def test_trainers_page_says_what_each_trainer_starts_from():
    for row in table_rows(reference("trainers")):
        for name in re.findall(r"`(\w+)`", row.split("|")[1]):
            trainer = TRAINERS[name]
            transferred = trainer.module == "transfer"
            assert ("`-pretrained_weights`" in row) == transferred, name
            assert ("the finished pre-stage" in row) == (trainer.anomaly_aware and not transferred), name


def test_verbs_page_has_every_verb_in_the_order_of_the_help():
    assert [re.match(r"\| `(\w+)", row)[1] for row in table_rows(reference("verbs"))] == list(VERBS)


def test_detectors_page_has_the_table_of_families_as_it_is():
    expected = []
    for name, family in DETECTORS.items():
        contract = detector_class(name).contract
        maps = "one per image channel" if contract.error_channels is None else "1"
        axes = " or ".join(map(str, contract.dimensions))
        expected.append(
            f"| `{name}` | `{family.trainer}` | {axes} axes | {maps} | {contract.window} | {contract.multiple_of} | "
            f"{family.summary} |"
        )
    intro, _, _ = reference("detectors").partition("\n## ")
    assert table_rows(intro) == expected


def test_detectors_page_names_what_a_checkpoint_describes_and_the_entry_points():
    text = reference("detectors")
    (below,) = (below for heading, below in sections(text).items() if heading.startswith("What a checkpoint says"))
    entries = [re.match(r"\| `(\w+)`", row)[1] for row in table_rows(below)]
    artefact = Artefact(detector_class(DEFAULT_DETECTOR).contract, {}, frozenset(), None, {}, {}, True, True)
    assert entries == list(artefact.description())
    assert ENTRY_POINTS in text


def test_example_of_the_detectors_page_is_a_family():
    block = re.search(r"```python\n(.*?)```", reference("detectors"), re.DOTALL)[1]
    names: dict = {}
    exec(block, names)
    assert f"{names['FAMILY'].name} = my_package:FAMILY" in reference("detectors")


def test_index_has_every_page():
    linked = re.findall(r"\]\(([^)#]+)", (DOCS / "README.md").read_text())
    assert len(linked) == len(set(linked))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"README.md"}
    assert pages - set(linked) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_no_tests_and_no_modules_that_do_not_exist(page):
    text = page.read_text()
    if page.name != "conventions.md":
        assert re.findall(r"\btest_\w+|\btests/\w+", text) == []
    for place in re.findall(r"`((?:nnunetv2_anomaly|trainers|dataset_conversion)/[\w/]+(?:\.py)?)`", text):
        assert (ROOT / place).exists(), f"{page.name} names {place}"
    for name in re.findall(r"`(nnunetv2_anomaly(?:\.\w+)+)`", text):
        pkgutil.resolve_name(name)


def test_conventions_name_tests_that_are_there():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)` \|", reference("conventions"))
    rows = [row for row in reference("conventions").splitlines() if row.startswith("| ") and row[2].isupper()]
    assert len(named) == len(rows) > 30
    written = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    assert [test for test in named if f"def {test[1]}(" not in written[test[0]]] == []


def test_example_of_the_settings_page_is_accepted():
    block = re.search(r"```json\n(.*?)```", (ROOT / "docs" / "reference" / "settings.md").read_text(), re.DOTALL)
    example = json.loads("{" + block.group(1) + "}")
    assert section_of(example["configurations"]["3d_short"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_our_commands_in_the_docs_parse(page, capsys):
    """Verbs and options of every example line; placeholders in capitals stand for values."""
    for line in re.findall(r"^(?:eval \"\$\()?nnUNetv2_anomaly ([^\n|)]*)", page.read_text(), re.MULTILINE):
        words = [word.strip('"') for word in line.partition(" #")[0].split()]
        if words[0] in VERBS and not any(word.startswith("[") for word in words):
            build_parser().parse_args(words)


def test_sentences_of_the_troubleshooting_page_are_those_of_the_code():
    """What stands between the dots of a sentence in the table is found in the source, across its lines."""
    source = "".join(
        path.read_text() for folder in ("nnunetv2_anomaly", "trainers") for path in (ROOT / folder).rglob("*.py")
    )
    source = re.sub(r'"\s*\n\s*\+?\s*\(?f?"', "", source)
    text = "".join(page.read_text() for page in (DOCS / "how-to").glob("troubleshooting*.md"))
    rows = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(rows) > 40
    parts = [(sentence, part.strip(" :,;()'")) for sentence in rows for part in sentence.split("…")]
    assert [(sentence, part) for sentence, part in parts if part not in source] == []


#: pages for readers; lab notes are as long as what was measured
READABLE = [page for page in PAGES if "lab-notes" not in page.parts]
COMMANDS = re.compile(r"([^\n]*)\n *```bash\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", READABLE, ids=lambda page: page.name)
def test_no_page_is_longer_than_a_reader_bears(page):
    assert len(page.read_text().split()) <= 1500


@pytest.mark.parametrize("page", READABLE, ids=lambda page: page.name)
def test_commands_are_marked_as_needing_data_or_run_in_a_test(page):
    marks = {mark.strip() for mark, _ in COMMANDS.findall(page.read_text())}
    known = ("needs data", "runs in a test", "runs in the chain tests", "ci: demo", "ci: tests")
    assert marks <= {f"<!-- {mark} -->" for mark in known}


@pytest.mark.exhaustive
def test_commands_that_need_no_data_run(tmp_path):
    """Each in an empty folder, as a reader would paste it; ``needs data`` is on what names files of the reader's."""
    blocks = [block for page in READABLE for mark, block in COMMANDS.findall(page.read_text()) if "in a test" in mark]
    assert len(blocks) >= 2
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for number, block in enumerate(blocks):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = subprocess.run(
            ["bash", "-ec", textwrap.dedent(block)], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True
        )
        assert done.returncode == 0, (block, done.stderr[-2000:])


def test_benchmarks_that_the_docs_name_are_there():
    pages = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"-m benchmarks\.(\w+)", page.read_text())}
    assert len(named) > 4
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    there |= {path.parent.name for path in (ROOT / "benchmarks").glob("*/__main__.py")}
    assert sorted(named - there) == []


def test_readme_has_the_two_commands_that_do_all_the_set_up():
    text = (ROOT / "README.md").read_text()
    assert '<!-- ci: tests -->\n```bash\npip install ".[test]" && pytest -n 2 --dist loadfile\n```' in text
    assert '<!-- ci: demo -->\n```bash\npip install ".[cluster]" && nnUNetv2_anomaly demo\n```' in text
