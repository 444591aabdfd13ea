"""Bagging: the same config trained on resampled training examples, averaged."""

from __future__ import annotations

from dataclasses import dataclass

from dlrun.contracts import DataSpec
from dlrun.ensembles._fields import Mean
from dlrun.ensembles.average import Average
from dlrun.errors import DlrunError


def build(spec: DataSpec, *, count: int = 5) -> Bagging:
    """Members are trained here, each on as many training examples as there are, drawn with replacement.

    Settings:
        count: members, at least 2

    Source: Breiman 1996, "Bagging predictors".
    """
    if count < 2:
        raise DlrunError(f"ensemble.count: {count} is not at least 2", "try ensemble.count=5")
    return Bagging(Mean(), count)


@dataclass(frozen=True)
class Bagging(Average):
    """See `build`."""

    count: int

    def trainings(self, seed: int, duration: str) -> list[list[str]]:
        """One a seed, which draws the examples too."""
        return [[f"seed={seed + index}", f"data.bootstrap={seed + index}"] for index in range(self.count)]
