"""Anomaly-aware 3D segmentation of knee MR images as an extension of nnU-Net v2."""

from pathlib import Path as _Path

__version__ = "0.1.0"

# An installation holds trainers and dataset_conversion in this folder; in a checkout they lie beside it.
_checkout = _Path(__file__).parents[1]
if (_checkout / "setup.cfg").is_file() and (_checkout / "trainers").is_dir():
    __path__.append(str(_checkout))
