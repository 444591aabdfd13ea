"""What the schedules share: the position as a fraction, and checks of settings."""

from __future__ import annotations

from dlrun.errors import DlrunError


def fraction(position: float, total_steps: float) -> float:
    """How much of the schedule is behind, 0 to 1; a run that outlasts its plan stays at 1."""
    return min(max(position / total_steps, 0.0), 1.0) if total_steps > 0 else 1.0


def require(condition: bool, setting: str, given: object, expected: str) -> None:
    """Raise DlrunError naming the setting unless the condition holds."""
    if not condition:
        raise DlrunError(f"schedule.{setting}: expected {expected}, got {given}")
