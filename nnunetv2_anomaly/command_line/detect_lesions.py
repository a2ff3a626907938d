"""``nnUNetv2_anomaly detect_lesions``: bones, cartilages and candidate lesions of new images, in one label map."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_anomaly.command_line.anomaly_maps import add_model_arguments, how_to_predict, named_model

HELP = "Bones, cartilages and candidate lesions of new images: a segmentation, and a detector without lesion labels."
SEGMENTER, DETECTOR = "AnomalyAwareTrainer", "PastedAnomalyTrainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options mean what they mean in nnUNetv2_predict."""
    add_model_arguments(parser)
    add = parser.add_argument
    add("-tr", default=SEGMENTER, metavar="TRAINER", help=f"trainer of the segmentation (default: {SEGMENTER})")
    add("--bones", type=Path, metavar="FOLDER", help="instead: segmentations, or another model folder of nnU-Net")
    trainer = f"of the detector, or of a model that holds one (default: {DETECTOR})"
    add("--detector", default=DETECTOR, metavar="TRAINER", help=trainer)
    fitted = "as the detector's validation found it"
    add("--threshold", type=float, metavar="X", help=f"of the anomaly map (default: {fitted})")
    add("--min_mm3", type=float, metavar="MM3", help=f"of a candidate (default: {fitted})")


def run(arguments: argparse.Namespace) -> int:
    """Find both models, write the label maps."""
    from nnunetv2_anomaly.device import chosen_device
    from nnunetv2_anomaly.errors import UserError
    from nnunetv2_anomaly.prediction.anomaly_maps import find_detector, find_model_folder
    from nnunetv2_anomaly.prediction.cases import Segmenter
    from nnunetv2_anomaly.prediction.lesion_detection import detect_lesions

    for option, number in (("--threshold", arguments.threshold), ("--min_mm3", arguments.min_mm3)):
        if number is not None and not 0 <= number < 1e9:
            raise UserError(f"{option} is {number}; expected a number from 0")
    device = chosen_device(arguments.device)
    detector = find_detector(arguments.d, device=device, **named_model(arguments, arguments.detector))
    segmentation = arguments.bones
    if segmentation is None:
        folder, folds = find_model_folder(arguments.d, **named_model(arguments, arguments.tr))
        segmentation = Segmenter(folder, folds, arguments.chk)
    limits = {"threshold": arguments.threshold, "min_mm3": arguments.min_mm3}
    written = detect_lesions(arguments.i, arguments.o, detector, segmentation, **limits, **how_to_predict(arguments))
    of = arguments.bones or segmentation.model_folder
    print(f"{len(written)} case(s) written to {arguments.o}; bones of {of}, detector {detector.described}")
    return 0
