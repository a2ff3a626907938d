"""The clean-up that follows prediction (method paper, Appendix C)."""

from nnunetv2_anomaly.postprocessing.components import remove_distant_components, remove_small_lesions

__all__ = ["remove_distant_components", "remove_small_lesions"]
