"""The clean-up that follows prediction (method paper, Appendix C)."""

from nnunetv2_anomaly.postprocessing.components import (
    Removal,
    clean_distant_components,
    clean_small_lesions,
    count_components,
    remove_distant_components,
    remove_small_lesions,
)

__all__ = [
    "Removal",
    "clean_distant_components",
    "clean_small_lesions",
    "count_components",
    "remove_distant_components",
    "remove_small_lesions",
]
