"""A loss that is not finite: where that came from.

Nothing is asked of the device while all is well: the watch keeps references that nnU-Net's step keeps as well, and the
loss is judged when nnU-Net has brought it to the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class LossWatch:
    """Keeps what a loss was last given, while the ``with`` block lasts."""

    def __init__(self, loss: Any) -> None:
        self._loss = loss
        self._handle: Any = None
        self.given: tuple[Any, ...] = ()

    def __enter__(self) -> LossWatch:
        if isinstance(self._loss, nn.Module):
            self._handle = self._loss.register_forward_hook(self._keep)
        return self

    def _keep(self, module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        self.given = given

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.remove()
        self.given = ()

    def culprit(self, images: Tensor, cases: Sequence[str], error_image: Tensor | None = None) -> tuple[str, bool]:
        """The first part on the way from the images to the loss that is not finite, in words.

        Args:
            images: (B, C, ...), what the network was given.
            cases: B names.
            error_image: (B, C, ...), what the detector made of the images, if there is one.
        Returns: the words, and whether it is the images.
        """
        found = _cases_not_finite([images], cases)
        if found is not None:
            return f"the preprocessed image of {found} holds NaN or infinite voxels", True
        if error_image is not None:
            found = _cases_not_finite([error_image], cases)
            if found is not None:
                return f"the detector's error image of {found} is not finite", False
        if self.given:
            found = _cases_not_finite(list(_tensors(self.given[0])), cases)
            if found is not None:
                return f"the network's output for {found} is not finite, its input is", False
            return "the network's output is finite, and the loss is not", False
        return "what it was made of is not known", False


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _cases_not_finite(tensors: Sequence[Tensor], cases: Sequence[str]) -> str | None:
    """The cases whose part of a tensor is not finite, in words; None if all are finite."""
    bad: set[int] = set()
    for tensor in tensors:
        if not torch.isfinite(tensor).all():
            parts = enumerate(tensor) if tensor.ndim else ()
            bad.update(number for number, part in parts if not torch.isfinite(part).all())
            bad = bad or {-1}
    if not bad:
        return None
    names = [cases[number] for number in sorted(bad) if 0 <= number < len(cases)]
    return ", ".join(dict.fromkeys(names)) or "a case of the batch"


def where_it_began(
    watch: LossWatch, batch: dict, error_image: Tensor | None, learning_rate_setting: str, learning_rate: Any
) -> str:
    """The middle of the sentence on a loss that is not finite: cases, what was not finite, what to do.

    Args:
        watch: of the step that gave the loss.
        batch: nnU-Net's, with "data" (B, C, ...) and, where known, "keys".
        error_image: (B, C, ...), what the detector made of it, if there is one.
        learning_rate_setting, learning_rate: the setting that lowers it, and its present value.
    """
    cases = [str(case) for case in batch.get("keys", ())]
    what, is_image = watch.culprit(batch["data"], cases, error_image)
    if is_image:
        advice = "fix that image, run nnUNetv2_preprocess again, and "
    else:
        advice = (
            f"set '{learning_rate_setting}' in the section 'anomaly' of plans.json to less than the present "
            f"{learning_rate:g} if it happens again, and "
        )
    named = ", ".join(dict.fromkeys(cases)) or "a batch without names"
    return f"{named}: {what}; training stopped and wrote nothing since, so {advice}"
