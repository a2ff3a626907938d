"""Multiresolution knowledge distillation (Salehi et al. 2021): the baseline of Qin et al. 2025."""
