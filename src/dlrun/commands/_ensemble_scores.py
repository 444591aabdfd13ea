"""Numbers on an ensemble and its members, from their predictions alone."""

# M members, P rows of predictions, R resamples

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dlrun.contracts import Outputs, Task
from dlrun.ensembles import _calibration, _fields
from dlrun.errors import DlrunError
from dlrun.metrics.classification import expected_calibration_error
from dlrun.metrics.scoring import goal_value

_CHUNK = 4_000_000  # draws of the bootstrap at a time


def quality(outputs: Outputs, noise: Tensor | None = None, temperature: float | None = None) -> dict[str, float]:
    """nll, brier and ece where they have a meaning, and ece_calibrated, after the temperature.

    noise: of numbers, the variance of each target that the members do not tell.
    """
    try:
        form = _fields.form_of(outputs)
    except DlrunError:
        return {}
    values, truth = (None, None) if form.kind == "boxes" else _fields.rows_of(outputs)
    if values is None or truth is None:
        return {}
    if form.kind == "numbers":
        return {} if noise is None else {"nll": gaussian_nll(outputs, noise)}
    found = {"nll": float(_fields.losses(outputs).mean())}  # type: ignore[union-attr]
    if form.kind == "labels":
        return found | {"brier": float(((values.sigmoid() - truth.double()) ** 2).mean())}
    wanted = torch.nn.functional.one_hot(truth.long(), values.shape[1])
    found["brier"] = float(((values.exp() - wanted) ** 2).sum(1).mean())
    found["ece"] = expected_calibration_error(values.softmax(1), truth.long())
    if temperature is not None:
        scaled = _fields.rows_of(_calibration.tempered(outputs, temperature)).values
        found["ece_calibrated"] = expected_calibration_error(scaled.softmax(1), truth.long())
        found["nll_calibrated"] = float(-scaled.gather(1, truth[:, None].long()).mean())
    return found


def gaussian_nll(outputs: Outputs, noise_T: Tensor) -> float:
    """Mean over examples and targets of the negative log-likelihood of a normal distribution around the prediction.

    Its variance is the noise, and the members' own where they differ.
    Source: Lakshminarayanan et al. 2017, section 2.4, equation 1.
    """
    values_PT, truth_PT = _fields.rows_of(outputs)
    assert truth_PT is not None
    variance_PT = noise_T.expand_as(values_PT)
    if "variance" in outputs.fields:
        variance_PT = variance_PT + outputs.fields["variance"].double().flatten(1)
    variance_PT = variance_PT.clamp(min=1e-12)
    error_PT = values_PT - truth_PT.double()
    return float((0.5 * (variance_PT.log() + math.log(2 * math.pi) + error_PT**2 / variance_PT)).mean())


def noise_of(valid: Outputs | None) -> Tensor | None:
    """[T]: the variance of each target that is left when the members' own is taken off; None for what is no number,
    and for scores of items, which have no truth."""
    if valid is None or _kind(valid) != "numbers":
        return None
    values, truth = _fields.rows_of(valid)
    if truth is None:
        return None
    own = valid.fields["variance"].double().flatten(1).mean(0) if "variance" in valid.fields else 0.0
    return (((values - truth.double()) ** 2).mean(0) - own).clamp(min=1e-12)


def _kind(outputs: Outputs) -> str:
    try:
        return _fields.form_of(outputs).kind
    except DlrunError:
        return "sums"


# ---------------------------------------------------------------- members against each other


def rights(outputs: Outputs) -> Tensor | None:
    """[P] float64: 1 where the prediction is right; of numbers the residuals; None where there are no such rows."""
    kind = _kind(outputs)
    if kind in ("boxes", "sums"):
        return None
    values, truth = _fields.rows_of(outputs)
    if truth is None:
        return None
    if kind == "classes":
        return (values.argmax(1) == truth).double()
    if kind == "labels":
        return ((values > 0) == (truth > 0.5)).all(1).double()
    return (values - truth.double()).mean(1)


def disagreement(members: Sequence[Outputs]) -> list[list[float]] | None:
    """[M][M]: the share of rows that two members say differently; of numbers the mean distance."""
    kind = _kind(members[0])
    if kind in ("boxes", "sums"):
        return None
    values = [_fields.rows_of(member).values for member in members]
    if kind == "classes":
        said = [each.argmax(1) for each in values]
        return [[float((one != other).double().mean()) for other in said] for one in said]
    if kind == "labels":
        return [[float(((one > 0) != (other > 0)).double().mean()) for other in values] for one in values]
    return [[float((one - other).abs().mean()) for other in values] for one in values]


def error_correlation(members: Sequence[Outputs]) -> list[list[float]] | None:
    """[M][M]: the correlation of members' errors over rows; 1 where two err alike. Without errors it is 0."""
    found = [rights(member) for member in members]
    if any(each is None for each in found):
        return None
    errors_MP = torch.stack([each for each in found if each is not None])
    errors_MP = errors_MP - errors_MP.mean(1, keepdim=True)
    norms_M = errors_MP.norm(dim=1).clamp(min=1e-12)
    correlation_MM = (errors_MP @ errors_MP.T) / norms_M[:, None] / norms_M
    correlation_MM.fill_diagonal_(1.0)
    return correlation_MM.tolist()


