"""A loss that is not finite: where that came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def where_it_began(
    batch: dict, error_image: Tensor | None, learning_rate_setting: str | None, learning_rate: Any
) -> str:
    """The middle of the sentence on a loss that is not finite: cases, the first part that is not finite, what to do.

    Args: batch: nnU-Net's, with "data" (B, C, ...) and, where known, "keys". error_image: (B, C, ...), the detector's,
        if there is one. learning_rate_setting: the setting that lowers the present ``learning_rate``, if any.
    """
    cases = [str(case) for case in batch.get("keys", ())]
    named = ", ".join(dict.fromkeys(cases)) or "a batch without names"
    stopped = "training stopped and wrote nothing since, so "
    of_image = _cases_not_finite(batch["data"], cases)
    if of_image:
        what = f"the preprocessed image of {of_image} holds NaN or infinite voxels"
        return f"{named}: {what}; {stopped}fix that image, run nnUNetv2_preprocess again, and "
    of_error = None if error_image is None else _cases_not_finite(error_image, cases)
    what = "what the network or the loss made of it is not finite"
    if of_error:
        what = f"the detector's error image of {of_error} is not finite"
    advice = "check images and labels of these cases"
    if learning_rate_setting:
        place = "in the section 'anomaly' of plans.json"
        advice = f"set '{learning_rate_setting}' {place} to less than the present {learning_rate:g}"
    return f"{named}: {what}; {stopped}{advice} if it happens again, and "


def _cases_not_finite(tensor: Tensor, cases: Sequence[str]) -> str | None:
    """The cases whose part of a tensor is not finite, in words; None if all are finite."""
    bad = [number for number, part in enumerate(tensor) if not torch.isfinite(part).all()]
    names = dict.fromkeys(cases[number] for number in bad if number < len(cases))
    return (", ".join(names) or "a case of the batch") if bad else None
