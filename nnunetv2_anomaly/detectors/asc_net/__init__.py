"""Adversarial selective cutting: what of an image looks normal, and the rest (Dey et al., ASC-Net)."""
