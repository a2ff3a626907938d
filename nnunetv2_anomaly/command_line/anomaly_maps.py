"""``nnUNetv2_anomaly anomaly_maps``: anomaly maps and reconstructions of new images, by any family of detectors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunetv2_anomaly.parts import add_part_arguments, part_of

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
    bones = "keep to the bones of these segmentations, or of what a model folder of nnU-Net predicts; "
    bones += "BoneContrastTrainer takes its contrast in them, and needs no training then"
    add("--bones", type=Path, metavar="FOLDER", help=bones)
    labels = "labels of the images, to measure the maps with in place of predicting: writes summary.json; needs "
    add("--references", type=Path, metavar="FOLDER", help=f"{labels}--anomalies, and a single fold")
    truth = "true lesions of the images by the labels 7 to 9, such as anomaliesTs of simulated knees"
    add("--anomalies", type=Path, metavar="FOLDER", help=truth)


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
    add_part_arguments(parser, "each writes its own cases")


def named_model(arguments: argparse.Namespace, trainer: str | None) -> dict[str, Any]:
    """Which model of a trainer the options of ``add_model_arguments`` name, as the library's functions take it."""
    chosen = {"configuration": arguments.c, "plans": arguments.p, "folds": arguments.f, "checkpoint": arguments.chk}
    return {"trainer": trainer, **chosen}


def how_to_predict(arguments: argparse.Namespace) -> dict[str, Any]:
    """Which cases are predicted."""
    return {"continue_prediction": arguments.continue_prediction, "part": part_of(arguments)}


def run(arguments: argparse.Namespace) -> int:
    """Find the model, write the maps."""
    from nnunetv2_anomaly.device import chosen_device
    from nnunetv2_anomaly.prediction.anomaly_maps import find_detector, predict_anomaly_maps

    device, how = chosen_device(arguments.device), how_to_predict(arguments)
    if arguments.references is not None or arguments.anomalies is not None:
        return _measure(arguments)
    model = named_model(arguments, arguments.tr)
    detector = find_detector(arguments.d, device=device, needs_bones=arguments.bones is None, **model)
    written = predict_anomaly_maps(arguments.i, arguments.o, detector, bones=arguments.bones, **how)
    print(f"{len(written)} case(s) written to {arguments.o}, with the detector {detector.described}")
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    """Measure the maps of images whose lesions are known."""
    from nnunetv2_anomaly.device import chosen_device
    from nnunetv2_anomaly.errors import UserError
    from nnunetv2_anomaly.files import write_failures_as_user_errors
    from nnunetv2_anomaly.prediction.anomaly_maps import find_model_folder
    from nnunetv2_anomaly.prediction.validation import measure_detector

    if None in (arguments.references, arguments.anomalies):
        raise UserError("--references and --anomalies belong together; give both, or neither")
    folder, folds = find_model_folder(arguments.d, **named_model(arguments, arguments.tr))
    if len(folds) > 1:
        raise UserError(f"{len(folds)} folds are trained or named; expected one to measure, so give it with -f")
    folders = (arguments.i, arguments.references, arguments.anomalies, arguments.o, folder)
    with write_failures_as_user_errors(arguments.o):
        measure_detector(*folders, fold=folds[0], device=chosen_device(arguments.device))
    print(f"{arguments.o / 'summary.json'} holds what was measured")
    return 0
