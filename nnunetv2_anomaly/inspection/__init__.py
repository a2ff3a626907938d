"""Checks of the installation and of model files."""
