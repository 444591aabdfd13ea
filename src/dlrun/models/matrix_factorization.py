"""Matrix factorisation: a user and an item are vectors, and their product is the score (Koren et al. 2009)."""

# B batch, D width

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import _layers, _recommender


class MatrixFactorization(nn.Module):
    """mean + bias of the user + bias of the item + product of their vectors."""

    mean: Tensor

    def __init__(self, given: _recommender.Facts, width: int, std: float, dropout: float) -> None:
        super().__init__()
        self.users = _recommender.embedding(given.num_users, width, std)
        self.items = _recommender.embedding(given.num_items, width, std)
        self.user_bias = _recommender.embedding(given.num_users, 1, 0.0)
        self.item_bias = _recommender.embedding(given.num_items, 1, 0.0)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mean", torch.tensor(given.mean_rating), persistent=False)

    def forward(self, user_B: Tensor, history_BT: Tensor, items: Tensor) -> Tensor:
        """Scores in the form of items: [B, C], [B, T, C], or [I] (then [B, I]). The history is not looked at."""
        said = _recommender.products(self.dropout(self.users(user_B)), self.items(items), items)
        said = said + self.item_bias(items)[..., 0]
        user_bias_B = self.user_bias(user_B)[:, 0]
        return said + self.mean + user_bias_B.view(-1, *(1,) * (said.dim() - 1))


def build(spec: DataSpec, *, width: int = 64, std: float = 0.1, dropout: float = 0.0) -> nn.Module:
    """Biased matrix factorisation.

    Settings:
    width: numbers of a vector, at least 1
    std: deviation that vectors start with, above 0
    dropout: share of a user's vector set to zero while training, in [0, 1)
    """
    _recommender.check_width(width)
    _layers.require(std > 0, "std", std, "a number above 0")
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    return MatrixFactorization(_recommender.facts(spec), width, std, dropout)
