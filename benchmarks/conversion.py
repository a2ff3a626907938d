"""What a conversion costs beside reading, compressing and writing alone, measured side by side in one run.

    python -m benchmarks.conversion --cases 20 --size 160 384 384

A tree as the OAI and OAI ZIB have it is made of phantoms (DICOM series, masks without pose). Every case is converted in
two ways, in turn: the plain way, which reads series and mask with SimpleITK and writes both compressed, and ours,
with everything that is checked. Then the command converts all cases with the given number of processes. Printed are
medians, quartiles, the ratio, and the largest memory of a process.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import SimpleITK as sitk

from benchmarks.timing import shown, timed
from nnunetv2_anomaly.conversion.case import CaseJob, convert_case
from nnunetv2_anomaly.conversion.command import collect_cases, image_lookup
from nnunetv2_anomaly.conversion.release import Options
from nnunetv2_anomaly.conversion.sources import read_series_paths
from nnunetv2_anomaly.dataset_conversion.Dataset501_OAIZIB import RELEASE
from nnunetv2_anomaly.environment import create_nnunet_folders, nnunet_command, nnunet_environment
from nnunetv2_anomaly.labels import BONE_OF_LESION

# The generator of such trees is the tests'.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit" / "conversion"))
from oai_tree import Knee, make_knee, write_visit, write_zib_release

_DISTINCT_KNEES = 4


def make_tree(folder: Path, num_cases: int, size: list[int]) -> None:
    """<folder>/oai and <folder>/zib; a few distinct phantoms take turns."""
    spacing = tuple(extent / n for extent, n in zip((112.0, 140.0, 140.0), size, strict=True))
    knees = []
    for seed in range(min(_DISTINCT_KNEES, num_cases)):
        knee = make_knee(seed, size=tuple(size), spacing_mm=spacing)
        array = sitk.GetArrayFromImage(knee.labels)
        for lesion, bone in BONE_OF_LESION.items():
            array[array == lesion] = bone
        array[array > 4] = 0
        labels = sitk.GetImageFromArray(array)
        labels.CopyInformation(knee.labels)
        knees.append(Knee(knee.image, labels, knee.side))
    release = {}
    for index in range(num_cases):
        subject, knee = str(9_000_001 + index), knees[index % len(knees)]
        series = write_visit(folder / "oai", "00m", subject, knee, with_other_series=False)
        release[subject] = (knee, series.relative_to(folder / "oai" / "00m").as_posix())
    write_zib_release(folder / "zib", release, order=(0, 1, 2), flips=(0,))


def convert_plainly(series: Path, mask: Path, target: Path) -> None:
    """Read a series and a mask, write both compressed; nothing is checked, and the mask's axes stay as they are."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    sitk.WriteImage(reader.Execute(), str(target / "image.nii.gz"), True)
    sitk.WriteImage(sitk.ReadImage(str(mask)), str(target / "labels.nii.gz"), True)


def measure(folder: Path, num_cases: int, num_processes: int) -> None:
    """Measure and print."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    release = folder / "zib" / "segmentation"
    masks = release / "segmentation_masks"
    images_of = image_lookup([folder / "oai"], None, read_series_paths(release / "doc" / "oai_mri_paths.txt"))
    cases = collect_cases(masks, images_of, None, has_visits=False)
    targets = {name: folder / name for name in ("plain", "ours")}
    for place in ("plain", "ours/imagesTr", "ours/labelsTr"):
        (folder / place).mkdir(parents=True)
    options = Options(dataset_dir=targets["ours"])
    plain, ours = [], []
    for case in cases:
        # Once before the clock runs, so that neither way finds the files unread.
        convert_plainly(case.images[0].path, case.label_file, targets["plain"])
        plain.append(timed(convert_plainly, case.images[0].path, case.label_file, targets["plain"]))
        ours.append(timed(convert_case, CaseJob(case, RELEASE, options)))
        problem = convert_case(CaseJob(case, RELEASE, Options(folder, dry_run=True))).problem if not ours[1:] else None
        if problem:
            raise SystemExit(problem)
    print(f"{num_cases} cases, one process, in turn:")
    print(f"  reading, compressing, writing  {shown(plain)}")
    print(f"  conversion                     {shown(ours)}")
    print(f"  ratio of the medians           {np.median(ours) / np.median(plain):.2f}")
    create_nnunet_folders(folder / "nnunet")
    command = [nnunet_command("nnUNetv2_anomaly"), "convert", "oai_zib", "--zib", str(folder / "zib")]
    command += ["--oai", str(folder / "oai"), "-np", str(num_processes)]
    start = perf_counter()
    subprocess.run(command, check=True, env=nnunet_environment(folder / "nnunet"), stdout=subprocess.DEVNULL)
    seconds = perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"The command with -np {num_processes}: {seconds:.1f} s, {seconds / num_cases:.2f} s a case,")
    print(f"  at most {memory:.2f} GiB in a process")


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=3, default=[160, 384, 384], metavar=("X", "Y", "Z"))
    parser.add_argument("-np", "--num_processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the tree is made (default: a temporary folder)")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, SimpleITK {sitk.Version_VersionString()}, {args.size}")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        make_tree(Path(folder), args.cases, args.size)
        measure(Path(folder), args.cases, args.num_processes)


if __name__ == "__main__":
    main()
