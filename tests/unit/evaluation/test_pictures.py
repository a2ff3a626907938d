"""Facts about the pictures of cases: which are chosen, and what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from made_evaluation import evaluation_of, row

from nnunetv2_anomaly.evaluation.pictures import case_figure, select_cases
from nnunetv2_anomaly.evaluation.results import CLEANED, MISSED, NEITHER, RAW
from nnunetv2_anomaly.images.colours import label_colours

LABELS = {"femoral_bone": 1, "femoral_lesion": 2}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def chosen(evaluation):
    return [(choice.model, choice.rank, choice.case, choice.mean_dsc) for choice in select_cases(evaluation)]


def rows_of(means, model="A"):
    """A case per mean DSC, of two labels that differ from it by 0.1; worse before post-processing."""
    return [
        row(case, model, label, processing, dsc=mean + difference - 0.05 * (processing == RAW))
        for case, mean in means.items()
        for label, difference in (("bone", 0.1), ("lesion", -0.1))
        for processing in (RAW, CLEANED)
    ]


def test_worst_median_and_best_case_are_chosen_by_the_mean_over_labels():
    means = {"c1": 0.7, "c2": 0.5, "c3": 0.8, "c4": 0.6, "c5": 0.4}
    assert chosen(evaluation_of(rows_of(means))) == [
        ("A", "worst", "c5", pytest.approx(0.4)),
        ("A", "median", "c4", pytest.approx(0.6)),
        ("A", "best", "c3", pytest.approx(0.8)),
    ]


def test_of_four_cases_the_worse_middle_one_is_the_median():
    means = {"c1": 0.8, "c2": 0.7, "c3": 0.6, "c4": 0.5}
    assert [case for _, rank, case, _ in chosen(evaluation_of(rows_of(means))) if rank == "median"] == ["c3"]


def test_ties_are_broken_by_the_name_whatever_the_order_of_the_rows():
    for names in (("c1", "c2", "c3"), ("c3", "c2", "c1")):
        assert [case for *_, case, _ in chosen(evaluation_of(rows_of(dict.fromkeys(names, 0.5))))] == ["c3", "c2", "c1"]


def test_every_model_chooses_for_itself_and_no_case_is_worst_and_median_at_once():
    evaluation = evaluation_of([*rows_of({"c1": 0.5, "c2": 0.6}), *rows_of({"c1": 0.9}, "B")])
    assert [choice[:3] for choice in chosen(evaluation)] == [
        ("A", "worst", "c1"), ("A", "best", "c2"), ("B", "only", "c1"),
    ]  # fmt: skip
    assert select_cases(evaluation)[0].title == "worst of A, mean DSC 50.0 %"


def test_a_label_in_neither_map_does_not_count_and_a_missed_one_counts_as_0():
    rows = [
        row("c1", "A", "bone", CLEANED, dsc=0.9),
        row("c1", "A", "lesion", CLEANED, status=NEITHER),
        row("c2", "A", "bone", CLEANED, dsc=0.9),
        row("c2", "A", "lesion", CLEANED, status=MISSED),
        row("c3", "A", "bone", CLEANED, status=NEITHER),
        row("c3", "A", "lesion", CLEANED, status=NEITHER),
    ]
    assert {(case, dsc) for *_, case, dsc in chosen(evaluation_of(rows))} == {("c1", 0.9), ("c2", 0.45)}


def test_a_model_without_any_defined_dsc_chooses_nothing():
    assert select_cases(evaluation_of([row("c1", "A", "bone", CLEANED, status=NEITHER)])) == []


def volumes():
    """(Z, Y, X): a bone of 6 x 6 x 4 voxels with a lesion; one that misses the lesion and one with an extra voxel."""
    reference = np.zeros((10, 12, 8), np.uint8)
    reference[2:8, 3:9, 2:6] = 1
    reference[3:5, 4:6, 5] = 2
    missing = np.where(reference == 2, 1, reference)
    extra = reference.copy()
    extra[9, 10, 5] = 1
    return reference, {"missing": missing, "extra": extra}


def shown(axis, number):
    return np.asarray(axis.images[number].get_array())


def test_a_case_is_shown_on_the_slice_with_most_disagreement_superior_up():
    reference, predictions = volumes()
    image = np.arange(reference.size, dtype=float).reshape(reference.shape)
    figure = case_figure("case_1", image, reference, predictions, None, (1.0, 1.0, 1.0), LABELS)
    assert figure.get_suptitle() == "case_1, sagittal slice 5"
    assert titles(figure) == ["reference", "missing", "extra", "image", "disagreement", "disagreement"]
    axis = figure.axes[0]
    # First row beneath: z, and with it the image, grows upwards.
    assert axis.images[0].origin == "lower"
    assert shown(axis, 0)[0, 0] < shown(axis, 0)[-1, 0]


def test_what_is_marked_chooses_the_slice_and_is_outlined_in_every_panel():
    reference, predictions = volumes()
    mask = np.zeros(reference.shape, bool)
    mask[3:6, 4:7, 2] = True
    figure = case_figure("c", None, reference, predictions, None, (1.0, 1.0, 1.0), LABELS, marked=("hidden", mask))
    assert figure.get_suptitle() == "c, sagittal slice 2"
    assert legend(figure)[-1] == "hidden"
    red = figure.legends[0].get_patches()[-1].get_edgecolor()
    outlined = [
        axis.get_title()
        for axis in figure.axes
        if any(len(part.get_edgecolor()) and np.allclose(part.get_edgecolor()[0], red) for part in axis.collections)
    ]
    assert outlined == ["reference", "missing", "extra", "disagreement", "disagreement"]
    mask[:] = False
    figure = case_figure("c", None, reference, predictions, None, (1.0, 1.0, 1.0), LABELS, marked=("hidden", mask))
    assert figure.get_suptitle() == "c, sagittal slice 5"


def test_a_label_is_filled_with_its_own_colour():
    reference, predictions = volumes()
    figure = case_figure("c", None, reference, predictions, None, (1.0, 1.0, 1.0), LABELS)
    filled = shown(figure.axes[0], 1)
    lesion = [part / 255 for part in label_colours(LABELS)[2]]
    np.testing.assert_allclose(filled[3, 4, :3], lesion)
    assert (filled[..., 3] > 0).sum() == (reference[:, :, 5] > 0).sum()
    assert legend(figure)[:2] == ["1 femoral bone", "2 femoral lesion"]


def test_disagreement_tells_missed_extra_and_another_label_apart():
    reference, predictions = volumes()
    predictions["extra"][2, 3, 5] = 0
    figure = case_figure("c", None, reference, predictions, None, (1.0, 1.0, 1.0), LABELS)
    missed, extra, other = (patch.get_facecolor()[:3] for patch in figure.legends[0].get_patches()[-3:])
    of_missing, of_extra = (shown(axis, 1) for axis in figure.axes if axis.get_title() == "disagreement")
    assert (of_missing[..., 3] > 0).sum() == 4
    np.testing.assert_allclose(of_missing[3, 4, :3], other)
    assert (of_extra[..., 3] > 0).sum() == 2
    np.testing.assert_allclose(of_extra[9, 10, :3], extra)
    np.testing.assert_allclose(of_extra[2, 3, :3], missed)


def test_labels_and_disagreements_are_told_apart_without_colours():
    reference, predictions = volumes()
    predictions["extra"][2, 3, 5] = 0
    figure = case_figure("c", None, reference, predictions, None, (1.0, 1.0, 1.0), LABELS)
    # The number of a label stands on it, in the panel of the reference as in those of predictions.
    (bone, lesion), (of_missing,) = figure.axes[0].texts, figure.axes[1].texts
    assert (bone.get_text(), lesion.get_text(), of_missing.get_text()) == ("1", "2", "1")
    column, row = lesion.xy
    assert reference[row, column, 5] == 2
    hatched = [patch.get_hatch() for patch in figure.legends[0].get_patches()[-3:]]
    assert len(set(hatched)) == 3
    below = next(axis for axis in figure.axes if axis.get_title() == "disagreement")
    shown_hatches = {hatch for part in below.collections for hatch in getattr(part, "hatches", ())} - {None}
    assert shown_hatches == {hatched[2]}


def test_the_error_image_has_a_colour_bar():
    reference, predictions = volumes()
    error = np.linspace(0, 1, reference.size).reshape(reference.shape)
    figure = case_figure("c", error, reference, predictions, error, (1.0, 1.0, 1.0), LABELS)
    assert "error image" in titles(figure)
    assert len(figure.axes) == 6 + 1
    np.testing.assert_allclose(shown(next(a for a in figure.axes if a.get_title() == "error image"), 0), error[:, :, 5])


def test_voxels_are_as_high_as_they_are_in_mm():
    reference, predictions = volumes()
    figure = case_figure("c", None, reference, predictions, None, (3.0, 0.5, 1.0), LABELS)
    assert figure.axes[0].get_aspect() == 6.0


@pytest.mark.parametrize(("axes", "origin"), [((1, 12, 8), "lower"), ((12, 8), "upper")])
def test_two_dimensional_cases_are_shown_whole(axes, origin):
    reference = volumes()[0][4].reshape(axes)
    prediction = np.zeros_like(reference)
    figure = case_figure("c", reference, reference, {"A": prediction}, None, (1.0,) * len(axes), LABELS)
    assert figure.get_suptitle() == "c"
    assert figure.axes[0].images[0].origin == origin
    assert shown(figure.axes[0], 0).shape == (12, 8)


def test_many_models_take_several_rows_and_unnamed_labels_have_a_colour():
    reference, predictions = volumes()
    many = {str(n): predictions["extra"] for n in range(6)}
    figure = case_figure("c", None, reference, many, None, (1.0, 1.0, 1.0), {"bone": 1})
    assert titles(figure).count("disagreement") == 6
    assert titles(figure).count("reference") == 2
    assert "2 (no name)" in legend(figure)


def test_a_case_without_any_label_is_shown_too():
    empty = np.zeros((4, 5, 6), np.uint8)
    figure = case_figure("c", None, empty, {"A": empty}, None, (1.0, 1.0, 1.0), LABELS)
    assert figure.get_suptitle() == "c, sagittal slice 3"
