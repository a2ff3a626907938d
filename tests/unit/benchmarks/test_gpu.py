"""The kit for a GPU: what it measures, the table that it makes, its steps."""

import json

from benchmarks.gpu.__main__ import (
    SIZES,
    build_parser,
    experiment_of,
    measuring_steps,
    segmenter_trainers,
    tables,
    trainers,
)
from nnunetv2_anomaly.registry import DETECTORS, SEGMENTERS, TRAINERS


def test_every_family_of_the_registry_is_measured():
    chosen = segmenter_trainers()
    assert chosen[0] == "nnUNetTrainer"
    assert {TRAINERS[name].family for name in chosen[1:]} == set(SEGMENTERS)
    assert {"AnomalyAwareTrainer", "UNETSTrainer"} <= set(chosen)
    assert set(trainers()) - set(chosen) == {family.trainer for family in DETECTORS.values()}


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


def test_every_trainer_has_its_step_after_the_detector_that_it_starts_from(tmp_path):
    options = build_parser().parse_args(["--folder", str(tmp_path), "--small", "--device", "cpu"])
    for size, whole in SIZES.items():
        steps = measuring_steps(experiment_of(options, whole), repeats=2)
        measured = {one.output.removeprefix("rows/").removesuffix(".json"): one for one in steps}
        of_slices = {"IMaskRCNNTrainer", "LaMaBMLTrainer", "ASCNetTrainer", "MKDTrainer"}
        assert set(measured) == set(trainers()) - (of_slices if whole else set()), size
        for name, one in measured.items():
            assert one.command.startswith("nnUNet_n_proc_DA=0 ")
            assert len(one.follows) == (name in ("AnomalyAwareTrainer", "UNETSTrainer"))
