"""Greedy selection with replacement: members are added one by one, always the one that helps most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dlrun.contracts import DataSpec, Outputs, Task
from dlrun.ensembles import _fields
from dlrun.ensembles._boxes import Fusion
from dlrun.ensembles._fields import Mean
from dlrun.ensembles.average import Average
from dlrun.errors import DlrunError
from dlrun.metrics.scoring import goodness


def build(
    spec: DataSpec,
    *,
    rounds: int = 20,
    of: Literal["probabilities", "logits", "geometric"] = "probabilities",
    boxes: Literal["fusion", "nms"] = "fusion",
    overlap: float = 0.55,
) -> Greedy:
    """Begins with the best member and adds members, some of them several times; the best mean on the way is taken.

    So it is at least as good on the validation split as the best member. Of what is equally good by the task's goal,
    the likelier.

    Settings:
        rounds: members in the mean, at most, counted as often as they were added, at least 1
        of: what is averaged: probabilities, or logits; the geometric mean of probabilities is that of logits
        boxes: fusion averages boxes of several members that overlap, nms keeps the surest of them
        overlap: intersection over union from which boxes are taken for one

    Source: Caruana et al. 2004, "Ensemble Selection from Libraries of Models", sections 2 and 2.2.
    """
    if rounds < 1:
        raise DlrunError(f"ensemble.rounds: {rounds} is not at least 1", "try ensemble.rounds=20")
    return Greedy(Mean(of, Fusion(boxes, overlap)), rounds)


@dataclass(frozen=True)
class Greedy(Average):
    """See `build`."""

    rounds: int

    def fit(self, members: Sequence[Outputs], task: Task) -> dict[str, Any]:
        """{"weights": how often each is in the mean, "order": as they were added, "path": the goal on the way}."""
        _fields.require_validation("greedy", members)

        def worth(counts: Sequence[int]) -> tuple[float, float]:
            mean = self.mean(members, counts)
            losses = _fields.losses(mean)
            return goodness(task, mean), 0.0 if losses is None else -float(losses.mean())

        counts, order, path = [0] * len(members), [], []
        best, taken = (float("-inf"), float("-inf")), 0
        for _ in range(self.rounds):
            tried = [(worth([n + (i == index) for i, n in enumerate(counts)]), -index) for index in range(len(members))]
            value, chosen = max(tried)
            counts[-chosen] += 1
            order.append(-chosen)
            path.append(value[0])
            if value > best:
                best, taken = value, len(order)
        kept = order[:taken] or [0]
        return {"weights": [kept.count(index) for index in range(len(members))], "order": kept, "path": path[:taken]}
