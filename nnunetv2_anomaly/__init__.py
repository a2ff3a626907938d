"""Anomaly-aware 3D segmentation of knee MR images as an extension of nnU-Net v2."""

import sys as _sys
from importlib.machinery import PathFinder as _PathFinder
from pathlib import Path as _Path

__version__ = "0.1.0"

_CHECKOUT = _Path(__file__).resolve().parents[1]


class _BesideThePackage:
    """Imports the two subpackages that an installation holds in this folder, and a checkout beside it.

    A longer ``__path__`` would do the same, and make setup.py and a second nnunetv2_anomaly subpackages, too.
    """

    NAMES = ("nnunetv2_anomaly.trainers", "nnunetv2_anomaly.dataset_conversion")

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return _PathFinder.find_spec(name, [str(_CHECKOUT)]) if name in cls.NAMES else None


if (_CHECKOUT / "setup.cfg").is_file():
    # First, because an editable install of another checkout has a finder for these names as well.
    _sys.meta_path.insert(0, _BesideThePackage)
