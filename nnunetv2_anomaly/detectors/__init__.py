"""Detectors of anomalies: image in, anomaly map out; a folder per family."""
