"""Voxel-wise metrics of masks of 4 x 4, and groups by area."""

import math

import numpy as np
import pandas as pd
import pytest

from nnunetv2_anomaly.evaluation.lesion_slices import (
    confusion,
    mask_metrics,
    slice_groups,
    slice_rows,
    slice_summary,
    slice_tables,
)


def test_metrics_of_four_by_four_by_hand():
    reference, prediction, bone = (np.zeros((4, 4), bool) for _ in range(3))
    reference[0, :3], prediction[0, 1:], bone[:2] = True, True, True
    counts = confusion(reference, prediction, bone)
    assert counts.tolist() == [2, 1, 1, 4]
    found = mask_metrics(counts)
    assert found == {
        "dice": pytest.approx(4 / 6), "iou": pytest.approx(2 / 4), "sensitivity": pytest.approx(2 / 3),
        "specificity": pytest.approx(4 / 5), "accuracy": pytest.approx(6 / 8),
    }  # fmt: skip
    whole = mask_metrics(confusion(reference, prediction, np.ones((4, 4), bool)))
    assert whole["specificity"] == pytest.approx(12 / 13)
    assert whole["dice"] == found["dice"]


def test_what_has_no_voxels_is_undefined():
    nothing, bone = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    found = mask_metrics(confusion(nothing, nothing, bone))
    assert found["accuracy"] == found["specificity"] == 1
    assert all(math.isnan(found[name]) for name in ("dice", "iou", "sensitivity"))


@pytest.mark.parametrize(
    ("areas", "groups"),
    [
        (
            [50, 10, 40, 20, 30, 60, 70, 80, 90, 100],
            [(10, 20, 2), (30, 40, 2), (50, 60, 2), (70, 80, 2), (90, 100, 2)],
        ),
        ([5, 5, 5, 5, 5], [(5, 5, 1)] * 5),
        ([3, 1], [(1, 1, 1), (3, 3, 1)]),
        ([], []),
    ],
)
def test_groups_have_equal_numbers_and_the_smallest_first(areas, groups):
    slices = pd.DataFrame({"lesion_mm2": areas}).assign(domain="roi", model="m", tp=1, fp=0, fn=0, tn=0)
    found = slice_groups(slices).to_dict("records")
    assert [row["group"] for row in found] == list(range(1, len(groups) + 1))
    assert [(row["from_mm2"], row["to_mm2"], row["slices"]) for row in found] == groups


def knee():
    """Four slices of 4 x 4 along the last axis, 2 mm apart, bone in the first three.

    A lesion of 3 voxels in the first, of 6 in the second; found are 2 of the 3 and one beside, and one in the third.
    """
    reference, prediction, bones = (np.zeros((4, 4, 4), bool) for _ in range(3))
    bones[:2, :, :3] = True
    reference[0, :3, 0], reference[:2, :3, 1] = True, True
    prediction[0, 1:, 0], prediction[0, 0, 2] = True, True
    prediction[3, 3, 0] = True  # outside bones
    return reference, prediction, bones


def test_slices_count_in_bones_and_in_the_image():
    rows = pd.DataFrame(slice_rows(*knee(), (0.5, 0.5, 2.0)))
    assert rows["slice"].tolist() == [0, 0, 1, 1, 2, 2]
    roi, image = (rows[rows["domain"] == domain] for domain in ("roi", "image"))
    assert roi[["tp", "fp", "fn", "tn"]].to_numpy().tolist() == [[2, 1, 1, 4], [0, 0, 6, 2], [0, 1, 0, 7]]
    assert image[["tp", "fp", "fn", "tn"]].to_numpy()[0].tolist() == [2, 2, 1, 11]
    assert roi["lesion_mm2"].tolist() == [0.75, 1.5, 0.0]
    assert roi["false_mm2"].tolist() == [0.25, 0.0, 0.25]


def test_summary_means_over_slices_and_pools_voxels():
    rows = pd.DataFrame(slice_rows(*knee(), (0.5, 0.5, 2.0))).assign(model="m")
    found = slice_summary(rows).set_index(["domain", "way"])
    mean, pooled = found.loc[("roi", "mean")], found.loc[("roi", "pooled")]
    assert mean["dice"] == pytest.approx((4 / 6 + 0) / 2)
    assert pooled["dice"] == pytest.approx(4 / (4 + 1 + 7))
    assert pooled["sensitivity"] == pytest.approx(2 / 9)
    assert (mean["slices"], mean["free_slices"], mean["false_mm2"]) == (2, 1, 0.25)
    assert found.loc[("image", "mean"), "false_mm2"] == 0.25
    tables = slice_tables(rows)
    assert "| roi | mean of slices | m | 2 | 33.3 |" in tables["lesion_slices"].markdown()
    assert "| 1 to 1 mm² | m | 1 | 66.7 |" in tables["lesion_slice_sizes"].markdown()


def test_without_a_lesion_there_is_no_table():
    reference, prediction, bones = knee()
    rows = pd.DataFrame(slice_rows(reference & False, prediction, bones, (0.5, 0.5, 2.0))).assign(model="m")
    assert slice_tables(rows) == {}
