"""A mean whose weights are learned on the validation split."""

# M members, P rows of predictions

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlrun.contracts import DataSpec, Outputs, Task
from dlrun.ensembles import _fields
from dlrun.ensembles._fields import Mean
from dlrun.ensembles.average import Average
from dlrun.errors import DlrunError


def build(spec: DataSpec, *, iterations: int = 500) -> Weighted:
    """Weights of at least 0 that sum to 1, under which the validation split is likeliest (or its squared error least).

    Settings:
        iterations: at most so many steps of the search for weights, at least 1
    """
    if iterations < 1:
        raise DlrunError(f"ensemble.iterations: {iterations} is not at least 1", "try ensemble.iterations=500")
    return Weighted(Mean(), iterations)


@dataclass(frozen=True)
class Weighted(Average):
    """See `build`."""

    iterations: int

    def fit(self, members: Sequence[Outputs], task: Task) -> dict[str, Any]:
        """{"weights": one a member}. Raises: DlrunError for boxes, and without a validation split."""
        _fields.require_validation("weighted", members)
        form = _fields.require("weighted", members[0], "classes", "labels", "numbers")
        _fields.require_truth("weighted", members[0], form)
        rows = [_fields.rows_of(member) for member in members]
        values = torch.stack([row.values for row in rows])
        truth = rows[0].truth
        assert truth is not None
        if form.kind == "numbers":
            weights_M = least_squares((values - truth.double()).flatten(1), self.iterations)
        elif form.kind == "classes":
            index_MP1 = truth.long().expand(len(rows), -1)[..., None]
            weights_M = mixture(values.gather(2, index_MP1)[..., 0].exp(), self.iterations)
        else:
            signs = 2 * truth.double() - 1
            weights_M = mixture((values * signs).sigmoid().flatten(1), self.iterations)
        return {"weights": weights_M.tolist()}


def mixture(likelihoods_MP: Tensor, iterations: int) -> Tensor:
    """[M]: the weights on the simplex under which a mixture gives the rows the largest likelihood.

    Expectation-maximization, whose only maximum is the global one, as the logarithm of a mixture is concave in its
    weights. Source: Dempster, Laird and Rubin 1977, section 4.3, with the components fixed.
    """
    weights_M = torch.full((len(likelihoods_MP),), 1 / len(likelihoods_MP), dtype=torch.float64)
    for _ in range(iterations):
        joint_MP = weights_M[:, None] * likelihoods_MP.clamp(min=1e-300)
        following_M = (joint_MP / joint_MP.sum(0)).mean(1)
        following_M /= following_M.sum()
        if (following_M - weights_M).abs().max() < 1e-9:
            return following_M
        weights_M = following_M
    return weights_M


def least_squares(errors_MP: Tensor, iterations: int) -> Tensor:
    """[M]: the weights on the simplex whose mean of these errors has the least square.

    Weight goes from the member that adds most to the square to the one that adds least, as much as is best for these
    two, until all that weigh add the same.
    Source: Lacoste-Julien and Jaggi 2015, "On the Global Linear Convergence of Frank-Wolfe Optimization Variants",
    algorithm 2 (pairwise), on the quadratic form of the errors' second moments.
    """
    moments_MM = errors_MP @ errors_MP.T / errors_MP.shape[1]
    weights_M = torch.full((len(errors_MP),), 1 / len(errors_MP), dtype=torch.float64)
    for _ in range(iterations):
        slope_M = moments_MM @ weights_M
        to, away = int(slope_M.argmin()), int(slope_M.where(weights_M > 0, -torch.inf).argmax())
        curvature = moments_MM[to, to] + moments_MM[away, away] - 2 * moments_MM[to, away]
        step = (slope_M[away] - slope_M[to]) / curvature.clamp(min=1e-300)
        if step < 1e-9:
            break
        step = step.clamp(max=weights_M[away])
        weights_M[to] += step
        weights_M[away] -= step
    return weights_M
