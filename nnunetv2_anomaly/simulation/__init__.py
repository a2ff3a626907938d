"""Procedural knees and DESS-like images from label maps."""
