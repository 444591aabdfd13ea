"""Members vote for a class, a label, or the number in the middle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dlrun.contracts import DataSpec, Outputs, Task
from dlrun.ensembles import _fields
from dlrun.ensembles._fields import Mean
from dlrun.errors import DlrunError


def build(spec: DataSpec, *, ballot: Literal["hard", "soft"] = "hard", smoothing: float = 0.1) -> Vote:
    """Each member has one vote.

    Settings:
        ballot: hard: a whole vote for the likeliest class (of numbers the median); soft: votes shared out as probable
        smoothing: weight of the mean probabilities beside hard votes, in votes, in (0, 1): settles ties, and leaves
            no class without any probability
    """
    if not 0 < smoothing < 1:
        raise DlrunError(f"ensemble.smoothing: {smoothing} is not between 0 and 1", "try ensemble.smoothing=0.1")
    return Vote(ballot, smoothing)


@dataclass(frozen=True)
class Vote:
    """See `build`."""

    ballot: Literal["hard", "soft"]
    smoothing: float

    def fit(self, members: Sequence[Outputs], task: Task) -> dict[str, Any]:
        """Nothing is learned."""
        for member in members[:1]:
            _fields.require("vote", member, "classes", "labels", "numbers")
        return {}

    def combine(self, members: Sequence[Outputs], plan: Mapping[str, Any]) -> Outputs:
        """Shares of the votes as probabilities; a single member is itself."""
        form = _fields.require("vote", members[0], "classes", "labels", "numbers")
        mean = Mean()(members, [1.0] * len(members))
        if self.ballot == "soft" or len(members) == 1:
            return mean
        values = torch.stack([member.fields[form.field] for member in members])
        if form.kind == "numbers":
            return Outputs(mean.ids, mean.fields | {form.field: values.quantile(0.5, dim=0)})
        if form.kind == "classes":
            votes = torch.zeros_like(values[0], dtype=torch.float32)
            for said in values:
                votes.scatter_add_(1, said.argmax(1, keepdim=True), torch.ones_like(votes[:, :1]))
            expected = mean.fields[form.field].float().exp()
        else:
            votes, expected = (values > 0).float().sum(0), mean.fields[form.field].float().sigmoid()
        shares = (votes + self.smoothing * expected) / (len(members) + self.smoothing)
        said = shares.log() if form.kind == "classes" else shares.logit(eps=1e-7)
        return Outputs(mean.ids, mean.fields | {form.field: said.to(values.dtype)})

    def held_out(self, members: Sequence[Outputs], plan: Mapping[str, Any]) -> Outputs:
        """As `combine`."""
        return self.combine(members, plan)
