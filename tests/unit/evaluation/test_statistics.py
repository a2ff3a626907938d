import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunetv2_anomaly.evaluation.results import CASE_COLUMNS
from nnunetv2_anomaly.evaluation.statistics import (
    METRICS,
    PAIRED_COLUMNS,
    TUKEY_COLUMNS,
    daggers,
    fewest_cases,
    holm,
    paired,
    tukey,
)

pytestmark = pytest.mark.filterwarnings("error")


def case_table(values, processing="raw", label="femoral_bone", metric="dsc"):
    """Rows of ``Evaluation.cases`` from model -> its values, case after case; None is a case that a model lacks."""
    return pd.DataFrame(
        [
            {"case": f"case{i}", "model": model, "fold": 0, "group": "", "label": label, "processing": processing}
            | {"status": "both", metric: value}
            for model, of_model in values.items()
            for i, value in enumerate(of_model)
            if value is not None
        ]
    )


# Relief from headaches, minutes: the example of three brands that scipy's documentation works with
BRANDS = {
    "first": [24.5, 23.5, 26.4, 27.1, 29.9],
    "second": [28.4, 34.2, 29.5, 32.2, 30.1],
    "third": [26.1, 28.3, 24.3, 26.2, 27.8],
}


def test_tukey_of_three_brands_by_hand():
    # means 131.4 / 5, 154.4 / 5, 132.7 / 5; sums of squares within 24.688 + 21.428 + 10.012 = 56.128, 12 degrees of
    # freedom, so the standard error is sqrt(56.128 / 12 / 5) = 0.96720; tables give q(0.05; 3, 12) = 3.773
    found = tukey(case_table(BRANDS), ["dsc"])
    assert tuple(found.columns) == TUKEY_COLUMNS
    assert found[["model_a", "model_b"]].to_numpy().tolist() == [
        ["first", "second"],
        ["first", "third"],
        ["second", "third"],
    ]
    assert found["mean_a"].tolist() == pytest.approx([26.28, 26.28, 30.88])
    assert found["difference"].tolist() == pytest.approx([-4.60, -0.26, 4.34])
    half = 3.773 * math.sqrt(56.128 / 12 / 5)
    assert found["lower"].tolist() == pytest.approx([-4.60 - half, -0.26 - half, 4.34 - half], abs=1e-3)
    assert found["upper"].tolist() == pytest.approx([-4.60 + half, -0.26 + half, 4.34 + half], abs=1e-3)
    # as printed with the example
    assert found["p"].round(3).tolist() == [0.014, 0.980, 0.020]
    assert found["lower"].round(3).tolist() == [-8.249, -3.909, 0.691]
    assert found["upper"].round(3).tolist() == [-0.951, 3.389, 7.989]
    assert found["significant"].tolist() == [True, False, True]


def test_tukey_is_a_test_of_its_own_per_processing_label_and_metric():
    random = np.random.default_rng(0)
    tables, values = [], {}
    for processing, label, metric in itertools.product(("raw", "cleaned"), ("TC", "FC"), ("hd_mm", "dsc")):
        own = {model: random.normal(i, 1, 8) for i, model in enumerate("cab")}
        values[processing, label, metric] = own
        tables.append(case_table(own, processing, label, metric))
    keys = ["case", "model", "fold", "group", "label", "processing", "status"]
    table = pd.concat(tables).groupby(keys, sort=False, as_index=False).first()
    found = tukey(table, ["hd_mm", "dsc"])
    order = list(found[["processing", "label", "metric"]].drop_duplicates().itertuples(index=False, name=None))
    assert order == list(values)
    for (key, own), at in zip(values.items(), range(0, len(found), 3), strict=True):
        result = stats.tukey_hsd(*own.values())
        interval = result.confidence_interval()
        for row, (a, b) in zip(found[at : at + 3].to_dict("records"), [(0, 1), (0, 2), (1, 2)], strict=True):
            assert (row["model_a"], row["model_b"]) == ("cab"[a], "cab"[b]), key
            assert row["p"] == pytest.approx(result.pvalue[a, b])
            assert (row["lower"], row["upper"]) == pytest.approx((interval.low[a, b], interval.high[a, b]))
            assert row["difference"] == pytest.approx(result.statistic[a, b])


