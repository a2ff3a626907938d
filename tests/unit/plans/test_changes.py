import json

import pytest

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.plans.changes import changed_plans

ARCHITECTURE = {"name": "U", "arch_kwargs": {"n_stages": 2, "features": [32, 64]}}
PLANS = {
    "plans_name": "nnUNetPlans",
    "configurations": {
        "3d_fullres": {
            "batch_size": 2,
            "architecture": {"name": "U", "arch_kwargs": {"n_stages": 2, "features": [32, 64]}},
        }
    },
}


def test_a_configuration_gives_only_what_differs_from_the_one_that_it_inherits_from():
    own = {"inherits_from": "3d_fullres", "architecture": {"arch_kwargs": {"features": [4, 8]}}, "anomaly": {"seed": 1}}
    changed = changed_plans(PLANS, {"configurations": {"3d_own": own}})
    assert changed["configurations"]["3d_own"] == {
        "inherits_from": "3d_fullres", "anomaly": {"seed": 1},
        "architecture": {"name": "U", "arch_kwargs": {"n_stages": 2, "features": [4, 8]}},
    }  # fmt: skip
    assert changed["configurations"]["3d_fullres"] == PLANS["configurations"]["3d_fullres"]
    assert "3d_own" not in PLANS["configurations"]
    changed = changed_plans(PLANS, {"configurations": {"3d_fullres": {"batch_size": 3}}})
    assert changed["configurations"]["3d_fullres"] == {**PLANS["configurations"]["3d_fullres"], "batch_size": 3}


def test_the_verb_writes_other_plans_and_reports_mistakes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    folder = tmp_path / "Dataset501_Knees"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(PLANS))
    file = tmp_path / "changes.json"
    file.write_text(json.dumps({"configurations": {"3d_own": {"inherits_from": "3d_fullres"}}}))
    words = ["change_plans", "-d", "Dataset501_Knees", str(file)]
    assert main([*words, "-o", "nnUNetOwnPlans"]) == 0
    assert json.loads((folder / "nnUNetOwnPlans.json").read_text())["plans_name"] == "nnUNetOwnPlans"
    assert main([*words, "-o", "nnUNetPlans"]) == 1
    assert "-p and -o are both nnUNetPlans" in capsys.readouterr().err
    file.write_text(json.dumps({"configurations": {"3d_own": {}}}))
    assert main([*words, "-o", "nnUNetOwnPlans"]) == 1
    assert "the configuration 3d_own inherits from none of 3d_fullres" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "left"), [(2, 1), (1, 2)])
def test_a_split_of_simulated_knees_has_one_fold(tmp_path, number, left):
    from nnunetv2_anomaly.dataset_conversion.Dataset500_SimulatedKnees import write_split

    (tmp_path / "labelsTr").mkdir()
    for case in "abc":
        (tmp_path / "labelsTr" / f"{case}.nii.gz").touch()
    (split,) = json.loads(write_split(tmp_path, number, tmp_path / "preprocessed").read_text())
    assert (len(split["val"]), len(split["train"])) == (number, left)
