"""Wheels of this package, built from a copy of the checkout without network access."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A copy of the checkout: building writes into the source folder, and an old build folder would be packed."""
    if not (ROOT / "setup.cfg").is_file():
        pytest.skip("the tests do not lie in a checkout")
    pytest.importorskip("setuptools", reason="the build backend is needed to build without network access")
    copy = tmp_path_factory.mktemp("build") / "source"
    skipped = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "shared", "tests", "docs")
    shutil.copytree(ROOT, copy, ignore=skipped)
    return copy


@pytest.fixture(scope="session")
def build(source):
    """Function that calls a hook of the build backend as pip does, and returns the built file."""
    built: dict[str, Path] = {}

    def run(hook: str) -> Path:
        if hook not in built:
            out = source.parent / hook
            out.mkdir()
            code = f"from setuptools import build_meta; print(build_meta.{hook}({str(out)!r}))"
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=source,
                env={**os.environ, "PYTHONPATH": ""},
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            built[hook] = next(out.glob("*.whl"))
        return built[hook]

    return run
