"""Learning rate along a straight line, from 1 down to a final factor."""

from __future__ import annotations

from dlrun.contracts import Schedule
from dlrun.schedules import _position


def build(total_steps: float, *, final: float = 0.0) -> Schedule:
    """A straight line over the run.

    Settings:
    final: factor reached at the end of the run, in [0, 1]
    """
    _position.require(0 <= final <= 1, "final", final, "a number in [0, 1]")
    return lambda position: 1 + (final - 1) * _position.fraction(position, total_steps)
