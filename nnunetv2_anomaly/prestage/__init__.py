"""From erased anatomy to the detector: inpainter G, compressor C, detector A (method paper, Sections 3.1, 3.2)."""
