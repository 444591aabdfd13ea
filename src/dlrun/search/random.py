"""Random search: every trial by itself; what the others must beat."""

from __future__ import annotations

from collections.abc import Sequence

import optuna

from dlrun.config.space import Dimension
from dlrun.contracts import Goal


def build(space: Sequence[Dimension], goals: Sequence[Goal], seed: int) -> optuna.samplers.BaseSampler:
    """Draws each setting evenly, on a log scale where the space says so.

    Source: Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization".
    """
    return optuna.samplers.RandomSampler(seed=seed)
