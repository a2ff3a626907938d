"""The paper's networks compared on simulated knees of real anatomy: same plans, budget, seeds.

    python -m benchmarks.published_networks --labels SEGMENTATIONS --folder WORK

SEGMENTATIONS are label maps with labels 0 to 9, such as OAI ZIB-UQ's. Images are simulated on a coarse grid, with
lesions that are not in the labels beside those that are; training labels count lesions as bone. Every network is
trained on all training knees for the published 50 epochs through nnU-Net's own commands, once per seed, and predicts
the held-out knees. Run again, it goes on where it stopped. Printed are means over held-out knees and seeds, and S
against + case by case.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.stats import wilcoxon

from nnunetv2_anomaly.environment import create_nnunet_folders, nnunet_command, nnunet_environment
from nnunetv2_anomaly.evaluation import evaluate_case
from nnunetv2_anomaly.labels import BONE_OF_LESION
from nnunetv2_anomaly.postprocessing import remove_distant_components

DATASET_ID, DATASET = "511", "Dataset511_SimulatedZIBUQ"
PLANS = "nnUNetWholeImagePlans"
PRE_STAGE = {"inpainting_epochs": 8, "distillation_epochs": 6, "num_iterations_per_epoch": 150, "seed": 0}
#: 50 voxels of the OAI's images in their slices' direction, in voxels of this grid
MAX_DISTANCE_VOXELS = 10


def run(base: Path, *words: str, **variables: object) -> None:
    """One of nnU-Net's commands or ours, on nnU-Net's folders below ``base``."""
    print("+", " ".join(words), flush=True)
    quiet = {"OMP_NUM_THREADS": 1, "OMP_WAIT_POLICY": "PASSIVE"}
    environment = nnunet_environment(base, **{**quiet, **variables})
    with (base / "commands.log").open("a") as log:
        subprocess.run([nnunet_command(words[0]), *words[1:]], check=True, env=environment, stdout=log, stderr=log)


def prepare(base: Path, labels: Path, size: list[int], extra_lesions: float, seeds: list[int]) -> None:
    """Data set, plans, and a configuration per seed."""
    create_nnunet_folders(base)
    raw, preprocessed = (base / name / DATASET for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    if not raw.is_dir():
        grid = [str(n) for n in size]
        words = ["-o", str(base / "sim"), "-i", str(labels), "--size", *grid, "--extra_lesions", str(extra_lesions)]
        run(
            base,
            "nnUNetv2_anomaly",
            "simulate",
            *words,
            "-d",
            DATASET_ID,
            "--name",
            "SimulatedZIBUQ",
            "--num_test",
            "6",
        )
    if not (preprocessed / "nnUNetPlans.json").is_file():
        run(base, "nnUNetv2_plan_and_preprocess", "-d", DATASET_ID, "--verify_dataset_integrity", "--no_pp")
    file = preprocessed / f"{PLANS}.json"
    if not file.is_file():
        run(base, "nnUNetv2_anomaly", "plan_whole_image", "-d", DATASET_ID)
    if not (preprocessed / f"{PLANS}_3d_fullres").is_dir():
        run(base, "nnUNetv2_preprocess", "-d", DATASET_ID, "-plans_name", PLANS, "-c", "3d_fullres", "-np", "2")
    plans = json.loads(file.read_text())
    common = {"erase_margin_voxels": 6, "prestage_augmentation": False}
    detector = base / "nnUNet_results" / DATASET / f"AnomalyPreStageTrainer__{PLANS}__3d_pre"
    wanted = {"3d_pre": {"inherits_from": "3d_fullres", "batch_size": 2, "anomaly": {**common, **PRE_STAGE}}}
    for seed in seeds:
        section = {**common, "seed": seed, "prestage_folder": str(detector)}
        wanted[f"3d_seed{seed}"] = {"inherits_from": "3d_fullres", "anomaly": section}
    for name, configuration in wanted.items():
        plans["configurations"].setdefault(name, configuration)
    file.write_text(json.dumps(plans, indent=1))


def train_and_predict(base: Path, network: str, seed: int, device: str) -> Path:
    """One training, one prediction of the held-out knees; returns the folder of these."""
    predicted = base / "pred" / network / f"seed{seed}"
    configuration, trainer = f"3d_seed{seed}", f"{network}Trainer"
    model = base / "nnUNet_results" / DATASET / f"{trainer}__{PLANS}__{configuration}" / "fold_all"
    common = ["-p", PLANS, "-device", device]
    if not (model / "checkpoint_final.pth").is_file():
        more = ["--c"] if (model / "checkpoint_latest.pth").is_file() else []
        # Without worker processes a seed gives one result.
        words = [DATASET_ID, configuration, "all", "-tr", trainer, *common, *more]
        run(base, "nnUNetv2_train", *words, nnUNet_n_proc_DA=0)
    images = base / "nnUNet_raw" / DATASET / "imagesTs"
    if len(list(predicted.glob("*.nii.gz"))) < len(list(images.iterdir())):
        words = ["-i", str(images), "-o", str(predicted), "-d", DATASET_ID, "-c", configuration, "-f", "all"]
        run(base, "nnUNetv2_predict", *words, "-tr", trainer, *common, "-npp", "1", "-nps", "1")
    return predicted


def evaluate(base: Path, predictions: dict[str, dict[int, Path]]) -> None:
    """Print the tables."""
    raw = base / "nnUNet_raw" / DATASET
    labels = {name: v for name, v in json.loads((raw / "dataset.json").read_text())["labels"].items() if v}
    lesion_of = {bone: lesion for lesion, bone in BONE_OF_LESION.items()}
    rows: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for network, by_seed in predictions.items():
        for seed, folder in by_seed.items():
            for file in sorted((raw / "labelsTs").iterdir()):
                image = sitk.ReadImage(str(file))
                reference, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
                truth = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "anomaliesTs" / file.name)))
                predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / file.name))).astype(np.uint8)
                clean = remove_distant_components(predicted, labels.values(), MAX_DISTANCE_VOXELS)
                before, after = (evaluate_case(reference, p, spacing, labels.values()) for p in (predicted, clean))
                for name, value in labels.items():
                    rows[network, name].append(
                        {
                            "key": (seed, file.name),
                            "dsc": 100 * after[value]["dsc"],
                            "hd": after[value]["hd_mm"],
                            "hd_star": before[value]["hd_mm"],
                            "lesion": bool((truth == lesion_of.get(value, -1)).any()),
                        }
                    )
    networks = list(predictions)
    counts = {network: len(rows[network, next(iter(labels))]) for network in networks}
    print(f"\nMeans over {counts} predictions (knees x seeds); {' / '.join(networks)}")
    print("| label | DSC % | HD mm | HD* mm | predictions without the label |\n|---|---|---|---|---|")
    for name in labels:
        cells = [" / ".join(_mean(rows[n, name], key) for n in networks) for key in ("dsc", "hd", "hd_star")]
        missing = " / ".join(str(sum(np.isnan(row["hd_star"]) for row in rows[n, name])) for n in networks)
        print(f"| {name} | {' | '.join(cells)} | {missing} |")
    print("\nBones with and without a lesion\n| bone | lesion | DSC % | HD* mm | predictions of each |")
    print("|---|---|---|---|---|")
    for name, value in labels.items():
        for lesion in (True, False) if value in lesion_of else ():
            some = {n: [row for row in rows[n, name] if row["lesion"] == lesion] for n in networks}
            cells = [" / ".join(_mean(some[n], key) for n in networks) for key in ("dsc", "hd_star")]
            print(f"| {name} | {'yes' if lesion else 'no'} | {' | '.join(cells)} | {len(some[networks[0]])} |")
    if {"UNETS", "UNETPlus"} <= set(networks):
        print("\nHD* of UNET-S minus UNET+, case by case (Wilcoxon)")
        print("| label | mean mm | median mm | lower in | p |\n|---|---|---|---|---|")
        for name in labels:
            of = {n: {row["key"]: row["hd_star"] for row in rows[n, name]} for n in ("UNETS", "UNETPlus")}
            difference = np.array([of["UNETS"][key] - of["UNETPlus"][key] for key in of["UNETS"]])
            difference = difference[np.isfinite(difference)]
            p = wilcoxon(difference).pvalue if np.any(difference) else 1.0
            lower = f"{(difference < 0).sum()} of {len(difference)}"
            print(f"| {name} | {difference.mean():.2f} | {np.median(difference):.2f} | {lower} | {p:.3f} |")


def _mean(rows: list[dict], key: str) -> str:
    values = np.array([row[key] for row in rows])
    return f"{np.nanmean(values):.1f}" if np.isfinite(values).any() else "none"


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, required=True, help="folder of label maps, labels 0 to 9")
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes")
    parser.add_argument("--size", type=int, nargs=3, default=[32, 48, 48], metavar=("X", "Y", "Z"))
    parser.add_argument("--extra_lesions", type=float, default=1.5)
    parser.add_argument("--networks", nargs="+", default=["UNET", "UNETPlus", "UNETS"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    base = args.folder.resolve()
    base.mkdir(parents=True, exist_ok=True)
    prepare(base, args.labels.resolve(), args.size, args.extra_lesions, args.seeds)
    model = base / "nnUNet_results" / DATASET / f"AnomalyPreStageTrainer__{PLANS}__3d_pre" / "fold_all"
    if not (model / "checkpoint_final.pth").is_file():
        words = [DATASET_ID, "3d_pre", "all", "-tr", "AnomalyPreStageTrainer", "-p", PLANS, "-device", args.device]
        run(base, "nnUNetv2_train", *words, nnUNet_n_proc_DA=min(4, os.cpu_count() or 1))
    predictions = {
        network: {seed: train_and_predict(base, network, seed, args.device) for seed in args.seeds}
        for network in args.networks
    }
    evaluate(base, predictions)


if __name__ == "__main__":
    main()
