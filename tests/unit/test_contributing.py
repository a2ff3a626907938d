"""CONTRIBUTING.md: its examples run, its commands and hooks are those of .ci/run."""

import importlib.util
import re
import sys

import pytest
import torch
from places import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
HOOKS = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)


def example(name: str) -> str:
    return re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE, re.DOTALL).group(1)


@pytest.fixture
def module(request, tmp_path, monkeypatch):
    """An example as a module of its own."""
    path = tmp_path / f"example_{request.param}.py"
    path.write_text(example(request.param))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def test_the_detector_is_the_family_that_the_contract_tests_train():
    assert example("detector") == (ROOT / "tests" / "families" / "toy" / "toy_family.py").read_text()


@pytest.mark.parametrize("module", ["segmenter"], indirect=True)
def test_the_segmenter_trains_resumes_and_fills_its_registry_rows(module, trainer_factory, tmp_path):
    trainer = trainer_factory(module.LocalTrainer, anomaly={"num_epochs": 1})
    trainer.run_training()
    path = str(tmp_path / "checkpoint.pth")
    trainer.save_checkpoint(path)
    again = trainer_factory(module.LocalTrainer, anomaly={"num_epochs": 1})
    again.load_checkpoint(path)
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        scores = again.network.eval()(image)
        assert scores.shape == (1, 4, 16, 16, 16)
        assert torch.equal(scores, trainer.network.eval()(image))
    assert list(module.TRAINERS) == ["LocalTrainer"]
    assert module.TRAINERS["LocalTrainer"].family == module.FAMILY.name


@pytest.mark.parametrize("module", ["measurement"], indirect=True)
def test_the_measurement_passes_its_own_tests(module):
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_hooks_before_a_commit_are_the_checks_of_the_build():
    build = (ROOT / ".ci" / "run").read_text()
    assert [entry.split()[0] for entry in HOOKS] == ["ruff", "ruff", "mypy"]
    for entry in HOOKS:
        assert f"`{entry}`" in PAGE
        command, *words = entry.split()
        assert f'"$folder/lint/bin/{command}"{"".join(" " + word for word in words[:1])}' in build


def test_the_long_rest_is_what_the_build_runs_after_readmes_command():
    long = re.search(r"^\| the long rest \| `(.+)` \|$", PAGE, re.MULTILINE).group(1)
    assert f'exhaustive="{long}"' in (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    assert f"&& {long.partition(' -m exhaustive')[0]}\n```" in readme


def test_files_that_the_page_names_are_there():
    named = re.findall(r"`((?:docs|tests|trainers)/[\w/.]+\.(?:md|py))`|\]\(([\w/.]+\.md)\)", PAGE)
    paths = [first or second for first, second in named if "NAME" not in first]
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).is_file()] == []
