"""Everything that people do with nnU-Net's commands, with a trainer of each family of ours.

docs/reference/commands.md is the table of it; test_commands_page.py compares the two.
"""

import copy
import json
import os
import re
from pathlib import Path

import pytest
from stock_commands import SETTINGS, WHILE_PLANNING, run_commands

pytestmark = pytest.mark.exhaustive

NUMBER, NAME = "803", "Dataset803_StockKnee"
OTHER_NUMBER, OTHER_NAME = "804", "Dataset804_OtherKnee"
PRESTAGE = "AnomalyPreStageTrainer"
#: one of each family: planned network; the paper's network and protocol; transfer of it
SEGMENTERS = ("AnomalyAwareTrainer", "UNETSTrainer", "UNETSTransferTrainer")
#: the seventh transfer, the only one of nnU-Net's planned network, with its deep supervision
PLANNED_TRANSFER = "AnomalyAwareTransferTrainer"
#: commands that a pre-stage, which segments nothing, ends with a sentence of ours, and what it says
REFUSED = {
    **dict.fromkeys(
        ("predict", "predict_folds", "predict_all", "disable_tta", "continue_prediction", "num_parts_0", "num_parts_1",
         "predict_2d", "predict_from_modelfolder"),
        "it does not segment, so use nnUNetv2_anomaly anomaly_maps",
    ),
    "postprocess": "of its voxels are no whole numbers; expected a segmentation",
    "evaluate": "AnomalyPreStageTrainer__nnUNetPlans__3d_fullres) has no prediction of 2 of 2 cases",
}  # fmt: skip
#: nnU-Net takes each image in a validation folder for a segmentation, and looks for its reference
_NO_REFERENCE = r"case_\d_(error|reconstruction)\.nii\.gz\" does not exist"
#: commands that ask no trainer, and that nnU-Net itself ends with an error over what a pre-stage leaves
NNUNETS_ERRORS = {
    "ensemble": r"FileNotFoundError: .*/fold_0/validation/dataset\.json'",
    "accumulate_crossval_results": _NO_REFERENCE,
    "find_best_configuration": _NO_REFERENCE,
    "determine_postprocessing": _NO_REFERENCE,
    "apply_postprocessing": r"RuntimeError: Expected plans file missing: .*/fold_0/validation/plans\.json",
    "evaluate_folder": _NO_REFERENCE,
}
#: what stands for a segmentation that was there before, and cannot come about again by chance
PREDICTED_BEFORE, LONG_AGO = b"from before the interruption", 1_000_000_000


def write_plans(folder: Path, make_tiny) -> None:
    """Stock names with tiny networks and patches: 2d, 3d_fullres, and a 3d_lowres, which small images are not given."""
    file = folder / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    configurations = plans["configurations"]
    for name in ("2d", "3d_fullres"):
        configurations[name].update(make_tiny(configurations[name], SETTINGS))
    low = copy.deepcopy(configurations["3d_fullres"])
    low.update(
        data_identifier="nnUNetPlans_3d_lowres",
        spacing=[1.25 * s for s in low["spacing"]],
        median_image_size_in_voxels=[n / 1.25 for n in low["median_image_size_in_voxels"]],
    )
    configurations["3d_lowres"] = low
    file.write_text(json.dumps(plans))
    file.with_name("otherPlans.json").write_text(json.dumps({**plans, "plans_name": "otherPlans"}))