def test_tukey_leaves_out_what_is_undefined_and_tells_how_many_are_left():
    values = {"a": [1.0, 2.0, math.nan, 4.0, 3.0], "b": [5.0, math.nan, 6.0, 7.0, 9.0], "c": [1.0, 2.0, 3.0, 4.0, 5.0]}
    found = tukey(case_table(values), ["dsc"])
    assert found[["n_a", "n_b"]].to_numpy().tolist() == [[4, 4], [4, 5], [4, 5]]
    result = stats.tukey_hsd([1, 2, 4, 3], [5, 6, 7, 9], [1, 2, 3, 4, 5])  # groups of unequal size
    assert found["p"].tolist() == pytest.approx([result.pvalue[0, 1], result.pvalue[0, 2], result.pvalue[1, 2]])
    assert found["mean_b"].tolist() == [6.75, 3, 3]


def test_model_with_one_value_has_no_p_and_leaves_the_others_theirs():
    values = {"a": [1.0, 2.0, 3.0], "b": [5.0, math.nan, math.nan], "c": [4.0, 6.0, 5.0], "d": [math.nan] * 3}
    found = tukey(case_table(values), ["dsc"]).set_index(["model_a", "model_b"])
    assert len(found) == 6
    assert found["p"].notna().tolist() == [pair == ("a", "c") for pair in found.index]
    assert found.loc[("a", "c"), "p"] == pytest.approx(stats.tukey_hsd([1, 2, 3], [4, 6, 5]).pvalue[0, 1])
    assert found.loc[("a", "b"), "difference"] == -3
    assert math.isnan(found.loc[("a", "d"), "mean_b"])
    assert not found["significant"].drop(("a", "c")).any()


def test_values_without_any_spread_have_no_p():
    found = tukey(case_table({"a": [1.0, 1.0], "b": [2.0, 2.0]}), ["dsc"])
    assert math.isnan(found["p"][0])
    assert math.isnan(found["lower"][0])
    assert found["difference"][0] == -1
    assert not found["significant"][0]
    spread = tukey(case_table({"a": [1.0, 1.0], "b": [2.0, 3.0]}), ["dsc"])  # in one of them
    assert spread["p"][0] == pytest.approx(stats.tukey_hsd([1, 1], [2, 3]).pvalue[0, 1])


def test_far_apart_groups_have_a_p_from_0_to_1_and_warn_of_nothing():
    random = np.random.default_rng(1)
    values = {model: random.normal(100 * i, 1e-3, 500) for i, model in enumerate("abcdef")} | {"g": [500.0] * 500}
    found = tukey(case_table(values), ["dsc"])
    assert found["p"].between(0, 1).all()
    assert found["significant"].tolist() == [pair != ("f", "g") for pair in itertools.combinations("abcdefg", 2)]


def test_order_of_models_is_the_tables_even_where_a_label_has_another():
    table = pd.concat(
        [case_table({"z": [1.0, 2.0], "a": [2.0, 3.0]}), case_table({"a": [1.0, 2.0], "z": [2.0, 3.0]}, label="TB")]
    )
    for found in (tukey(table, ["dsc"]), paired(table, ["dsc"])):
        assert found["label"].tolist() == ["femoral_bone", "TB"]
        assert found["model_a"].tolist() == ["z", "z"]
        assert found["difference"].tolist() == [-1, 1]


