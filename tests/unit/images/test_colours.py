"""Facts about the labels' colours and the tables of them that viewers read."""

from __future__ import annotations

import itertools
import re

import pytest

from nnunetv2_anomaly.images.colours import label_colours, write_colour_tables
from nnunetv2_anomaly.labels import LABELS, OAIZIB_CM_LABELS


def family(colour):
    """Which of red, green and blue is the strongest."""
    return ("red", "green", "blue")[colour.index(max(colour))]


def least_difference(colours):
    return min(
        sum(abs(a - b) for a, b in zip(one, other, strict=True)) for one, other in itertools.combinations(colours, 2)
    )


@pytest.mark.parametrize("labels", [LABELS, OAIZIB_CM_LABELS])
def test_cartilages_are_green_lesions_red_and_the_background_black(labels):
    colours = label_colours(labels)
    assert colours[0] == (0, 0, 0)
    assert {family(colours[value]) for name, value in labels.items() if "cartilage" in name} == {"green"}
    assert {family(colours[value]) for name, value in labels.items() if "lesion" in name} <= {"red"}
    assert least_difference(colours.values()) > 60


def test_a_known_name_has_its_colour_whatever_its_value_and_spelling():
    assert label_colours({"Femoral Bone": 4})[4] == label_colours(LABELS)[1]
    assert label_colours({"femoral-bone": 4})[4] == label_colours(LABELS)[1]


def test_twenty_five_other_names_have_well_distinguishable_colours_in_every_run():
    labels = {f"structure {n}": n for n in range(1, 26)}
    colours = label_colours(labels)
    assert least_difference([*colours.values(), *label_colours(LABELS).values()][26:]) > 60
    assert least_difference(colours.values()) > 60
    assert colours == label_colours(dict(reversed(labels.items())))


def test_every_one_of_255_labels_has_its_own_colour():
    assert len(set(label_colours({str(n): n for n in range(256)}).values())) == 256


def test_known_names_beside_do_not_change_another_names_colour():
    assert label_colours({"meniscus": 3})[3] == label_colours({**OAIZIB_CM_LABELS, "meniscus": 6})[6]


def test_both_tables_read_back_as_names_and_colours(tmp_path):
    labels = {"background": 0, "femoral bone": 1, 'inner "part"': 7}
    slicer, itksnap = write_colour_tables(tmp_path / "new" / "folder", labels)
    assert (slicer.name, itksnap.name) == ("labels_3dslicer.ctbl", "labels_itksnap.txt")
    colours = label_colours(labels)

    lines = slicer.read_text().splitlines()
    assert lines[0].startswith("#")
    entries = [line.split(" ") for line in lines if not line.startswith("#")]
    assert [(int(value), name) for value, name, *_ in entries] == [
        (0, "background"),
        (1, "femoral_bone"),
        (7, 'inner_"part"'),
    ]
    assert {int(value): tuple(map(int, colour)) for value, _, *colour in entries} == {
        value: (*colour, 255 if value else 0) for value, colour in colours.items()
    }

    pattern = re.compile(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([01](?:\.\d+)?)\s+([01])\s+([01])\s+"([^"]*)"')
    entries = [pattern.fullmatch(line) for line in itksnap.read_text().splitlines() if not line.startswith("#")]
    assert [(int(entry[1]), entry[8]) for entry in entries] == [
        (0, "Clear Label"),
        (1, "femoral bone"),
        (7, "inner 'part'"),
    ]
    assert {int(entry[1]): tuple(int(entry[n]) for n in (2, 3, 4)) for entry in entries} == colours
    assert [entry.group(5, 6, 7) for entry in entries] == [("0", "0", "0"), ("1", "1", "1"), ("1", "1", "1")]


def test_background_is_in_the_tables_though_no_label_names_it(tmp_path):
    slicer, _ = write_colour_tables(tmp_path, {"lesion": 2})
    assert "\n0 background 0 0 0 0\n" in slicer.read_text()
