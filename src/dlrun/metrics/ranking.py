"""Metrics of ranking: how high the item that was right stands among others."""

# N examples, C candidates

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlrun.contracts import Outputs
from dlrun.metrics.reduce import Sums


class Ranking:
    """hr_k (share of examples whose true item is among the first k), ndcg_k (the mean of 1 / log2(1 + rank) of those)
    and mrr (the mean of 1 / rank); of one true item each, so that the best DCG is 1.

    field: of the outputs, "scores" [N, C], the true item's first, or "rank" [N], from 1.   suffix: of the names.
    How many of scores there were is in `tables`: a number among few is not one among all.
    Outputs without the field count for nothing.
    Source: He et al. 2017, "Neural Collaborative Filtering", section 4.1; Kang and McAuley 2018, section IV-C.
    """

    def __init__(self, ks: Sequence[int], field: str = "scores", suffix: str = "") -> None:
        self._ks, self._field, self._suffix = tuple(ks), field, suffix
        self._sums = Sums(2 + 2 * len(self._ks))  # examples, reciprocal ranks, then hits and gains of each k
        self._num_others = 0  # that the true item was ranked among, where there were scores

    def update(self, outputs: Outputs) -> None:
        """Add a batch's sums."""
        if self._field not in outputs.fields:
            return
        given = outputs.fields[self._field]
        self._num_others = given.shape[1] - 1 if given.dim() == 2 else 0
        rank_N = (rank_of_first(given) if given.dim() == 2 else given).double()
        gain_N = 1 / torch.log2(1 + rank_N)
        sums = [torch.ones_like(rank_N).sum(), (1 / rank_N).sum()]
        for k in self._ks:
            sums += [(rank_N <= k).double().sum(), gain_N[rank_N <= k].sum()]
        self._sums.add(torch.stack(sums))

    def state(self) -> list[Tensor]:
        """The sums."""
        return [self._sums.on_cpu()]

    def compute(self) -> dict[str, float]:
        """NaN where nothing was counted."""
        count, reciprocal, *hits = (self._sums.on_cpu()).tolist()
        mean = (lambda total: total / count) if count else (lambda _: float("nan"))
        values = {"mrr": mean(reciprocal)}
        for index, k in enumerate(self._ks):
            values |= {f"hr_{k}": mean(hits[2 * index]), f"ndcg_{k}": mean(hits[2 * index + 1])}
        return {f"{name}{self._suffix}": value for name, value in values.items()}

    def tables(self) -> dict[str, list]:
        """{"signatures": what the item was ranked among}, where that was a sample."""
        if not self._num_others:
            return {}
        names = ", ".join(name for k in self._ks for name in (f"hr_{k}", f"ndcg_{k}"))
        return {"signatures": [f"{names}, mrr: of each item among itself and {self._num_others:,} sampled ones"]}


def rank_of_first(scores_NC: Tensor) -> Tensor:
    """int64 [N], from 1: the place of the first candidate. One of an equal score stands before it, so that a model that
    says the same of all is not taken for a perfect one."""
    return 1 + (scores_NC[:, 1:] >= scores_NC[:, :1]).sum(1)
