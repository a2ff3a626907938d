"""Settings of the family of pasted anomalies."""

from __future__ import annotations

from collections.abc import Mapping

from nnunetv2_anomaly.plans.settings import Setting, whole
from nnunetv2_anomaly.training.pasting import OPTIONS, is_pasting

#: weaker, smaller and in every patch, unlike those that a segmenter is to ignore
PASTING = {"probability": 1.0, "count": [2, 5], "strength": [0.7, 3.5], "size_mm": [4.0, 20.0]}

#: it pastes in all of phase 2, and labels nothing
_OPTIONS = tuple(name for name in OPTIONS if name not in ("until", "as_lesions"))

SETTINGS: dict[str, Setting] = {
    "level_epochs": Setting(60, *whole(1), "epochs of phase 1: the bones' local level"),
    "pasting_epochs": Setting(120, *whole(1), "epochs of phase 2: finding what is pasted"),
    "detector_pasting": Setting(
        {},
        f"a dictionary of {', '.join(_OPTIONS)}",
        lambda value: isinstance(value, Mapping) and is_pasting(value) and set(value) <= set(_OPTIONS),
        f"the anomalies that are pasted, beside {', '.join(f'{name} {of}' for name, of in PASTING.items())}; hosts "
        "names the healthy structures, by default the bones",
    ),
}
