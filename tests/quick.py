"""What makes trainings in tests quick: no figure after every epoch, other processes that have torch already."""

import multiprocessing
import multiprocessing.context
import os
from collections.abc import Callable, Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

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


def server_with_torch() -> multiprocessing.context.BaseContext:
    """Starts processes that are forked from one that has imported torch and nnU-Net, and nothing of ours."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        ["torch", "nnunetv2.inference.predict_from_raw_data", "nnunetv2.run.run_training", "scipy.ndimage", "pandas"]
    )
    return server


def pools_of_threads(patch: pytest.MonkeyPatch) -> None:
    """Let nnU-Net's pools of processes be threads, and its other processes be forked from one that has torch.

    nnU-Net starts a pool with ``spawn`` in every planning, validation and prediction, whose processes import torch
    again, which takes longer than their work. Other tests run commands as they are, and with every method to start
    processes.
    """
    from nnunetv2.utilities import utils

    server, of_method = server_with_torch(), multiprocessing.get_context

    class WithThreads(type(server)):
        def Pool(self, processes=None, *arguments, **keywords):
            return ThreadPool(processes)

    context = WithThreads()
    patch.setattr(
        multiprocessing, "get_context", lambda method=None: context if method == "spawn" else of_method(method)
    )
    patch.setattr(utils, "Pool", ThreadPool)  # of twelve, to look whether a file is there


def sample_few_voxels(patch: pytest.MonkeyPatch) -> None:
    """Let nnU-Net's fingerprint draw its statistics from ten thousand voxels of a data set, not from a hundred million.

    It draws with replacement, so that a few tiny images take seconds and gigabytes.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    init = DatasetFingerprintExtractor.__init__

    def init_with_few(self, *arguments, **keywords):
        init(self, *arguments, **keywords)
        self.num_foreground_voxels_for_intensitystats = 10_000

    patch.setattr(DatasetFingerprintExtractor, "__init__", init_with_few)


def _in_this_environment(environment: Mapping[str, str], function: Callable[..., None], arguments: tuple) -> None:
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)


def run_with_torch(
    function: Callable[..., None], *arguments: Any, environment: Mapping[str, str], seconds: float
) -> None:
    """Call a function in a process of its own, which need not import torch first and may start others.

    Args:
        function, arguments: are pickled.
        environment: all of its variables. What torch and nnU-Net read while they are imported is this process's.
        seconds: after which it is killed and the test fails.
    """
    process = server_with_torch().Process(target=_in_this_environment, args=(dict(environment), function, arguments))
    process.start()
    try:
        process.join(seconds)
        assert not process.is_alive(), f"{function.__name__} was not done after {seconds} s"
    finally:
        process.kill()
    assert process.exitcode == 0, f"{function.__name__} ended with {process.exitcode}; its output stands above"
