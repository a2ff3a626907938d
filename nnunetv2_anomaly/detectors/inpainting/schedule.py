"""The pre-stage's learning rate: the published constant at full length, a faster decaying one for short runs."""

from __future__ import annotations

from nnunetv2_anomaly.training.phases import SHORT_EXPONENT, SHORT_LEARNING_RATE

#: method paper, Section 4.1: Adam, 5e-4, constant
PUBLISHED_LEARNING_RATE = 5e-4
#: from so many steps on a phase is trained as published: 50 times the training images of OAI ZIB, of one fold for A
PUBLISHED_STEPS = {"inpainting": 25_000, "distillation": 20_000}


def learning_rate_of_phase(steps: int, *, distilling: bool, chosen: float | None = None) -> tuple[float, float]:
    """Initial learning rate and exponent of the polynomial decay of a phase of ``steps`` optimiser steps.

    A phase of at least the published length runs as published: 5e-4, constant (exponent 0). A shorter one would end
    as a blur: it starts at 2e-3 and decays to 0 (docs/explanation/decisions/detectors.md has them). ``chosen``
    replaces the learning rate and leaves the decay.
    """
    published = steps >= PUBLISHED_STEPS["distillation" if distilling else "inpainting"]
    learning_rate = PUBLISHED_LEARNING_RATE if published else SHORT_LEARNING_RATE
    return (learning_rate if chosen is None else chosen), (0.0 if published else SHORT_EXPONENT)
