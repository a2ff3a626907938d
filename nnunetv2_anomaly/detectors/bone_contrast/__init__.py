"""Contrast within the bones that a segmentation finds: nothing is learnt of anomalies."""
