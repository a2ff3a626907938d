"""Labels and files of a data set, from its dataset.json, and the segmentations in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.files import is_half_written, read_json
from nnunetv2_anomaly.images.files import only_files
from nnunetv2_anomaly.label_roles import ROLES_KEY, LabelRoles, label_roles


@dataclass(frozen=True)
class DatasetDescription:
    """Labels and files of a data set."""

    source: Path  # its dataset.json
    labels: Mapping[str, tuple[int, ...]]  # name -> the values it stands for; without background and the ignore label
    ignore: int | None
    file_ending: str
    reader: str | None  # nnU-Net's reader class, or None for that of the file ending
    has_regions: bool  # whether a name stands for several values: nnU-Net's region-based training
    said_roles: Mapping[str, Any] | None = None  # what dataset.json says of lesions and bones

    @property
    def roles(self) -> LabelRoles:
        """Which labels are lesions, and in which bones. Raises: UserError if dataset.json names what is no label."""
        return label_roles(self.labels, self.said_roles)

    @property
    def values(self) -> set[int]:
        """Every value that a segmentation may hold, background included."""
        known = {0, *(value for values in self.labels.values() for value in values)}
        return known if self.ignore is None else {*known, self.ignore}

    @property
    def num_classes(self) -> int:
        """How many classes a network's softmax output has: background and every label, without the ignore label."""
        return len(self.values - {self.ignore})

    @property
    def single_values(self) -> dict[str, int]:
        """Name -> value of the labels that stand for one value: all but regions."""
        return {name: values[0] for name, values in self.labels.items() if len(values) == 1}

    @property
    def names(self) -> dict[int, str]:
        """Value -> name of the label that stands for it, of several the one that stands for the fewest values."""
        by_size = sorted(self.labels.items(), key=lambda label: -len(label[1]))
        return {value: name for name, values in by_size for value in values}

    def value_of(self, name: str) -> int:
        """The one value of a label. Raises: UserError if there is no such label, or it stands for several values."""
        if name not in self.single_values:
            known = ", ".join(self.single_values)
            raise UserError(f"{name} is no label of {self.source} with one value; expected one of {known}")
        return self.single_values[name]


def read_dataset_description(file: Path, reader: str | None = None) -> DatasetDescription:
    """Read a dataset.json.

    Args: reader: nnU-Net's reader class from the plans, if there are any; it replaces that of dataset.json.
    Raises: UserError if the file is missing, or is no dataset.json.
    """
    content = read_json(file)
    given: Any = content.get("labels")
    file_ending: Any = content.get("file_ending")
    reader_of_json = content.get("overwrite_image_reader_writer")

    def expect(sound: object, what: str, value: object, expected: str) -> None:
        if not sound:
            told = f"{what} {json.dumps(value)}; expected {expected}"
            raise UserError(f"{file}: {told}, as nnU-Net's dataset.json has it")

    expect(isinstance(given, dict), "labels are", given, "each label's name and value")
    labels = {name: tuple(values if isinstance(values, list) else [values]) for name, values in given.items()}
    whole = "a whole number from 0 to 65535, or several"
    for name, values in labels.items():
        expect(values and all(map(_is_label, values)), f"label {name} is", given[name], whole)
    ignore, *more = labels.pop("ignore", (None,))
    expect(not more, "label ignore is", [ignore, *more], "one value")
    ending = isinstance(file_ending, str) and file_ending.startswith(".")
    expect(ending, "file_ending is", file_ending, "one such as .nii.gz")
    expect(
        isinstance(reader_of_json, str | None), "overwrite_image_reader_writer is", reader_of_json, "a reader's name"
    )
    labels = {name: values for name, values in labels.items() if set(values) != {0}}
    if not labels:
        raise UserError(f"{file} has no label but background; expected at least one")
    return DatasetDescription(
        source=file,
        labels=dict(sorted(labels.items(), key=lambda item: (len(item[1]) > 1, item[1]))),
        ignore=ignore,
        file_ending=file_ending,
        reader=reader or (reader_of_json if reader_of_json != "None" else None),
        has_regions=any(len(values) > 1 for values in labels.values()),
        said_roles=content.get(ROLES_KEY),
    )


def _is_label(value: object) -> bool:
    """Whether it is a whole number that nnU-Net's label maps can hold, 16 bits at most; true and false are none."""
    return type(value) is int and 0 <= value <= 65535


def find_dataset_description(
    djfile: Path | None, prediction_folders: Sequence[Path], reference_folder: Path | None = None
) -> DatasetDescription:
    """Read the given dataset.json, else that beside the predictions, else that of the reference's data set.

    Raises: UserError if there is none, or those beside the predictions differ in their labels.
    """
    folders = []
    for folder in prediction_folders:  # the validation of a fold (fold_0/validation) has them in the results folder
        folders += [folder, folder.parent.parent] if folder.name == "validation" else [folder]
    plans = next((folder / "plans.json" for folder in folders if (folder / "plans.json").is_file()), None)
    reader = None if plans is None else read_json(plans).get("image_reader_writer")
    if not isinstance(reader, str | None):
        raise UserError(f"{plans}: image_reader_writer is {json.dumps(reader)}; expected the name of nnU-Net's reader")
    if djfile is not None:
        return read_dataset_description(djfile, reader)
    places = [folder / "dataset.json" for folder in folders]
    if reference_folder is not None:
        places.append(reference_folder.absolute().parent / "dataset.json")
    there = [place for place in places if place.is_file()]
    if not there:
        if empty := [folder for folder in prediction_folders if folder.is_dir() and not any(folder.iterdir())]:
            raise UserError(f"{empty[0]} is empty; expected predictions, and their dataset.json beside them")
        raise UserError(f"there is no dataset.json ({', '.join(map(str, places))}); give the data set's with -djfile")
    chosen = read_dataset_description(there[0], reader)
    for other in there[1:]:
        if other.parent in folders and read_dataset_description(other).labels != chosen.labels:
            raise UserError(f"{there[0]} and {other} differ in their labels; give the references' own with -djfile")
    return chosen


def segmentation_files(folder: Path, file_ending: str) -> dict[str, Path]:
    """Case -> segmentation of a folder, sorted; without hidden files and those that a killed run left half written.

    Raises: UserError if it holds none, or something else of such a name.
    """
    files = {
        path.name[: -len(file_ending)]: path
        for path in only_files(folder.glob(f"[!.]*{file_ending}"))
        if not is_half_written(path.name)
    }
    if not files:
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
        there = "does not exist" if found is None else f"holds {listed(found)}" if found else "is empty"
        raise UserError(f"{folder} {there}; expected segmentations that end in {file_ending}, as dataset.json says")
    return files
