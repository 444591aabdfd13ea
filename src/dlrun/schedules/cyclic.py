"""Learning rate that falls along half a cosine, rises at once and falls again, cycle after cycle."""

from __future__ import annotations

import math

from dlrun.contracts import Schedule
from dlrun.schedules import _position


def build(total_steps: float, *, cycles: int = 5, final: float = 0.0) -> Schedule:
    """Cycles of equal length with warm restarts (Loshchilov and Hutter 2017, eq. 5; Huang et al. 2017, eq. 2).

    Settings:
    cycles: falls of the learning rate, at least 1
    final: factor reached at the end of each cycle, in [0, 1]
    """
    _position.require(cycles >= 1, "cycles", cycles, "a number of at least 1")
    _position.require(0 <= final <= 1, "final", final, "a number in [0, 1]")

    def factor(position: float) -> float:
        behind = _position.fraction(position, total_steps)
        within = math.modf(behind * cycles)[0] if behind < 1 else 1.0
        return final + (1 - final) * (1 + math.cos(math.pi * within)) / 2

    return factor
