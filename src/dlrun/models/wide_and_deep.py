"""Wide & deep: a linear model on categories and pairs of them, added to a perceptron (Cheng et al. 2016)."""

# B batch, F numbers of a row, M categories of a row, P crossed pairs, K outputs

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError, did_you_mean
from dlrun.models import _layers, _tabular
from dlrun.models.tabular_linear import TabularLinear
from dlrun.models.tabular_mlp import TabularMlp

_PRIME = 1_000_003  # spreads the values of a pair over the buckets


class Crosses(nn.Module):
    """A weight for each pair of values of two categories; where there are more pairs than buckets, some share one."""

    left: Tensor
    right: Tensor
    offsets: Tensor

    def __init__(self, pairs: list[tuple[int, int]], buckets: int, num_outputs: int) -> None:
        super().__init__()
        left, right = (torch.tensor(side) for side in zip(*pairs, strict=True))
        self.buckets = buckets
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.register_buffer("offsets", torch.arange(len(pairs)) * buckets, persistent=False)
        self.embedding = nn.Embedding(len(pairs) * buckets, num_outputs)
        nn.init.zeros_(self.embedding.weight)

    def forward(self, categories_BM: Tensor) -> Tensor:
        """[B, K]."""
        mixed_BP = categories_BM[:, self.left] * _PRIME + categories_BM[:, self.right]
        return self.embedding(mixed_BP % self.buckets + self.offsets).sum(1)


class WideAndDeep(nn.Module):
    """The sum of what the two sides say."""

    def __init__(self, deep: TabularMlp, wide: TabularLinear, crosses: Crosses | None) -> None:
        super().__init__()
        self.deep, self.wide, self.crosses = deep, wide, crosses

    def forward(self, numbers_BF: Tensor, categories_BM: Tensor) -> Tensor:
        """[B, K]."""
        deep = self.deep
        said_BK = deep.head.linear(deep.hidden(deep.row(numbers_BF, categories_BM)))
        said_BK = said_BK + self.wide.added(numbers_BF, categories_BM)
        if self.crosses is not None:
            said_BK = said_BK + self.crosses(categories_BM)
        return deep.head.units(said_BK)


def build(
    spec: DataSpec,
    *,
    depth: int = 2,
    width: int = 256,
    embedding_width: int = 8,
    dropout: float = 0.1,
    crosses: list | None = None,
    buckets: int = 10000,
) -> nn.Module:
    """A linear model beside a perceptron, trained together.

    Settings:
    depth: number of hidden layers of the deep side, at least 0
    width: units of each hidden layer, at least 1
    embedding_width: numbers that stand for a category on the deep side, at least 1
    dropout: share of hidden units set to zero while training, in [0, 1)
    crosses: pairs of categories that the wide side looks at together, e.g. [[occupation,education]]
    buckets: weights for each pair, at least 1
    """
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    _layers.require(depth >= 0, "depth", depth, "an integer of at least 0")
    _layers.require(width >= 1, "width", width, "an integer of at least 1")
    _layers.require(buckets >= 1, "buckets", buckets, "an integer of at least 1")
    _tabular.check_width(embedding_width)
    _tabular.facts(spec)
    pairs = [_pair(spec, pair) for pair in crosses or []]
    deep = TabularMlp(spec, embedding_width, (width,) * depth, "none", dropout)
    return WideAndDeep(deep, TabularLinear(spec), Crosses(pairs, buckets, spec.num_outputs) if pairs else None)


def _pair(spec: DataSpec, pair: object) -> tuple[int, int]:
    """The places of two categories. Raises: DlrunError for what is no pair, or no category."""
    known: list[str] = list(spec.assets["category_columns"])
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise DlrunError(f"model.crosses: {pair!r} is no pair of categories", "'model.crosses=[[FIRST,SECOND]]'")
    for name in pair:
        if name not in known:
            raise DlrunError(f"model.crosses: '{name}' is no category of the data", did_you_mean(str(name), known))
    return known.index(pair[0]), known.index(pair[1])
