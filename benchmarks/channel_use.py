"""Whether a trained segmenter uses its error channel: the same weights, with the channel emptied or in random order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.ablation import shuffled
from benchmarks.experiment import Experiment, Repeat, is_older, unfinished
from nnunetv2_anomaly.measurements import evaluate_case
from nnunetv2_anomaly.prediction.models import load_model

#: what the segmenter is given in place of its error channels, (B, C, *patch_size)
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {"zero": torch.zeros_like, "in random order": shuffled}
AS_TRAINED = "as trained"


def channel_use(experiment: Experiment) -> pd.DataFrame:
    """Predict the held-out knees again, without the error channel, by every model that has one.

    Without held-out knees those of each fold's validation.

    Returns: columns model, repeat, case, label (value), channel (``AS_TRAINED`` or a key of ``CHANGES``), dsc.
    """
    rows = []
    for repeat in tqdm([repeat for repeat in experiment.repeats if _has_channel(repeat)], desc="error channel"):
        folders = {AS_TRAINED: experiment.predictions(repeat)}
        root = experiment.folder / "channel_use" / repeat.model.name / f"seed{repeat.seed}_fold{repeat.fold}"
        folders |= {change: root / change.replace(" ", "_") for change in CHANGES}
        trained = experiment.training_folder(repeat) / "checkpoint_final.pth"
        if any(is_older(folders[change], trained) for change in CHANGES):
            experiment.enter()
            _predict(experiment, repeat, folders)
        for channel, folder in folders.items():
            rows += [
                {"model": repeat.model.name, "repeat": repeat.name, "channel": channel, **found}
                for found in _overlaps(experiment, folder)
            ]
    return pd.DataFrame(rows, columns=["model", "repeat", "case", "label", "channel", "dsc"])


def _has_channel(repeat: Repeat) -> bool:
    return bool(repeat.model.detector) and repeat.model.ablation.get("channel") != "none"


def _predict(experiment: Experiment, repeat: Repeat, folders: dict[str, Path]) -> None:
    """As nnUNetv2_predict does with its defaults, in this process, where the network can be reached."""
    device = torch.device(experiment.arguments.device)
    predictor = load_model(experiment.training_folder(repeat).parent, folds=(repeat.fold,), device=device)
    cases = experiment.cases(repeat)
    images = [[str(file) for file in files] for files in cases.values()]
    log = experiment.folder / "logs" / "channel_use.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for change, function in CHANGES.items():
        made = unfinished(folders[change])
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        with changed_channel(predictor.network, function), log.open("a") as output, redirect_stdout(output):
            predictor.predict_from_files_sequential(images, [str(made / case) for case in cases])
        shutil.rmtree(folders[change], ignore_errors=True)
        os.replace(made, folders[change])


@contextmanager
def changed_channel(network: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within it, a network's segmenter is given something else in place of its error channels.

    Args:
        network: with a ``segmenter`` whose input (B, 2 C, *patch_size) is the image's channels and as many errors.
        function: makes it, of the error channels.
    """

    def changed(module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        image, error = arguments[0].chunk(2, dim=1)
        return (torch.cat((image, function(error)), dim=1),)

    handle = network.segmenter.register_forward_pre_hook(changed)
    try:
        yield
    finally:
        handle.remove()


def _overlaps(experiment: Experiment, folder: Path) -> list[dict]:
    rows = []
    for file in sorted(folder.glob("*.nii.gz")):
        image = sitk.ReadImage(str(experiment.references / file.name))
        reference = sitk.GetArrayFromImage(image)
        predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(reference.dtype)
        labels = sorted(set(np.unique(reference).tolist()) - {0})
        found = evaluate_case(reference, predicted, image.GetSpacing()[::-1], labels)
        case = file.name.removesuffix(".nii.gz")
        rows += [{"case": case, "label": label, "dsc": metrics["dsc"]} for label, metrics in found.items()]
    return rows
