"""Facts about an evaluation's tables: what stands in a cell, what is marked, and how it is written."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest
from made_evaluation import evaluation_of, row, small_evaluation

from nnunetv2_anomaly.evaluation import detection
from nnunetv2_anomaly.evaluation.lesion_tables import (
    detection_table,
    lesion_wise_table,
    size_in_words,
    threshold_in_words,
    volume_table,
)
from nnunetv2_anomaly.evaluation.pair_tables import paired_table, tukey_table
from nnunetv2_anomaly.evaluation.results import CLEANED, INVENTED, MISSED, NEITHER, RAW
from nnunetv2_anomaly.evaluation.tables import fold_table, group_table, metrics_table, segmentation_table
from nnunetv2_anomaly.measurements.lesions import PROBABILITY, SIZE
from nnunetv2_anomaly.measurements.surface import METRICS

LABEL, MODEL, DSC, ASD, HD, HD_RAW = range(6)


def both(case, model, label="bone", *, raw_hd=None, hd=2.0, **values):
    """The rows of a case before and after post-processing."""
    return [
        row(case, model, label, RAW, hd=hd if raw_hd is None else raw_hd, **values),
        row(case, model, label, CLEANED, hd=hd, **values),
    ]


def records(table):
    return list(csv.DictReader(io.StringIO(table.csv())))


@pytest.fixture
def two_models():
    """Two cases; A has DSC 0.8 and 0.9, HD 2 and 4 and HD* 12 and 4, B has 0.7 and 0.9, HD 1 and 2."""
    return evaluation_of(
        [
            *both("c1", "A", dsc=0.8, hd=2.0, raw_hd=12.0),
            *both("c2", "A", dsc=0.9, hd=4.0),
            *both("c1", "B", dsc=0.7, hd=1.0),
            *both("c2", "B", dsc=0.9, hd=2.0),
        ]
    )


def test_a_cell_holds_mean_and_standard_deviation_of_the_right_processing(two_models):
    a, b = segmentation_table(two_models).rows
    # (0.8 - 0.85)^2 + (0.9 - 0.85)^2 = 0.005; over n - 1 = 1: its root is 0.0707.
    assert [cell.text for cell in a] == ["bone", "A", "85.0 ± 7.1", "0.30 ± 0.14", "3.00 ± 1.41", "8.00 ± 5.66"]
    assert [cell.text for cell in b] == ["bone", "B", "80.0 ± 14.1", "0.15 ± 0.07", "1.50 ± 0.71", "1.50 ± 0.71"]


def test_the_best_mean_is_the_largest_dsc_and_the_smallest_distance(two_models):
    a, b = segmentation_table(two_models).rows
    assert [cell.bold for cell in a] == [False, False, True, False, False, False]
    assert [cell.bold for cell in b] == [False, False, False, True, True, True]


def test_equal_means_have_no_best():
    table = segmentation_table(evaluation_of([*both("c1", "A"), *both("c1", "B")]))
    assert not any(cell.bold for cells in table.rows for cell in cells)
    assert not any("Bold" in note for note in table.notes)


def test_means_over_different_cases_have_no_best():
    missing = {"status": NEITHER}
    rows = [*both("c1", "A"), *both("c2", "A", dsc=0.1), *both("c1", "B"), *both("c2", "B", **missing)]
    table = segmentation_table(evaluation_of(rows))
    assert not any(cell.bold for cells in table.rows for cell in cells)
    assert any("none is named best" in note for note in table.notes)


def test_a_dagger_stands_where_it_is_told_and_nowhere_else(two_models):
    table = segmentation_table(two_models, {(CLEANED, "bone", "hd_mm", "B")})
    assert [[cell.mark for cell in cells] for cells in table.rows] == [[""] * 6, ["", "", "", "", "†", ""]]
    assert any(note.startswith("† differs from A (Wilcoxon's") for note in table.notes)


def test_a_mean_of_fewer_cases_says_so_in_its_cell_and_in_a_note():
    rows = [
        *both("c1", "A", "lesion", dsc=0.5),
        *both("c2", "A", "lesion", status=MISSED),
        *both("c3", "A", "lesion", status=NEITHER),
        *both("c4", "A", "lesion", status=INVENTED),
    ]
    (cells,) = segmentation_table(evaluation_of(rows)).rows
    # DSC of one found, one missed and one invented: (0.5 + 0 + 0) / 3. HD: (2 + 100 + 100) / 3.
    assert cells[DSC].text.startswith("16.7 ±")
    assert cells[HD].text.startswith("67.33 ±")
    assert cells[DSC].beneath == "n = 3 of 4\n1 missed, 1 invented"
    notes = segmentation_table(evaluation_of(rows)).notes
    assert "Cases in which neither map has the label are left out." in notes
    assert any(note.endswith("are replaced.") for note in notes)


def test_a_distance_that_is_left_out_makes_n_smaller_than_that_of_dsc():
    rows = [*both("c1", "A", "lesion"), *both("c2", "A", "lesion", status=MISSED, replaced=False)]
    table = segmentation_table(evaluation_of(rows))
    (cells,) = table.rows
    assert cells[DSC].beneath == "1 missed"
    assert (cells[HD].text, cells[HD].beneath) == ("2.00", "n = 1 of 2\n1 missed")
    assert any(note.endswith("are left out.") for note in table.notes)


def test_a_label_that_is_nowhere_has_no_mean():
    (cells,) = segmentation_table(evaluation_of(both("c1", "A", "lesion", status=NEITHER))).rows
    assert (cells[DSC].text, cells[DSC].beneath) == ("n/a", "n = 0 of 1")


def test_complete_means_have_no_marks_and_no_word_on_missing_labels(two_models):
    table = segmentation_table(two_models)
    assert {cell.mark + cell.beneath for cells in table.rows for cell in cells} == {""}
    assert not any("left out" in note or "issed" in note for note in table.notes)


def test_csv_has_full_precision_and_a_column_each_for_mean_sd_and_n(two_models):
    record = records(segmentation_table(two_models))[0]
    assert (record["label"], record["model"], record["hd_raw_mm_n"], record["hd_raw_mm_missed"]) == (
        "bone",
        "A",
        "2",
        "0",
    )
    assert float(record["hd_raw_mm_mean"]) == 8.0
    assert float(record["hd_raw_mm_sd"]) == 32**0.5


def test_csv_leaves_undefined_numbers_empty():
    record = records(segmentation_table(evaluation_of(both("c1", "A", status=NEITHER))))[0]
    assert (record["dsc_percent_mean"], record["dsc_percent_n"]) == ("", "0")


def test_groups_stand_below_each_other_with_their_number_of_cases():
    rows = [
        *both("c1", "A", dsc=0.8, group="low"),
        *both("c2", "A", dsc=0.6, group="low"),
        *both("c3", "A", dsc=0.4, group="high"),
        *both("c4", "A", dsc=0.2, group=None),
    ]
    table = group_table(evaluation_of(rows, groups=("low", "high")))
    assert [tuple(cell.text for cell in cells[:5]) for cells in table.rows] == [
        ("bone", "low", "A", "2", "70.0 ± 14.1"),
        ("bone", "high", "A", "1", "40.0"),
    ]
    assert "1 case without a group: in no row." in table.notes


def test_a_group_tells_its_own_missing_cases():
    rows = [
        *both("c1", "A", "lesion", group="low"),
        *both("c2", "A", "lesion", status=MISSED, group="low"),
        *both("c3", "A", "lesion", group="high"),
    ]
    table = group_table(evaluation_of(rows, groups=("low", "high")))
    assert [cells[-1].beneath for cells in table.rows] == ["1 missed", ""]


def test_folds_are_sorted_by_number_and_missing_where_unknown():
    rows = [*both("c1", "A", fold="10"), *both("c2", "A", fold="2")]
    assert [cells[1].text for cells in fold_table(evaluation_of(rows)).rows] == ["2", "10"]
    assert fold_table(evaluation_of(both("c1", "A"))) is None
    assert group_table(evaluation_of(both("c1", "A"))) is None


def test_all_metrics_are_there_before_and_after_post_processing(two_models):
    found = records(metrics_table(two_models))
    assert len(found) == 2 * len(METRICS) * 2
    hd = next(r for r in found if (r["processing"], r["metric"], r["model"]) == ("raw", "hd_mm", "A"))
    assert [float(hd[name]) for name in ("mean", "median", "min", "max", "n")] == [8, 8, 4, 12, 2]


def test_detection_shows_what_gave_the_best_accuracy_and_names_the_best_model():
    evaluation = small_evaluation()
    table = detection_table(detection.summary(detection.counts(evaluation.bones)))
    assert [cells[0].text for cells in table.rows] == ["femoral bone", "femoral bone", "all", "all"]
    place = table.header.index("dAcc")
    cell = table.rows[0][place]
    # Two positives are found, the one negative is not: 2 of 3.
    assert (cell.text, cell.beneath, cell.bold) == ("0.667", "as predicted", False)
    assert records(table)[0]["dacc_rule"] == SIZE
    assert table.rows[0][table.header.index("AUC")].text == "0.500"


def test_thresholds_and_sizes_in_words():
    assert threshold_in_words(SIZE, 0.0) == "as predicted"
    assert threshold_in_words(SIZE, 2.5) == "lesions ≥ 2.5 mm³"
    assert threshold_in_words(PROBABILITY, 0.7) == "softmax ≥ 0.7"
    assert threshold_in_words(None, float("nan")) == ""
    assert [size_in_words(0, 10), size_in_words(10, 100), size_in_words(100, float("inf"))] == [
        "< 10", "10 to 100", "≥ 100",
    ]  # fmt: skip


def test_lesions_are_counted_by_size():
    table = lesion_wise_table(detection.lesion_wise(small_evaluation(("A",)).lesions))
    shown = [[cell.text for cell in cells] for cells in table.rows]
    assert ["femoral bone", "100 to 1000", "A", "2", "2", "1.000", "0", "0", "n/a"] in shown
    assert ["all", "10 to 100", "A", "0", "0", "n/a", "3", "2", "0.667"] in shown


def test_volumes_agree_by_bias_and_limits():
    table = volume_table(detection.volume_agreement(small_evaluation(("A",)).bones))
    # Differences of the three bones: 80 - 100, 80 - 0, 80 - 100.
    assert dict(zip(table.header, [cell.text for cell in table.rows[0]], strict=True))["bias [mm³]"] == "13.3"


def pairs(**values):
    of = {"processing": CLEANED, "label": "bone", "metric": "hd_mm", "model_a": "A", "model_b": "B"}
    numbers = {"mean_a": 3.0, "mean_b": 1.5, "difference": 1.5}
    return pd.DataFrame([{**of, **numbers, "p": p, "significant": p < 0.05, **values} for p in (0.0004, 0.3)])


def test_tests_show_small_p_as_a_bound_and_can_leave_out_what_is_not_significant():
    frame = pairs(n_a=2, n_b=2, lower=0.5, upper=2.5)
    every, some = tukey_table(frame), tukey_table(frame, significant_only=True)
    assert [cells[every.header.index("p")].text for cells in every.rows] == ["< 0.001", "0.300"]
    assert [cells[every.header.index("p")].text for cells in some.rows] == ["< 0.001"]
    assert any("1 of 2 comparisons" in note for note in some.notes)
    assert records(every)[0]["p"] == "0.0004"
    assert len(paired_table(pairs(n=2, p_holm=0.01)).rows) == 2


def test_a_label_is_written_once_per_group_of_rows(two_models):
    lines = segmentation_table(two_models).markdown().splitlines()
    assert [line.split(" | ")[:2] for line in lines[4:6]] == [["| bone", "A"], ["| ", "B"]]


def test_files_are_written_into_a_new_folder(two_models, tmp_path):
    paths = segmentation_table(two_models).write(tmp_path / "new" / "tables", "segmentation")
    assert [path.name for path in paths] == ["segmentation.csv", "segmentation.md", "segmentation.tex"]
    assert all(path.read_text(encoding="utf-8").strip() for path in paths)
    assert len(list((tmp_path / "new" / "tables").iterdir())) == 3
