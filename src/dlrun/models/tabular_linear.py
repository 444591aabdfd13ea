"""The linear baseline of a table: a weight for each number and for each value of each category."""

# B batch, N numbers of a row, M categories of a row, K outputs

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _tabular


class TabularLinear(nn.Module):
    """Logistic or linear regression on numbers and on categories as indicators; it starts at zero."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        given = _tabular.facts(spec)
        self.weight = nn.Parameter(torch.zeros(spec.num_outputs, given.num_numbers))
        self.bias = nn.Parameter(torch.zeros(spec.num_outputs))
        self.units = _tabular.Units(spec)
        self.categories = None
        if given.cardinalities:
            self.categories = _tabular.Categories(given.cardinalities, spec.num_outputs)
            nn.init.zeros_(self.categories.embedding.weight)

    def forward(self, numbers_BN: Tensor, categories_BM: Tensor) -> Tensor:
        """[B, K]."""
        return self.units(self.added(numbers_BN, categories_BM))

    def added(self, numbers_BN: Tensor, categories_BM: Tensor) -> Tensor:
        """[B, K] before the units of the targets."""
        said_BK = F.linear(numbers_BN, self.weight, self.bias)
        return said_BK if self.categories is None else said_BK + torch.sum(self.categories(categories_BM), dim=1)


def build(spec: DataSpec) -> nn.Module:
    """Logistic regression on a table (of numbers to predict: linear regression), the place to start."""
    return TabularLinear(spec)
