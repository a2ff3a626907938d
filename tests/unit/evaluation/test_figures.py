"""Facts about an evaluation's figures: that they hold the data asked for."""

from __future__ import annotations

import dataclasses
import itertools
import xml.etree.ElementTree as ET

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from made_evaluation import bone_row, evaluation_of, row, small_evaluation
from matplotlib.colors import to_hex, to_rgb

from nnunetv2_anomaly.evaluation import detection
from nnunetv2_anomaly.evaluation.figures import (
    box_figure,
    case_figure,
    evaluation_figures,
    lesion_size_figure,
    model_colours,
    plain,
    roc_figure,
    volume_figure,
)
from nnunetv2_anomaly.evaluation.results import CLEANED, MISSED, NEITHER
from nnunetv2_anomaly.evaluation.tables import DSC, HD, HD_RAW
from nnunetv2_anomaly.images.colours import label_colours
from nnunetv2_anomaly.measurements.lesions import PROBABILITY
from nnunetv2_anomaly.reporting.drawing import figure_bytes, save_figure, save_reconstruction_figure

LABELS = {"femoral_bone": 1, "femoral_lesion": 2}


def points(axis):
    """(x, y) of everything scattered, sorted."""
    return sorted(tuple(map(float, xy)) for part in axis.collections for xy in part.get_offsets())


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_every_model_has_its_colour_and_they_differ():
    colours = model_colours([str(n) for n in range(14)])
    assert len(set(colours.values())) == 14
    first = [to_rgb(colour) for colour in list(colours.values())[:7]]
    assert min(np.abs(np.subtract(a, b)).sum() for a, b in itertools.combinations(first, 2)) > 0.3
    assert model_colours(["a", "b"]) == dict(itertools.islice(model_colours(["a", "b", "c"]).items(), 2))


@pytest.mark.parametrize(("name", "shown"), [("a$b$", r"a\$b\$"), ("_x", " _x"), ("<&%_", "<&%_")])
def test_names_are_no_formulas_and_are_not_hidden(name, shown):
    assert plain(name) == shown


def test_a_box_plot_has_a_panel_per_label_and_a_point_per_case():
    evaluation = small_evaluation(num_cases=3)
    figure = box_figure(evaluation, HD_RAW)
    assert titles(figure) == ["femoral bone", "femoral lesion"]
    # HD before post-processing: 5, 4.9 and 4.8 mm of A, a millimetre more of B.
    shown = [y for x, y in points(figure.axes[0]) if x < 0.5], [y for x, y in points(figure.axes[0]) if x > 0.5]
    assert [sorted(values) for values in shown] == [pytest.approx([4.8, 4.9, 5.0]), pytest.approx([5.8, 5.9, 6.0])]
    assert legend(figure) == ["A", "B"]


def test_a_box_plot_tells_the_cases_it_lacks_and_crosses_those_with_one_map():
    rows = [
        row("c1", "A", "lesion", CLEANED, dsc=0.5),
        row("c2", "A", "lesion", CLEANED, status=MISSED),
        row("c3", "A", "lesion", CLEANED, status=NEITHER),
    ]
    figure = box_figure(evaluation_of(rows), DSC)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["n = 2"]
    assert {y for _, y in points(figure.axes[0])} == {50.0, 0.0}
    assert legend(figure) == ["A", "label in one map alone"]


@pytest.mark.parametrize(
    ("distances", "scale"), [([1.0, 29.0], "linear"), ([1.0, 31.0], "log"), ([0.0, 1.0, 31.0], "symlog")]
)
def test_distances_that_differ_much_have_a_logarithmic_axis(distances, scale):
    # In one of the cases the first panel holds nothing but zeros, as that of a perfect label does.
    rows = [row("c0", "A", "perfect", CLEANED, hd=min(distances))]
    rows += [row(f"c{n}", "A", "bone", CLEANED, hd=hd) for n, hd in enumerate(distances)]
    figure = box_figure(evaluation_of(rows), HD)
    assert [axis.get_yscale() for axis in figure.axes] == [scale, scale]
    assert figure_bytes(figure, "png").startswith(b"\x89PNG")
    low, high = figure.axes[0].get_ylim()
    assert low <= min(distances) < max(distances) <= high
    along = figure.axes[0].transScale.transform([(0, low), (0, min(distances)), (0, high)])[:, 1]
    assert along[1] - along[0] < 0.1 * (along[2] - along[0])  # no room for what is below the smallest
    assert sum(low <= tick <= high for tick in figure.axes[0].get_yticks()) >= 4


def test_a_label_without_any_value_has_an_empty_panel():
    rows = [row("c1", "A", "bone", CLEANED), row("c1", "A", "lesion", CLEANED, status=NEITHER)]
    figure = box_figure(evaluation_of(rows), DSC)
    assert points(figure.axes[1]) == []
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["n = 0"]


def test_roc_has_a_panel_per_bone_and_all_with_areas_and_operating_points():
    # As it is: both positives found, one of two negatives too; at 6 mm3 one positive is lost, and the false one.
    rows = [
        bone_row(case, "A", "femoral_bone", threshold, 1.0, 1.0, 0.5, outcome)
        for threshold, outcomes in ((0.0, ("TP", "TP", "FP", "TN")), (6.0, ("TP", "FN", "TN", "TN")))
        for case, outcome in zip(("c1", "c2", "c3", "c4"), outcomes, strict=True)
    ]
    evaluation = evaluation_of([row("c1", "A", "bone", CLEANED)], bones=rows)
    figure = roc_figure(detection.counts(evaluation.bones), ("A",))
    assert titles(figure) == ["femoral bone", "all"]
    _, curve, sizes, probabilities, as_it_is = figure.axes[0].lines
    np.testing.assert_allclose(curve.get_xydata(), [(0, 0), (0, 0.5), (0.5, 1), (1, 1)])
    np.testing.assert_allclose(sizes.get_xydata(), [(0.5, 1), (0, 0.5)])
    np.testing.assert_allclose(as_it_is.get_xydata(), [(0.5, 1)])
    assert len(probabilities.get_xydata()) == 0
    # 0.5 * (0.5 + 1) / 2 + 0.5 * 1
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["AUC 0.875"]
    assert legend(figure) == ["A", "as predicted", "threshold of size"]


