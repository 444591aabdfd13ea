"""Learning rate divided at milestones, as fractions of the run."""

from __future__ import annotations

from dlrun.contracts import Schedule
from dlrun.schedules import _position

_ROUNDING = 1e-9  # 0.7 * 10 is a little above 7: a milestone falls on its step all the same


def build(total_steps: float, *, milestones: tuple[float, ...] = (0.5, 0.75), gamma: float = 0.1) -> Schedule:
    """A staircase: gamma to the power of the milestones passed (He et al. 2016, section 4.2: at 1/2 and 3/4).

    Settings:
    milestones: fractions of the run, each in [0, 1], at which the learning rate changes
    gamma: factor at each milestone, above 0
    """
    in_range = all(isinstance(value, int | float) and 0 <= value <= 1 for value in milestones)
    _position.require(in_range, "milestones", list(milestones), "fractions of the run in [0, 1]")
    _position.require(gamma > 0, "gamma", gamma, "a number above 0")
    passed_at = sorted(milestones)

    def factor(position: float) -> float:
        now = _position.fraction(position, total_steps) + _ROUNDING
        return gamma ** sum(now >= milestone for milestone in passed_at)

    return factor
