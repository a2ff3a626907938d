"""What a training saw of its data set, so that whatever builds on it can check whether the data are still the same.

The segmentation checks its detector's record, and every resumed training its own.

A record holds the shape and a few voxels of every preprocessed training image. That is cheap, survives copying and
compressing again, and shows another image, spacing or normalisation. Labels are not part of it: a corrected
segmentation does not spoil a detector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.training.checkpoints import as_text
from nnunetv2_anomaly.training.safe_loading import UNREADABLE, first_line

#: key of a checkpoint under which its training's record stands
CHECKPOINT_KEY = "anomaly_data"
#: voxels of an image that are kept, along the middle line of its last axis
_VOXELS = 8
#: two preprocessings of one image on two machines differ by rounding; units of the normalised image
_TOLERANCE = 1e-2
_OF_CONFIGURATION = ("spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name")


@contextmanager
def read_whole(case: str, folder: Path) -> Iterator[None]:
    """Turn a failure to read what nnU-Net preprocessed into a UserError."""
    try:
        yield
    except UNREADABLE as error:
        fault = f"'{case}' in {folder} cannot be read ({type(error).__name__}: {first_line(error)})"
        expected = "expected files that nnU-Net wrote whole, so run nnUNetv2_preprocess again"
        raise UserError(f"the preprocessed case {fault}; {expected}") from error


def check_cases_exist(cases: Sequence[str], known: set[str], folder: str) -> None:
    """Check that the cases of a split are preprocessed. Raises: UserError naming those that are not."""
    missing = [case for case in cases if case not in known]
    if missing:
        fault = f"splits_final.json names {len(missing)} case(s) that are not in {folder} ({listed(missing)})"
        advice = "so run nnUNetv2_preprocess again or correct the split"
        raise UserError(f"{fault}; expected every case of the fold, {advice}")


def case_record(dataset: nnUNetBaseDataset, case: str) -> dict[str, list]:
    """Shape of a preprocessed image and voxels along its middle line; units of the normalised image.

    Raises: UserError if the case cannot be read.
    """
    with read_whole(case, Path(dataset.source_folder)):
        image, *_ = dataset.load_case(case)
        shape = [int(size) for size in image.shape]
        place = (slice(None), *(size // 2 for size in shape[1:-1]), slice(None))
        line = np.asarray(image[place], dtype=np.float64).reshape(shape[0], shape[-1])
    chosen = np.unique(np.linspace(0, shape[-1] - 1, _VOXELS).round().astype(int))
    return {"shape": shape, "voxels": line[:, chosen].round(4).ravel().tolist()}


def data_record(
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset: nnUNetBaseDataset,
    cases: Sequence[str],
) -> dict[str, Any]:
    """The record of a data set's cases: numbers, names and lists of them."""
    configuration = configuration_manager.configuration
    preprocessing = {name: configuration.get(name) for name in _OF_CONFIGURATION}
    preprocessing["transpose_forward"] = [int(axis) for axis in plans_manager.transpose_forward]
    return {
        "dataset": plans_manager.dataset_name,
        "preprocessing": preprocessing,
        "cases": {case: case_record(dataset, case) for case in cases},
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed in a data set, in words; new cases are no change.

    Args: then, now: two data records; the later one of those of the former's cases that are still there.
    """
    found = [
        f"'{name}' was {then['preprocessing'].get(name)} and is {value}"
        for name, value in now["preprocessing"].items()
        if as_text(then["preprocessing"].get(name)) != as_text(value)
    ]
    gone = [case for case in then["cases"] if case not in now["cases"]]
    if gone:
        found.append(f"{len(gone)} of its {len(then['cases'])} training cases are gone ({listed(gone)})")
    changed = [case for case, record in now["cases"].items() if not _alike(then["cases"].get(case, record), record)]
    if changed:
        found.append(f"{len(changed)} training case(s) are other images or preprocessed otherwise ({listed(changed)})")
    return found


def continued(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The record of a resumed training: of all that it has ever seen.

    Args: then: of its checkpoint. now: of its cases now, and of those of ``then`` that are still there.
    Returns: the record to keep, and a sentence for the log if the data set has changed.
    """
    kept = {**now, "cases": {**then["cases"], **now["cases"]}}
    found = differences(then, now)
    return kept, f"the data set has changed since this run began: {'; '.join(found)}" if found else None


def check_data(
    then: Mapping[str, Any], now: Mapping[str, Any], what: str, allowed: bool, train_command: str
) -> str | None:
    """Check that a detector was trained on the data set as it is now.

    Args: then: data record of its pre-stage. now: that of the data set, for the cases of ``then`` that are still there.
        what: the detector, in words. allowed: whether changed data are accepted. train_command: of the pre-stage.
    Returns: a sentence for the log where something is to be said.
    Raises: UserError if the data set has changed and that is not allowed.
    """
    if then["dataset"] != now["dataset"]:
        only_settings = differences({**then, "cases": {}}, {**now, "cases": {}})
        return f"{what} comes from {then['dataset']}" + (f", where {'; '.join(only_settings)}" * bool(only_settings))
    if not (found := differences(then, now)):
        return None
    fact = f"the data set has changed since {what} was trained: {'; '.join(found)}"
    if allowed:
        return f"{fact}; accepted because 'allow_changed_data' is set"
    allow = "set 'allow_changed_data' to true in the section 'anomaly' of plans.json where the change does not matter"
    raise UserError(f"{fact}; expected the data of its pre-stage, so train that again: {train_command}, or {allow}")


def _alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    tolerance: dict[str, Any] = {"rtol": _TOLERANCE, "atol": _TOLERANCE, "equal_nan": True}
    return first["shape"] == second["shape"] and np.allclose(first["voxels"], second["voxels"], **tolerance)
