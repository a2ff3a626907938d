"""What a cohort of thousands costs: hours, GiB, files; and whether planning, listing and merging stay linear.

    python -m benchmarks.scale --folder SCALE

A few knees of real size are converted, simulated and measured, and timed; records of --listed cases are made from one
of them, and the verb that merges them, the listing of cases and the table of steps are timed on a tenth and on all.
The table is for --cohort knees: what one costs, times the number.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time

import SimpleITK as sitk

from benchmarks.conversion import make_tree
from benchmarks.timing import shown, timed
from nnunetv2_anomaly.environment import create_nnunet_folders, nnunet_environment
from nnunetv2_anomaly.images.dataset_description import find_dataset_description, segmentation_files
from nnunetv2_anomaly.postprocessing.clean_up import CleanUp
from nnunetv2_anomaly.postprocessing.run import postprocess_folder
from nnunetv2_anomaly.reporting.table import Cell, Table
from nnunetv2_anomaly.simulation.simulate import simulate_folder
from nnunetv2_anomaly.workflows.table import steps_of

#: a part for every ten cases
_COHORT = {"dataset": "Dataset501_Knees", "base": ".", "trainers": ["nnUNetTrainer"], "images": "I"}


def cpu_seconds(words: list[str], environment: dict[str, str] | None = None) -> float:
    """CPU seconds of a command and its children."""
    before = os.times()
    subprocess.run(words, check=True, capture_output=True, env=environment)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def verb(*words: object) -> list[str]:
    """A command line of ours."""
    return [sys.executable, "-m", "nnunetv2_anomaly.command_line.main", *map(str, words)]


def knees(folder: Path, number: int, size: tuple[int, int, int]) -> Path:
    """A folder of label maps of phantoms, with dataset.json."""
    simulate_folder(folder / "drawn", num_phantoms=number, size=size, num_processes=1)
    return folder / "drawn" / "labels"


def converted(folder: Path, number: int, size: list[int]) -> tuple[Path, float]:
    """Folder of converted cases, DICOM series and masks as OAI ZIB has them, and CPU seconds of the command."""
    shutil.rmtree(folder, ignore_errors=True)
    create_nnunet_folders(folder)
    make_tree(folder, number, size)
    words = verb("convert", "oai_zib", "--zib", folder / "zib", "--oai", folder / "oai", "-np", 1)
    return folder / "nnUNet_raw", cpu_seconds(words, nnunet_environment(folder))


def copies(labels: Path, folder: Path, number: int) -> Path:
    """So many cases, links to one small label map."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    image = sitk.ReadImage(str(next(labels.glob("*.nii.gz"))))
    small = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[::8, ::8, ::8])
    small.SetSpacing([8 * of for of in image.GetSpacing()])
    sitk.WriteImage(small, str(folder / "case_0000.nii.gz"))
    for case in range(1, number):
        os.link(folder / "case_0000.nii.gz", folder / f"case_{case:04d}.nii.gz")
    shutil.copy(labels / "dataset.json", folder)
    return folder


def per_thousand(labels: Path, folder: Path, listed: int) -> dict[str, list[float]]:
    """CPU seconds a thousand cases of listing, planning and merging, of a tenth of the cases and of all."""
    found: dict[str, list[float]] = {"listing": [], "planning": [], "merging": []}
    for number in (listed // 10, listed):
        segmentations = copies(labels, folder / f"{number}_cases", number)
        dataset = find_dataset_description(None, [segmentations])

        def merge(source: Path = segmentations, of: int = number) -> None:
            output, data = folder / f"{of}_cleaned", find_dataset_description(None, [source])
            postprocess_folder(source, output, data, CleanUp(()), num_processes=1, overwrite=False)

        merge()  # which cleans; the second one reads records alone
        for name, action in (
            ("listing", lambda of=segmentations, data=dataset: segmentation_files(of, data.file_ending)),
            ("planning", lambda of=number: steps_of({**_COHORT, "parts": max(1, of // 10)})),
            ("merging", merge),
        ):
            began = process_time()
            action()
            found[name].append(1000 * (process_time() - began) / number)
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of what is made")
    parser.add_argument("--cases", type=int, default=20, help="knees that are timed")
    parser.add_argument("--listed", type=int, default=1000, help="cases that are listed and merged")
    parser.add_argument("--cohort", type=int, default=9000, help="knees of the table")
    parser.add_argument("--size", type=int, nargs=3, default=(160, 384, 384), help="voxels")
    options = parser.parse_args()
    labels = knees(options.folder, options.cases, tuple(options.size))
    cases = len(list(labels.glob("*.nii.gz")))
    measuring = verb("measure", "-i", labels, "-o", options.folder / "measured", "-np", 1, "--no_reports", "--no_maps")
    read = [timed(sitk.ReadImage, str(file)) for file in labels.glob("*.nii.gz")]
    measured = cpu_seconds(measuring) / cases
    drawn = cpu_seconds(
        verb("simulate", "-o", options.folder / "again", "--phantoms", cases, "--size", *options.size, "-np", 1)
    )
    raw, converting = converted(options.folder / "conversion", cases, list(options.size))
    began = perf_counter()
    again = cpu_seconds(measuring)
    print(f"reading a label map: {shown(read)}; starting a verb: {cpu_seconds(verb('env')):.2f} s CPU")
    print(
        f"measuring again, {cases} cases from their records: {again:.2f} s CPU, {perf_counter() - began:.2f} s in all"
    )
    for name, (few, many) in per_thousand(labels, options.folder, options.listed).items():
        print(f"{name}: {few:.3f} s CPU a thousand cases of {options.listed // 10}, {many:.3f} of {options.listed}")
    rows = []
    folders = {"conversion of DICOM and masks": (raw, converting / cases),
               "simulated images and labels": (options.folder / "again", drawn / cases),
               "measurements": (options.folder / "measured", measured)}  # fmt: skip
    for name, (folder, seconds) in folders.items():
        files = [file for file in folder.rglob("*") if file.is_file()]
        gib = sum(file.stat().st_size for file in files) / 2**30
        numbers = (seconds, options.cohort * seconds / 3600, options.cohort * gib / cases)
        rows.append(
            [Cell(name), *(Cell(f"{of:.2f}") for of in numbers), Cell(str(options.cohort * len(files) // cases))]
        )
    header = ["", "CPU seconds a knee", f"CPU hours of {options.cohort}", "GiB", "files"]
    print(
        Table(
            f"{options.cohort} knees",
            header,
            rows,
            [f"{cases} knees of {' x '.join(map(str, options.size))} voxels were timed."],
        ).markdown()
    )


if __name__ == "__main__":
    main()
