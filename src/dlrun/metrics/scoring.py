"""A task's metrics of Outputs that are there already."""

from __future__ import annotations

from dlrun.contracts import Outputs, Task
from dlrun.errors import DlrunError


def scores(task: Task, outputs: Outputs) -> dict[str, float]:
    """All of the task's metrics, by name."""
    values: dict[str, float] = {}
    for metric in task.metrics():
        metric.update(outputs)
        values |= metric.compute()
    return values


def goal_value(task: Task, outputs: Outputs) -> float:
    """The metric that is chased; metrics that come after the one that has it are not computed.

    Raises: DlrunError for a task that does not report its own goal.
    """
    for metric in task.metrics():
        metric.update(outputs)
        values = metric.compute()
        if task.goal.metric in values:
            return values[task.goal.metric]
    raise DlrunError(f"the task does not report '{task.goal.metric}', which is its goal")


def goodness(task: Task, outputs: Outputs) -> float:
    """The goal's value turned so that more is better; minus infinity where it is not a number."""
    value = goal_value(task, outputs)
    if value != value:
        return float("-inf")
    return value if task.goal.mode == "max" else -value
