"""Segmenters: image and anomaly map in, labels out; a folder per family."""
