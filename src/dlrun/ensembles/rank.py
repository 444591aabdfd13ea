"""The mean of ranks: for members whose scores lie on different scales."""

# N examples, C classes, Q quantiles

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlrun.contracts import DataSpec, Outputs, Task
from dlrun.ensembles import _fields
from dlrun.errors import DlrunError


def build(spec: DataSpec, *, quantiles: int = 101) -> Rank:
    """A score becomes its place among the validation split's scores of the same member and class; places are averaged.

    Settings:
        quantiles: of the validation scores that are kept, between which places are interpolated, at least 2
    """
    if quantiles < 2:
        raise DlrunError(f"ensemble.quantiles: {quantiles} is not at least 2", "try ensemble.quantiles=101")
    return Rank(quantiles)


@dataclass(frozen=True)
class Rank:
    """See `build`."""

    quantiles: int

    def fit(self, members: Sequence[Outputs], task: Task) -> dict[str, Any]:
        """{"scores": [member][class][quantile]}. Raises: DlrunError for boxes, numbers, and without validation."""
        _fields.require_validation("rank", members)
        _fields.require("rank", members[0], "classes", "labels")
        at_Q = torch.linspace(0, 1, self.quantiles, dtype=torch.float64)
        scores = [torch.quantile(_fields.rows_of(member).values[:100_000], at_Q, dim=0).T for member in members]
        return {"scores": [score_CQ.tolist() for score_CQ in scores]}

    def combine(self, members: Sequence[Outputs], plan: Mapping[str, Any]) -> Outputs:
        """Mean places, brought to a sum of 1 where there is one class; a single member is itself."""
        form, first = _fields.require("rank", members[0], "classes", "labels"), members[0]
        if len(members) == 1:
            return first
        places = [
            _places(member.fields[form.field].double(), torch.tensor(scores, dtype=torch.float64))
            for member, scores in zip(members, plan["scores"], strict=True)
        ]
        mean = torch.stack(places).mean(0).clamp(1e-6, 1 - 1e-6)
        said = (mean / mean.sum(1, keepdim=True)).log() if form.kind == "classes" else mean.logit()
        return Outputs(first.ids, first.fields | {form.field: said.to(first.fields[form.field].dtype)})

    def held_out(self, members: Sequence[Outputs], plan: Mapping[str, Any]) -> Outputs:
        """As `combine`."""
        return self.combine(members, plan)


def _places(values: Tensor, scores_CQ: Tensor) -> Tensor:
    """Values [N, C, …] as numbers in [0, 1]: where each lies among its class's scores."""
    flat_CP = values.movedim(1, 0).reshape(len(scores_CQ), -1).contiguous()
    last = scores_CQ.shape[1] - 1
    above_CP = torch.searchsorted(scores_CQ.contiguous(), flat_CP).clamp(1, last)
    low_CP, high_CP = scores_CQ.gather(1, above_CP - 1), scores_CQ.gather(1, above_CP)
    within_CP = ((flat_CP - low_CP) / (high_CP - low_CP).clamp(min=1e-12)).clamp(0, 1)
    placed = (above_CP - 1 + within_CP) / last
    return placed.reshape(values.movedim(1, 0).shape).movedim(0, 1)