# ---------------------------------------------------------------- the gain


def by_row(task: Task, outputs: Outputs) -> Tensor | None:
    """[P] values whose mean is the task's goal, if it is such a mean."""
    kind = _kind(outputs)
    if kind in ("boxes", "sums"):
        return None
    name = task.goal.metric
    values, truth = _fields.rows_of(outputs)
    if truth is None:
        return None
    found = None
    if name == "accuracy" and kind == "classes":
        found = rights(outputs)
    elif name in ("loss", "mse"):
        found = _fields.losses(outputs)
    elif name == "mae" and kind == "numbers":
        found = (values - truth.double()).abs().mean(1)
    if found is None:
        return None
    is_mean = math.isclose(float(found.mean()), goal_value(task, outputs), rel_tol=1e-4, abs_tol=1e-9)
    return found if is_mean else None


def gain(task: Task, ensemble: Outputs, other: Sequence[Outputs], resamples: int, seed: int) -> dict[str, Any]:
    """By how much the ensemble is better than the mean of others, with a 95 % interval: percentiles of a bootstrap over
    test examples. Of goals that are no mean over examples a tenth of the resamples are drawn, of boxes none.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    sign = 1.0 if task.goal.mode == "max" else -1.0
    value = sign * (goal_value(task, ensemble) - sum(goal_value(task, each) for each in other) / len(other))
    rows = [by_row(task, each) for each in (ensemble, *other)]
    generator = torch.Generator().manual_seed(seed)
    if all(row is not None for row in rows):
        first, *rest = [row for row in rows if row is not None]
        gains_P = sign * (first - torch.stack(rest).mean(0))
        drawn = _means(gains_P, resamples, generator)
    elif _kind(ensemble) == "boxes":
        return {"value": value, "low": None, "high": None, "resamples": 0}
    else:
        drawn = _redrawn(task, ensemble, other, sign, max(10, resamples // 10), generator)
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"value": value, "low": low, "high": high, "resamples": len(drawn)}


def _means(values_P: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    size = len(values_P)
    found, left = [], resamples
    while left:
        count = max(1, min(left, _CHUNK // size))
        found.append(values_P[torch.randint(size, (count, size), generator=generator)].mean(1))
        left -= count
    return torch.cat(found)


def _redrawn(
    task: Task, ensemble: Outputs, other: Sequence[Outputs], sign: float, resamples: int, generator: torch.Generator
) -> Tensor:
    found = []
    for _ in range(resamples):
        rows_N = torch.randint(len(ensemble.ids), (len(ensemble.ids),), generator=generator)
        values = [goal_value(task, _chosen(each, rows_N)) for each in (ensemble, *other)]
        found.append(sign * (values[0] - sum(values[1:]) / len(other)))
    return torch.tensor(found, dtype=torch.float64)


def _chosen(outputs: Outputs, rows_N: Tensor) -> Outputs:
    return Outputs(outputs.ids[rows_N], {name: field[rows_N] for name, field in outputs.fields.items()})


# ---------------------------------------------------------------- cost, and leaving the unsure out


def cheaper(
    task: Task, mean: Callable[[list[int]], Outputs], test_mean: Callable[[list[int]], Outputs], costs: Sequence[float]
) -> dict[str, Any]:
    """Members added one by one, always the one that helps most on validation, and the smallest prefix that keeps 95 %
    of the gain of the best prefix over the best member.

    mean, test_mean: of members by index, on the two splits.   costs: of members, in any unit.
    """
    sign = 1.0 if task.goal.mode == "max" else -1.0
    path: list[dict[str, Any]] = []
    chosen: list[int] = []
    while len(chosen) < len(costs):
        left = [index for index in range(len(costs)) if index not in chosen]
        tried = [(sign * goal_value(task, mean([*chosen, index])), -index) for index in left]
        value, index = max(tried)
        chosen = [*chosen, -index]
        path.append(
            {"members": list(chosen), "valid": sign * value, "test": goal_value(task, test_mean(chosen)),
             "cost": sum(costs[one] for one in chosen)}
        )  # fmt: skip
    values = [sign * step["valid"] for step in path]
    enough = values[0] + 0.95 * (max(values) - values[0])
    place = next(index for index, value in enumerate(values) if value >= enough)
    return {"path": path, "suggested": path[place]["members"]}


def selective(task: Task, outputs: Outputs) -> dict[str, list[float]] | None:
    """The goal over the surest share of the examples, from all of them down to a twentieth.

    Source: El-Yaniv and Wiener 2010, "On the Foundations of Noise-free Selective Classification".
    """
    rows_P, kind = by_row(task, outputs), _kind(outputs)
    if rows_P is None:
        return None
    values = _fields.rows_of(outputs).values
    if kind == "classes":
        sureness_P = values.max(1).values
    elif kind == "labels":
        sureness_P = values.abs().mean(1)
    elif "variance" in outputs.fields:
        sureness_P = -outputs.fields["variance"].double().flatten(1).mean(1)
    else:
        return None
    means_P = rows_P[sureness_P.argsort(descending=True, stable=True)].cumsum(0)
    coverage = [share / 20 for share in range(1, 21)]
    counts = [max(1, round(share * len(rows_P))) for share in coverage]
    return {"coverage": coverage, "goal": [float(means_P[count - 1]) / count for count in counts]}