def test_model_without_a_label_has_no_value_of_it():
    values = {"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0]}
    table = pd.concat([case_table({**values, "c": [1.0, 2.0, 3.0]}), case_table(values, label="PB")])
    found = tukey(table, ["dsc"])[3:]
    assert found[["n_a", "n_b"]].to_numpy().tolist() == [[3, 3], [3, 0], [3, 0]]
    assert found["p"].notna().tolist() == [True, False, False]
    assert paired(table, ["dsc"])["label"].tolist() == ["femoral_bone"] * 3 + ["PB"]


def test_default_metrics_are_overlap_and_distances():
    assert METRICS == ("dsc", "asd_mm", "hd_mm", "hd95_mm")
    table = case_table({"a": [1.0, 2.0], "b": [2.0, 4.0]})
    for metric in METRICS:
        table[metric] = table["dsc"]
    assert tukey(table)["metric"].tolist() == list(METRICS)
    assert paired(table)["metric"].tolist() == list(METRICS)


@pytest.mark.parametrize("values", [{}, {"a": [1.0, 2.0, 3.0]}])
@pytest.mark.parametrize(("test", "columns"), [(tukey, TUKEY_COLUMNS), (paired, PAIRED_COLUMNS)])
def test_one_model_or_none_gives_an_empty_table(values, test, columns):
    table = case_table(values) if values else pd.DataFrame(columns=[*CASE_COLUMNS, "dsc"])
    found = test(table, ["dsc"])
    assert found.empty
    assert tuple(found.columns) == columns
    assert daggers(found, "a") == frozenset()


@pytest.mark.parametrize("test", [tukey, paired])
def test_a_case_twice_is_an_error(test):
    table = case_table({"a": [1.0, 2.0], "b": [2.0, 4.0]})
    with pytest.raises(ValueError, match="duplicate"):
        test(pd.concat([table, table[:1]]), ["dsc"])


def test_holm_by_hand():
    # sorted 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, of which the last must not be below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1, 1])  # 0.5 * 2, and 0.6 is no smaller than it
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.9, math.nan, 0.01]) == pytest.approx([0.9, math.nan, 0.02], nan_ok=True)  # NaN does not count
    assert holm([]).shape == (0,)


