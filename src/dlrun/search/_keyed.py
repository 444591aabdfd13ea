"""Random draws that depend on the seed and the trial's number alone: the same after a resume, and on any machine."""

from __future__ import annotations

import optuna


class Keyed(optuna.samplers.RandomSampler):
    """Optuna's random sampler, its generator set anew for each trial."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._seed = seed

    def before_trial(self, study, trial) -> None:
        """Begin at the trial's own place."""
        self._rng.rng.seed([self._seed, trial.number])
