"""Hands the trainer classes of nnunetv2_anomaly.trainers to nnU-Net's search by class name.

This folder reaches nnU-Net twice: the wheel installs it inside nnunetv2's own trainer folder, and
``nnUNet_extTrainer`` may name it. Every search for a non-default trainer passes through it, so nothing is imported
before one of our names is asked for, and an installation of ours that cannot be imported warns instead of ending
the search for somebody else's trainer.
"""

import contextlib
import importlib.util
import runpy
import warnings
from pathlib import Path


def _names():
    """The trainers' names, out of the registry's file: the package itself stays unimported."""
    spec = importlib.util.find_spec("nnunetv2_anomaly")
    for folder in (spec and spec.submodule_search_locations) or ():
        with contextlib.suppress(OSError):  # not our package's folder
            return runpy.run_path(str(Path(folder, "registry.py")))["TRAINERS"]
    return ()


def __getattr__(name):
    if not name.startswith("_") and name in _names():
        try:
            from nnunetv2_anomaly.registry import load_trainer

            return load_trainer(name)
        except Exception as error:
            warnings.warn(
                f"{name} cannot be loaded because nnunetv2_anomaly does not import ({type(error).__name__}: {error}); "
                f"reinstall it with: pip install --force-reinstall --no-deps nnunetv2-anomaly"
            )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
