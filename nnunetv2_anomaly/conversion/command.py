"""From parsed options to a run, for every release."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nnunetv2_anomaly.conversion.arguments import COMMANDS, add_arguments
from nnunetv2_anomaly.conversion.raw_dataset import dataset_folder
from nnunetv2_anomaly.conversion.release import Case, Options, Release
from nnunetv2_anomaly.conversion.run import convert_cases, told
from nnunetv2_anomaly.conversion.sources import (
    BASELINE,
    ImageFolder,
    ImageSource,
    OaiPackages,
    find_series_paths_file,
    label_files,
    read_series_paths,
    subject_of,
    visit_of,
)
from nnunetv2_anomaly.conversion.splits import read_test_sets
from nnunetv2_anomaly.conversion.subjects import SubjectTable, read_subjects
from nnunetv2_anomaly.environment import environment_folder
from nnunetv2_anomaly.errors import UserError


def run_conversion(args: argparse.Namespace, release: Release, cases: Sequence[Case]) -> int:
    """Convert, and print what came of it; returns 0, or 1 if a case failed."""
    if args.num_processes < 1 or args.seed < 0:
        raise UserError(
            f"-np is {args.num_processes} and --seed {args.seed}; expected at least 1 process, seed 0 or more."
        )
    if args.reference and args.mirror_left:
        raise UserError("--reference leaves the images as they are, and --mirror_left turns them; give one of the two.")
    if args.reference and getattr(args, "oai", None):
        raise UserError("--reference points to NIfTI files, and --oai gives DICOM series; give --images instead.")
    folder = dataset_folder(args.dataset_id, args.name)
    options = Options(
        dataset_dir=folder,
        mirror_left=args.mirror_left,
        reference=args.reference,
        previews=args.previews,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        series_uids=frozenset(getattr(args, "series", ())),
    )
    given = {key: value for key, value in vars(args).items() if not callable(value)}
    try:
        summary = convert_cases(
            release,
            cases,
            options,
            splits_dir=environment_folder("nnUNet_preprocessed") / folder.name,
            test_sets=read_test_sets(args.splits) if args.splits else None,
            seed=args.seed,
            num_processes=args.num_processes,
            differing_mappings=getattr(args, "differing_mappings", False),
            arguments=given,
        )
    except OSError as error:  # of the tables; a case that cannot be written is in the summary
        raise UserError(
            f"{error}; what was finished before stays: make room, or see to the permissions, and run again."
        ) from error
    unknown = [case.name for case in cases if case.known is None]
    if getattr(args, "subjects", None) and unknown:
        summary.notes.append(f"{args.subjects} has no line for {len(unknown)} cases: {', '.join(unknown)}.")
    print(told(summary, options), flush=True)
    return 1 if summary.problems or summary.faults else 0


def main_of(command: str, run: Callable[[argparse.Namespace], int], argv: Sequence[str] | None) -> int:
    """A conversion's own command: parse, run; a user's mistake is one sentence and status 1."""
    parser = argparse.ArgumentParser(description=COMMANDS[command].help)
    add_arguments(parser, command)
    args = parser.parse_args(argv)
    try:
        return run(args)
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


def image_lookup(
    oai: Sequence[Path] | None, images: Path | None, series_paths: dict[str, str] | None
) -> Callable[[str, str], list[ImageSource]]:
    """A function from subject and visit to the images that may be its own; it raises UserError where there is none.

    Args:
        oai: roots of OAI's packages; or
        images: a folder of converted images.
        series_paths: subject -> path of the baseline series; None to look through all series of the visit.

    Raises: UserError unless just one of the two is given and there.
    """
    if (oai is None) == (images is None):
        raise UserError("Give the images: OAI's packages with --oai DIR, or converted ones with --images DIR.")
    if images is not None:
        return ImageFolder(images).images_of
    packages = OaiPackages(oai)
    if series_paths is None:
        return packages.series_of_visit

    def listed(subject: str, visit: str) -> list[ImageSource]:
        if subject not in series_paths:
            raise UserError(f"subject {subject} is not in the list of series; expected a line '{subject}: path'.")
        return [packages.series_at(series_paths[subject])]

    return listed


def collect_cases(
    folder: Path,
    images_of: Callable[[str, str], list[ImageSource]],
    subjects: SubjectTable | None,
    *,
    has_visits: bool,
) -> list[Case]:
    """A case for every label map of a folder, by the subject in its name.

    Args:
        folder: of the label maps.
        images_of: as from ``image_lookup``.
        subjects: the subject table.
        has_visits: whether the names tell a visit; otherwise all are of the baseline.

    Returns: cases, sorted; one that has no image, or no subject in its name, tells so.

    Raises: UserError if the folder is missing or holds no label map.
    """
    cases = []
    for file in label_files(folder):
        subject, visit = subject_of(file), visit_of(file) if has_visits else BASELINE
        relative = file.relative_to(folder).as_posix()
        if subject is None or visit is None:
            expected = "9001104_36m_..." if has_visits else "9001104..."
            problem = f"{relative} does not tell its {'subject' if subject is None else 'visit'}; expected {expected}."
            cases.append(Case(file.name, subject or "", visit, file, relative, problem=problem))
            continue
        case = Case(
            name=f"{subject}_{visit}" if has_visits else subject,
            subject=subject,
            visit=visit,
            label_file=file,
            label_relative=relative,
            known=subjects.get(subject, visit) if subjects else None,
        )
        try:
            case = dataclasses.replace(case, images=tuple(images_of(subject, visit)))
        except UserError as error:
            case = dataclasses.replace(case, problem=str(error))
        cases.append(case)
    return sorted(cases, key=lambda case: case.name)


def given_subjects(args: argparse.Namespace) -> SubjectTable | None:
    """The subject table, if one was given."""
    return read_subjects(args.subjects) if args.subjects else None


def given_series_paths(args: argparse.Namespace, subjects: SubjectTable | None) -> dict[str, str] | None:
    """Subject -> path of the baseline series, from --paths, the release, or the subject table; None if none tells."""
    file = args.paths or find_series_paths_file(folder for folder in (args.zib, args.labels) if folder)
    if file is not None:
        return read_series_paths(file)
    return (subjects.series_paths() or None) if subjects else None
