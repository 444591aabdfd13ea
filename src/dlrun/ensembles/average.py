"""The plain mean of all members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dlrun.contracts import DataSpec, Outputs, Task
from dlrun.ensembles._boxes import Fusion
from dlrun.ensembles._fields import Mean


def build(
    spec: DataSpec,
    *,
    of: Literal["probabilities", "logits", "geometric"] = "probabilities",
    boxes: Literal["fusion", "nms"] = "fusion",
    overlap: float = 0.55,
) -> Average:
    """Every member weighs the same.

    Settings:
        of: what is averaged: probabilities, or logits; the geometric mean of probabilities is that of logits
        boxes: fusion averages boxes of several members that overlap, nms keeps the surest of them
        overlap: intersection over union from which boxes are taken for one
    """
    return Average(Mean(of, Fusion(boxes, overlap)))


@dataclass(frozen=True)
class Average:
    """See `build`."""

    mean: Mean

    def fit(self, members: Sequence[Outputs], task: Task) -> dict[str, Any]:
        """Nothing is learned."""
        return {}

    def combine(self, members: Sequence[Outputs], plan: Mapping[str, Any]) -> Outputs:
        """The mean; by the plan's weights, where it has some."""
        return self.mean(members, plan.get("weights") or [1.0] * len(members))

    def held_out(self, members: Sequence[Outputs], plan: Mapping[str, Any]) -> Outputs:
        """As `combine`."""
        return self.combine(members, plan)
