"""Command-line options of the clean-up, shared by the verbs that clean."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection

from nnunetv2_anomaly.errors import UserError
from nnunetv2_anomaly.images.dataset_description import DatasetDescription
from nnunetv2_anomaly.label_roles import taken_as
from nnunetv2_anomaly.postprocessing.clean_up import CleanUp

#: options with a number, called as CleanUp's attributes
_NUMBERS = ("max_distance_voxels", "max_distance_mm", "min_lesion_volume_mm3", "lesion_probability")


def add_clean_up_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("clean-up")
    add = group.add_argument
    anatomy = "labels of which the largest component and what is near it stay; none for no label"
    add("--anatomy", nargs="+", metavar="NAME", help=f"{anatomy} (default: all but lesions)")
    lesions = "lesion labels, and the bone label each lies in; none for no label (default: dataset.json's label_roles, "
    lesions += "else by name: femoral_lesion in femoral_bone, patella_BML in patella)"
    add("--lesions", nargs="+", metavar="LESION[=BONE]", help=lesions)
    distance = "remove smaller components farther than this from the largest one (default: 35.0)"
    limit = group.add_mutually_exclusive_group().add_argument
    limit("--max_distance_mm", type=float, metavar="MM", help=distance)
    limit("--max_distance_voxels", type=float, metavar="N", help="the same in voxels, instead (the paper's: 50)")
    volume = "remove smaller lesions (default: 6.0, the paper's largest threshold)"
    add("--min_lesion_volume_mm3", type=float, default=6.0, metavar="MM3", help=volume)
    probability = "remove lesion voxels with a lower softmax output; needs predictions with --save_probabilities"
    add("--lesion_probability", type=float, metavar="P", help=probability)


def clean_up_of(args: argparse.Namespace, dataset: DatasetDescription) -> CleanUp:
    """The clean-up that the options ask for. Raises: UserError for an unknown label, or a number out of range."""
    for name in _NUMBERS:
        value, highest = getattr(args, name), 1.0 if name == "lesion_probability" else math.inf
        if value is not None and not 0 <= value <= highest:
            raise UserError(f"--{name} is {value}; expected a number from 0{' to 1' if highest == 1 else ''}")
    lesions = chosen_lesions(args.lesions, dataset)
    if args.lesion_probability is not None and (dataset.has_regions or not lesions):
        has = "trains on regions" if dataset.has_regions else "has no lesion labels (--lesions names them)"
        raise UserError(f"--lesion_probability needs a softmax output of each lesion label, and {dataset.source} {has}")
    anatomy = [] if args.anatomy == ["none"] else [dataset.value_of(name) for name in args.anatomy or ()]
    if args.anatomy is None:
        anatomy = sorted(dataset.values - {0, dataset.ignore} - set(lesions))
    both = set(anatomy) & set(lesions)
    if both:
        raise UserError(f"label {min(both)} is named by --anatomy and as a lesion; expected one of them")
    numbers = {name: getattr(args, name) for name in _NUMBERS}
    if numbers["max_distance_mm"] is None and numbers["max_distance_voxels"] is None:
        numbers["max_distance_mm"] = CleanUp.max_distance_mm
    return CleanUp(tuple(anatomy), lesions, **numbers)


def chosen_lesions(words: list[str] | None, dataset: DatasetDescription) -> dict[int, int | None]:
    """Lesion label -> bone label or None, from words like ``LESION=BONE``; None takes the data set's roles.

    Raises: UserError for a name that is no label, or comes twice.
    """
    if words is None:
        single = {name: bone for name, bone in dataset.roles.lesions.items() if name in dataset.single_values}
        values = {name: dataset.value_of(name) for name in single}
        return {value: _bone_value(single[name], values.values(), dataset) for name, value in values.items()}
    words = words if words != ["none"] else []
    own = [dataset.value_of(word.partition("=")[0]) for word in words]
    lesions: dict[int, int | None] = {}
    for word, value in zip(words, own, strict=True):
        lesion, separator, bone = word.partition("=")
        if value in lesions or bone == lesion:
            raise UserError(f"--lesions {word}: {lesion} is named twice; expected each lesion once, and its bone")
        lesions[value] = _bone_value(bone, own, dataset) or (dataset.value_of(bone) if separator else None)
    return lesions


def _bone_value(bone: str | None, lesions: Collection[int], dataset: DatasetDescription) -> int | None:
    """The value of a bone, which may be a region that holds its lesion; None where no single one is left."""
    left = [value for value in dataset.labels.get(bone or "", ()) if value not in lesions]
    return left[0] if len(left) == 1 else None


def described(clean_up: CleanUp, dataset: DatasetDescription) -> str:
    """What is taken as lesions, and what as anatomy, in words."""
    names, found = dataset.names, clean_up.bone_of_lesion.items()
    lesions = [f"{names[lesion]} in {names[bone]}" if bone is not None else names[lesion] for lesion, bone in found]
    anatomy = [names[value] for value in clean_up.anatomy]
    return taken_as({"lesions": lesions, "anatomy": anatomy})
