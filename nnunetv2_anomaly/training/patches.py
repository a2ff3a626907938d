"""Training patches without augmentation, for pictures and for what is measured before a training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from numpy.typing import NDArray

from nnunetv2_anomaly.reporting.drawing import save_pasting_figure
from nnunetv2_anomaly.training.pasting import PasteAnomalies, example_of

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

#: patches in the picture of pasted anomalies
_EXAMPLES = 8


def training_patches(
    trainer: nnUNetTrainer, number: int, oversample_foreground: float = 1.0
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.integer]]]:
    """Patches of a trainer's training cases, in each training the same; its random numbers stay.

    Args: oversample_foreground: above 0.5, every patch holds foreground for sure; else by chance.
    Yields: image (C, *patch_size) and labels (*patch_size), (X, Y, Z) as nnU-Net has the axes.
    """
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, trainer.do_split()[0])
    size = trainer.configuration_manager.patch_size
    loader = nnUNetDataLoader(dataset, 1, size, size, trainer.label_manager, oversample_foreground)
    own = np.random.RandomState(0).get_state()
    for _ in range(number):
        state = np.random.get_state()
        np.random.set_state(own)
        batch = next(loader)
        own = np.random.get_state()
        np.random.set_state(state)
        yield np.asarray(batch["data"][0]), np.asarray(batch["target"][0][0])


def save_pasted_examples(trainer: nnUNetTrainer, pasting: PasteAnomalies, folder: Path) -> None:
    """Draw pasted_anomalies.png in a folder: eight patches of training cases; nothing where no patch has a host."""
    patches: list[tuple] = []
    for number, (image, labels) in enumerate(training_patches(trainer, 4 * _EXAMPLES)):  # a patch may hold no bone
        example = example_of(pasting, image, labels, number)
        patches += [] if example is None else [example]
        if len(patches) == _EXAMPLES:
            break
    if patches:
        spacing = trainer.configuration_manager.spacing[-2:]
        save_pasting_figure(folder / "pasted_anomalies.png", patches, spacing)