def commands(base: Path) -> list[dict]:
    """In an order in which each finds what it needs; named COMMAND-TRAINER, or COMMAND."""
    listed = []
    images = str(base / "nnUNet_raw" / NAME / "imagesTs")
    out = base / "out"

    def add(name, *command, **variables):
        listed.append({
            "name": name,
            "command": [str(word) for word in command],
            "variables": variables,
            "figures": name.startswith("train_fold-"),
        })  # fmt: skip

    def model(trainer, configuration="3d_fullres", plans="nnUNetPlans"):
        return base / "nnUNet_results" / NAME / f"{trainer}__{plans}__{configuration}"

    def train(name, trainer, configuration, fold, *more):
        weights = []
        if trainer.endswith("TransferTrainer") and not {"--c", "--val", "--val_best"} & set(more):
            source = model(trainer.replace("Transfer", ""), configuration)
            weights = ["-pretrained_weights", source / "fold_0" / "checkpoint_final.pth"]
        add(f"{name}-{trainer}", "nnUNetv2_train", NUMBER, configuration, fold, "-tr", trainer, "-device", "cpu",
            *weights, *more)  # fmt: skip

    train("train_for_fold_2", PRESTAGE, "3d_fullres", "2")
    for trainer in (PRESTAGE, *SEGMENTERS):
        train("train_fold", trainer, "3d_fullres", "0", "--npz")
        train("train_another_fold", trainer, "3d_fullres", "1", "--npz")
        train("train_all", trainer, "3d_fullres", "all")
        train("train_2d", trainer, "2d", "0", "--npz")
        train("train_3d_lowres", trainer, "3d_lowres", "0", "--npz")
        train("c", trainer, "3d_fullres", "0", "--c")
        train("val", trainer, "3d_fullres", "0", "--val", "--npz")
        train("val_best", trainer, "3d_fullres", "0", "--val", "--val_best")
        # The pre-stage in a fold of its own: the other trainers need that of fold 2.
        fold = "4" if trainer == PRESTAGE else "2"
        train("disable_checkpointing", trainer, "3d_fullres", fold, "--disable_checkpointing")
        train("plans", trainer, "3d_fullres", "0", "-p", "otherPlans")
    for trainer in (PRESTAGE, *SEGMENTERS[:2]):
        weights = model(trainer) / "fold_1" / "checkpoint_final.pth"
        more = ("-p", "otherPlans", "-pretrained_weights", weights)
        train("pretrained_weights", trainer, "3d_fullres", "0", *more)
    train("train_fold", PLANNED_TRANSFER, "3d_fullres", "0", "--npz")
    train("c", PLANNED_TRANSFER, "3d_fullres", "0", "--c")
    common = ("-i", images, "-device", "cpu")
    quick = ("-npp", "0", "-nps", "0")  # in this process
    for trainer in (*SEGMENTERS, PRESTAGE):
        of = ("-d", NUMBER, "-c", "3d_fullres", "-tr", trainer)
        here = out / trainer
        add(f"predict-{trainer}", "nnUNetv2_predict", *of, *common, "-f", "0", "-o", here / "one", *quick)
        add(f"predict_folds-{trainer}", "nnUNetv2_predict", *of, *common, "-f", "0", "1", "-o", here / "two",
            "--save_probabilities", "-npp", "1", "-nps", "1")  # fmt: skip
        add(f"predict_all-{trainer}", "nnUNetv2_predict", *of, *common, "-f", "all", "-o", here / "all", *quick)
        add(f"disable_tta-{trainer}", "nnUNetv2_predict", *of, *common, "-f", "0", "-o", here / "notta",
            "--disable_tta", "-step_size", "0.75", *quick)  # fmt: skip
        add(f"continue_prediction-{trainer}", "nnUNetv2_predict", *of, *common, "-f", "0",
            "-o", here / "continued", "--continue_prediction", *quick)  # fmt: skip
        for part in ("0", "1"):
            add(f"num_parts_{part}-{trainer}", "nnUNetv2_predict", *of, *common, "-f", "0", "-o", here / "parts",
                "-num_parts", "2", "-part_id", part, "-npp", "1", "-nps", "1")  # fmt: skip
        add(f"predict_2d-{trainer}", "nnUNetv2_predict", "-d", NUMBER, "-c", "2d", "-tr", trainer, *common, "-f", "0",
            "-o", here / "2d", "--save_probabilities", *quick)  # fmt: skip
        add(f"predict_from_modelfolder-{trainer}", "nnUNetv2_predict_from_modelfolder", "-m", model(trainer), *common,
            "-f", "0", "-o", here / "modelfolder", "-npp", "1", "-nps", "1")  # fmt: skip
        validated = model(trainer) / "fold_0" / "validation"
        # What a pre-stage leaves lies there; it has predicted nothing.
        segmented = validated if trainer == PRESTAGE else here / "one"
        several = (validated, model(trainer) / "fold_1" / "validation") if trainer == PRESTAGE else (
            here / "two", here / "2d")  # fmt: skip
        add(f"ensemble-{trainer}", "nnUNetv2_ensemble", "-i", *several, "-o", here / "ensemble", "-np", "1")
        add(f"accumulate_crossval_results-{trainer}", "nnUNetv2_accumulate_crossval_results", NUMBER,
            "-c", "3d_fullres", "-tr", trainer, "-f", "0", "1", "-o", here / "crossval")  # fmt: skip
        add(f"find_best_configuration-{trainer}", "nnUNetv2_find_best_configuration", NUMBER, "-c", "2d", "3d_fullres",
            "-tr", trainer, "-f", "0", "-np", "1")  # fmt: skip
        gt = base / "nnUNet_preprocessed" / NAME / "gt_segmentations"
        add(f"determine_postprocessing-{trainer}", "nnUNetv2_determine_postprocessing", "-i",
            here / "crossval", "-ref", gt, "-np", "1")  # fmt: skip
        determined = (out / SEGMENTERS[0] if trainer == PRESTAGE else here) / "crossval" / "postprocessing.pkl"
        add(f"apply_postprocessing-{trainer}", "nnUNetv2_apply_postprocessing", "-i", segmented, "-o", here / "pp",
            "-pp_pkl_file", determined, "-np", "1")  # fmt: skip
        described = ("-djfile", model(trainer) / "dataset.json", "-pfile", model(trainer) / "plans.json")
        add(f"evaluate_folder-{trainer}", "nnUNetv2_evaluate_folder", gt, here / "crossval", *described, "-np", "1",
            "--chill")  # fmt: skip
        add(f"export_model-{trainer}", "nnUNetv2_export_model_to_zip", *of, "-f", "0", "1", "-o", here / "model.zip")
        add(f"install_model-{trainer}", "nnUNetv2_install_pretrained_model_from_zip", here / "model.zip",
            nnUNet_results=str(base / "elsewhere"))  # fmt: skip
        add(f"postprocess-{trainer}", "nnUNetv2_anomaly", "postprocess", "-i", segmented, "-o", here / "clean",
            "-np", "1")  # fmt: skip
        add(f"evaluate-{trainer}", "nnUNetv2_anomaly", "evaluate", "-ref", gt, "-pred", model(trainer), "--folds", "0",
            "1", "-o", here / "evaluation", "-np", "1", "--lesions", "femoral_lesion=femoral_bone")  # fmt: skip
    add(f"predict-{PLANNED_TRANSFER}", "nnUNetv2_predict", "-d", NUMBER, "-c", "3d_fullres", "-tr", PLANNED_TRANSFER,
        *common, "-f", "0", "-o", out / PLANNED_TRANSFER / "one", *quick)  # fmt: skip
    add("move_plans", "nnUNetv2_move_plans_between_datasets", "-s", NUMBER, "-t", OTHER_NUMBER, "-sp", "nnUNetPlans",
        "-tp", "movedPlans")  # fmt: skip
    return listed


