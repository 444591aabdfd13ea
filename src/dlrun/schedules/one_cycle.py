"""One cycle: the learning rate rises to its peak and falls to almost nothing, along cosines."""

from __future__ import annotations

import math

from dlrun.contracts import Schedule
from dlrun.schedules import _position


def build(
    total_steps: float,
    *,
    rise: float = 0.3,
    start_divisor: float = 25.0,
    final_divisor: float = 1e4,
) -> Schedule:
    """The 1cycle policy of Smith 2018, "A disciplined approach to neural network hyper-parameters", for the learning
    rate alone (the momentum stays). It brings its own warm-up: leave schedule.warmup at nothing.

    Settings:
    rise: fraction of the run until the peak, in [0, 1]
    start_divisor: the first factor is 1 divided by this, at least 1
    final_divisor: the last factor is the first one divided by this, at least 1
    """
    _position.require(0 <= rise <= 1, "rise", rise, "a fraction of the run in [0, 1]")
    _position.require(start_divisor >= 1, "start_divisor", start_divisor, "a number of at least 1")
    _position.require(final_divisor >= 1, "final_divisor", final_divisor, "a number of at least 1")
    first = 1 / start_divisor
    last = first / final_divisor

    def factor(position: float) -> float:
        now = _position.fraction(position, total_steps)
        if now < rise:
            return _along_cosine(first, 1.0, now / rise)
        return _along_cosine(1.0, last, (now - rise) / (1 - rise) if rise < 1 else 0.0)

    return factor


def _along_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
