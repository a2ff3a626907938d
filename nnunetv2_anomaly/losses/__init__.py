"""Losses of the anomaly-aware segmentation (method paper, Eq. 3 to 5)."""
