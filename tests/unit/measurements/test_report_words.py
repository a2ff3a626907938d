"""Facts about the sentences on the pages of measured knees: they say what the values say."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from nnunetv2_anomaly.measurements.cohort_report import WORST
from nnunetv2_anomaly.measurements.report_words import case_sentences, cohort_sentences


def value(quantity, of, region="all", structure="tibial_bone"):
    return {"structure": structure, "region": region, "quantity": quantity, "value": of}


def lesion(volume_mm3, bone="tibial_bone"):
    return {"bone": bone, "volume_mm3": volume_mm3}


@pytest.mark.parametrize(
    ("rows", "lesions", "said"),
    [
        ([value("volume", 9.0)], [], "Lesions were not measured."),
        ([value("lesion_volume", 0.0)], [], "No lesion was found in its bones."),
        ([value("lesion_volume", 5.0)], [lesion(5.0)], "Its bones hold one lesion: 5.0 mm³ in the tibial bone."),
        (
            [value("lesion_volume", 5.0)],
            [lesion(5.0), lesion(7.5, "femoral_bone")],
            "Its bones hold 2 lesions, 12.5 mm³ together, the largest 7.5 mm³ in the femoral bone.",
        ),
    ],
)
def test_lesions_of_a_knee_are_told(rows, lesions, said):
    knee, of_lesions, of_cartilage = case_sentences("left", rows, lesions)
    assert knee == "A left knee; measured are tibial bone."
    assert of_lesions == said
    assert of_cartilage == "No plate of cartilage was measured."


def test_the_thinnest_plate_and_the_bare_share_of_all_plates_are_told():
    rows = [value("ThCtAB", 2.0, "MT"), value("ThCtAB", 1.5, "LT"), value("ThCtAB", math.nan, "MF")]
    rows += [value("ThCtAB", 0.1, "cMT")]  # no whole plate
    rows += [value("dAB", 10.0, "MT"), value("tAB", 3.0, "MT"), value("dAB", 50.0, "LT"), value("tAB", 1.0, "LT")]
    *_, said = case_sentences(None, rows, [])
    assert said == (
        "Cartilage is thinnest in the plate LT, 1.50 mm with bare bone as 0, and 20.0 % of the bone that cartilage "
        "should cover is bare."
    )


def cohort(*rows):
    return cohort_sentences(pd.DataFrame(rows, columns=["case", "side", *WORST]))


def test_the_worst_knees_of_a_cohort_are_named():
    first, second = ("a", "right", 0.0, 0, 0, 1.0, 1.8), ("b", "", 20.0, 2, 1, 5.0, 1.2)
    assert cohort(first, second, ("c", "right", 3.0, 1, 1, 0, 2)) == [
        "3 knees were measured: 2 right, 1 of unknown side.",
        "2 of 3 knees have a lesion in a bone; most lesion volume, 20.0 mm³, is in b.",
        "The thinnest plate of cartilage, 1.20 mm, is in b; most bare bone, 5.0 %, is in b.",
    ]


def test_what_was_not_measured_is_not_called_none():
    nothing = [math.nan] * 5
    assert cohort(("a", "left", *nothing)) == [
        "1 knee was measured: 1 left.",
        "Lesions were not measured.",
        "No plate of cartilage was measured.",
    ]
    assert cohort(("a", "left", 0.0, 0, *nothing[2:]))[1] == "0 of 1 knees have a lesion in a bone."
