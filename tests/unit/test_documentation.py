"""What the docs claim, held against the code."""

import json
import re

import pytest
from nnunetv2_anomaly.trainers import AnomalyAwareTrainer, AnomalyPreStageTrainer
from places import ROOT

from nnunetv2_anomaly.command_line.main import VERBS, build_parser
from nnunetv2_anomaly.plans.settings import SETTINGS, section_of

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_page_has_every_setting_as_it_is(name):
    setting = SETTINGS[name]
    readers = ", ".join(
        letter for letter, cls in (("P", AnomalyPreStageTrainer), ("A", AnomalyAwareTrainer)) if hasattr(cls, name)
    )
    row = f"| `{name}` | `{json.dumps(setting.default)}` | {setting.accepts} | {readers} | {setting.meaning} |"
    assert row in (ROOT / "docs" / "reference" / "settings.md").read_text()


def test_settings_page_has_no_setting_that_does_not_exist():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "reference" / "settings.md").read_text(), re.MULTILINE)
    assert set(rows) == set(SETTINGS)


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
        words = [word.strip('"') for word in line.split()]
        if words[0] in VERBS and not any(word.startswith("[") for word in words):
            build_parser().parse_args(words)


def test_sentences_of_the_troubleshooting_page_are_those_of_the_code():
    """What stands between the dots of a sentence in the table is found in the source, across its lines."""
    source = "".join(
        path.read_text() for folder in ("nnunetv2_anomaly", "trainers") for path in (ROOT / folder).rglob("*.py")
    )
    source = re.sub(r'"\s*\n\s*\+?\s*\(?f?"', "", source)
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "how-to" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    for sentence in rows:
        for part in sentence.split("…"):
            assert part.strip(" :,;()'") in source, f"{sentence}: {part}"


def test_benchmarks_that_the_docs_name_are_there():
    pages = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"-m benchmarks\.(\w+)", page.read_text())}
    assert len(named) > 4
    assert [name for name in sorted(named) if not (ROOT / "benchmarks" / f"{name}.py").is_file()] == []


def test_readme_has_the_two_commands_that_do_all_the_set_up():
    text = (ROOT / "README.md").read_text()
    assert '<!-- ci: tests -->\n```bash\npip install ".[test]" && pytest -n 2 --dist loadfile\n```' in text
    assert "<!-- ci: demo -->\n```bash\npip install . && nnUNetv2_anomaly demo\n```" in text
