"""The anomaly-aware segmentation network."""
