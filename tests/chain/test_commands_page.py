"""The page of commands, held against the tests that run them."""

import re

from places import ROOT
from test_stock_commands import NAMES, NNUNETS_ERRORS, PLANNED_TRANSFER, PRESTAGE, REFUSED, SEGMENTERS

#: row of the page -> names of its commands in test_stock_commands.py
ROWS = {
    "`nnUNetv2_train D 3d_fullres 0 --npz`": ("train_fold",),
    "a further fold": ("train_another_fold",),
    "fold `all`": ("train_all",),
    "`2d`": ("train_2d",),
    "`3d_lowres`": ("train_3d_lowres",),
    "`--c`": ("c",),
    "`--val`": ("val",),
    "`--val --val_best`": ("val_best",),
    "`--disable_checkpointing`": ("disable_checkpointing",),
    "`-p OTHERPLANS`": ("plans",),
    "`-pretrained_weights FILE`": ("pretrained_weights",),
    "`nnUNetv2_predict -f 0`": ("predict",),
    "`-f 0 1 --save_probabilities`": ("predict_folds",),
    "`-f all`": ("predict_all",),
    "`--disable_tta -step_size 0.75`": ("disable_tta",),
    "`--continue_prediction`": ("continue_prediction",),
    "`-num_parts 2 -part_id 0/1`": ("num_parts_0", "num_parts_1"),
    "`-c 2d`": ("predict_2d",),
    "`nnUNetv2_predict_from_modelfolder`": ("predict_from_modelfolder",),
    "`nnUNetv2_ensemble`": ("ensemble",),
    "`nnUNetv2_accumulate_crossval_results`": ("accumulate_crossval_results",),
    "`nnUNetv2_find_best_configuration`": ("find_best_configuration",),
    "`nnUNetv2_determine_postprocessing`": ("determine_postprocessing",),
    "`nnUNetv2_apply_postprocessing`": ("apply_postprocessing",),
    "`nnUNetv2_evaluate_folder`": ("evaluate_folder",),
    "`nnUNetv2_export_model_to_zip`": ("export_model",),
    "`nnUNetv2_install_pretrained_model_from_zip`": ("install_model",),
    "`nnUNetv2_move_plans_between_datasets`": ("move_plans",),
    "`nnUNetv2_anomaly postprocess`": ("postprocess",),
    "`nnUNetv2_anomaly evaluate` on the results folder": ("evaluate",),
}


def cells_of_the_page() -> list[list[str]]:
    text = (ROOT / "docs" / "reference" / "commands.md").read_text().replace("\\|", "/")
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def expected_cell(trainer: str, words: tuple[str, ...]) -> str:
    if trainer == PRESTAGE and set(words) <= set(REFUSED):
        return "refused (2)"
    if trainer == PRESTAGE and set(words) <= set(NNUNETS_ERRORS):
        return "nnU-Net's error (3)"
    if "Transfer" in trainer and words == ("pretrained_weights",):
        return "in every training"
    assert all({word, f"{word}-{trainer}"} & set(NAMES) for word in words), f"nothing runs {words} with {trainer}"
    return "yes"


def test_every_cell_is_what_its_test_shows():
    cells = cells_of_the_page()
    assert [row[0] for row in cells] == list(ROWS)
    for row in cells:
        for cell, trainer in zip(row[1:], (PRESTAGE, *SEGMENTERS), strict=True):
            expected = expected_cell(trainer, ROWS[row[0]])
            assert re.sub(r"^yes \(\d\)$", "yes", cell) == expected, f"{row[0]}, {trainer}"


def test_every_command_that_is_tested_stands_on_the_page():
    on_page = {word for words in ROWS.values() for word in words}
    tested = {name.partition("-")[0] for name in NAMES} - {"train_for_fold_2"}  # which prepares something
    assert tested == on_page
    assert f"`{PLANNED_TRANSFER}`" in (ROOT / "docs" / "reference" / "commands.md").read_text()
