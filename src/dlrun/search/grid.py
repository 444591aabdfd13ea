"""Every combination once: for few settings of few values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna

from dlrun.config.space import Dimension
from dlrun.contracts import Goal
from dlrun.errors import DlrunError
from dlrun.search._checks import at_least

LOST = "lost"  # user attribute of a trial that does not count: its point is free again


def build(
    space: Sequence[Dimension], goals: Sequence[Goal], seed: int, *, points: int = 5
) -> optuna.samplers.BaseSampler:
    """All combinations, in an order drawn from the seed. The sweep ends when they are done.

    Settings:
        points: values that an interval of numbers is cut into, its ends among them
    Raises: DlrunError for a space with conditions: its settings do not combine freely.
    """
    at_least("points", points, 2)
    if conditional := [dimension.key for dimension in space if dimension.when]:
        raise DlrunError(f"search=grid: {conditional[0]} exists for some trials only", "search=tpe or search=random")
    return _Grid({dimension.key: _values(dimension, points) for dimension in space}, seed=seed)


def num_points(sampler: optuna.samplers.BaseSampler) -> int | None:
    """Points of a grid; None for a sampler that has no end."""
    return len(sampler._all_grids) if isinstance(sampler, _Grid) else None


class _Grid(optuna.samplers.GridSampler):
    """Optuna's, but for whose point a trial gets, and without its call of `Study.stop`, which only its own loop may
    make; the sweep counts the points."""

    def before_trial(self, study, trial) -> None:
        """The point of the trial's own number, which two machines cannot both have; beyond the grid, the first point
        that no trial holds, as those before it that were lost hold theirs no longer."""
        others = [
            other
            for other in study._storage.get_all_trials(study._study_id, deepcopy=False)
            if other.number != trial.number and not other.user_attrs.get(LOST)
        ]
        held = {other.system_attrs.get("grid_id", other.number) for other in others}
        free = (point for point in range(len(self._all_grids)) if point not in held)
        point = trial.number if trial.number < len(self._all_grids) else next(free, 0)
        study._storage.set_trial_system_attr(trial._trial_id, "grid_id", point)

    def after_trial(self, study, trial, state, values) -> None:
        """Nothing."""


def _values(dimension: Dimension, points: int) -> list:
    if dimension.kind == "choice":
        return list(dimension.choices)
    low, high = dimension.low, dimension.high
    if dimension.kind == "int" and dimension.step:
        return list(range(int(low), int(high) + 1, dimension.step))
    cuts = np.geomspace(low, high, points) if dimension.log else np.linspace(low, high, points)
    cuts[0], cuts[-1] = low, high  # a power may miss its own end
    if dimension.kind == "int":
        return sorted({round(value) for value in cuts.tolist()})
    return cuts.tolist()