@pytest.fixture(scope="module")
def done(tmp_path_factory, write_tiny_raw_dataset, make_tiny):
    """Base folder, and per command its status and output."""
    base = tmp_path_factory.mktemp("stock")
    for name, num_training in ((NAME, 5), (OTHER_NAME, 2)):
        write_tiny_raw_dataset(base / "nnUNet_raw" / name, num_training, 2)
    for name in ("nnUNet_preprocessed", "nnUNet_results", "elsewhere"):
        (base / name).mkdir()
    prepare = [
        {"name": f"plan_{number}", "command": ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", *which,
                                               "-npfp", "1", "-np", "1", "--verify_dataset_integrity"]}
        for number, which in ((NUMBER, ("2d", "3d_fullres")), (OTHER_NUMBER, ("3d_fullres",)))
    ]  # fmt: skip
    results = run_commands(base, "plan", prepare, **WHILE_PLANNING)
    write_plans(base / "nnUNet_preprocessed" / NAME, make_tiny)
    low = [{"name": "preprocess", "command": ["nnUNetv2_preprocess", "-d", NUMBER, "-c", "3d_lowres", "-np", "1"]}]
    results |= run_commands(base, "low", low, **WHILE_PLANNING)
    for trainer in SEGMENTERS:  # as a prediction leaves it that is interrupted after the first of two cases
        there = base / "out" / trainer / "continued" / "case_5.nii.gz"
        there.parent.mkdir(parents=True)
        there.write_bytes(PREDICTED_BEFORE)
        os.utime(there, (LONG_AGO, LONG_AGO))
    return base, results | run_commands(base, "commands", commands(base))


