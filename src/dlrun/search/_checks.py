"""What samplers ask of their settings."""

from __future__ import annotations

from collections.abc import Sequence

from dlrun.contracts import Goal
from dlrun.errors import DlrunError


def at_least(setting: str, value: int, least: int) -> None:
    """Raises: DlrunError unless value is an integer of at least `least`."""
    if value < least:
        raise DlrunError(f"search.{setting}: {value} is not at least {least}")


def one_goal(name: str, goals: Sequence[Goal]) -> None:
    """Raises: DlrunError where there are several objectives."""
    if len(goals) > 1:
        raise DlrunError(f"search={name}: searches for one objective; there are {len(goals)}", "search=nsga2")
