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
    evaluation_figures,
    lesion_size_figure,
    model_colours,
    plain,
    roc_figure,
    volume_figure,
)
from nnunetv2_anomaly.evaluation.results import CLEANED, MISSED, NEITHER
from nnunetv2_anomaly.evaluation.tables import DSC, HD, HD_RAW
from nnunetv2_anomaly.measurements.lesions import PROBABILITY, SIZE
from nnunetv2_anomaly.reporting.drawing import figure_bytes, save_figure, save_reconstruction_figure


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


def lesions_of(*outcomes, model="A", bone="femoral_bone"):
    """A case per outcome, at a threshold of size and at one of softmax output."""
    return [
        bone_row(f"c{place}", model, bone, *threshold, 1.0, 1.0, 0.5, outcome, rule=rule)
        for rule, threshold in ((SIZE, (0.0,)), (PROBABILITY, (0.5,)))
        for place, outcome in enumerate(outcomes)
    ]


def test_a_bone_without_a_negative_case_has_no_panel_and_the_caption_says_so():
    rows = [*lesions_of("TP", "TP"), *lesions_of("TP", "TN", bone="tibial_bone")]
    evaluation = evaluation_of([row("c1", "A", "b", CLEANED)], bones=rows)
    roc = next(drawing for drawing in evaluation_figures(evaluation) if drawing.name == "roc")
    assert titles(roc.figure) == ["tibial bone", "all"]
    assert "No curve of femoral bone, which takes bones with and without a lesion" in roc.caption
    assert legend(roc.figure)[-1] == "threshold of softmax output"
    alone = dataclasses.replace(evaluation, bones=evaluation.bones[evaluation.bones["bone"] == "femoral_bone"])
    assert "roc" not in [drawing.name for drawing in evaluation_figures(alone)]


def test_a_model_without_a_negative_case_says_that_it_has_no_curve():
    rows = [*lesions_of("TP", "TN"), *lesions_of("TP", "TP", model="B")]
    figure = roc_figure(detection.counts(evaluation_of([row("c1", "A", "b", CLEANED)], bones=rows).bones), ("A", "B"))
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["AUC 1.000", "no curve"]


def test_models_are_told_apart_without_colours():
    evaluation = small_evaluation(tuple("ABCDEFG"))
    boxes = box_figure(evaluation, DSC).legends[0].get_patches()
    assert len({box.get_hatch() for box in boxes}) == 7
    rows = [line for model in "ABCDEFG" for line in lesions_of("TP", "TN", model=model)]
    counts = detection.counts(evaluation_of([row("c1", "A", "b", CLEANED)], bones=rows).bones)
    legend_lines = roc_figure(counts, tuple("ABCDEFG")).axes[0].get_legend().get_lines()
    assert len({str(line._dash_pattern) for line in legend_lines}) == 7
    assert len({line.get_marker() for line in legend_lines}) == 7


@pytest.mark.parametrize(
    ("values", "bottom"), [((0.0, 0.0), 0), ((0.2, 0.99), 0), ((0.95, 0.83), 80), ((1.0, 1.0), 90)]
)
def test_panels_of_dsc_share_an_axis_that_ends_at_100(values, bottom):
    rows = [row("c1", "A", label, CLEANED, dsc=dsc) for label, dsc in zip(("bone", "lesion"), values, strict=True)]
    figure = box_figure(evaluation_of(rows), DSC)
    limits = {axis.get_ylim() for axis in figure.axes}
    assert len(limits) == 1
    low, high = limits.pop()
    assert bottom - 5 < low < bottom
    assert 100 < high < 104


def test_volumes_are_shown_as_difference_over_mean_with_bias_and_limits():
    figure = volume_figure(small_evaluation(("A",)))
    # 80 predicted of 100, 0 and 100 mm3.
    assert points(figure.axes[0]) == [(40.0, 80.0), (90.0, -20.0), (90.0, -20.0)]
    # Bias (80 - 20 - 20) / 3; standard deviation 57.7, times 1.96: 113.2. Above the points, where it hides none.
    assert figure.axes[0].get_title() == "A (n = 3)\nbias 13.3, limits -99.8 to 126.5 mm³"
    assert not figure.axes[0].texts


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
    again = evaluation_figures(evaluation)[-1]
    save_figure(again.figure, tmp_path / "again.svg")
    for drawing in evaluation_figures(evaluation):
        png, svg = (tmp_path / f"{drawing.name}{ending}" for ending in (".png", ".svg"))
        save_figure(drawing.figure, png, dpi=40)
        save_figure(drawing.figure, svg)
        assert matplotlib.image.imread(png).std() > 0
        content = svg.read_text(encoding="utf-8")
        assert "".join(ET.fromstring(content).itertext()).count("a<b & $c$_%") == 1
        assert "<dc:date>" not in content
    assert content == (tmp_path / "again.svg").read_text(encoding="utf-8")


def drawn_slices(path, monkeypatch, **volumes):
    """Slices, titles of the legend and outlines of a picture of an anomaly map."""
    figures = []
    monkeypatch.setattr("nnunetv2_anomaly.reporting.drawing.save_figure", lambda figure, _: figures.append(figure))
    of = dict.fromkeys(("image", "reconstruction"), volumes["error"])
    save_reconstruction_figure(path, title="a", spacing=(1, 1, 1), **of, **volumes)
    (figure,) = figures
    slices = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    outlined = {axis.get_title() for axis in figure.axes[:3] if axis.collections}
    return slices, legend(figure), outlined


def test_anomaly_maps_are_shown_where_the_anatomy_is_and_outlined(tmp_path, monkeypatch):
    error = np.zeros((30, 8, 8))
    error[0], error[12, 2, 2], error[20, 5, 5] = 1.0, 0.5, 0.4  # the edge is off, as it is in every reconstruction
    slices, named, outlined = drawn_slices(tmp_path / "a.png", monkeypatch, error=error)
    assert slices == ["slice 3", "slice 12", "slice 20"]
    assert (named, outlined) == (["strongest hundredth of the map"], set())  # which is in slice 0 alone
    bones, lesions = np.zeros((2, 30, 8, 8), bool)
    bones[10:26, 1:7, 1:7] = True
    slices, named, outlined = drawn_slices(tmp_path / "a.png", monkeypatch, error=error, bones=bones)
    assert slices == ["slice 12", "slice 20", "slice 21"]
    assert (named, outlined) == (["bones"], {"image", "anomaly map"})
    lesions[14, 2:4, 2:4] = True
    slices, named, _ = drawn_slices(tmp_path / "a.png", monkeypatch, error=error, bones=bones, outlines=lesions)
    assert (slices, named) == (["slice 14"], ["bones", "lesions"])


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
