"""Bone marrow lesions by inpainting the bone with Fourier convolutions: LaMa (Suvorov et al. 2022; Qin et al. 2025)."""
