"""Composite scores by hand."""

import numpy as np
import pandas as pd
import pytest

from nnunetv2_anomaly.measurements.standardised import composite_rows


def table_of(lesions, effusions):
    """measurements.csv of cases 0, 1, 2 ... with that volume of lesions in two bones, and of effusion."""
    rows = []
    for case, (lesion, effusion) in enumerate(zip(lesions, effusions, strict=True)):
        head = {"case": str(case), "subject": "", "visit": "", "side": "left", "method_version": 1, "flag": ""}
        for structure, quantity, value, unit in (
            ("femur", "lesion_volume", 0.75 * lesion, "mm3"),
            ("tibia", "lesion_volume", 0.25 * lesion, "mm3"),
            ("effusion", "effusion_volume", effusion, "mL"),
        ):
            rows.append(
                {**head, "structure": structure, "region": "all", "quantity": quantity, "value": value, "unit": unit}
            )
    return pd.DataFrame(rows)


def test_disease_activity_is_the_sum_of_both_standardised_volumes():
    table = table_of([0, 10, 20], [1, 2, 3])
    activity = composite_rows(table, table).set_index("case")["value"]
    np.testing.assert_allclose(activity, [-2, 0, 2])
    # Held against knees with other means: 0 to 4 and 0 to 2, SD 2 and 1.
    other = composite_rows(table, table_of([0, 2, 4], [0, 1, 2])).set_index("case")["value"]
    np.testing.assert_allclose(other, [(0 - 2) / 2 + 0, (10 - 2) / 2 + 1, (20 - 2) / 2 + 2])


def test_a_case_without_a_part_is_empty_with_the_reason():
    table = table_of([0, 10, 20], [1, np.nan, 3])
    row = composite_rows(table, table_of([0, 2, 4], [0, 1, 2])).set_index("case").loc["1"]
    assert np.isnan(row["value"])
    assert row["flag"] == "no effusion_volume"


@pytest.mark.parametrize("lesions", [[0, 10], [5, 5, 5]])
def test_a_cohort_without_spread_standardises_nothing(lesions):
    table = table_of(lesions, list(range(len(lesions))))
    rows = composite_rows(table, table)
    assert rows["value"].isna().all()
    assert rows["flag"].str.startswith("fewer than 3 knees of the cohort have lesion_volume").all()


def test_a_part_of_a_part_that_is_missing_is_not_taken_as_nothing():
    table = table_of([0, 10, 20, 30], [1, 2, 3, 4])
    table.loc[(table["case"] == "3") & (table["structure"] == "tibia"), "value"] = np.nan
    row = composite_rows(table, table).set_index("case").loc["3"]
    assert np.isnan(row["value"])
    assert row["flag"] == "no lesion_volume"
