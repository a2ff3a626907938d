"""Mask R-CNN on simulated anatomy beside nnU-Net 2d at equal processor time: ``python -m benchmarks.mask_rcnn_chain``.

By stock commands, in a folder where an interrupted run resumes: simulated images of label maps, whole slices, training,
prediction, export to a zip, installation elsewhere, prediction again. DSC of the test knees label by label, and whether
both predictions are the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from benchmarks.equal_time import SECONDS
from nnunetv2_anomaly.environment import TRAINER_VARIABLE, create_nnunet_folders, nnunet_environment
from nnunetv2_anomaly.files import read_json, write_text
from nnunetv2_anomaly.measurements.surface import evaluate_case
from nnunetv2_anomaly.plans.settings import SECTION
from nnunetv2_anomaly.workflows.engine import run_steps
from nnunetv2_anomaly.workflows.steps import Dataset, Step, plan_step, preprocess_step, step, train_step

NUMBER, DATASET = "531", "Dataset531_Slices"
WHOLE, PLANS = "nnUNetWholeSlicePlans", "nnUNetChainPlans"
TRAINERS = {
    "improved": "EqualTimeIMaskRCNNTrainer",
    "nnunet": "EqualTimeNNUNetTrainer",
    "plain": "EqualTimeMaskRCNNTrainer",
}
_SPENT = re.compile(r"(\d+) steps in (\d+) s of processor time")


def configurations(options: argparse.Namespace) -> dict[str, dict]:
    """Name -> what a network's configuration changes."""
    common = {"num_epochs": options.epochs, "num_val_iterations_per_epoch": 2, "seed": 0}
    slices = {"mask_rcnn_backbone": "small", "mask_rcnn_weights": "none", "mask_rcnn_features": options.features}
    slices |= {"mask_rcnn_size": None, "mask_rcnn_boxes": options.boxes}
    own = {"nnunet": {}, "improved": slices, "plain": slices}
    return {
        f"2d_{name}": {"inherits_from": "2d", SECONDS: options.seconds, SECTION: {**common, **own[name]}}
        for name in options.networks
    }


def preparation(folder: Path, options: argparse.Namespace) -> list[Step]:
    """Images, plans and preprocessed slices; batches of four slices for nnU-Net. Writes what the plans change."""
    data = data_set(folder)
    changes = {"configurations": {"2d": {"batch_size": 4}, **configurations(options)}}
    write_text(folder / "changes.json", json.dumps(changes, indent=1))
    words = ["-i", options.labels, "-o", folder / "simulated", "--size", *options.size, "-d", NUMBER, "--name"]
    words += ["Slices", "--num_test", options.test, "--num_val", 1, "-np", 1]
    simulated = step("simulate", ["nnUNetv2_anomaly", "simulate", *words], "convert", makes=data.described)
    planned = plan_step(data)
    whole = ["nnUNetv2_anomaly", "plan_whole_image", "-d", NUMBER, "-c", "2d"]
    changed = ["nnUNetv2_anomaly", "change_plans", "-d", NUMBER, "-p", WHOLE, "-o", PLANS, folder / "changes.json"]
    slices = step("plan_whole", whole, "plan", needs=(planned.output,), makes=data.plans(WHOLE))
    own = step("change_plans", changed, "plan", needs=(slices.output,), makes=data.plans(PLANS))
    return [simulated, planned, slices, own, preprocess_step(data, PLANS, "2d", 1)]


