"""Gaussian process: for few, costly trials of mostly numeric settings."""

from __future__ import annotations

from collections.abc import Sequence

import optuna

from dlrun.config.space import Dimension
from dlrun.contracts import Goal
from dlrun.search._checks import at_least


def build(
    space: Sequence[Dimension],
    goals: Sequence[Goal],
    seed: int,
    *,
    startup: int = 10,
    deterministic: bool = False,
) -> optuna.samplers.BaseSampler:
    """Draws at random first, then where the process expects the greatest improvement.

    Settings:
        startup: trials drawn at random before the model is used
        deterministic: trust every value fully, as if training had no noise
    Source: Snoek et al. 2012, "Practical Bayesian Optimization of Machine Learning Algorithms".
    """
    at_least("startup", startup, 1)
    return optuna.samplers.GPSampler(
        n_startup_trials=startup, deterministic_objective=deterministic, seed=seed, warn_independent_sampling=False
    )
