"""Durations with their unit: `10 epochs`, `5000 steps`, `30 minutes`, `5 %`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from dlrun.errors import DlrunError, did_you_mean

Unit = Literal["epochs", "steps", "seconds", "percent"]
_UNITS: dict[str, tuple[Unit, float]] = {
    "epoch": ("epochs", 1), "epochs": ("epochs", 1), "step": ("steps", 1), "steps": ("steps", 1),
    "second": ("seconds", 1), "seconds": ("seconds", 1), "s": ("seconds", 1),
    "minute": ("seconds", 60), "minutes": ("seconds", 60), "min": ("seconds", 60),
    "hour": ("seconds", 3600), "hours": ("seconds", 3600), "h": ("seconds", 3600),
    "%": ("percent", 1), "percent": ("percent", 1),
}  # fmt: skip
_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z%]+)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Duration:
    """An amount of training. `text` is what the user wrote."""

    value: float
    unit: Unit
    text: str

    @staticmethod
    def parse(text: str) -> Duration:
        """Read "10 epochs" and the like. Raises: DlrunError with an example or the nearest unit."""
        found = _PATTERN.fullmatch(str(text))
        if not found:
            raise DlrunError(
                f"'{text}' is not a duration", 'write a number and a unit: "10 epochs", "500 steps", "5 %"'
            )
        word = found[2].lower()
        if word not in _UNITS:
            raise DlrunError(f"'{text}' has an unknown unit '{found[2]}'", did_you_mean(word, _UNITS))
        unit, factor = _UNITS[word]
        value = float(found[1]) * factor
        if not math.isfinite(value):
            raise DlrunError(f"'{text}' is not a finite duration")
        return Duration(value, unit, str(text).strip())

    def steps(self, *, per_epoch: int, total: int | None = None) -> int:
        """Optimizer steps, rounded up, at least 1 unless zero was asked for.

        total: the run's steps, which a percentage refers to. Raises: DlrunError where a unit has no meaning here.
        """
        if self.value == 0:
            return 0
        if self.unit == "percent" and total is not None:
            return max(1, math.ceil(self.value / 100 * total - 1e-9))
        if self.unit in ("seconds", "percent"):
            raise DlrunError(f"'{self.text}' cannot be counted in steps here", 'write it in "epochs" or "steps"')
        return max(1, math.ceil(self.value * (per_epoch if self.unit == "epochs" else 1) - 1e-9))

    def __str__(self) -> str:
        return self.text
