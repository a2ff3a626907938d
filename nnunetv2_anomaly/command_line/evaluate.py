"""``nnUNetv2_anomaly evaluate``: the paper's metrics, lesion detection, statistics, tables, figures and a report."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_anomaly.parts import add_part_arguments, part_of
from nnunetv2_anomaly.postprocessing.arguments import add_clean_up_arguments, clean_up_of, described

if TYPE_CHECKING:
    from nnunetv2_anomaly.evaluation.groups import Groups
    from nnunetv2_anomaly.evaluation.pairing import Pairs

HELP = "Compare predictions of one or several models with the references: tables, tests, figures, report.html."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    predictions = "predictions of a model, or nnU-Net's results folder TRAINER__PLANS__CONFIGURATION, whose folds' "
    predictions += "validation is gathered; several models one after another, the first is the baseline of the tests"
    names = ("-pred", "-pred2")
    add(*names, nargs="+", action="extend", required=True, metavar="[NAME=]FOLDER", help=predictions)
    add("-ref", type=Path, metavar="FOLDER", help="references (default: those of a results folder's data set)")
    add("-o", type=Path, required=True, metavar="FOLDER", help="where everything goes; run again to continue")
    described = "dataset.json (default: the one beside the predictions, or the references)"
    add("-djfile", type=Path, metavar="FILE", help=described)
    add("-np", type=int, metavar="N", help="cases at a time (default: the number of cores, at most 4)")
    add_part_arguments(parser, "run again without parts, it writes tables, figures and report")
    add("--folds", nargs="+", metavar="FOLD", help="cases of these folds alone (default: all)")
    splits = "splits_final.json, which has each case's fold (default: of the data set)"
    add("--splits", type=Path, metavar="FILE", help=splits)
    subjects = "table with a column case or SubjectID, by which cases are grouped"
    add("--subjects", type=Path, metavar="CSV", help=subjects)
    column = "its column (default: KLGrade, Kellgren-Lawrence)"
    add("--group_by", default="KLGrade", metavar="COLUMN", help=column)
    limit = "up to it is one group, above another (default: 2 for KLGrade, else every value is a group)"
    add("--group_limit", type=number, metavar="X", help=limit)
    missing = "what a distance is where a label is missing from just one of the two maps: the image's diagonal, or "
    missing += "nothing; tables count them either way (default: diagonal)"
    add("--missing", choices=("diagonal", "exclude"), default="diagonal", help=missing)
    add("--ignore_extra", action="store_true", help="leave predictions without a reference alone")
    missing = "leave cases out of which a model has no prediction, and name them at the end, with status 3; by default "
    missing += "that is an error, and nothing is evaluated"
    add("--ignore_missing", action="store_true", help=missing)
    add("--without_probabilities", action="store_true", help="do not read softmax outputs for the lesions' ROC")
    add("--images", type=Path, metavar="FOLDER", help="images, CASE_0000, for the pictures in the report")
    surfaces = "signed surface distances, and maps of the differences of cartilage thickness, which need vtk"
    add("--surfaces", action="store_true", help=surfaces)
    error_images = "error images, CASE_error.nii.gz, as anomaly_maps writes them, for the pictures"
    add("--error_images", type=Path, metavar="FOLDER", help=error_images)
    add_clean_up_arguments(parser)


def number(text: str) -> float:
    """A finite number; argparse names this function where a text is none."""
    if not math.isfinite(found := float(text)):
        raise argparse.ArgumentTypeError(f"{text} is no finite number; give one, such as 2")
    return found


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns 0."""
    from nnunetv2_anomaly.errors import CasesFailedError, counted
    from nnunetv2_anomaly.evaluation.case import EvaluationSettings
    from nnunetv2_anomaly.evaluation.pairing import find_pairs, named_folders
    from nnunetv2_anomaly.evaluation.run import evaluate_models, prepare_output, write_evaluation
    from nnunetv2_anomaly.evaluation.surfaces import evaluate_surfaces
    from nnunetv2_anomaly.images.beside import ERROR_IMAGE, IMAGE, check_beside
    from nnunetv2_anomaly.images.dataset_description import find_dataset_description
    from nnunetv2_anomaly.images.segmentations import chosen_reader
    from nnunetv2_anomaly.measurements.meshes import load_vtk
    from nnunetv2_anomaly.parallel import chosen_processes

    num_processes = chosen_processes(args.np)
    if args.surfaces:
        load_vtk()
    folders = named_folders(args.pred)
    dataset = find_dataset_description(args.djfile, list(folders.values()), args.ref)
    clean_up = clean_up_of(args, dataset)
    print(described(clean_up, dataset))
    of = {"reference_folder": args.ref, "folds": args.folds, "splits_file": args.splits}
    pairs = find_pairs(folders, dataset, **of, ignore_extra=args.ignore_extra, ignore_missing=args.ignore_missing)
    cases = list(pairs.references)
    check_beside("--images", args.images, cases, IMAGE, dataset.file_ending)
    check_beside("--error_images", args.error_images, cases, ERROR_IMAGE, dataset.file_ending)
    groups = _groups(args, cases)
    settings = EvaluationSettings(
        dataset=dataclasses.replace(dataset, reader=chosen_reader(dataset, pairs.files)),
        clean_up=clean_up,
        missing=args.missing,
        with_probabilities=not (args.without_probabilities or dataset.has_regions),
    )
    notes = _notes(pairs, groups, args.subjects)
    for note in notes:
        print(note)
    given = {name: value for name, value in vars(args).items() if name != "run"}
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    part = part_of(args)
    prepare_output(args.o, arguments, part)
    evaluation, failed = evaluate_models(pairs, args.o, settings, groups=groups, num_processes=num_processes, part=part)
    if not part.is_all:
        if failed:
            raise CasesFailedError(failed)
        print("run again without -num_parts when all parts are done")
        return 0
    for note in clean_up.without_effect(evaluation.cases):
        notes.append(f"{note}.")
        print(f"WARNING: {note}")
    notes += [f"Left out: {failed}"] if failed else []
    pairs = pairs.only(set(evaluation.cases["case"]))
    surfaces = (pairs, settings.dataset, args.o, num_processes)
    sections, without = evaluate_surfaces(*surfaces) if args.surfaces else ([], "")
    report = write_evaluation(
        args.o, evaluation, pairs, settings, arguments,
        images=args.images, error_images=args.error_images, notes=notes, more_sections=sections,
    )  # fmt: skip
    if failures := "\n".join(filter(None, (failed, without, pairs.without))):
        raise CasesFailedError(failures)
    print(f"{counted(len(cases), 'case')} of {counted(len(pairs.models), 'model')}; tables, figures and {report}")
    return 0


def _groups(args: argparse.Namespace, cases: Sequence[str]) -> Groups | None:
    """The groups of the cases, if a table is given. Raises: UserError for options of a table without one."""
    from nnunetv2_anomaly.errors import UserError
    from nnunetv2_anomaly.evaluation.groups import KL_COLUMN, read_groups

    if args.subjects is not None:
        return read_groups(args.subjects, cases, column=args.group_by, limit=args.group_limit)
    if args.group_by != KL_COLUMN or args.group_limit is not None:
        raise UserError("--group_by and --group_limit are of a table; give it with --subjects")
    return None


def _notes(pairs: Pairs, groups: Groups | None, subjects: Path | None) -> list[str]:
    """Sentences for the report's beginning: of the pairs, of labels stored as floats, of cases without a group."""
    from nnunetv2_anomaly.errors import counted
    from nnunetv2_anomaly.images.label_maps import note_of_floats

    predictions = (file for model in pairs.models for file in model.files.values())
    notes = [*pairs.notes, *note_of_floats([*pairs.references.values(), *predictions])]
    if groups is not None and groups.without:
        without = counted(len(groups.without), "case")
        notes.append(f"No {groups.column} in {subjects} for {without}, in no group.")
    return notes
