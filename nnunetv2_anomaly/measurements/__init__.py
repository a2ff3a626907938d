"""Measurements on label maps: overlap and surface distances, lesions."""

from nnunetv2_anomaly.measurements.surface import evaluate_case, surface_metrics

__all__ = ["evaluate_case", "surface_metrics"]
