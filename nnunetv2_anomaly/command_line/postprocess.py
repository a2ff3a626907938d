"""``nnUNetv2_anomaly postprocess``: the paper's clean-up of predictions."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_anomaly.parts import add_part_arguments, part_of
from nnunetv2_anomaly.postprocessing.arguments import add_clean_up_arguments, clean_up_of, described

HELP = "Remove stray parts of bones and cartilages, and lesions that are too small or too uncertain."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add("-i", type=Path, required=True, metavar="FOLDER", help="predictions")
    add("-o", type=Path, required=True, metavar="FOLDER", help="output; run again to resume")
    add("-djfile", type=Path, metavar="FILE", help="dataset.json (default: the one beside the predictions)")
    add("-np", type=int, metavar="N", help="cases at a time (default: the number of cores, at most 4)")
    add("--overwrite", action="store_true", help="replace what was cleaned with other settings")
    add_part_arguments(parser, "run again without parts, it writes removed.csv")
    add_clean_up_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Clean the predictions. Returns: 0."""
    from nnunetv2_anomaly.errors import UserError, counted
    from nnunetv2_anomaly.images.dataset_description import find_dataset_description, segmentation_files
    from nnunetv2_anomaly.images.label_maps import note_of_floats
    from nnunetv2_anomaly.parallel import chosen_processes
    from nnunetv2_anomaly.postprocessing.run import postprocess_folder

    if not args.i.is_dir():
        raise UserError(f"{args.i} is no folder; expected one with predictions")
    dataset = find_dataset_description(args.djfile, [args.i])
    clean_up, num_processes = clean_up_of(args, dataset), chosen_processes(args.np)
    print(described(clean_up, dataset))
    for note in note_of_floats(segmentation_files(args.i, dataset.file_ending).values()):
        print(note)
    options = {"num_processes": num_processes, "overwrite": args.overwrite, "part": part_of(args)}
    table = postprocess_folder(args.i, args.o, dataset, clean_up, **options)
    for note in clean_up.without_effect(table):
        print(f"WARNING: {note}")
    touched = table[(table["removed_components"] > 0) | (table["uncertain_voxels"] > 0)]
    counts = f"{counted(table['case'].nunique(), 'case')} cleaned, {touched['case'].nunique()} changed"
    listed = f"{args.o / 'removed.csv'} lists what was removed"
    print(f"{counts}; {listed if args.num_parts == 1 else 'run again without -num_parts when all parts are done'}")
    return 0
