"""Monte Carlo dropout: several draws of one model with its dropout left on, averaged."""

from __future__ import annotations

from dataclasses import dataclass

from dlrun.contracts import DataSpec
from dlrun.ensembles._fields import Mean
from dlrun.ensembles.average import Average
from dlrun.errors import DlrunError


def build(spec: DataSpec, *, draws: int = 20) -> MonteCarloDropout:
    """One run, asked several times; where its answers differ it is unsure.

    Settings:
        draws: passes of the model, at least 2

    Source: Gal and Ghahramani 2016, "Dropout as a Bayesian Approximation", section 4.
    """
    if draws < 2:
        raise DlrunError(f"ensemble.draws: {draws} is not at least 2", "try ensemble.draws=20")
    return MonteCarloDropout(Mean(), draws)


@dataclass(frozen=True)
class MonteCarloDropout(Average):
    """See `build`."""

    draws: int
