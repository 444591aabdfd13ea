"""Made hours of heat and load, with days, weeks, a slow drift and noise that lasts: no download."""

from __future__ import annotations

import math

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._series import SeriesInputs, Table, Windows, assemble
from dlrun.errors import DlrunError
from dlrun.randomness import key

_DAY, _WEEK, _YEAR = 24, 24 * 7, 24 * 365
_LASTING = 0.95  # of what noise there was an hour ago


def build(
    tools: Tools,
    *,
    size: int = 4000,
    window: int = 48,
    horizon: int = 12,
    stride: int = 1,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.2,
    wave_seed: int = 0,
) -> Dataset:
    """An hour a row: heat (degrees) has days and a year; load (share) follows the time of day, the weekday and heat
    away from 18 degrees. Both are foretold.

    Settings:
        size: rows.
        window: rows looked back on, at least a day's 24, which is the season.
        horizon: rows ahead that are foretold.
        stride: rows from the beginning of a window to that of the next.
        valid_fraction: share of the rows, before those of test, to choose by, in [0, 1).
        test_fraction: share of the rows, at the end, to score on, in [0, 1).
        wave_seed: chooses the noise; the same in every run unless set.
    """
    if size < 1:
        raise DlrunError(f"data.size: {size} is not at least 1")
    windows = Windows(window, horizon, stride, _DAY, valid_fraction, test_fraction)
    rng = np.random.default_rng(key("waves", wave_seed) & ((1 << 63) - 1))
    hour_N = np.arange(size)
    day_N = np.sin(2 * math.pi * (hour_N - 9) / _DAY)
    heat_N = 12 + 9 * np.sin(2 * math.pi * hour_N / _YEAR) + 5 * day_N + _lasting(size, 0.5, rng)
    works_N = np.where(hour_N % _WEEK < 5 * _DAY, 1.0, 0.6)
    people_N = works_N * (0.5 + 0.35 * day_N + 0.15 * np.sin(4 * math.pi * (hour_N - 6) / _DAY))
    load_N = 0.4 + 0.4 * people_N + 0.015 * np.abs(heat_N - 18) + _lasting(size, 0.008, rng)
    values = np.stack([heat_N, load_N], axis=1)
    table = Table("waves", ("heat", "load"), values, (0, 1), np.zeros(size, dtype=bool))
    return assemble(table, windows, tools, [])


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on waves."""
    return SeriesInputs(spec)


def _lasting(size: int, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of which most is still there an hour later."""
    noise_N, drawn_N = np.zeros(size), rng.normal(0, deviation, size)
    for row in range(1, size):
        noise_N[row] = _LASTING * noise_N[row - 1] + drawn_N[row]
    return noise_N
