"""A batch ensemble: one training of one model, whose weights several members share."""

from __future__ import annotations

from dataclasses import dataclass

from dlrun.contracts import DataSpec
from dlrun.ensembles._fields import Mean
from dlrun.ensembles.average import Average
from dlrun.errors import DlrunError


def build(spec: DataSpec, *, count: int = 4) -> BatchEnsemble:
    """Members share every weight matrix and differ by two vectors a layer; they are trained here, at one model's cost.

    A batch is shared out among them, so each sees a share of the examples: train longer than one model. For models
    with the setting `members`. A run that was trained with it is taken as it is.

    Settings:
        count: members, at least 2

    Source: Wen et al. 2020, "BatchEnsemble: An Alternative Approach to Efficient Ensemble and Lifelong Learning".
    """
    if count < 2:
        raise DlrunError(f"ensemble.count: {count} is not at least 2", "try ensemble.count=4")
    return BatchEnsemble(Mean(), count)


@dataclass(frozen=True)
class BatchEnsemble(Average):
    """See `build`."""

    members: int

    def trainings(self, seed: int, duration: str) -> list[list[str]]:
        """The one."""
        return [[f"model.members={self.members}"]]