def test_roc_without_a_negative_case_says_that_there_is_no_curve():
    rows = [bone_row("c1", "A", "femoral_bone", 0.0, 1.0, 1.0, 0.5, "TP")]
    rows.append(bone_row("c1", "A", "femoral_bone", 0.5, 1.0, 1.0, 0.5, "TP", rule=PROBABILITY))
    figure = roc_figure(detection.counts(evaluation_of([row("c1", "A", "b", CLEANED)], bones=rows).bones), ("A",))
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["no curve"]
    assert legend(figure)[-1] == "threshold of softmax output"


def test_volumes_are_shown_as_difference_over_mean_with_bias_and_limits():
    figure = volume_figure(small_evaluation(("A",)))
    # 80 predicted of 100, 0 and 100 mm3.
    assert points(figure.axes[0]) == [(40.0, 80.0), (90.0, -20.0), (90.0, -20.0)]
    told = [text.get_text() for text in figure.axes[0].texts]
    # Bias (80 - 20 - 20) / 3; standard deviation 57.7, times 1.96: 113.2.
    assert told == ["bias 13", "+1.96 sd 126", "-1.96 sd -100"]


def test_lesions_are_counted_by_size_found_and_missed():
    evaluation = small_evaluation(("A", "B"))
    figure = lesion_size_figure(detection.lesion_wise(evaluation.lesions), evaluation.models)
    reference, prediction = figure.axes
    assert [text.get_text() for text in reference.texts] == ["2/2", "2/2"]
    assert [text.get_text() for text in prediction.texts] == ["2/3", "2/3"]
    colours = list(model_colours(("A", "B")).values())
    assert [to_hex(bar.get_facecolor()).upper() for bar in prediction.patches[::2]] == colours
    assert [bar.get_height() for bar in prediction.patches] == [2, 1, 2, 1]


def test_figures_are_made_of_what_there_is():
    evaluation = small_evaluation()
    assert [drawing.name for drawing in evaluation_figures(evaluation)] == [
        "box_dsc_percent", "box_asd_mm", "box_hd_mm", "box_hd_raw_mm", "roc", "lesion_volumes", "lesion_sizes",
    ]  # fmt: skip
    without = dataclasses.replace(evaluation, bones=evaluation.bones[:0], lesions=evaluation.lesions[:0])
    assert len(evaluation_figures(without)) == 4


def test_png_and_svg_open_and_an_svg_is_the_same_in_every_run(tmp_path):
    evaluation = small_evaluation(("a<b & $c$_%", "_d"))
    for drawing, again in zip(evaluation_figures(evaluation), evaluation_figures(evaluation), strict=True):
        png, svg, second = (tmp_path / f"{drawing.name}{ending}" for ending in (".png", ".svg", "_again.svg"))
        save_figure(drawing.figure, png)
        save_figure(drawing.figure, svg)
        save_figure(again.figure, second)
        assert matplotlib.image.imread(png).std() > 0
        content = svg.read_text(encoding="utf-8")
        assert "".join(ET.fromstring(content).itertext()).count("a<b & $c$_%") == 1
        assert "<dc:date>" not in content
        assert content == second.read_text(encoding="utf-8")


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
    assert legend(figure)[:2] == ["femoral bone", "femoral lesion"]


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
    assert "label 2" in legend(figure)


def test_a_case_without_any_label_is_shown_too():
    empty = np.zeros((4, 5, 6), np.uint8)
    figure = case_figure("c", None, empty, {"A": empty}, None, (1.0, 1.0, 1.0), LABELS)
    assert figure.get_suptitle() == "c, sagittal slice 3"


def test_different_shapes_and_no_prediction_are_errors():
    reference, _ = volumes()
    with pytest.raises(ValueError, match="expected one shape"):
        case_figure("c", None, reference, {"A": reference[:-1]}, None, (1.0, 1.0, 1.0), LABELS)
    with pytest.raises(ValueError, match="no prediction"):
        case_figure("c", None, reference, {}, None, (1.0, 1.0, 1.0), LABELS)


def drawn_in_all_ways(folder):
    """Content of an evaluation's figures, and of one that is saved at once."""
    volume = np.linspace(0, 1, 5**3).reshape(5, 5, 5)
    pictures = dict.fromkeys(("image", "reconstruction", "error"), volume)
    save_reconstruction_figure(folder / "a.png", title="a", spacing=(1, 1, 1), **pictures)
    drawn = {drawing.name: figure_bytes(drawing.figure, "png") for drawing in evaluation_figures(small_evaluation())}
    return {**drawn, "reconstruction": (folder / "a.png").read_bytes()}


def test_figures_look_alike_whatever_matplotlib_was_set_to(tmp_path):
    expected = drawn_in_all_ways(tmp_path)
    assert len(expected) >= 4
    # As nnU-Net's progress plot leaves it, and as a user may like it.
    with matplotlib.rc_context({"font.size": 30, "xtick.labelsize": 27.5, "axes.grid": True, "lines.linewidth": 4}):
        assert drawn_in_all_ways(tmp_path) == expected
