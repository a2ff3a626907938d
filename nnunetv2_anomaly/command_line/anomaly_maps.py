"""``nnUNetv2_anomaly anomaly_maps``: anomaly maps and reconstructions of new images, by any family of detectors."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Anomaly maps of new images, and reconstructions where there are any, by a trained detector of any family."


def fold(text: str) -> int | str:
    """A fold number, or "all"."""
    return text if text == "all" else int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options mean what they mean in nnUNetv2_predict."""
    add_model_arguments(parser)
    add = parser.add_argument
    default = "default: AnomalyAwareTrainer, else the first detector that is trained"
    add("-tr", metavar="TRAINER", help=f"trainer of a detector, or of a model that holds one ({default})")
    bones = (
        "keep to the bones of these segmentations, or of what a model folder of nnU-Net predicts; BoneContrastTrainer"
    )
    add("--bones", type=Path, metavar="FOLDER", help=f"{bones} takes its contrast in them, and needs no training then")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What every verb takes that predicts new images by a trained model."""
    add = parser.add_argument
    add("-i", type=Path, required=True, metavar="FOLDER", help="images, named case_0000.nii.gz and so on")
    add("-o", type=Path, required=True, metavar="FOLDER", help="where the results go")
    add("-d", required=True, metavar="ID", help="number or name of the data set of the model")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans of the model (default: nnUNetPlans)")
    add("-c", default="3d_fullres", metavar="CONFIGURATION", help="configuration (default: 3d_fullres)")
    folds = "folds, numbers or 'all', whose maps are averaged (default: those that are trained)"
    add("-f", nargs="+", type=fold, metavar="FOLD", help=folds)
    add("-chk", default="checkpoint_final.pth", help="checkpoint (default: checkpoint_final.pth)")
    add("-device", "--device", default="cuda", choices=("cuda", "cpu", "mps"), help="where to compute (default: cuda)")
    add("--continue_prediction", action="store_true", help="leave cases alone that are already there")


def run(arguments: argparse.Namespace) -> int:
    """Find the model, write the maps."""
    from nnunetv2_anomaly.device import chosen_device
    from nnunetv2_anomaly.prediction.anomaly_maps import find_detector, predict_anomaly_maps

    device = chosen_device(arguments.device)
    named = {"configuration": arguments.c, "plans": arguments.p, "trainer": arguments.tr, "folds": arguments.f}
    named |= {"checkpoint": arguments.chk}
    detector = find_detector(arguments.d, device=device, needs_bones=arguments.bones is None, **named)
    written = predict_anomaly_maps(
        arguments.i,
        arguments.o,
        detector,
        bones=arguments.bones,
        continue_prediction=arguments.continue_prediction,
    )
    print(f"{len(written)} case(s) written to {arguments.o}, with the detector {detector.described}")
    return 0
