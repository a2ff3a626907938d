"""Anomalies pasted into healthy bones, which a network learns to find: no lesion is ever labelled."""
