"""What a segmenter sees of the reconstruction error. Without torch: the settings name the forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Of d = x - A(x) a segmenter sees a * d + b * d^2: name -> (a, b). Published is the error image E = d^2 as it is
#: (method paper, Section 3.3). The others are ours, as large as the normalised image beside it; docs/benchmarks.md says
#: why.
ERROR_CHANNELS = {"published": (0.0, 1.0), "squared": (0.0, 100.0), "signed": (10.0, 0.0)}


def error_channel(difference: Tensor, coefficients: Tensor) -> Tensor:
    """The segmenter's error channel.

    Args:
        difference: (B, C, ...), x - A(x), in [-1, 1], unitless.
        coefficients: (2,), one of the pairs in ``ERROR_CHANNELS``.
    Returns: (B, C, ...), a * d + b * d^2, unitless.
    """
    return coefficients[0] * difference + coefficients[1] * difference.square()
