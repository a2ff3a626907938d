"""The inpainting family G/C/A (method paper, Sections 3.1, 3.2)."""
