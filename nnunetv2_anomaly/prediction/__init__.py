"""Reconstructions and error images of new images."""
