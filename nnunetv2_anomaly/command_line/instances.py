"""``nnUNetv2_anomaly instances``: what Mask R-CNN finds in each slice, with scores and boxes."""

from __future__ import annotations

import argparse

from nnunetv2_anomaly.command_line.anomaly_maps import add_model_arguments, how_to_predict, named_model

HELP = "Instances that Mask R-CNN finds in the slices of new images: slice, class, score and box, as JSON."
TRAINER = "IMaskRCNNTrainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options mean what they mean in nnUNetv2_predict."""
    add_model_arguments(parser)
    parser.add_argument("-tr", default=TRAINER, metavar="TRAINER", help=f"trainer of the model (default: {TRAINER})")


def run(arguments: argparse.Namespace) -> int:
    """Find the model, write the instances."""
    from nnunetv2_anomaly.device import chosen_device
    from nnunetv2_anomaly.prediction.anomaly_maps import find_model_folder
    from nnunetv2_anomaly.prediction.instances import predict_instances

    device = chosen_device(arguments.device)
    folder, folds = find_model_folder(arguments.d, **named_model(arguments, arguments.tr))
    model = {"folds": list(folds), "checkpoint": arguments.chk, "device": device}
    written = predict_instances(arguments.i, arguments.o, folder, **model, **how_to_predict(arguments))
    print(f"{len(written)} case(s) written to {arguments.o}, by the model in {folder}")
    return 0