def of_network(folder: Path, name: str, ready: Step) -> list[Step]:
    """Training, prediction, export, installation elsewhere, prediction there."""
    data, trainer, out = data_set(folder), TRAINERS[name], folder / "predictions"
    archive, there = folder / f"{name}.zip", f"nnUNet_results={shlex.quote(str(folder / 'elsewhere'))} "
    model = ["-d", NUMBER, "-p", PLANS, "-c", f"2d_{name}", "-tr", trainer, "-f", "0"]
    predict = ["nnUNetv2_predict", "-i", data.raw / "imagesTs", *model, "-device", "cpu", "-npp", 1, "-nps", 1, "-o"]
    model_of = (trainer, PLANS, f"2d_{name}")
    # Without worker processes a seed gives one result; nnU-Net's planning cannot do without.
    train = train_step(data, model_of, "0", "cpu", ready)
    train = replace(train, name=f"train_{name}", command=f"nnUNet_n_proc_DA=0 {train.command}")
    words = ["nnUNetv2_export_model_to_zip", *model, "-o", archive]
    exported = step(f"export_{name}", words, "report", needs=(train.output,), makes=str(archive))
    install = step(f"install_{name}", ["nnUNetv2_install_pretrained_model_from_zip", archive], "convert")
    again = step(f"again_{name}", [*predict, out / f"{name}_again"], "predict")
    return [
        train,
        step(f"predict_{name}", [*predict, out / name], "predict", needs=(train.output,)),
        exported,
        replace(install, command=there + install.command, needs=(exported.output,)),
        replace(again, command=there + again.command, needs=(install.output,)),
    ]


def data_set(folder: Path) -> Dataset:
    """The slices in nnU-Net's folders."""
    return Dataset.below(folder, DATASET)


def report(folder: Path, options: argparse.Namespace) -> list[str]:
    """Lines of the table: DSC of each label, mean over the test knees, steps, seconds, same bytes."""
    references = folder / "nnUNet_raw" / DATASET / "labelsTs"
    names = read_json(folder / "nnUNet_raw" / DATASET / "dataset.json")["labels"]
    labels = {name: value for name, value in names.items() if value}
    lines = [f"| network | {' | '.join(labels)} | steps | s of the processor | again the same bytes |"]
    lines.append("|---" * (len(labels) + 4) + "|")
    for name in options.networks:
        predictions, dsc = folder / "predictions" / name, []
        for file in sorted(references.glob("*.nii.gz")):
            images = [sitk.ReadImage(str(of / file.name)) for of in (references, predictions)]
            maps = [sitk.GetArrayFromImage(image).astype(np.uint8) for image in images]
            found = evaluate_case(*maps, images[0].GetSpacing()[::-1], list(labels.values()))
            dsc.append([found[value]["dsc"] for value in labels.values()])
        again = [predictions.with_name(f"{name}_again") / file.name for file in predictions.glob("*.nii.gz")]
        same = all(file.read_bytes() == (predictions / file.name).read_bytes() for file in again)
        model = folder / "nnUNet_results" / DATASET / f"{TRAINERS[name]}__{PLANS}__2d_{name}" / "fold_0"
        steps, seconds = _SPENT.findall(max(model.glob("training_log_*")).read_text())[-1]
        numbers = " | ".join(f"{value:.3f}" for value in np.nanmean(dsc, axis=0))
        lines.append(f"| {name} | {numbers} | {steps} | {seconds} | {'yes' if same else 'no'} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run what is left of the chain, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="gets data, nnU-Net's folders, predictions, logs")
    add("--labels", required=True, metavar="FOLDER", help="label maps to simulate images of")
    add("--size", nargs=3, default=["40", "128", "128"], metavar="N", help="voxels (default: 40 128 128)")
    add("--test", type=int, default=3, metavar="N", help="test knees (default: 3)")
    add("--seconds", type=float, default=600, help="of the processor for each training (default: 600)")
    add("--epochs", type=int, default=10, help="of each training (default: 10)")
    add("--features", type=int, default=32, help="of the pyramid of Mask R-CNN (default: 32)")
    add("--boxes", type=int, default=64, help="that it learns of each slice (default: 64)")
    add("--networks", nargs="+", default=[*TRAINERS], choices=[*TRAINERS])
    options = parser.parse_args(argv)
    folder = options.folder.resolve()
    create_nnunet_folders(folder)
    (folder / "elsewhere").mkdir(exist_ok=True)
    shim = str(Path(__file__).resolve().parent / "trainer_shim")
    environment = nnunet_environment(folder, nnUNet_def_n_proc="1", OMP_NUM_THREADS="1")
    environment.pop("nnUNet_n_proc_DA", None)
    environment[TRAINER_VARIABLE] = os.pathsep.join([environment[TRAINER_VARIABLE], shim])
    steps = preparation(folder, options)
    steps += [one for name in options.networks for one in of_network(folder, name, steps[-1])]
    run_steps(folder, steps, environment)
    print("\n".join(report(folder, options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
