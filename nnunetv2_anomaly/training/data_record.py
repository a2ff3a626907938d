"""What a training saw of its data set, so that what goes on from it can tell whether that is still the same data.

A pre-stage's record is asked by the segmentation, and every training's by itself when it is continued.

Of every training case: its shape and a few voxels of its preprocessed image. That is cheap, survives copying and
compressing anew, and tells another image, spacing or normalisation apart. Labels are not part of it: a mended
segmentation does not spoil a detector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_anomaly.detectors.inpainting.preparation import read_whole
from nnunetv2_anomaly.errors import UserError, listed

#: key of a segmentation's checkpoint under which its record is kept; a pre-stage's is in its own entry (handover.py)
CHECKPOINT_KEY = "anomaly_data"
#: voxels of an image that are kept, along the middle line of its last axis
_VOXELS = 8
#: two preprocessings of one image on two machines differ by rounding; units of the normalised image
_TOLERANCE = 1e-2
_OF_CONFIGURATION = ("spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name")


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
    """What is kept in a checkpoint: numbers, names and lists of them."""
    configuration = configuration_manager.configuration
    preprocessing = {name: configuration.get(name) for name in _OF_CONFIGURATION}
    preprocessing["transpose_forward"] = [int(axis) for axis in plans_manager.transpose_forward]
    return {
        "dataset": plans_manager.dataset_name,
        "preprocessing": preprocessing,
        "cases": {case: case_record(dataset, case) for case in cases},
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed in a data set, in words; cases that have come are no change.

    Args: then, now: two data records; the later one of those of the former's cases that are still there.
    """
    found = [
        f"'{name}' was {then['preprocessing'].get(name)} and is {value}"
        for name, value in now["preprocessing"].items()
        if _plain(then["preprocessing"].get(name)) != _plain(value)
    ]
    gone = [case for case in then["cases"] if case not in now["cases"]]
    if gone:
        found.append(f"{len(gone)} of its {len(then['cases'])} training cases are gone ({listed(gone)})")
    changed = [case for case, record in now["cases"].items() if not _alike(then["cases"].get(case, record), record)]
    if changed:
        found.append(f"{len(changed)} training case(s) are other images or preprocessed otherwise ({listed(changed)})")
    return found


def continued(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The record of a training that goes on: of all that it has ever seen.

    Args:
        then: of its checkpoint.
        now: of its cases now, and of those of ``then`` that are still there.
    Returns: the record to keep, and what to tell in the log if the data set has changed.
    """
    kept = {**now, "cases": {**then["cases"], **now["cases"]}}
    found = differences(then, now)
    return kept, f"the data set has changed since this run began: {'; '.join(found)}" if found else None


def check_data(
    then: Mapping[str, Any] | None, now: Mapping[str, Any], what: str, allowed: bool, mend: str
) -> list[str]:
    """See that a detector was trained on the data set as it is now.

    Args:
        then: data record of its pre-stage; None if an older version of this package wrote none.
        now: that of the data set, for the cases of ``then`` that are still there.
        what: the detector, in words.
        allowed: whether changed data are accepted.
        mend: the command that trains the pre-stage.
    Returns: sentences for the log.
    Raises: UserError if the data set has changed and that is not allowed.
    """
    if then is None:
        return [
            f"{what} was written by an older version, which did not note its data; whether the data set has changed "
            f"since cannot be told"
        ]
    if then["dataset"] != now["dataset"]:
        only_settings = differences({**then, "cases": {}}, {**now, "cases": {}})
        return [f"{what} comes from {then['dataset']}" + (f", where {'; '.join(only_settings)}" * bool(only_settings))]
    found = differences(then, now)
    if not found:
        return []
    fact = f"the data set has changed since {what} was trained: {'; '.join(found)}"
    if allowed:
        return [f"{fact}; accepted because 'allow_changed_data' is set"]
    raise UserError(
        f"{fact}; expected the data of its pre-stage, so train that again: {mend}, or set 'allow_changed_data' to true "
        f"in the section 'anomaly' of plans.json where the change does not matter"
    )


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first["shape"] == second["shape"] and np.allclose(
        first["voxels"], second["voxels"], rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
    )
