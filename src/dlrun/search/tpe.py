"""Tree-structured Parzen estimator: models where good trials lie; the default."""

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
    candidates: int = 24,
    multivariate: bool = True,
) -> optuna.samplers.BaseSampler:
    """Draws at random first, then where the ratio of the densities of good and of other trials is largest.

    Settings:
        startup: trials drawn at random before the model is used
        candidates: draws among which the best is taken
        multivariate: model settings together rather than one by one
    Source: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section 4.
    """
    at_least("startup", startup, 0)
    at_least("candidates", candidates, 1)
    return optuna.samplers.TPESampler(
        n_startup_trials=startup,
        n_ei_candidates=candidates,
        multivariate=multivariate,
        group=multivariate and any(dimension.when for dimension in space),
        constant_liar=True,  # workers ask before the trials of the others have ended
        seed=seed,
        warn_independent_sampling=False,
    )
