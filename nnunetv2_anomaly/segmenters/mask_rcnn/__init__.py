"""Mask R-CNN on slices, plain and improved (Felfeliyan et al. 2022)."""
