"""Anomaly-aware 3D segmentation of knee MR images, as an extension of nnU-Net v2."""

__version__ = "0.1.0"
