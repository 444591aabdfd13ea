"""Stochastic weight averaging: the mean of the weights along one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dlrun.contracts import DataSpec
from dlrun.ensembles import _weights
from dlrun.errors import DlrunError


def build(spec: DataSpec, *, last: int = 5, refresh_norms: bool = True) -> StochasticWeightAveraging:
    """The mean of a run's last checkpoints, as one model. Train with train.keep at least as large, and a schedule whose
    learning rate does not end near zero (constant, cyclic).

    Settings:
        last: checkpoints that are averaged, at least 2
        refresh_norms: batch norms get their statistics anew from the training split, as the mean of several is none

    Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization", algorithm 1.
    """
    if last < 2:
        raise DlrunError(f"ensemble.last: {last} is not at least 2", "try ensemble.last=5")
    return StochasticWeightAveraging(last, refresh_norms)


@dataclass(frozen=True)
class StochasticWeightAveraging:
    """See `build`."""

    checkpoints: int
    refresh_norms: bool

    def mix(
        self, members: Sequence[Mapping[str, Tensor]], score: Callable[[Mapping[str, Tensor]], float]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The mean, and {"weights": 1 a checkpoint}."""
        return _weights.mean(members), {"weights": [1] * len(members)}
