"""What the comparison's tables share."""

from __future__ import annotations

import pandas as pd

from nnunetv2_anomaly.evaluation.tables import Measure
from nnunetv2_anomaly.reporting.table import number


def over_trainings(
    values: pd.Series, trainings: pd.Series | list[str], measure: Measure
) -> tuple[float, list[str], dict[str, float]]:
    """Mean, and the range of the trainings' means.

    Args: values: in the measure's shown unit. trainings: of each value.
    Returns: the mean; the line beneath it, none where there is one training; the columns of the CSV.
    """
    means = values.groupby(trainings).mean()
    mean = float(values.mean()) if len(values) else float("nan")
    low, high = (float(means.min()), float(means.max())) if len(means) else (mean, mean)
    beneath = [f"{number(low, measure.digits)} to {number(high, measure.digits)}"] if len(means) > 1 else []
    return mean, beneath, {measure.name: mean, f"{measure.name}_low": low, f"{measure.name}_high": high}
