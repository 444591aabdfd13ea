"""A model soup: members of one architecture become one model, whose weights are the mean of theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from dlrun.contracts import DataSpec
from dlrun.ensembles import _weights


def build(spec: DataSpec, *, recipe: Literal["uniform", "greedy"] = "uniform", refresh_norms: bool = True) -> Soup:
    """Weights are averaged, not predictions: the result costs what one member costs. For members that began at the same
    weights (fine-tuned from one model, LoRA), or lie on one path; others lie too far apart.

    Settings:
        recipe: uniform: all members; greedy: from the best on, those that do no harm on the validation split
        refresh_norms: batch norms get their statistics anew from the training split, as the mean of several is none

    Source: Wortsman et al. 2022, "Model soups", recipe 1.
    """
    return Soup(recipe, refresh_norms)


@dataclass(frozen=True)
class Soup:
    """See `build`."""

    recipe: Literal["uniform", "greedy"]
    refresh_norms: bool

    def mix(
        self, members: Sequence[Mapping[str, Tensor]], score: Callable[[Mapping[str, Tensor]], float]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The mean, and {"weights": 1 or 0 a member}."""
        if self.recipe == "uniform":
            return _weights.mean(members), {"weights": [1] * len(members)}
        alone = [score(member) for member in members]
        order = sorted(range(len(members)), key=lambda index: -alone[index])
        kept, best = [order[0]], alone[order[0]]
        for index in order[1:]:
            value = score(_weights.mean([members[other] for other in (*kept, index)]))
            if value >= best:
                kept, best = [*kept, index], value
        weights = [int(index in kept) for index in range(len(members))]
        return _weights.mean([members[index] for index in kept]), {"weights": weights, "scores": alone}
