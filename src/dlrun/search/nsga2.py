"""NSGA-II: several objectives at once, towards their Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

import optuna

from dlrun.config.space import Dimension
from dlrun.contracts import Goal
from dlrun.errors import DlrunError
from dlrun.search._checks import at_least


def build(
    space: Sequence[Dimension],
    goals: Sequence[Goal],
    seed: int,
    *,
    population: int = 20,
    crossover: float = 0.9,
) -> optuna.samplers.BaseSampler:
    """Generations of trials, sorted by how many others beat them in every objective.

    Settings:
        population: trials of a generation, at least 2
        crossover: probability that a trial mixes two parents, 0 to 1
    Source: Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II".
    """
    at_least("population", population, 2)
    if not 0 <= crossover <= 1:
        raise DlrunError(f"search.crossover: {crossover} is not in [0, 1]")
    return optuna.samplers.NSGAIISampler(population_size=population, crossover_prob=crossover, seed=seed)
