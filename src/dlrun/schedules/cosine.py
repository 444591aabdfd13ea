"""Learning rate along half a cosine, from 1 down to a final factor."""

from __future__ import annotations

import math

from dlrun.contracts import Schedule
from dlrun.schedules import _position


def build(total_steps: float, *, final: float = 0.0) -> Schedule:
    """One descent without restarts (Loshchilov and Hutter 2017, eq. 5).

    Settings:
    final: factor reached at the end of the run, in [0, 1]
    """
    _position.require(0 <= final <= 1, "final", final, "a number in [0, 1]")

    def factor(position: float) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * _position.fraction(position, total_steps))) / 2

    return factor
