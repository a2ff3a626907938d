"""The kit for a GPU: what it measures, the table that it makes; and, at small size on the CPU, that it runs."""

import json
import subprocess
import sys

import pytest
from places import ROOT

from benchmarks.gpu.__main__ import SIZES, segmenter_trainers, tables, trainers
from nnunetv2_anomaly.registry import SEGMENTERS, TRAINERS, detector_families


def test_every_family_of_the_registry_is_measured():
    chosen = segmenter_trainers()
    assert chosen[0] == "nnUNetTrainer"
    assert {TRAINERS[name].family for name in chosen[1:]} == set(SEGMENTERS)
    assert {"AnomalyAwareTrainer", "UNETSTrainer"} <= set(chosen)
    assert set(trainers()) - set(chosen) == {family.trainer for family in detector_families().values()}


def test_the_table_holds_what_was_measured_and_nothing_else(tmp_path):
    rows = tmp_path / "patch" / "rows"
    rows.mkdir(parents=True)
    row = {"shape": "2 x 1 x 8", "step_s": 0.5, "window_s": 0.25, "step_gib": float("nan"), "float32": 1e-6}
    (rows / "A.json").write_text(json.dumps(row))
    (table,) = tables(tmp_path, ["A", "B"])
    assert table.title == "Patches"
    ((name, shape, step, gib, *others),) = [[cell.text for cell in cells] for cells in table.rows]
    assert (name, shape, step, gib) == ("A", "2 x 1 x 8", "0.500", "")
    assert others == ["", "0.250", "", "1.0e-06", "", ""]


@pytest.mark.exhaustive
def test_small_form_on_the_cpu(tmp_path):
    words = ["--folder", str(tmp_path), "--small", "--device", "cpu", "--seconds", "3000", "--repeats", "1"]
    command = [sys.executable, "-m", "benchmarks.gpu", *words, "--budget", "8", "-np", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for size in SIZES:
        found = {file.stem for file in (tmp_path / size / "rows").glob("*.json")}
        assert found == set(trainers())
    assert "| nnUNetTrainer" in (tmp_path / "results.md").read_text()
