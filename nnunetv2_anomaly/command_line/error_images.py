"""``nnUNetv2_anomaly error_images``: reconstructions and error images of new images."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Reconstructions and error images of new images, from a pre-stage or an anomaly-aware model."


def fold(text: str) -> int | str:
    """A fold number, or "all"."""
    return text if text == "all" else int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options mean what they mean in nnUNetv2_predict."""
    add = parser.add_argument
    add("-i", type=Path, required=True, metavar="FOLDER", help="images, named case_0000.nii.gz and so on")
    add("-o", type=Path, required=True, metavar="FOLDER", help="where the results go")
    add("-d", required=True, metavar="ID", help="number or name of the data set of the model")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans of the model (default: nnUNetPlans)")
    add("-c", default="3d_fullres", metavar="CONFIGURATION", help="configuration (default: 3d_fullres)")
    folds = "folds, numbers or 'all', whose detectors' images are averaged (default: those that are trained)"
    add("-f", nargs="+", type=fold, metavar="FOLD", help=folds)
    add("-tr", metavar="TRAINER", help="trainer (default: AnomalyAwareTrainer, else AnomalyPreStageTrainer)")
    add("-chk", default="checkpoint_final.pth", help="checkpoint (default: checkpoint_final.pth)")
    add("-device", "--device", default="cuda", choices=("cuda", "cpu", "mps"), help="where to compute (default: cuda)")
    add("--continue_prediction", action="store_true", help="leave cases alone that are already there")


def run(arguments: argparse.Namespace) -> int:
    """Find the model, write the images."""
    from nnunetv2_anomaly.device import chosen_device
    from nnunetv2_anomaly.prediction.anomaly_maps import find_model_folder, predict_error_images

    device = chosen_device(arguments.device)
    model = {"configuration": arguments.c, "plans": arguments.p, "trainer": arguments.tr, "folds": arguments.f}
    model_folder, folds = find_model_folder(arguments.d, checkpoint=arguments.chk, **model)
    written = predict_error_images(
        arguments.i,
        arguments.o,
        model_folder,
        device=device,
        folds=folds,
        checkpoint=arguments.chk,
        continue_prediction=arguments.continue_prediction,
    )
    named = " ".join(map(str, folds))
    print(f"{len(written)} case(s) written to {arguments.o}, with the detector in {model_folder}, fold {named}")
    return 0
