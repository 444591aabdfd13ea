"""A deep ensemble: the same config trained with several seeds, averaged."""

from __future__ import annotations

from dataclasses import dataclass

from dlrun.contracts import DataSpec
from dlrun.ensembles._fields import Mean
from dlrun.ensembles.average import Average
from dlrun.errors import DlrunError


def build(spec: DataSpec, *, count: int = 5, together: bool = False) -> Deep | Together:
    """Members are trained here; they differ in their first weights and in the order of the examples.

    Settings:
        count: members, at least 2
        together: train all at once in one run, as the copies of one model: faster for small models, and they then
            differ in their first weights and their dropout alone. A run that was trained with it is taken as it is

    Source: Lakshminarayanan et al. 2017, "Simple and Scalable Predictive Uncertainty Estimation".
    """
    if count < 2:
        raise DlrunError(f"ensemble.count: {count} is not at least 2", "try ensemble.count=5")
    return Together(Mean(), count) if together else Deep(Mean(), count)


@dataclass(frozen=True)
class Deep(Average):
    """See `build`."""

    count: int

    def trainings(self, seed: int, duration: str) -> list[list[str]]:
        """One a seed."""
        return [[f"seed={seed + index}"] for index in range(self.count)]


@dataclass(frozen=True)
class Together(Average):
    """See `build`."""

    members: int

    def trainings(self, seed: int, duration: str) -> list[list[str]]:
        """The one."""
        return [[f"model.copies={self.members}"]]
