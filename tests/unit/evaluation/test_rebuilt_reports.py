"""Small label maps rebuilt from reports of wrong results in other tools: the right value, or one sentence."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from places import SHARED

from nnunetv2_anomaly.command_line.main import main

SCRIPT = SHARED / "cases" / "small_maps.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the scripts that write these inputs are not at hand")
COLUMNS = {"dsc": "dsc", "hd": "hd_mm", "hd95": "hd95_mm", "asd": "asd_mm"}


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    subprocess.run([sys.executable, SCRIPT, folder], check=True, timeout=120)
    return folder


@pytest.mark.parametrize(
    ("key", "label"),
    [("single_slice", "ball"), ("regions", "femoral_bone"), ("first_bad", "ball"), ("second_bad", "ball")],
)
def test_values_are_plain_scipys(maps, key, label):
    folder = maps / key
    assert main(["evaluate", "-ref", str(folder / "ref"), "-pred", str(folder / "pred"), "-o", str(folder / "out"),
                 "-np", "1"]) == 0  # fmt: skip
    expected = json.loads((maps / "expected.json").read_text())[key]
    expected = expected.get(label, expected)
    table = pd.read_csv(folder / "out" / "tables" / "cases.csv")
    found = table[(table["label"] == label) & (table["processing"] == "raw")].iloc[-1]
    for name, column in COLUMNS.items():
        # a sheared axis is longer than the spacing that plain values were made with
        assert found[column] == pytest.approx(expected[name], abs=1e-3 if key.endswith("bad") else 1e-4), name


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("metres", "gives its lengths in the unit metre; expected mm"),
        ("two_forms", r"two poses, qform and sform, that lie 11.58 mm apart; expected one"),
        ("slope", "of its voxels are no whole numbers; expected a segmentation"),
    ],
)
def test_what_cannot_be_trusted_is_told(maps, key, told, capsys):
    folder = maps / key
    assert main(["evaluate", "-ref", str(folder / "ref"), "-pred", str(folder / "pred"), "-o", str(folder / "out"),
                 "-np", "1"]) == 1  # fmt: skip
    assert told in capsys.readouterr().err


def test_a_pose_that_is_two_is_not_written_anew(maps, tmp_path, capsys):
    words = ["postprocess", "-i", str(maps / "two_forms_post"), "-o", str(tmp_path / "out"), "-np", "1"]
    assert main(words) == 3
    assert "two poses" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.nii.gz"))
