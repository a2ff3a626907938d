"""nnUNetv2_anomaly simulate: knees with a known truth, from label maps or from nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_anomaly.errors import UserError, counted
from nnunetv2_anomaly.label_roles import label_roles, taken_as
from nnunetv2_anomaly.labels import ANATOMY, LABELS

HELP = "Simulate DESS-like knee images with known lesions, from label maps, from phantoms, or both."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add, axes = parser.add_argument, ("X", "Y", "Z")
    add("-o", "--output", type=Path, required=True, help="folder to write; an earlier run is resumed")
    add("-i", "--labels", type=Path, help="folder of label maps (NIfTI, MetaImage, NRRD), values 0 to 9")
    add("--phantoms", type=int, default=0, metavar="N", help="number of procedural knees (default: 0)")
    size = "voxels, SimpleITK order x y z: x across the sagittal slices, y to anterior, z to superior (default: as "
    add("--size", type=int, nargs=3, metavar=axes, help=f"{size}the label map; phantoms 160 384 384)")
    spacing = "mm, same order x y z; size or spacing alone keeps the field of view, both together cut or pad label "
    spacing += "maps about their centre (default: as the label map; phantoms 0.7 0.3646 0.3646)"
    add("--spacing", type=float, nargs=3, metavar=axes, help=spacing)
    add("--seed", type=int, default=0, metavar="S", help="of all randomness (default: 0)")
    lesions = "mean number per knee of lesions that are in the image and the truth, not in the labels (default: 0)"
    kinds = "put a lesion with half-axes of 12 to 20 mm (patella: 6 to 9) into every bone: as bright as usual (large), "
    kinds += "nearly as bright as cartilage, or dark; in image and truth alone (default: none)"
    add("--stress", choices=("large", "bright", "dark"), help=kinds)
    add("--extra_lesions", type=float, default=0.0, metavar="K", help=lesions)
    add("-np", "--num_processes", type=int, default=2, metavar="N", help="cases at a time (default: 2)")
    add = parser.add_argument_group("nnU-Net raw data set, written on top of it with -d").add_argument
    add("-d", "--dataset_id", type=int, metavar="ID", help="write it into $nnUNet_raw as number ID")
    add("--name", default="SimulatedKnees", help="its name after the number (default: %(default)s)")
    add("--num_test", type=int, metavar="N", help="test cases (default: a fifth of the cases)")
    split = "validation cases of a single split that is written for it (default: nnU-Net's own five folds)"
    add("--num_val", type=int, metavar="N", help=split)
    keep = "training labels 0 to 9; without it lesions count as bone"
    add("--keep_lesion_labels", action="store_true", help=keep)


def run(args: argparse.Namespace) -> int:
    """Simulate, and with -d write the data set as well; returns 0."""
    if args.dataset_id is None:
        if args.num_test is not None or args.num_val is not None or args.keep_lesion_labels:
            given = "--num_test, --num_val and --keep_lesion_labels"
            raise UserError(f"{given} shape the nnU-Net data set; give its number with -d")
        target = None
    else:
        from nnunetv2_anomaly.dataset_conversion import Dataset500_SimulatedKnees as data_set

        # Before the work begins, so that a taken number is reported at once.
        target = data_set.checked_dataset_dir(args.dataset_id, args.name)
    from nnunetv2_anomaly.simulation.simulate import simulate_folder

    roles = label_roles(LABELS)
    lesions = [f"{lesion} in {bone}" for lesion, bone in roles.lesions.items()]
    anatomy = [name for name in ANATOMY if name != "background"]
    print(taken_as({"lesions": lesions, "bones": roles.bones, "anatomy": anatomy}))
    options = {name: getattr(args, name) for name in ("size", "seed", "extra_lesions", "stress", "num_processes")}
    options |= {"labels_folder": args.labels, "num_phantoms": args.phantoms, "spacing_mm": args.spacing}
    manifest = simulate_folder(args.output, **options)
    print(f"Wrote {counted(len(manifest['cases']), 'knee')} to {args.output}; overview.png shows some of them.")
    if target is not None:
        shape = {name: getattr(args, name) for name in ("num_test", "seed", "keep_lesion_labels")}
        summary = data_set.convert(args.output, target, **shape)
        if args.num_val is not None:
            data_set.write_split(target, args.num_val)
        print(f"Wrote {target}: {len(summary['training'])} training and {counted(len(summary['test']), 'test case')}.")
    return 0