NAMES = [entry["name"] for entry in commands(Path("base"))]
NOT_WELL = {f"{word}-{PRESTAGE}" for word in (*REFUSED, *NNUNETS_ERRORS)}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_WELL])
def test_command_ends_well(done, name):
    _, results = done
    assert results[name]["status"] == 0, results[name]["output"]


@pytest.mark.parametrize("word", REFUSED)
def test_prestage_as_a_segmentation_is_refused_in_a_sentence(done, word):
    _, results = done
    result = results[f"{word}-{PRESTAGE}"]
    assert result["status"] == (3 if word == "postprocess" else 1), result["output"]
    assert REFUSED[word] in result["output"]
    assert "Traceback" not in result["output"]


@pytest.mark.parametrize("folder", ["one", "two", "all", "notta", "continued", "parts", "2d", "modelfolder", "clean"])
def test_prestage_that_is_refused_leaves_no_segmentation(done, folder):
    base, _ = done
    here = base / "out" / PRESTAGE / folder
    assert here.is_dir()
    assert not [*here.glob("*.nii.gz"), *here.glob("*.npz")]


@pytest.mark.parametrize("word", NNUNETS_ERRORS)
def test_nnunets_own_error_over_what_a_prestage_leaves(done, word):
    """Nothing of ours is involved there: commands.md says so, which has to change when nnU-Net does."""
    _, results = done
    result = results[f"{word}-{PRESTAGE}"]
    assert result["status"] == 99, result["output"]  # a traceback
    assert re.search(NNUNETS_ERRORS[word], result["output"]), result["output"]


@pytest.mark.parametrize("trainer", SEGMENTERS)
def test_predictions_are_there_and_agree(done, trainer):
    base, _ = done
    here = base / "out" / trainer
    names = sorted(path.name for path in (here / "one").glob("*.nii.gz"))
    assert len(names) == 2
    for folder in ("two", "all", "notta", "continued", "parts", "2d", "modelfolder", "ensemble", "pp", "clean"):
        assert sorted(path.name for path in (here / folder).glob("*.nii.gz")) == names, folder
    for name in names:
        assert (here / "modelfolder" / name).read_bytes() == (here / "one" / name).read_bytes()
        assert (here / "parts" / name).read_bytes() == (here / "one" / name).read_bytes()
    assert len(list((here / "two").glob("*.npz"))) == 2
    assert (here / "evaluation" / "report.html").is_file()


def test_transfer_of_the_planned_network_has_predicted(done):
    base, _ = done
    names = sorted(path.name for path in (base / "out" / PLANNED_TRANSFER / "one").glob("*.nii.gz"))
    assert names == ["case_5.nii.gz", "case_6.nii.gz"]


@pytest.mark.parametrize("trainer", SEGMENTERS)
def test_continued_prediction_makes_what_is_missing_and_leaves_the_rest(done, trainer):
    base, _ = done
    here = base / "out" / trainer
    there = here / "continued" / "case_5.nii.gz"
    assert (there.read_bytes(), there.stat().st_mtime) == (PREDICTED_BEFORE, LONG_AGO)
    missing = "case_6.nii.gz"
    assert (here / "continued" / missing).read_bytes() == (here / "one" / missing).read_bytes()


@pytest.mark.parametrize("trainer", [PRESTAGE, *SEGMENTERS])
def test_installed_model_has_the_checkpoints_of_the_exported_one(done, trainer):
    base, _ = done
    for fold in ("0", "1"):
        checkpoint = Path(NAME, f"{trainer}__nnUNetPlans__3d_fullres", f"fold_{fold}", "checkpoint_final.pth")
        installed, exported = (base / folder / checkpoint for folder in ("elsewhere", "nnUNet_results"))
        assert installed.read_bytes() == exported.read_bytes()


@pytest.mark.parametrize("trainer", [PRESTAGE, *SEGMENTERS])
def test_training_leaves_checkpoints_where_they_are_wanted_alone(done, trainer):
    base, _ = done
    model = base / "nnUNet_results" / NAME / f"{trainer}__nnUNetPlans__3d_fullres"
    assert (model / "fold_0" / "checkpoint_final.pth").is_file()
    unsaved = model / ("fold_4" if trainer == PRESTAGE else "fold_2")
    assert unsaved.is_dir()
    assert not list(unsaved.glob("checkpoint_*"))
    assert (model / "fold_0" / "validation" / "summary.json").is_file()
