"""The number by which a user rates an item."""

from __future__ import annotations

from typing import Literal

from dlrun.contracts import DataSpec, Goal
from dlrun.errors import DlrunError
from dlrun.tasks.regression import RegressionTask


def build(spec: DataSpec, *, loss: Literal["mse", "mae", "huber"] = "mse", huber_delta: float = 1.0) -> RegressionTask:
    """Squared, absolute or Huber error of predicted ratings.

    Settings:
        loss: mse (squared errors), mae (absolute errors) or huber (squared near zero, absolute beyond)
        huber_delta: where huber turns from squared to absolute, in units of the ratings, above 0
    """
    if not huber_delta > 0:
        raise DlrunError(f"task.huber_delta: {huber_delta} is not above 0", "try task.huber_delta=1")
    spec.size("users")
    if "targets" not in spec.sizes:
        raise DlrunError("task=rating needs ratings to predict", "data.feedback=explicit, or task=ranking")
    goal = Goal("mae" if loss == "mae" else "rmse", "min")
    return RegressionTask(spec, spec.size("targets"), loss, huber_delta, goal)
