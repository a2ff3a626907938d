"""Agreement of two readings, by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from nnunetv2_anomaly.command_line.main import main
from nnunetv2_anomaly.measurements.agreement import agreement, agreement_table, icc_2_1


def test_coefficient_of_variation_of_one_pair_by_hand():
    found = agreement([10], [12])
    assert found["cov"] == pytest.approx(math.sqrt(2) / 11)
    assert round(found["cov"], 4) == 0.1286
    assert found["rms_cov"] == pytest.approx(found["cov"])
    assert math.isnan(found["sd_difference"])


def test_cases_with_both_zero_are_counted_and_left_out_of_the_variation():
    found = agreement([10, 0, 20], [12, 0, 20])
    assert (found["n"], found["both_zero"]) == (3, 1)
    assert found["cov"] == pytest.approx((math.sqrt(2) / 11 + 0) / 2)
    assert found["rms_cov"] == pytest.approx(math.sqrt((math.sqrt(2) / 11) ** 2 / 2))
    # A reader who sees nothing where the other does varies by the square root of 2.
    assert agreement([0], [5])["cov"] == pytest.approx(math.sqrt(2))


def test_bland_altman_of_five_pairs_by_hand():
    found = agreement([1, 2, 3, 4, 5], [2, 2, 5, 4, 7])  # differences 1, 0, 2, 0, 2: mean 1, SD 1
    assert found["bias"] == pytest.approx(1)
    assert found["sd_difference"] == pytest.approx(1)
    assert (found["limit_low"], found["limit_high"]) == (pytest.approx(-0.96), pytest.approx(2.96))


def test_intraclass_correlation_of_shrout_and_fleiss():
    """Their four readers of six cases (1979, Table 2): ICC(2, 1) is 0.29."""
    readings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    assert icc_2_1(readings) == pytest.approx(0.29, abs=0.005)
    assert icc_2_1(np.stack([readings[:, 0]] * 2, axis=1)) == pytest.approx(1)
    assert math.isnan(icc_2_1(readings[:1]))


def test_readings_of_one_order_have_a_rank_correlation_of_one():
    assert agreement([1, 2, 3, 4], [1, 4, 9, 16])["spearman"] == pytest.approx(1)
    assert math.isnan(agreement([1, 1, 1, 1], [1, 2, 3, 4])["spearman"])


def test_a_case_that_one_reading_lacks_does_not_count():
    assert agreement([1, math.nan, 3], [1, 2, 3])["n"] == 2


def reading(values, tmp_path, name):
    rows = [
        {
            "case": case,
            "structure": "effusion",
            "region": "all",
            "quantity": "effusion_volume",
            "unit": "mL",
            "value": v,
        }
        for case, v in values.items()
    ]
    pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    return str(tmp_path / f"{name}.csv")


def test_the_verb_compares_cases_by_name(tmp_path, capsys):
    first = reading({"a": 10, "b": 3, "01": 5}, tmp_path, "first")
    second = reading({"b": 3, "a": 12, "01": 6, "c": 1}, tmp_path, "second")
    assert main(["agreement", "-a", first, "-b", second, "-o", str(tmp_path / "o")]) == 0
    (row,) = pd.read_csv(tmp_path / "o" / "agreement.csv").to_dict("records")
    assert (row["quantity"], row["n"]) == ("effusion_volume", 3)
    assert row["bias"] == pytest.approx(1)
    assert "Bland-Altman" in (tmp_path / "o" / "report.html").read_text()
    other = reading({"x": 1}, tmp_path, "other")
    assert main(["agreement", "-a", first, "-b", other, "-o", str(tmp_path / "o2")]) == 1
    assert "have no value of the same case (3 cases and 1 case)" in capsys.readouterr().err
    assert not (tmp_path / "o2").exists()


def test_values_of_two_units_are_not_compared():
    columns = {"case": ["a"], "structure": ["x"], "region": ["all"], "quantity": ["volume"], "value": [1.0]}
    assert agreement_table(pd.DataFrame({**columns, "unit": ["mL"]}), pd.DataFrame({**columns, "unit": ["mm3"]})).empty
