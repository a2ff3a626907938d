"""The folder of a raw data set in nnU-Net's world: its name, number and dataset.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from nnunetv2_anomaly.environment import FOLDER_VARIABLES, environment_folder
from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.files import write_text
from nnunetv2_anomaly.images.colours import write_colour_tables

#: Images are stored along right, anterior, superior, and nnU-Net turns whatever it reads that way. So a
#: model that learned on one of the data sets sees new images as it learned them, whichever way their files run.
READER = "SimpleITKIOWithReorient"


def dataset_folder(dataset_id: int, name: str) -> Path:
    """The folder of a data set in $nnUNet_raw, which may be there or not.

    Raises: UserError if the number or name is not nnU-Net's way, $nnUNet_raw is not set, or another data set has the
        number in one of nnU-Net's three folders.
    """
    if not 1 <= dataset_id <= 999:
        raise UserError(f"The data set's number is {dataset_id}; expected one from 1 to 999")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or "__" in name:
        expected = "letters, digits, hyphens and single underscores, as nnU-Net needs it"
        raise UserError(f"The data set's name is {name!r}; expected {expected}")
    raw = environment_folder("nnUNet_raw")
    folder_name = f"Dataset{dataset_id:03d}_{name}"
    for variable in FOLDER_VARIABLES:
        parent = Path(os.environ.get(variable) or raw)
        taken = [p.name for p in parent.glob(f"Dataset{dataset_id:03d}_*") if p.name != folder_name]
        if taken:
            raise UserError(f"Number {dataset_id} is taken by {taken[0]} in {parent} (${variable}); choose another one")
    return raw / folder_name


def refuse_filled(folder: Path) -> None:
    """Raises: UserError if there is anything but an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; delete it, or choose another number or name")


def write_dataset_json(
    folder: Path, *, name: str, labels: Mapping[str, int], num_training: int, **more: object
) -> None:
    """Write dataset.json as nnU-Net wants it, and the labels' colours for 3D Slicer and ITK-SNAP.

    Args: labels: name -> value. more: further keys.
    """
    # The channel's name has no scheme of its own: normalised by mean and standard deviation.
    content: dict[str, object] = {"channel_names": {"0": "MR"}, "labels": dict(labels), "numTraining": num_training}
    content |= {"file_ending": ".nii.gz", "name": name, **more}
    write_text(folder / "dataset.json", json.dumps(content, indent=2) + "\n")
    write_colour_tables(folder, labels)
