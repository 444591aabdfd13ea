"""CMA-ES: an evolving Gaussian, for many trials of numeric settings."""

from __future__ import annotations

from collections.abc import Sequence

import optuna

from dlrun.config.space import Dimension
from dlrun.contracts import Goal
from dlrun.errors import DlrunError
from dlrun.search._checks import at_least, one_goal


def build(
    space: Sequence[Dimension],
    goals: Sequence[Goal],
    seed: int,
    *,
    startup: int = 1,
    population: int | None = None,
    sigma: float | None = None,
) -> optuna.samplers.BaseSampler:
    """Draws from a Gaussian whose mean and covariance follow the good trials; choices are drawn at random.

    Settings:
        startup: trials drawn at random first
        population: trials of a generation; from the number of settings unless set
        sigma: the Gaussian's first width; a sixth of the smallest range unless set
    Source: Hansen 2016, "The CMA Evolution Strategy: A Tutorial".
    """
    one_goal("cmaes", goals)
    at_least("startup", startup, 1)
    try:
        import cmaes  # noqa: F401 - Optuna imports it when the first trial is drawn
    except ImportError as error:
        raise DlrunError("search=cmaes needs cmaes", 'pip install "dlrun[search]"') from error
    return optuna.samplers.CmaEsSampler(
        n_startup_trials=startup, popsize=population, sigma0=sigma, seed=seed, warn_independent_sampling=False
    )
