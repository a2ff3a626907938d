"""What makes trainings in tests quick: no figure after every epoch, worker processes that have torch already."""

import multiprocessing
from pathlib import Path

import pytest


def _drawing() -> tuple:
    """The functions that draw the progress, and what stands in for each."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    from nnunetv2_anomaly.trainers import detector

    def stand_in(path: Path) -> None:
        path.write_bytes(b"stands for a figure")

    return (
        (LocalLogger, "plot_progress_png", lambda self, folder: stand_in(Path(folder) / "progress.png")),
        (detector, "save_prestage_progress", lambda path, logged, phases: stand_in(path)),
    )


def skip_progress_figures(patch: pytest.MonkeyPatch) -> None:
    """Write a stand-in for the figure of the progress, which takes longer than a tiny epoch.

    Other tests draw it: those of nnU-Net's commands, and of a disk that is full when it is written.
    """
    for owner, name, stand_in in _drawing():
        stand_in.drawn = getattr(owner, name)
        patch.setattr(owner, name, stand_in)


def draw_progress_figures(patch: pytest.MonkeyPatch) -> None:
    """Draw them again."""
    for owner, name, _ in _drawing():
        patch.setattr(owner, name, getattr(owner, name).drawn)


def start_workers_with_torch(patch: pytest.MonkeyPatch) -> None:
    """Let nnU-Net's worker processes be forked from one that has imported torch already.

    nnU-Net starts them with ``spawn`` in every validation and prediction, and each would import torch again, which
    takes longer than its work. ``forkserver`` hands over the same things, by pickle. Other tests run commands as they
    are.
    """
    of_method = multiprocessing.get_context
    server = of_method("forkserver")
    server.set_forkserver_preload(["torch", "nnunetv2.inference.predict_from_raw_data", "scipy.ndimage", "pandas"])
    patch.setattr(
        multiprocessing, "get_context", lambda method=None: server if method == "spawn" else of_method(method)
    )
