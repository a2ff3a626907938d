"""Slices without a lesion, which detectors of slices learn from, through nnU-Net's own loader."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.reporting.user_tables import read_table

#: bone of fewer voxels in a slice is the end of one
_LEAST_HOST = 20
_RANGE = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")
#: of the bias field: a polynomial of this order
_ORDER = 3


def check_for_slices(trainer: str, configuration: str, patch_size: Sequence[int], advice: str) -> None:
    """Raises: UserError, ending with the advice, if a trainer of slices is given a configuration of volumes."""
    if len(patch_size) != 2:
        raise UserError(f"{trainer} learns from slices, and patches of {configuration} have 3 axes; {advice}")


@dataclass(frozen=True)
class ChosenSlices:
    """A preprocessed data set of which nnU-Net's loader meets chosen slices alone, each of them whole.

    The loader centres a patch on a voxel of a class that it draws; here the only class has the middle of each slice.
    """

    dataset: Any
    slices: Mapping[str, NDArray[np.intp]]  # case -> along the first axis of the preprocessed image

    @property
    def identifiers(self) -> list[str]:
        """Cases with slices."""
        return sorted(case for case, of in self.slices.items() if len(of))

    def load_case(self, identifier: str) -> tuple:
        """As nnU-Net's: image, labels, labels of a previous stage, properties."""
        image, labels, previous, properties = self.dataset.load_case(identifier)
        middle = [size // 2 for size in image.shape[2:]]
        places = np.array([(0, index, *middle) for index in self.slices[identifier]])
        return image, labels, previous, {**properties, "class_locations": {1: places}}


def read_slice_list(file: Path) -> dict[str, set[int]]:
    """Slices without a lesion that a user lists, by case.

    Args: file: CSV with the columns case and slices: a number or a range (``12`` or ``10-25``, both ends included),
        from 0, along the axis of the image file that nnU-Net's 2d configuration cuts; a case may have several rows.
    Raises: UserError if it cannot be read, or a row is no number or range.
    """
    table = read_table(file, {"case", "slices"}, "a table of case and slices")
    found: dict[str, set[int]] = {}
    for case, text in zip(table["case"], table["slices"], strict=True):
        match = _RANGE.fullmatch(text)
        first, last = (0, -1) if match is None else (int(match[1]), int(match[2] or match[1]))
        if last < first:
            raise UserError(f"{file} has the slices {text!r} of {case}; expected a number or a range such as 10-25")
        found.setdefault(case, set()).update(range(first, last + 1))
    return found


def divided_slices(
    dataset: Any,
    cases: Sequence[str],
    hosts: Collection[int] | None,
    lesions: Collection[int],
    listed: Mapping[str, Collection[int]] | None,
    ignored: int | None = None,
    show_progress: bool = False,
) -> tuple[dict[str, NDArray[np.intp]], dict[str, NDArray[np.intp]]]:
    """Slices of preprocessed cases that hold bone: those without a lesion, and all others.

    Args:
        dataset: nnU-Net's.
        hosts: label values of bones, or what else may hold lesions; None: all that nnU-Net has not cropped away.
        lesions: label values.
        listed: as ``read_slice_list`` returns them; None: labels alone tell.
        ignored: label value of what nobody has looked at; a slice with such voxels is free of lesions only if listed.
        show_progress: draw a bar.
    Returns: twice case -> indices along the first axis; empty where there are none.
    Raises: UserError if a listed slice is not in its image or has a labelled lesion.
    """
    free, others = {}, {}
    for case in tqdm(cases, "lesion-free slices", disable=not show_progress, leave=False):
        _, labels, _, properties = dataset.load_case(case)
        voxels = np.asarray(labels[0])
        with_lesion = np.isin(voxels, list(lesions)).any(axis=(1, 2))
        unknown = np.zeros(voxels.shape, bool) if ignored is None else voxels == ignored
        host = (voxels >= 0) & ~unknown if hosts is None else np.isin(voxels, list(hosts))
        with_host = host.sum(axis=(1, 2)) >= _LEAST_HOST
        chosen = with_host & ~with_lesion
        if listed is None:
            chosen &= ~unknown.any(axis=(1, 2))
        else:
            given = np.zeros(len(voxels), bool)
            given[_within(case, sorted(listed.get(case, ())), properties, len(voxels))] = True
            if (given & with_lesion).any():
                index = int(np.flatnonzero(given & with_lesion)[0]) + properties["bbox_used_for_cropping"][0][0]
                fault = f"slice {index} of {case} is listed as free of lesions and has a labelled one"
                raise UserError(f"{fault}; correct the list of the setting 'lesion_free_slices', or the labels")
            chosen &= given
        free[case], others[case] = np.flatnonzero(chosen), np.flatnonzero(with_host & ~chosen)
    return free, others


def _within(case: str, numbers: Sequence[int], properties: Mapping[str, Any], size: int) -> NDArray[np.intp]:
    """Slices of an image file as slices of the preprocessed image; those that were cropped away are left out."""
    start, stop = properties["bbox_used_for_cropping"][0]
    whole = properties["shape_before_cropping"][0]
    if stop - start != size:
        fault = f"{case} has {size} slices where it is preprocessed, and {stop - start} in its image"
        raise UserError(f"{fault}; a list of slices needs a 2d configuration, which leaves slices as they are")
    if numbers and numbers[-1] >= whole:
        fault = f"slice {numbers[-1]} of {case} is listed as free of lesions, and its image has {whole} slices"
        raise UserError(f"{fault}; expected numbers from 0 to {whole - 1}")
    return np.array([number - start for number in numbers if start <= number < stop], np.intp)


class RandomBiasField(ImageOnlyTransform):
    """Multiplies what is above an image's darkest voxel by a smooth random field, as receiver coils do.

    The field's logarithm is a polynomial of third order along all axes, whose coefficients are drawn evenly between
    minus and plus a strength (Van Leemput et al. 1999, as TorchIO has it).
    """

    def __init__(self, strength: float) -> None:
        """Args: strength: largest coefficient, 0 for none."""
        super().__init__()
        self.strength = strength

    def get_parameters(self, **data_dict: Any) -> dict[str, Tensor]:
        """The field of an image (C, *axes): (*axes), above 0."""
        size = data_dict["image"].shape[1:]
        axes = torch.meshgrid(*(torch.linspace(-1, 1, voxels) for voxels in size), indexing="ij")
        field = torch.zeros(size)
        for powers in np.ndindex(*[_ORDER + 1] * len(size)):
            if sum(powers) <= _ORDER:
                term = torch.full(size, float(np.random.uniform(-self.strength, self.strength)))
                for axis, power in zip(axes, powers, strict=True):
                    term = term * axis**power
                field = field + term
        return {"field": field.exp()}

    def _apply_to_image(self, img: Tensor, field: Tensor) -> Tensor:
        darkest = img.amin(dim=tuple(range(1, img.ndim)), keepdim=True)
        return darkest + (img - darkest) * field
