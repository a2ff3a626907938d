"""Values against those of a reference: z-scores, and composite scores of disease activity and cumulative damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.measurements.regions import SUBREGIONS
from nnunetv2_anomaly.reporting.user_tables import read_table

_KEYS = ["structure", "region", "quantity"]
#: structure of what is of no single one
KNEE = "knee"
#: fewer knees have no standard deviation worth the name
_LEAST_KNEES = 3
_DAMAGE, _LESIONS, _EFFUSION = "bare_area", "lesion_volume", "effusion_volume"
#: composite -> its parts
_COMPOSITES = {"disease_activity": (_LESIONS, _EFFUSION), "cumulative_damage": (_DAMAGE,)}


def read_reference(file: Path) -> pd.DataFrame:
    """Means and standard deviations by structure, region and quantity.

    Raises: UserError if it cannot be read, lacks a column, has a value twice, or an SD that is not above 0.
    """
    table = read_table(file, {*_KEYS, "mean", "sd"}, "a table of structure, region, quantity, mean, sd")
    if (twice := table.duplicated(_KEYS)).any():
        raise UserError(f"{file} has {' '.join(map(str, table[twice].iloc[0][_KEYS]))} twice; expected each value once")
    if not (table["sd"] > 0).all() or table["mean"].isna().any():
        fault = f"{file} has an empty mean, or an sd that is not above 0"
        raise UserError(f"{fault}; expected means and standard deviations")
    return table


def z_rows(table: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """A row "z_QUANTITY" for every value of measurements.csv that the reference has."""
    both = table.merge(reference[[*_KEYS, "mean", "sd"]], on=_KEYS)
    both["value"] = (both["value"] - both["mean"]) / both["sd"]
    both["quantity"], both["unit"] = "z_" + both["quantity"], "1"
    return both[list(table)]


def _parts_of_composites(table: pd.DataFrame) -> pd.DataFrame:
    """What composites are made of, one row per case: volume of lesions, mm3, of effusion, mL, and bare area, cm2."""

    def sums(regions: list[str]) -> pd.DataFrame:
        own = table[table["region"].isin(regions)].groupby(["case", "quantity"])["value"]
        own = own.agg(lambda values: values.sum(skipna=False)).unstack()
        return own.reindex(index=table["case"].unique(), columns=[_LESIONS, _EFFUSION, "tAB", "cAB"])

    whole, plates = sums(["all"]), sums(list(SUBREGIONS))
    bare = plates["tAB"] - plates["cAB"]
    return pd.DataFrame({_LESIONS: whole[_LESIONS], _EFFUSION: whole[_EFFUSION], _DAMAGE: bare})


def composite_rows(table: pd.DataFrame, cohort: pd.DataFrame) -> pd.DataFrame:
    """Disease activity and cumulative damage of each case of measurements.csv.

    After Driban et al. 2022 (10.1002/acr.24512), whose cartilage damage score the bare area stands in for.

    Activity is the sum of the standardised volumes of lesions and of effusion, damage the standardised area of bare
    bone; each is empty where a part is, with the reason, and left out where no case has a part.

    Args: cohort: measurements.csv of the knees that give means and SDs; the table itself or another one.
    """
    parts, of_cohort = _parts_of_composites(table), _parts_of_composites(cohort)
    means, sds, number = of_cohort.mean(), of_cohort.std(), of_cohort.notna().sum()
    known = {name: of for name, of in _COMPOSITES.items() if parts[list(of)].notna().any().all()}
    first = table.groupby("case", sort=False)[["subject", "visit", "side", "method_version"]].first()
    rows = []
    for case, own in parts.iterrows():
        for name, of in known.items():
            few = [part for part in of if number[part] < _LEAST_KNEES or not sds[part] > 0]
            lacking = [part for part in of if np.isnan(own[part])]
            flag = f"no {' and '.join(lacking)}" if lacking else ""
            if few and not lacking:
                flag = f"fewer than {_LEAST_KNEES} knees of the cohort have {' and '.join(few)}, or all have the same"
            value = np.nan if flag else float(sum((own[part] - means[part]) / sds[part] for part in of))
            what = {"structure": KNEE, "region": "all", "quantity": name, "value": value, "unit": "1", "flag": flag}
            rows.append({"case": case, **first.loc[str(case)].to_dict(), **what})
    return pd.DataFrame(rows, columns=list(table))
