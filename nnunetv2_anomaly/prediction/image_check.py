"""Which images of a folder can be predicted: nnUNetv2_predict ends at the first that it cannot read."""

from __future__ import annotations

import bisect
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

from nnunetv2_anomaly.environment import environment_folder
from nnunetv2_anomaly.errors import CasesFailedError
from nnunetv2_anomaly.files import read_json, write_failures_as_user_errors
from nnunetv2_anomaly.parallel import run_cases
from nnunetv2_anomaly.parts import ALL, Part
from nnunetv2_anomaly.plans.dataset_name import dataset_name
from nnunetv2_anomaly.prediction.cases import CaseFiles, list_cases, read_case


@dataclass(frozen=True)
class _Job:
    files: CaseFiles
    reader: type[BaseReaderWriter]
    num_channels: int

    @property
    def case(self) -> str:
        return self.files.case


def link_readable_images(
    images: Path, output: Path, dataset: str, *, plans: str, num_processes: int, part: Part = ALL
) -> list[str]:
    """Read every image of a folder, and link those into another that nnU-Net can predict.

    It can if all files of an image are there and readable, on one grid, with as many channels as the data set's, and
    hold finite intensities alone.

    Args:
        images: named as nnU-Net wants them.
        output: gets the links; those of an earlier run are taken away first.
        dataset: number or name, planned: dataset.json and plans are in nnUNet_preprocessed.
        plans: their name; they say which reader nnU-Net uses.
        num_processes: cases at a time, each of which takes twice the memory of an image.
        part: of the cases, while other jobs link the others elsewhere.
    Returns: the cases that are linked.
    Raises: UserError for a folder without images, a data set without plans, or links that cannot be made;
        CasesFailedError that lists the cases that are left out.
    """
    folder = environment_folder("nnUNet_preprocessed") / dataset_name(dataset)
    description = read_json(folder / "dataset.json")
    reader = recursive_find_reader_writer_by_name(read_json(folder / f"{plans}.json")["image_reader_writer"])
    num_channels = len(description["channel_names" if "channel_names" in description else "modality"])
    jobs = [_Job(files, reader, num_channels) for files in part.of(list_cases(images, description["file_ending"]))]
    readable, failed = run_cases(_read, jobs, num_processes, "reading images", "read")
    with write_failures_as_user_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        for earlier in filter(Path.is_symlink, output.iterdir()):
            earlier.unlink()
        names = sorted(os.listdir(images))
        for name in (name for job in jobs if job.case in readable for name in _files_of(job.case, names)):
            (output / name).symlink_to(os.path.abspath(images / name))
    if failed:
        raise CasesFailedError(failed)
    return sorted(readable)


def _read(job: _Job) -> None:
    read_case(job.reader(), job.files, job.num_channels)


def _files_of(case: str, names: Sequence[str]) -> Iterator[str]:
    """A case's images, and what some formats keep beside them: CASE_0000.raw, or CASE.json with a TIFF's spacing.

    Args: names: of the folder, sorted.
    """
    for name in itertools.takewhile(lambda name: name.startswith(case), names[bisect.bisect_left(names, case) :]):
        if re.fullmatch(r"(_\d{4})?\.[^/]+", name[len(case) :]):
            yield name
