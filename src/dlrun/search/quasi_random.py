"""Quasi-random search: Sobol or Halton points, which leave no large gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import optuna

from dlrun.config.space import Dimension
from dlrun.contracts import Goal
from dlrun.search._keyed import Keyed


def build(
    space: Sequence[Dimension], goals: Sequence[Goal], seed: int, *, sequence: Literal["sobol", "halton"] = "sobol"
) -> optuna.samplers.BaseSampler:
    """Scrambled points of low discrepancy; conditional settings are drawn at random.

    Settings:
        sequence: which points
    Source: Bousquet et al. 2017, "Critical Hyper-Parameters: No Random, No Cry".
    """
    return optuna.samplers.QMCSampler(
        qmc_type=sequence,
        scramble=True,
        seed=seed,
        independent_sampler=Keyed(seed),
        warn_independent_sampling=False,
        warn_asynchronous_seeding=False,
    )
