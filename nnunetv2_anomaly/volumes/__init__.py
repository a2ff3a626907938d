"""Whole volumes: sliding windows, original geometry, figures."""
