"""Learning rate that shrinks by the same factor every step."""

from __future__ import annotations

from dlrun.contracts import Schedule
from dlrun.schedules import _position


def build(total_steps: float, *, final: float = 0.01) -> Schedule:
    """final to the power of the fraction of the run that is behind.

    Settings:
    final: factor reached at the end of the run, in (0, 1]
    """
    _position.require(0 < final <= 1, "final", final, "a number in (0, 1]")
    return lambda position: final ** _position.fraction(position, total_steps)
