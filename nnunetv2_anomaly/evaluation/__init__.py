"""How well a prediction agrees with its reference."""

from nnunetv2_anomaly.measurements.surface import evaluate_case, surface_metrics

__all__ = ["evaluate_case", "surface_metrics"]
