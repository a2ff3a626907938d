"""From parsed options to a run, for every release."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_anomaly.conversion import sources
from nnunetv2_anomaly.conversion.raw_dataset import dataset_folder
from nnunetv2_anomaly.conversion.release import Case, Options, Release
from nnunetv2_anomaly.conversion.run import convert_cases
from nnunetv2_anomaly.conversion.sources import BASELINE, ImageSource
from nnunetv2_anomaly.conversion.splits import read_test_sets
from nnunetv2_anomaly.conversion.subjects import SubjectTable, read_subjects
from nnunetv2_anomaly.conversion.summary import described, described_failures
from nnunetv2_anomaly.environment import environment_folder
from nnunetv2_anomaly.errors import CasesFailedError, UserError, counted, listed
from nnunetv2_anomaly.files import write_failures_as_user_errors
from nnunetv2_anomaly.images.files import image_stem
from nnunetv2_anomaly.images.label_maps import note_of_floats


def run_conversion(args: argparse.Namespace, release: Release, cases: Sequence[Case]) -> int:
    """Convert, and print what came of it; returns 0.

    Raises: UserError for options that contradict each other, and as ``convert_cases``; CasesFailedError for cases that
        failed or differ from what is there.
    """
    if args.num_processes < 1 or args.seed < 0:
        wrong = f"-np is {args.num_processes} and --seed {args.seed}"
        raise UserError(f"{wrong}; expected at least 1 process, seed 0 or more")
    if args.reference and args.mirror_left:
        raise UserError(
            "--reference leaves the images as they are, and --mirror_left mirrors them; give one of the two"
        )
    if args.reference and getattr(args, "oai", None):
        raise UserError("--reference refers to NIfTI files, and --oai gives DICOM series; give --images instead")
    folder = dataset_folder(args.dataset_id, args.name)
    given = {key: value for key, value in vars(args).items() if not callable(value)}
    names = {field.name for field in dataclasses.fields(Options)}
    options = Options(
        dataset_dir=folder,
        splits_dir=environment_folder("nnUNet_preprocessed") / folder.name,
        test_sets=read_test_sets(args.splits) if args.splits else None,
        series_uids=frozenset(given.get("series", ())),
        **{name: value for name, value in given.items() if name in names},
    )
    # A case that cannot be written is in the summary; this is for the tables.
    advice = "what was finished stays; make room, or check the permissions, and run again"
    with write_failures_as_user_errors(folder, advice):
        summary = convert_cases(release, cases, options, given)
    summary.notes += note_of_floats(case.label_file for case in cases if case.problem is None)
    unknown = [case.name for case in cases if case.known is None]
    if getattr(args, "subjects", None) and unknown:
        summary.notes.append(f"{args.subjects} has no line for {counted(len(unknown), 'case')}: {listed(unknown)}.")
    sides = {name: row["side"] for name, row in summary.rows.items()}
    either = [case.name for case in cases if case.knees and sides.get(case.name) == ""]
    if either:
        note = f"{args.subjects} has lines by knee, and nothing says which knee is in {counted(len(either), 'case')}"
        summary.notes.append(f"{note}, so that their grades stay unknown: {listed(either)}.")
    print(described(summary, options), flush=True)
    if failed := described_failures(summary):
        raise UserError(failed) if summary.faults else CasesFailedError(failed)
    return 0


def convert_oai(args: argparse.Namespace, release: Release, labels: Path | None, *, has_visits: bool = False) -> int:
    """Convert masks of subjects of the OAI, whose images are in its packages or were converted before.

    A subject's series is that of OAI ZIB's list, which masks without pose need, else the visit's DESS series on the
    mask's grid.

    Args: labels: folder of the masks, if one was given. has_visits: whether the masks' names hold the visit.
    Returns: 0. Raises: UserError for sources that are missing, and as ``run_conversion``.
    """
    if labels is None:
        raise UserError("Give the segmentations: their folder with --labels DIR, or the release with --zib DIR")
    subjects = read_subjects(args.subjects) if args.subjects else None
    series_paths = None
    if args.images is None and hasattr(args, "paths"):
        file = args.paths or sources.find_series_paths_file(folder for folder in (args.zib, args.labels) if folder)
        if file is not None:
            series_paths = sources.read_series_paths(file)
        elif subjects:
            series_paths = subjects.series_paths() or None
        if series_paths is None and not release.has_pose:
            fault = f"{args.zib or args.labels} is no folder of a release with an oai_mri_paths.txt"
            raise UserError(f"{fault}; give this list with --paths, or a table with a column Path with --subjects")
    images_of = image_lookup(args.oai, args.images, series_paths)
    return run_conversion(args, release, collect_cases(labels, images_of, subjects, has_visits=has_visits))


def image_lookup(
    oai: Sequence[Path] | None, images: Path | None, series_paths: dict[str, str] | None
) -> Callable[[str, str], list[ImageSource]]:
    """A function from subject and visit to the images that may be its own; it raises UserError where there is none.

    Args: series_paths: subject -> path of the baseline series; None to look through all series of the visit.
    """
    if images is not None:
        return sources.ImageFolder(images).images_of
    packages = sources.OaiPackages(oai or ())
    if series_paths is None:
        return packages.series_of_visit

    def listed(subject: str, visit: str) -> list[ImageSource]:
        if subject not in series_paths:
            raise UserError(f"subject {subject} is not in the list of series; expected a line '{subject}: path'")
        return [packages.series_at(series_paths[subject])]

    return listed


def collect_cases(
    folder: Path, images_of: Callable[[str, str], list[ImageSource]], subjects: SubjectTable | None, *, has_visits: bool
) -> list[Case]:
    """A case for every label map of a folder, by the subject in its name, and the visit where it has one.

    Returns: cases, sorted; one without an image, or without a subject in its name, has a ``problem``.
    Raises: UserError if the folder is missing or holds no label map.
    """
    cases = []
    for file in sources.label_files(folder):
        subject, visit = sources.subject_of(file), sources.visit_of(file) if has_visits else BASELINE
        relative = file.relative_to(folder).as_posix()
        if subject is None or visit is None:
            expected = "9001104_36m_..." if has_visits else "9001104..."
            problem = f"{relative} does not name its {'subject' if subject is None else 'visit'}; expected {expected}"
            cases.append(Case(file.name, subject or "", visit, file, relative, problem=problem))
            continue
        more: dict[str, Any] = {}
        if subjects:
            more = {"known": subjects.get(subject, visit), "knees": subjects.knees(subject, visit)}
        try:
            more["images"] = tuple(images_of(subject, visit))
        except UserError as error:
            more["problem"] = str(error)
        name = f"{subject}_{visit}" if has_visits else subject
        cases.append(Case(name, subject, visit, file, relative, **more))
    return sorted(cases, key=lambda case: case.name)


def collect_pairs(images: Path, labels: Path, *, is_test: bool, root: Path | None = None) -> list[Case]:
    """A case for every label map of one folder, with the image of the same name in the other.

    Args: root: paths in the manifest are relative to it; None for the two folders themselves.
    Raises: UserError if a folder is missing, or there is no label map.
    """
    named: dict[str, list[Path]] = {}
    for file in sources.image_files(images):
        named.setdefault(re.sub(r"_0000$", "", image_stem(file)), []).append(file)
    cases = []
    for file in sources.label_files(labels):
        name = image_stem(file)
        found = named.pop(name, [])
        there = tuple(ImageSource(path, path.relative_to(root or images).as_posix(), False) for path in found)
        relative = file.relative_to(root or labels).as_posix()
        problem = None if found else f"no image in {images}; expected {name}_0000.nii.gz, as in the release"
        cases.append(Case(name, name, None, file, relative, there, is_test, problem=problem))
    for name, found in sorted(named.items()):
        problem = f"no label map in {labels}; expected {name}.nii.gz, as in the release"
        cases.append(Case(name, name, None, found[0], found[0].name, is_test=is_test, problem=problem))
    return cases
