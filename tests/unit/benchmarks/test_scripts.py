"""The timing scripts at small size: that they run, and what they print beside seconds."""

import re
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from places import ROOT

from nnunetv2_anomaly.simulation.phantom import draw_phantom, phantom_image

pytestmark = pytest.mark.exhaustive


def run(script, *words):
    command = [sys.executable, "-m", f"benchmarks.{script}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def output_of(script, *words):
    done = run(script, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_phantoms(folder, number, ending):
    folder.mkdir()
    for seed in range(number):
        parameters = draw_phantom(np.random.default_rng(seed))
        image = phantom_image(parameters, size=(48, 48, 32), spacing_mm=(2.9, 2.9, 3.5))
        sitk.WriteImage(image, str(folder / f"knee{seed}{ending}"))


def test_cost():
    printed = output_of("cost", "--patch", "16", "16", "16", "--batch", "2", "--repeats", "1", "--device", "cpu")
    for title in (
        "Training step",
        "Prediction of one window",
        "The detector, one window",
        "The detector, a batch of 2",
    ):
        assert f"\n{title}\n" in printed
    pasting = dict(re.findall(r"(?m)^  (pasting into .*): mean .* ratio of means ([0-9.]+)$", printed))
    assert list(pasting) == ["pasting into every other patch", "pasting into every patch"]
    assert all(float(ratio) > 0 for ratio in pasting.values())
    assert len(re.findall(r"(?m)^  anomaly-aware .* ratio [0-9.]+$", printed)) == 2
    # The layout of memory changes no more than the order of sums; half precision does.
    off = {
        way: float(number) for way, number in re.findall(r"(\S+): off by at most (\S+) of the largest error", printed)
    }
    assert off["channels-last"] < 1e-4 < off["bfloat16"] < 0.5


def test_evaluation_of_small_maps():
    printed = output_of("evaluation", "--size", "40", "48", "48", "--repeats", "1", "--ways", "box", "--another_knee")
    tables = printed.split("Surface metrics")[1:]
    assert [re.search("prediction (.*):", table).group(1) for table in tables] == [
        "without strays", "with 30 strays", "another knee",
    ]  # fmt: skip
    for table in tables:
        measuring, cleaning = table.split("Clean-up")
        deviations = [float(cell) for row in re.findall(r"\*\*ours\*\*.*", measuring) for cell in row.split("|")[5:-1]]
        assert len(deviations) == 5
        assert max(deviations) < 1e-9
        assert [row.split("|")[5].strip() for row in re.findall(r"\*\*ours\*\*.*", cleaning)] == ["0"]


def test_evaluation_reports_phantoms_that_lack_a_label():
    done = run("evaluation", "--size", "8", "8", "8", "--repeats", "1", "--ways", "box")
    assert done.returncode == 1
    assert "phantoms of 8 x 8 x 8 voxels do not hold all of" in done.stderr
    assert "Traceback" not in done.stderr


def test_simulation_of_label_maps_of_any_format(tmp_path):
    write_phantoms(tmp_path / "maps", 2, ".nii")
    printed = output_of("simulation", "--labels", str(tmp_path / "maps"), "--cases", "5")
    assert "2 cases of (48, 48, 32) voxels" in printed
    assert re.search(r"ratio of the medians +[0-9.]+$", printed, re.MULTILINE)


def test_simulation_reports_a_folder_without_label_maps(tmp_path):
    done = run("simulation", "--labels", str(tmp_path))
    assert done.returncode == 1
    assert "holds no label map" in done.stderr
    assert "Traceback" not in done.stderr


def test_conversion():
    printed = output_of("conversion", "--cases", "2", "--size", "48", "96", "96", "-np", "1")
    assert "2 cases, one process" in printed
    assert re.search(r"ratio of the medians +[0-9.]+$", printed, re.MULTILINE)
    assert "The command with -np 1" in printed


def test_mask_rcnn():
    words = ("--backbone", "small", "--sizes", "384", "--batches", "1", "2", "--calls", "1")
    rows = re.findall(
        r"(?m)^\| (plain|improved) \| 384 \| (\d) \| ([0-9.]+) \| ([0-9.]+) \|$", output_of("mask_rcnn", *words)
    )
    assert [row[:2] for row in rows] == [("plain", "1"), ("plain", "2"), ("improved", "1"), ("improved", "2")]
    assert all(float(number) > 0 for row in rows for number in row[2:])


def test_mask_rcnn_on_thin_cartilage():
    printed = output_of("mask_rcnn_rim", "--seeds", "1", "--steps", "1")
    rows = re.findall(r"(?m)^\| (plain|improved) \| 0 \| ([0-9.]+) \| ([0-9.]+) \|", printed)
    assert [row[0] for row in rows] == ["plain", "improved"]
    assert all(0 <= float(number) <= 1 for row in rows for number in row[1:])