def test_paired_by_hand():
    # Six cases. a is above b in all: of 2^6 sign patterns the two extreme ones are as far, p = 2 / 64.
    # a - c = 1, 2, 3, 4, 5, -6: rank sum of the negative one 6. Sets of ranks 1 to 6 that sum to at most 6:
    # {}, 1, 2, 3, 4, 5, 6, 12, 13, 14, 15, 23, 24, 123: 14, p = 28 / 64.
    # b - c = 0.9, 1.8, 2.7, 3.6, 4.5, -6.6: the same.
    # Holm: 3 * 2 / 64; 2 * 28 / 64; and 28 / 64, not below the one before it.
    a = np.array([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    b, c = a - [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], a - [1, 2, 3, 4, 5, -6]
    found = paired(case_table({"a": a, "b": b, "c": c}), ["dsc"])
    assert tuple(found.columns) == PAIRED_COLUMNS
    assert found["n"].tolist() == [6, 6, 6]
    assert found["p"].tolist() == pytest.approx([2 / 64, 28 / 64, 28 / 64])
    assert found["p_holm"].tolist() == pytest.approx([6 / 64, 56 / 64, 56 / 64])
    assert found["difference"].tolist() == pytest.approx([2.1 / 6, 9 / 6, 6.9 / 6])
    assert found["mean_a"].tolist() == pytest.approx([35, 35, 35 - 0.35])
    assert found["significant"].tolist() == [False] * 3  # 2 / 64 < 0.05, but not after the correction
    alone = paired(case_table({"a": a, "b": b}), ["dsc"])
    assert alone["p_holm"].tolist() == pytest.approx([2 / 64])
    assert alone["significant"].tolist() == [True]


@pytest.mark.parametrize("digits", [15, 0])  # without ties, and with many and some differences of 0
def test_paired_equals_scipy_on_shared_cases(digits):
    random = np.random.default_rng(digits)
    base = random.normal(0, 3, 30)
    values = {model: np.round(base + random.normal(0.4 * i, 1, 30), digits) for i, model in enumerate("abc")}
    table = case_table(values)
    found = paired(table.sample(frac=1, random_state=0), ["dsc"])
    expected = {}
    for one, other in itertools.combinations("abc", 2):
        expected[frozenset((one, other))] = stats.wilcoxon(values[one], values[other]).pvalue
    corrected = dict(zip(expected, holm(list(expected.values())), strict=True))
    for row in found.to_dict("records"):
        pair = frozenset((row["model_a"], row["model_b"]))
        assert row["p"] == pytest.approx(expected[pair])
        assert row["p_holm"] == pytest.approx(corrected[pair])
        assert row["significant"] == (corrected[pair] < 0.05)
        assert row["difference"] == pytest.approx((values[row["model_a"]] - values[row["model_b"]]).mean())


def test_cases_that_are_undefined_or_not_shared_do_not_count():
    values = {
        "a": [3.0, 5.0, 7.0, 9.0, math.nan, 2.0],
        "b": [2.0, 3.0, 4.0, 5.0, 1.0, None],
        "c": [None, None, None, None, None, 4.0],
    }
    found = paired(case_table(values), ["dsc"])
    assert found[["model_a", "model_b"]].to_numpy().tolist() == [["a", "b"], ["a", "c"]]  # b and c share no case
    assert found["n"].tolist() == [4, 1]
    assert found["p"].tolist() == pytest.approx([2 / 16, 1])
    assert found["difference"].tolist() == [2.5, -2]


def test_models_that_are_equal_in_every_case_have_p_1():
    found = paired(case_table({"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0]}), ["dsc"])
    assert (found["p"][0], found["p_holm"][0], found["difference"][0], found["significant"][0]) == (1, 1, 0, False)


def test_pair_without_a_defined_case_has_no_p_and_does_not_count_for_holm():
    a = np.arange(6.0)
    values = {"a": a, "b": a - [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "c": [math.nan] * 6}
    found = paired(case_table(values), ["dsc"])
    assert found["n"].tolist() == [6, 0, 0]
    assert found["p_holm"].tolist() == pytest.approx([2 / 64, math.nan, math.nan], nan_ok=True)
    assert found["significant"].tolist() == [True, False, False]


def test_case_by_case_finds_what_the_spread_of_cases_hides():
    base = np.linspace(50, 99, 20)  # cases differ much, models by a little
    table = case_table({"a": base, "b": base + np.linspace(0.1, 0.2, 20)})
    assert not tukey(table, ["dsc"])["significant"][0]
    assert paired(table, ["dsc"])["significant"][0]


def test_daggers_are_of_the_models_that_differ_from_the_baseline():
    table = pd.concat([case_table(BRANDS), case_table(dict.fromkeys(BRANDS, BRANDS["first"]), "cleaned")])
    found = tukey(table, ["dsc"])
    second = ("raw", "femoral_bone", "dsc", "second")
    assert daggers(found, "first") == {second}
    assert daggers(found, "third") == {second}  # also where the baseline stands second in the pair
    assert daggers(found, "second") == {("raw", "femoral_bone", "dsc", model) for model in ("first", "third")}


@pytest.mark.parametrize(("num_models", "fewest"), [(1, 6), (2, 6), (3, 7), (4, 8), (6, 10)])
def test_fewest_cases_are_those_that_can_be_significant(num_models, fewest):
    assert fewest_cases(num_models) == fewest
    for num_cases, possible in ((fewest, num_models > 1), (fewest - 1, False)):
        cases = np.arange(num_cases)
        values = {f"m{n}": cases + 0.37 * n * (1 + 0.01 * cases) for n in range(num_models)}
        assert bool(paired(case_table(values), ["dsc"])["significant"].any()) is possible


def test_daggers_of_the_paired_test():
    a = np.arange(6.0)
    values = {"a": a, "b": a - [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    assert daggers(paired(case_table(values), ["dsc"]), "a") == {("raw", "femoral_bone", "dsc", "b")}
