"""The same learning rate throughout."""

from __future__ import annotations

from dlrun.contracts import Schedule


def build(total_steps: float) -> Schedule:
    """Factor 1 at every position."""
    return lambda position: 1.0
