"""Simulated knees (nnUNetv2_anomaly simulate) -> nnU-Net raw data set.

DatasetXXX_Name/imagesTr, labelsTr, imagesTs, labelsTs, dataset.json   as nnU-Net wants them
DatasetXXX_Name/anomaliesTr, anomaliesTs                               the truth, 0 or 7, 8, 9; nnU-Net ignores it
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunetv2_anomaly import files
from nnunetv2_anomaly.conversion.options import main_of
from nnunetv2_anomaly.conversion.raw_dataset import dataset_folder, refuse_filled, write_dataset_json
from nnunetv2_anomaly.environment import environment_folder
from nnunetv2_anomaly.errors import UserError, listed
from nnunetv2_anomaly.images.files import write_image
from nnunetv2_anomaly.images.grids import Grid, posed
from nnunetv2_anomaly.images.label_maps import relabelled
from nnunetv2_anomaly.labels import ANATOMY, BONE_OF_LESION, LABELS
from nnunetv2_anomaly.simulation.simulate import read_manifest

HELP = "Turn a folder of simulated knees into an nnU-Net raw data set."

#: folder of the simulation -> what stands between a case's name and .nii.gz
_KINDS = {"images": "_0000", "labels": "", "anomalies": ""}
#: entry of ``convert``'s answer, and what its folders end with
_SUBSETS = (("training", "Tr"), ("test", "Ts"))

#: entry of dataset.json that says what a data set was made from, by which a run that was stopped finds its own
_MADE_FROM = "made_from"


def convert(
    source: str | os.PathLike,
    dataset_dir: str | os.PathLike,
    *,
    num_test: int | None = None,
    seed: int = 0,
    keep_lesion_labels: bool = False,
) -> dict[str, list[str]]:
    """Write a simulated folder as a raw data set of nnU-Net, whole or not at all; one that is there whole is kept.

    Args:
        source: output folder of ``nnunetv2_anomaly.simulation.simulate.simulate_folder``.
        dataset_dir: DatasetXXX_Name to write; missing, empty, or made from the same with the same arguments.
        num_test, seed: of ``choose_test_cases``; None for a fifth.
        keep_lesion_labels: labels 0 to 9; otherwise 0 to 6, lesions count as bone (the OAI ZIB's labels).
    Returns: {"training": case names, "test": case names}, both sorted.
    Raises: UserError if the source is no finished simulation, num_test leaves no training case, or dataset_dir holds
        something else, or cannot be written to.
    """
    source, dataset_dir = Path(source), Path(dataset_dir)
    lesion_mm3 = _read_cases(source)
    if num_test is None:
        num_test = len(lesion_mm3) // 5
    if not 0 <= num_test < len(lesion_mm3):
        asked = f"{num_test} test cases were asked for, and {source} holds {len(lesion_mm3)} cases"
        raise UserError(f"{asked}; expected 0 to {len(lesion_mm3) - 1}, so that a training case is left")
    test = choose_test_cases(lesion_mm3, num_test, seed)
    cases = {"training": sorted(set(lesion_mm3) - set(test)), "test": test}
    arguments = {"num_test": num_test, "seed": seed, "keep_lesion_labels": keep_lesion_labels}
    made_from = {"manifest_sha256": files.sha256_of(source / "manifest.json"), **arguments}
    if _made_from(dataset_dir) == made_from:  # written whole, as it got its name at the very end
        places = [f"{suffix}/{case}" for subset, suffix in _SUBSETS for case in cases[subset]]
        names = [f"{kind}{place}{end}.nii.gz" for place in places for kind, end in _KINDS.items()]
        if missing := [name for name in names if not (dataset_dir / name).is_file()]:
            raise UserError(f"{dataset_dir} lacks {listed(missing)}; delete it and run again to have it written anew")
        return cases
    refuse_filled(dataset_dir)
    with files.write_failures_as_user_errors(dataset_dir, "make room, or give permission, and run again"):
        files.remove_half_written(dataset_dir)
        # nnU-Net takes every folder named Dataset... for a data set, so the unfinished one is named otherwise.
        temporary = files.temporary_beside(dataset_dir)
        try:
            _write(temporary, source, cases, made_from, dataset_dir.name)
            if dataset_dir.is_dir():
                dataset_dir.rmdir()  # it is empty, and a rename onto a folder fails on some systems
            os.replace(temporary, dataset_dir)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return cases


def _write(folder: Path, source: Path, cases: Mapping[str, list[str]], made_from: Mapping[str, Any], name: str) -> None:
    keep_lesion_labels = made_from["keep_lesion_labels"]
    for subset, suffix in _SUBSETS:
        for kind in _KINDS:
            (folder / f"{kind}{suffix}").mkdir(parents=True)
        for case in cases[subset]:
            _copy_case(source, case, folder, suffix, keep_lesion_labels=keep_lesion_labels)
    write_dataset_json(
        folder,
        labels=LABELS if keep_lesion_labels else ANATOMY,
        num_training=len(cases["training"]),
        name=name,
        description="Simulated DESS-like knee images; anomaliesTr and anomaliesTs hold the true lesions.",
        licence="as the label maps the images were simulated from; phantoms are free of rights",
        converted_by="nnunetv2_anomaly.dataset_conversion.Dataset500_SimulatedKnees",
        **{_MADE_FROM: made_from},
    )


def write_split(dataset_dir: Path, num_validation: int, preprocessed: Path | None = None) -> Path:
    """splits_final.json of a data set with one fold: its first cases validate. Args: preprocessed: folder for it.

    Returns: the file. Raises: UserError if no case is left for training, or the file cannot be written.
    """
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (dataset_dir / "labelsTr").glob("*.nii.gz"))
    if not 0 < num_validation < len(cases):
        raise UserError(f"--num_val is {num_validation}; expected 1 to {len(cases) - 1} of {len(cases)} training cases")
    split = [{"train": cases[num_validation:], "val": cases[:num_validation]}]
    folder = environment_folder("nnUNet_preprocessed") / dataset_dir.name if preprocessed is None else preprocessed
    file = folder / "splits_final.json"
    with files.write_failures_as_user_errors(file, "make room, or give permission, and run again"):
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(file, json.dumps(split, indent=2))
    return file


def checked_dataset_dir(dataset_id: int, name: str) -> Path:
    """The folder of a data set in $nnUNet_raw.

    Raises: UserError as ``dataset_folder``, or if it holds anything but a data set of simulated knees.
    """
    target = dataset_folder(dataset_id, name)
    if _made_from(target) is None:
        refuse_filled(target)
    return target


def _made_from(dataset_dir: Path) -> Any:
    file = dataset_dir / "dataset.json"
    return files.read_json(file).get(_MADE_FROM) if file.is_file() else None


def choose_test_cases(lesion_mm3: dict[str, float], num_test: int, seed: int) -> list[str]:
    """Draw at most ``num_test`` test cases; half of them (rounded up) with lesions, as long as there are such.

    All cases of a subject stay together, so that fewer may be taken.

    Args: lesion_mm3: case name -> volume of its lesions in mm3. Returns: sorted case names.
    """
    subjects: dict[str, list[str]] = {}
    for case in sorted(lesion_mm3):
        subjects.setdefault(subject_of(case), []).append(case)
    order = np.random.default_rng(seed).permutation(list(subjects)).tolist()
    with_lesions = [name for name in order if any(lesion_mm3[case] > 0 for case in subjects[name])]
    chosen: list[str] = []
    for name in with_lesions:
        if sum(lesion_mm3[case] > 0 for case in chosen) >= -(-num_test // 2):
            break
        if len(chosen) + len(subjects[name]) <= num_test:
            chosen += subjects[name]
    for name in order:
        if subjects[name][0] not in chosen and len(chosen) + len(subjects[name]) <= num_test:
            chosen += subjects[name]
    return sorted(chosen)


def subject_of(case: str) -> str:
    """OAI names begin with the subject's seven digits; any other case is a subject of its own."""
    found = re.match(r"\d{7}(?!\d)", case)
    return found[0] if found else case


def _read_cases(source: Path) -> dict[str, float]:
    """Case name -> true lesion volume in mm3, from the manifest, once all files are known to be there."""
    file = source / "manifest.json"
    if not file.is_file():
        raise UserError(f"{source} holds no manifest.json; give the output folder of nnUNetv2_anomaly simulate")
    cases = read_manifest(file)["cases"]
    names = (f"{kind}/{case}{end}.nii.gz" for case in cases for kind, end in _KINDS.items())
    missing = [name for name in names if not (source / name).is_file()]
    if missing or not cases:
        fault = f"lacks {listed(missing)}" if missing else "holds no finished case"
        raise UserError(f"{source} {fault}; run nnUNetv2_anomaly simulate again to complete it")
    return {case: sum(entry["anomaly_volumes_mm3"].values()) for case, entry in cases.items()}


def _copy_case(source: Path, case: str, target: Path, suffix: str, *, keep_lesion_labels: bool) -> None:
    for kind, end in _KINDS.items():
        name = f"{case}{end}.nii.gz"
        shutil.copyfile(source / kind / name, target / f"{kind}{suffix}" / name)
    if keep_lesion_labels:
        return
    labels_to = target / f"labels{suffix}" / f"{case}.nii.gz"
    image = sitk.ReadImage(str(labels_to))
    write_image(posed(relabelled(sitk.GetArrayFromImage(image), BONE_OF_LESION), Grid.of(image)), labels_to)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this conversion."""
    parser.add_argument("-i", "--input", type=Path, required=True, help="output folder of nnUNetv2_anomaly simulate")
    parser.add_argument("-d", "--dataset_id", type=int, default=500, help="number of the data set (default: 500)")
    parser.add_argument("--name", default="SimulatedKnees", help="name after the number (default: %(default)s)")
    parser.add_argument("--num_test", type=int, help="number of test cases (default: a fifth)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of test cases (default: 0)")
    parser.add_argument("--keep_lesion_labels", action="store_true", help="labels 0 to 9; lesions count as bone if not")


def run(args: argparse.Namespace) -> int:
    """Convert as the options say; returns 0."""
    target = checked_dataset_dir(args.dataset_id, args.name)
    convert(args.input, target, num_test=args.num_test, seed=args.seed, keep_lesion_labels=args.keep_lesion_labels)
    return 0


if __name__ == "__main__":
    sys.exit(main_of(sys.modules[__name__]))
